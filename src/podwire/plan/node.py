"""A node's whole plan: this node's own entries, and those for each of its peers and pods.

Desired state is kept by the object that caused it, so that a change of one Node object re-plans
that node's entries only, however many peers there are. Which wiring and which transport it is, is
looked up in the fabric. Pure: values in, entries out.
"""

from __future__ import annotations

from collections.abc import Iterable

from podwire.model.cluster import (
    Attachment,
    ClusterView,
    NetworkConfig,
    Node,
    PodPlace,
    Underlay,
)
from podwire.model.fabric import Fabric
from podwire.model.state import NFT_TABLE, Desired, Entry, IPNetwork, NftTable, Why, within
from podwire.model.tunnel import OVERHEAD_ENCRYPTED
from podwire.plan import guard, isolation, masquerade, spoofing
from podwire.plan.claims import Claims
from podwire.plan.transport import auto, direct, l2_vxlan, transport_of
from podwire.plan.wiring import plan_attachment, wiring_of


def cause_of_node(name: str) -> str:
    """The key of a node's entries in `Desired.by_cause`."""
    return f"Node/{name}"


def cause_of_attachment(attachment: Attachment) -> str:
    """The key of a pod interface's entries in `Desired.by_cause`."""
    return f"Attachment/{attachment.container_id}/{attachment.ifname}"


def cause_of_pod(pod: str) -> str:
    """The key of a remote pod's entries in `Desired.by_cause`; `pod` is namespace/name."""
    return f"Pod/{pod}"


def pod_mtu(fabric: Fabric, underlay: Underlay) -> int:
    """The largest packet of a pod that fits into the underlay, whatever way it takes.

    Over an underlay of both families the larger header counts, since pods' packets of both have
    one size.
    """
    module = auto if fabric.cross_subnet else transport_of(fabric)
    added = max(module.overhead(ip.version) for ip in underlay.ips)
    fitting = underlay.mtu - added - (OVERHEAD_ENCRYPTED if fabric.encrypt else 0)
    return min(fitting, fabric.mtu) if fabric.mtu is not None else fitting


def plan_self(config: NetworkConfig) -> tuple[Entry, ...]:
    """What this node holds for its own sake: bridge, transport devices, nft tables."""
    return (
        # First: in a fabric of one segment the transport's device becomes a port of the bridge.
        *wiring_of(config.fabric).plan_node(config),
        *transport_of(config.fabric).plan_node(config),
        *plan_tables(config),
    )


def plan_tables(config: NetworkConfig) -> tuple[NftTable, ...]:
    """The nft tables: what tunnels, pods' ports, isolation and masquerade need."""
    sets, chains = masquerade.plan_chains(config)
    inet = NftTable(
        name=NFT_TABLE,
        sets=sets,
        open_sets=(*guard.open_sets(config), *spoofing.open_sets(config)),
        counters=(
            *guard.counters(config),
            *spoofing.counters(config),
            *isolation.counters(config),
        ),
        chains=(
            *guard.plan_chains(config),
            *spoofing.plan_chains(config),
            *isolation.plan_chains(config),
            *chains,
        ),
        why=Why(f"Node/{config.node}", "filters and translates for its pods"),
    )
    return (inet, *spoofing.plan_bridge_table(config))


def plan_peer(
    config: NetworkConfig, peer: Node, claims: Claims | None = None, *, blocked: bool = False
) -> tuple[Entry, ...]:
    """What this node holds to reach `peer`; nothing where there are `objections` to its lease.

    `blocked`: VXLAN is seen not to get through to it.
    """
    if peer.lease is None or objections(config, peer, claims):
        return ()
    guards = guard.plan_peer(config, peer)
    if config.fabric.transport == "auto":
        return (*guards, *auto.plan_peer(config, peer, blocked=blocked))
    return (*guards, *transport_of(config.fabric).plan_peer(config, peer))


def plan_pod(config: NetworkConfig, place: PodPlace, peer: Node | None) -> tuple[Entry, ...]:
    """What this node holds to reach one pod of another node, `peer`, in a fabric of one segment."""
    if not config.fabric.is_one_segment or place.node == config.node or peer is None:
        return ()
    return l2_vxlan.plan_pod(config, place, peer)


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
        if not any(within(subnet, network) for network in config.network):
            found.append(f"node {peer.name} leases {subnet}, outside of the cluster network")
        if config.fabric.ipam == "node-subnet" and subnet.prefixlen == subnet.max_prefixlen:
            found.append(f"node {peer.name} leases {subnet}, a single address and no subnet")
        if any(_takes(config.fabric, subnet, own) for own in config.lease.subnets):
            found.append(f"node {peer.name} leases {subnet}, which overlaps this node's own")
    own_ips = {endpoint.ip for endpoint in config.lease.endpoints}
    found += [
        f"node {peer.name} claims this node's address {endpoint.ip}"
        for endpoint in lease.endpoints
        if endpoint.ip in own_ips
    ]
    found += transport_of(config.fabric).objections(config, peer)
    return found + (claims.disputes(peer, config.network) if claims is not None else [])


def unreached(config: NetworkConfig, peer: Node, claims: Claims | None = None) -> list[str]:
    """Which of a peer's pods are not reached although its lease is used: one sentence for each IP
    version that stays behind. A tunnel carries both, or none."""
    if config.fabric.transport != "direct" or objections(config, peer, claims):
        return []
    return list(direct.unreached(config, peer).values())


def _takes(fabric: Fabric, subnet: IPNetwork, own: IPNetwork) -> bool:
    """Whether a peer's subnet takes addresses of this node's. Blocks lend single ones."""
    if not subnet.overlaps(own):
        return False
    lent = fabric.ipam == "blocks" and subnet != own
    return not (lent and any(one.prefixlen == one.max_prefixlen for one in (subnet, own)))


def plan(view: ClusterView, attachments: Iterable[Attachment] = ()) -> Desired:
    """All that this node's kernel should hold."""
    config = view.config
    by_cause = {cause_of_node(config.node): plan_self(config)}
    peers = {name: node for name, node in view.nodes.items() if name != config.node}
    claims = Claims(peers.values())
    for name, node in peers.items():
        if entries := plan_peer(config, node, claims, blocked=name in view.blocked):
            by_cause[cause_of_node(name)] = entries
    for pod, place in view.pods.items():
        if entries := plan_pod(config, place, peers.get(place.node)):
            by_cause[cause_of_pod(pod)] = entries
    for attachment in attachments:
        by_cause[cause_of_attachment(attachment)] = plan_attachment(config, attachment).host
    return Desired(by_cause)
