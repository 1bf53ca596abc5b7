"""The underlay: which link carries the traffic between nodes, its addresses, its MTU, and which
networks are layer-2 neighbours there."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import msgspec

from podwire.kernel import messages
from podwire.kernel.link_messages import LinkState
from podwire.kernel.link_queries import links
from podwire.kernel.netlink import NetlinkSocket, parse_attrs
from podwire.model.cluster import Underlay
from podwire.model.state import IPAddress, IPNetwork

#: IPv6 addresses that peers can't rely on: made up for a while, running out, or not yet ours.
_FLEETING = (
    messages.IFA_F_TEMPORARY
    | messages.IFA_F_DEPRECATED
    | messages.IFA_F_TENTATIVE
    | messages.IFA_F_DADFAILED
)
_LINK_LOCAL = ip_network("fe80::/10")


class _Held(msgspec.Struct, frozen=True):
    """A global address that a link has; `fixed` is for good, and not for a lifetime."""

    index: int
    ip: IPAddress
    fixed: bool


def find_underlay(
    sock: NetlinkSocket, candidates: Sequence[IPAddress], iface: str | None = None
) -> Underlay | str:
    """The link to use, or a sentence that says why there is none (yet).

    `iface`, a name or an address, decides if given; else the first of `candidates` (the node's
    own addresses, as the cluster knows them) that a link has; else the default route's link.

    The other family's address is a candidate too, or the first that the link has; a node that is
    known by IPv6 addresses alone has no other one.
    """
    by_name = links(sock)
    held = _addresses(sock)
    chosen = _choose(sock, by_name, held, candidates, iface)
    if isinstance(chosen, str):
        return chosen
    link = next(one for one in by_name.values() if one.index == chosen.index)
    ip, ip6 = _families(chosen, held, candidates)
    return Underlay(dev=link.name, ip=ip, mtu=link.mtu, ip6=ip6, on_link=_on_link(sock, link.index))


def _choose(
    sock: NetlinkSocket,
    by_name: dict[str, LinkState],
    held: Sequence[_Held],
    candidates: Sequence[IPAddress],
    iface: str | None,
) -> _Held | str:
    """The address that decides which link it is."""
    if iface is not None:
        if iface in by_name:
            return _first(by_name[iface], held)
        found = next((one for one in held if str(one.ip) == iface), None)
        return found or f"no link is named {iface} or has that address"
    for candidate in candidates:
        if found := next((one for one in held if one.ip == candidate), None):
            return found
    index = _default_route(sock)
    for link in by_name.values():
        if link.index == index:
            return _first(link, held)
    wanted = ", ".join(map(str, candidates)) or "the node (it reports none yet)"
    return f"no link has an address of {wanted}, and there is no default route"


def _families(
    chosen: _Held, held: Sequence[_Held], candidates: Sequence[IPAddress]
) -> tuple[IPAddress, IPAddress | None]:
    """The link's addresses: the only one, or that of IPv4 and that of IPv6."""
    others = [
        one.ip for one in held if one.index == chosen.index and one.ip.version != chosen.ip.version
    ]
    known = [ip for ip in candidates if ip in others]
    if chosen.ip.version == 6:
        return (known[0], chosen.ip) if known else (chosen.ip, None)
    return chosen.ip, next(iter([*known, *others]), None)


def _addresses(sock: NetlinkSocket) -> list[_Held]:
    """Those of IPv6 in an order that does not depend on when they were added."""
    found = []
    for body in sock.dump(messages.RTM_GETADDR, messages.get_addresses()):
        key, scope = messages.parse_address(body)
        flags = messages.address_flags(body)
        if scope != messages.RT_SCOPE_UNIVERSE or (
            key.family == socket.AF_INET6 and flags & _FLEETING
        ):
            continue
        fixed = bool(flags & messages.IFA_F_PERMANENT)
        found.append(_Held(key.ifindex, ip_address(key.ip), fixed))
    of_ipv6 = sorted(
        (one for one in found if one.ip.version == 6), key=lambda one: (not one.fixed, int(one.ip))
    )
    return [*(one for one in found if one.ip.version == 4), *of_ipv6]


def _first(link: LinkState, held: Sequence[_Held]) -> _Held | str:
    # IPv4 first: it is what a cluster's nodes find each other by, unless there is none.
    found = next((one for one in held if one.index == link.index), None)
    return found or f"link {link.name} has no address"


def _on_link(sock: NetlinkSocket, index: int) -> tuple[IPNetwork, ...]:
    """The networks that are reached over a link without a router."""
    found: set[IPNetwork] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        question = messages.get_routes(family, 0, ifindex=index)
        for body in sock.dump(messages.RTM_GETROUTE, question):
            key, value, _, table = messages.parse_route(body)
            direct = value.plain and value.kind == messages.RTN_UNICAST and not value.via
            if direct and value.ifindex == index and table == messages.RT_TABLE_MAIN:
                network = ip_network((key.dst, key.prefixlen))
                # Behind a default route without a next hop is not the same segment.
                if network.prefixlen and not network.overlaps(_LINK_LOCAL):
                    found.add(network)
    return tuple(sorted(found, key=lambda one: (one.version, one.network_address, one.prefixlen)))


def _default_route(sock: NetlinkSocket) -> int | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in sock.dump(messages.RTM_GETROUTE, messages.get_routes(family, 0)):
            key, value, _, table = messages.parse_route(body)
            if key.prefixlen == 0 and table == messages.RT_TABLE_MAIN:
                return value.ifindex or _first_hop(body)
    return None


def _first_hop(body: bytes) -> int | None:
    """The first interface of a multipath route: struct rtnexthop is length, flags, hops, index."""
    hops = parse_attrs(body, 12).get(messages.RTA_MULTIPATH, b"")
    return int.from_bytes(hops[4:8], "little") if len(hops) >= 8 else None
