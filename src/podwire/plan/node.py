"""A node's whole plan: this node's own entries, and those for each of its peers.

Desired state is kept by the object that caused it, so that a change of one Node object re-plans
that node's entries only, however many peers there are. Pure: values in, entries out.
"""

from __future__ import annotations

from collections.abc import Iterable

from podwire.model.cluster import Attachment, ClusterView, NetworkConfig, Node
from podwire.model.state import NFT_TABLE, Desired, Entry, IPNetwork, NftTable, Why
from podwire.plan import masquerade
from podwire.plan.claims import Claims
from podwire.plan.transport import vxlan
from podwire.plan.wiring import bridge


def cause_of_node(name: str) -> str:
    """The key of a node's entries in `Desired.by_cause`."""
    return f"Node/{name}"


def cause_of_attachment(attachment: Attachment) -> str:
    """The key of a pod interface's entries in `Desired.by_cause`."""
    return f"Attachment/{attachment.container_id}/{attachment.ifname}"


def plan_self(config: NetworkConfig) -> tuple[Entry, ...]:
    """What this node holds for its own sake: transport device, bridge, masquerade."""
    return (
        *vxlan.plan_node(config),
        *bridge.plan_node(config),
        plan_table(config),
    )


def plan_table(config: NetworkConfig) -> NftTable:
    """The one nft table, put together from what the transport and masquerade need."""
    sets, chains = masquerade.plan_chains(config)
    return NftTable(
        name=NFT_TABLE,
        sets=sets,
        chains=(*vxlan.plan_chains(config), *chains),
        why=Why(f"Node/{config.node}", "filters and translates for its pods"),
    )


def plan_peer(config: NetworkConfig, peer: Node, claims: Claims | None = None) -> tuple[Entry, ...]:
    """What this node holds to reach `peer`; nothing where there are `objections` to its lease."""
    return () if objections(config, peer, claims) else vxlan.plan_peer(config, peer)


def objections(config: NetworkConfig, peer: Node, claims: Claims | None = None) -> list[str]:
    """Why a peer's lease is not used: one sentence each, empty when it is.

    A lease decides where traffic goes. One outside of the cluster network would take that of the
    internet, one that overlaps this node's own would take that of this node's pods. `claims` are
    those of all peers.
    """
    lease = peer.lease
    if lease is None:
        return []
    found: list[str] = []
    for subnet in lease.subnets:
        if not any(_inside(subnet, network) for network in config.network):
            found.append(f"node {peer.name} leases {subnet}, outside of the cluster network")
        if any(subnet.overlaps(own) for own in config.lease.subnets):
            found.append(f"node {peer.name} leases {subnet}, which overlaps this node's own")
    if lease.public_ip == config.lease.public_ip:
        found.append(f"node {peer.name} claims this node's address {lease.public_ip}")
    found += vxlan.objections(config, peer.name, lease)
    return found + (claims.disputes(peer) if claims is not None else [])


def _inside(subnet: IPNetwork, network: IPNetwork) -> bool:
    return subnet.version == network.version and subnet.subnet_of(network)  # type: ignore[arg-type]


def plan(view: ClusterView, attachments: Iterable[Attachment] = ()) -> Desired:
    """All that this node's kernel should hold."""
    config = view.config
    by_cause = {cause_of_node(config.node): plan_self(config)}
    peers = {name: node for name, node in view.nodes.items() if name != config.node}
    claims = Claims(peers.values())
    for name, node in peers.items():
        if entries := plan_peer(config, node, claims):
            by_cause[cause_of_node(name)] = entries
    for attachment in attachments:
        by_cause[cause_of_attachment(attachment)] = (bridge.plan_port(config, attachment),)
    return Desired(by_cause)
