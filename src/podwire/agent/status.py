"""What an agent says of itself when it is asked how it is (`podwire status`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from podwire.agent.telling import strays
from podwire.model.cluster import NetworkConfig, Node
from podwire.model.fabric import Fabric
from podwire.model.tunnel import PeerStats
from podwire.plan.node import objections, unreached
from podwire.plan.profiles import PROFILES
from podwire.trace.status import NodeStatus, PeerStatus

if TYPE_CHECKING:
    from podwire.agent.daemon import Agent

#: So many unbelieved leases are named one by one.
_NAMED = 5
#: Fields of a fabric that are shown by themselves, or that nobody chooses.
_SHOWN = ("profile", "ipam", "wiring", "transport", "vxlan_dev", "vxlan_dev6")


async def node_status(agent: Agent) -> NodeStatus:
    """This node's state now."""
    network = agent.network
    status = NodeStatus(
        node=agent.config.node_name,
        store=agent.source.title,
        connected=agent.connected,
        held=agent.held,
        network=tuple(map(str, agent.networks)),
        pods=len(agent.pods.attachments),
        problems=tuple(_problems(agent)),
    )
    if network is None:
        return status
    process = agent.peering.tunnel.status
    stats = await agent.peering.tunnel.stats()
    if process is not None and stats is None:
        stuck = f"the UDP tunnel's process {process.pid} does not answer: is it stopped or stuck?"
        status = msgspec.structs.replace(status, problems=(*status.problems, stuck))
    tunnels = {one.name: one for one in stats.peers} if stats is not None else {}
    fabric, underlay = network.fabric, network.underlay
    return msgspec.structs.replace(
        status,
        profile=fabric.profile,
        ipam=fabric.ipam,
        wiring=fabric.wiring,
        transport=fabric.transport,
        anti_spoofing=network.guard if fabric.anti_spoofing else "",
        options=tuple(chosen(fabric)),
        subnets=tuple(map(str, network.lease.subnets)),
        underlay=underlay.dev,
        underlay_ips=tuple(map(str, underlay.ips)),
        underlay_mtu=underlay.mtu,
        mtu=network.mtu,
        tunnel=process,
        peers=tuple(_peers(agent, network, tunnels)),
        drops=await agent.drops.read(),
    )


def chosen(fabric: Fabric) -> Iterator[str]:
    """What is otherwise than in the profile, or in Flannel's, as `name=value`."""
    usual = PROFILES.get(fabric.profile, Fabric())
    for name in fabric.__struct_fields__:
        value = getattr(fabric, name)
        if name not in _SHOWN and value != getattr(usual, name):
            yield f"{name.replace('_', '-')}={str(value).lower()}"


def _problems(agent: Agent) -> Iterator[str]:
    if agent.not_ready is not None:
        yield f"not ready: {agent.not_ready}"
    if not agent.connected:
        yield f"{agent.source.title} is away: changes of other nodes are not followed"
    if agent.held:
        yield "held: the kernel is left as it is"
    if (unwritten := agent.pods.store.unwritten) is not None:
        yield f"what pods gave back is written down once that can be: {unwritten}"
    if agent.network is None:
        return
    problem = agent.peering.tunnel.problem
    if problem is not None and agent.not_ready is None:
        yield problem
    if pods := strays(agent.network, agent.pods.attachments):
        yield f"{', '.join(pods)}: outside of the lease, so that peers do not reach them"
    unused = [
        reason
        for name, node in sorted(agent.nodes.by_name.items())
        if name != agent.network.node
        for why_not in (objections, unreached)
        for reason in why_not(agent.network, node, agent.nodes.claims)
    ]
    yield from unused[:_NAMED]
    if len(unused) > _NAMED:
        yield f"{len(unused) - _NAMED} more leases are not used: see the peers below"


def _peers(
    agent: Agent, network: NetworkConfig, tunnels: Mapping[str, PeerStats]
) -> Iterator[PeerStatus]:
    for name, node in sorted(agent.nodes.by_name.items()):
        if name == network.node or node.lease is None:
            continue
        yield _peer(agent, network, node, tunnels.get(name))


def _peer(agent: Agent, network: NetworkConfig, node: Node, tunnel: PeerStats | None) -> PeerStatus:
    lease = node.lease
    assert lease is not None  # noqa: S101  only those with one are asked about
    return PeerStatus(
        node=node.name,
        subnets=tuple(map(str, lease.subnets)),
        paths=agent.peering.ways(node),
        objections=tuple(objections(network, node, agent.nodes.claims)),
        encrypted=network.fabric.encrypt if tunnel is not None else None,
        handshake_s=tunnel.handshake_s if tunnel is not None else None,
        heard_s=tunnel.heard_s if tunnel is not None else None,
    )
