"""The way to a peer in words: which transport carries this node's packets there, and why.

What `podwire status` and a trace say of a peer; the entries themselves are the transports'. Pure.
"""

from __future__ import annotations

from ipaddress import ip_address

import msgspec

from podwire.model.cluster import NetworkConfig, Node
from podwire.plan import carrier
from podwire.plan.transport import auto, direct


class Path(msgspec.Struct, frozen=True):
    """The way to a peer's pods of one IP version: `kind` (direct, vxlan, l2-vxlan, udp), and why.

    `via` is the peer's address on the underlay, which may be of the other IP version.
    """

    version: int
    kind: auto.Kind
    via: str
    reason: str


def paths(config: NetworkConfig, peer: Node, *, blocked: bool = False) -> tuple[Path, ...]:
    """One a family of the peer's pods that is reached; none without a lease. `blocked`: VXLAN does
    not get through to it."""
    lease = peer.lease
    if lease is None:
        return ()
    found = []
    families = {network.version for network in config.network}
    if config.fabric.transport == "direct":
        families -= direct.unreached(config, peer).keys()
    for version in sorted(families):
        endpoint = carrier.carrier(config, lease, version)
        if endpoint is None:
            continue
        kind, reason = _way(config, peer, version, blocked=blocked)
        if kind == "direct":
            endpoint = lease.endpoint(version) or endpoint
        elif kind in ("l2-vxlan", "udp"):
            # One segment, and one tunnel, for both IP versions.
            endpoint = carrier.carrier(config, lease, config.underlay.ip.version) or endpoint
        found.append(Path(version, kind, str(endpoint.ip), reason))
    return tuple(found)


def over(version: int, via: str) -> str:
    """What is said of a way whose outer packets are of another IP version than the pods'."""
    outer = ip_address(via).version
    return f" over IPv{outer}" if outer != version else ""


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
        }.get(kind, _why_not_direct(config, peer, version))
    if fabric.transport == "vxlan" and fabric.cross_subnet:
        if is_neighbor:
            return "direct", neighbor
        return "vxlan", _why_not_direct(config, peer, version)
    reason = f"the transport of all peers is {fabric.transport}"
    missing = _missing(config, peer, version)
    return fabric.transport, f"{reason}; {missing}" if missing else reason


def _why_not_direct(config: NetworkConfig, peer: Node, version: int) -> str:
    return _missing(config, peer, version) or f"{peer.name} is behind a router"


def _missing(config: NetworkConfig, peer: Node, version: int) -> str:
    """Which of the two nodes the underlay does not carry an IP version to."""
    for name, lease in ((config.node, config.lease), (peer.name, peer.lease)):
        if lease is not None and lease.endpoint(version) is None:
            return f"{name} has no IPv{version} address on the underlay"
    return ""
