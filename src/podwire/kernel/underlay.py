"""The underlay: which link carries the traffic between nodes, its address and its MTU."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from podwire.kernel import messages
from podwire.kernel.attach import links
from podwire.kernel.messages import LinkState
from podwire.kernel.netlink import NetlinkSocket, parse_attrs
from podwire.model.cluster import Underlay
from podwire.model.state import IPAddress


def find_underlay(
    sock: NetlinkSocket, candidates: Sequence[IPAddress], iface: str | None = None
) -> Underlay | str:
    """The link to use, or a sentence that says why there is none (yet).

    `iface`, a name or an address, decides if given; else the first of `candidates` (the node's
    own addresses, as the cluster knows them) that a link has; else the default route's link.
    """
    by_name = links(sock)
    by_index = {link.index: link for link in by_name.values()}
    held = _addresses(sock)
    if iface is not None:
        if iface in by_name:
            return _first_address(by_name[iface], held)
        return _holder(iface, held, by_index) or f"no link is named {iface} or has that address"
    for candidate in candidates:
        if found := _holder(str(candidate), held, by_index):
            return found
    index = _default_route(sock)
    if index is None or index not in by_index:
        wanted = ", ".join(map(str, candidates)) or "the node (it reports none yet)"
        return f"no link has an address of {wanted}, and there is no default route"
    return _first_address(by_index[index], held)


def _addresses(sock: NetlinkSocket) -> list[tuple[int, IPAddress]]:
    found = []
    for body in sock.dump(messages.RTM_GETADDR, messages.get_addresses()):
        key, scope = messages.parse_address(body)
        if scope == messages.RT_SCOPE_UNIVERSE:
            found.append((key.ifindex, ip_address(key.ip)))
    return found


def _holder(
    text: str, held: Sequence[tuple[int, IPAddress]], by_index: dict[int, LinkState]
) -> Underlay | None:
    for index, ip in held:
        if str(ip) == text and index in by_index:
            link = by_index[index]
            return Underlay(dev=link.name, ip=ip, mtu=link.mtu)
    return None


def _first_address(link: LinkState, held: Sequence[tuple[int, IPAddress]]) -> Underlay | str:
    mine = [ip for index, ip in held if index == link.index]
    # IPv4 first: it is what a cluster's nodes find each other by, unless there is none.
    for ip in sorted(mine, key=lambda one: one.version):
        return Underlay(dev=link.name, ip=ip, mtu=link.mtu)
    return f"link {link.name} has no address"


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
