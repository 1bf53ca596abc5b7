"""The way to a peer in words: which transport carries this node's packets there, and why.

What `podwire status` and a trace say of a peer; the entries themselves are the transports'. Pure.
"""

from __future__ import annotations

import msgspec

from podwire.model.cluster import NetworkConfig, Node
from podwire.plan import carrier
from podwire.plan.transport import auto, direct


class Path(msgspec.Struct, frozen=True):
    """The way to a peer's pods of one IP version: `kind` (direct, vxlan, l2-vxlan, udp), and why.

    `via` is the peer's address on the underlay.
    """

    version: int
    kind: auto.Kind
    via: str
    reason: str


def paths(config: NetworkConfig, peer: Node, *, blocked: bool = False) -> tuple[Path, ...]:
    """One a family of the peer's pods; none without a lease. `blocked`: VXLAN doesn't reach it."""
    lease = peer.lease
    if lease is None:
        return ()
    found = []
    families = {network.version for network in config.network}
    for version in sorted(families):
        endpoint = carrier.carrier(config, lease, version)
        if endpoint is None:
            continue
        kind, reason = _way(config, peer, version, blocked=blocked)
        if kind == "direct":
            endpoint = lease.endpoint(version) or endpoint
        elif kind == "l2-vxlan":
            endpoint = lease.endpoint(config.underlay.ip.version) or endpoint
        found.append(Path(version, kind, str(endpoint.ip), reason))
    return tuple(found)


def _way(
    config: NetworkConfig, peer: Node, version: int, *, blocked: bool
) -> tuple[auto.Kind, str]:
    fabric = config.fabric
    is_neighbor = direct.is_neighbor(config, peer, version)
    neighbor = f"{peer.name} is a layer-2 neighbour on {config.underlay.dev}"
    if fabric.transport == "auto":
        kind = auto.kind(config, peer, version, blocked=blocked)
        return kind, {
            "direct": neighbor,
            "udp": f"VXLAN does not get through to {peer.name}",
        }.get(kind, f"{peer.name} is behind a router")
    if fabric.transport == "vxlan" and fabric.cross_subnet:
        if is_neighbor:
            return "direct", neighbor
        return "vxlan", f"{peer.name} is behind a router"
    return fabric.transport, f"the transport of all peers is {fabric.transport}"
