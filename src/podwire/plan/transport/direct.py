"""The direct transport: plain routes over the underlay (Flannel's host-gw, Calico without overlay).

    pod ─ node ─ route SUBNET via NODE_IP dev UNDERLAY ─ underlay, with the pods' own addresses

Nothing is wrapped, so nothing is lost in size or speed; but the next hop has to be a layer-2
neighbour, since no router in between knows the pods' subnets. Pure: values in, entries out.
"""

from __future__ import annotations

from podwire.model.cluster import NetworkConfig, Node
from podwire.model.state import Entry, IPNetwork, NftChain, Route
from podwire.plan import carrier

BACKEND = "host-gw"


def overhead(version: int) -> int:
    """Bytes that are added to each packet."""
    return 0


def plan_node(config: NetworkConfig) -> tuple[Entry, ...]:
    """Nothing of its own."""
    return ()


def plan_chains(config: NetworkConfig) -> tuple[NftChain, ...]:
    """Nothing to guard: pods' packets arrive as anybody's do."""
    return ()


def is_neighbor(config: NetworkConfig, peer: Node, version: int) -> bool:
    """Whether the peer's pods of an IP version can be reached by a plain route."""
    endpoint = peer.lease.endpoint(version) if peer.lease is not None else None
    return endpoint is not None and config.underlay.is_neighbor(endpoint.ip)


def route(config: NetworkConfig, peer: Node, subnet: IPNetwork) -> Route:
    """The route to one subnet of a peer that is a neighbour."""
    endpoint = peer.lease.endpoint(subnet.version) if peer.lease is not None else None
    assert endpoint is not None  # noqa: S101  a neighbour has one
    return Route(
        dst=subnet,
        via=endpoint.ip,
        dev=config.underlay.dev,
        # As Calico writes it, whose nodes may have addresses of host length.
        onlink=config.fabric.wiring == "routed",
        protocol=config.fabric.route_protocol,
        why=carrier.leases(peer.name, subnet),
    )


def unreached(config: NetworkConfig, peer: Node) -> dict[int, str]:
    """The IP versions of the peer's pods that plain routes do not reach, and why."""
    lease = peer.lease
    found: dict[int, str] = {}
    for version in carrier.versions(lease.subnets) if lease is not None else ():
        endpoint = lease.endpoint(version) if lease is not None else None
        if endpoint is None:
            found[version] = (
                f"node {peer.name} has no IPv{version} address to route its pods' through"
            )
        elif not config.underlay.is_neighbor(endpoint.ip):
            on_link = " and ".join(map(str, config.underlay.on_link)) or "no network"
            found[version] = (
                f"node {peer.name} at {endpoint.ip} is no layer-2 neighbour: plain routes reach"
                f" {on_link} on {config.underlay.dev}; use vxlan with cross-subnet, or auto"
            )
    return found


def objections(config: NetworkConfig, peer: Node) -> list[str]:
    """Why a peer can't be reached by plain routes, by no IP version of its pods."""
    lease = peer.lease
    if lease is None:
        return []
    if other := carrier.other_backend(peer.name, lease, BACKEND):
        return other
    found = unreached(config, peer)
    return list(found.values()) if len(found) == len(carrier.versions(lease.subnets)) else []


def plan_peer(config: NetworkConfig, peer: Node) -> tuple[Entry, ...]:
    """One route a subnet, to whose lease there are no `objections`."""
    subnets = peer.lease.subnets if peer.lease is not None else ()
    left_out = unreached(config, peer)
    return tuple(
        route(config, peer, subnet) for subnet in subnets if subnet.version not in left_out
    )
