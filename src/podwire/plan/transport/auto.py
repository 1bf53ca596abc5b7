"""The auto transport: for each peer what works: direct, else vxlan, else udp.

    direct  the peer is a layer-2 neighbour: a plain route
    vxlan   it is not, and VXLAN gets through (or nobody has seen yet that it does not)
    udp     VXLAN is seen not to get through

All devices are there all the time and so are the entries of the peer's VTEP. The agent asks there
whether VXLAN gets through, by ARP and NDP, which follow no route. So a change of the way replaces
one route a subnet, which takes the VTEP's own address along: a node's own packets have that for a
source, and are answered by the way that is used. What is on its way still arrives.
Pure: values in, entries out.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from podwire.model.cluster import NetworkConfig, Node
from podwire.model.state import (
    Address,
    Entry,
    IPNetwork,
    Link,
    Route,
    Sysctl,
    Why,
)
from podwire.plan import carrier
from podwire.plan.transport import direct, udp, vxlan

BACKEND = "auto"
#: A peer with one of these can be reached, if not in every way.
_BACKENDS = (BACKEND, vxlan.BACKEND)

#: Of rp_filter: a source has to be reachable, by whatever interface (RFC 3704, section 2.4). The
#: stricter setting for all interfaces is overruled by it.
_LOOSE = "2"

Kind: TypeAlias = Literal["direct", "vxlan", "udp", "l2-vxlan"]


def overhead(version: int) -> int:
    """Of the largest that could be used, so that packets fit whatever the way is."""
    return max(vxlan.OVERHEAD[version], udp.OVERHEAD[version])


def plan_node(config: NetworkConfig) -> tuple[Entry, ...]:
    """The devices of both tunnels. The UDP tunnel's takes only what is routed there."""
    link, vteps = udp.device(config), vxlan.plan_node(config)
    addresses = [
        msgspec.structs.replace(one, dev=link.name, why=link.why)
        for one in vteps
        if isinstance(one, Address)
    ]
    # Either end chooses by itself: what one sends by a tunnel, the other may answer by the other.
    loose = [
        Sysctl(
            key=f"net/ipv4/conf/{one.name}/rp_filter",
            value=_LOOSE,
            why=Why(f"Node/{config.node}", "takes peers' packets by whichever tunnel they come"),
        )
        for one in (*vteps, link)
        if isinstance(one, Link)
    ]
    return (*vteps, link, *addresses, *loose)


def objections(config: NetworkConfig, peer: Node) -> list[str]:
    """Why a peer can't be reached in any way."""
    return vxlan.objections(config, peer, backends=_BACKENDS)


def kind(config: NetworkConfig, peer: Node, version: int, *, blocked: bool) -> Kind:
    """The way to a peer's pods of an IP version. `blocked`: VXLAN is seen not to reach it."""
    if direct.is_neighbor(config, peer, version):
        return "direct"
    tunnels = peer.lease is not None and peer.lease.backend == BACKEND
    return "udp" if blocked and tunnels else "vxlan"


def plan_peer(config: NetworkConfig, peer: Node, *, blocked: bool = False) -> tuple[Entry, ...]:
    """The peer's VTEP in any case, and a route a subnet as its way is."""
    lease = peer.lease
    if lease is None:
        return ()
    routes = [_route(config, peer, subnet, blocked=blocked) for subnet in lease.subnets]
    return (*vxlan.plan_vtep(config, peer), *(one for one in routes if one is not None))


def _route(config: NetworkConfig, peer: Node, subnet: IPNetwork, *, blocked: bool) -> Route | None:
    match kind(config, peer, subnet.version, blocked=blocked):
        case "direct":
            return direct.route(config, peer, subnet)
        case "udp":
            return Route(
                dst=subnet,
                dev=config.fabric.udp_dev,
                src=carrier.own_base(config.lease.subnets, subnet.version),
                protocol=config.fabric.route_protocol,
                why=carrier.leases(peer.name, subnet),
            )
        case _:
            return vxlan.route(config, peer, subnet)
