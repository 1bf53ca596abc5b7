"""Entries of the kernel's tables found by what a person knows of them: a prefix, an IP, a MAC.

What lives here: looking through whole tables, which takes as long as they are large (some 5 µs an
entry); for a person's question, not for a packet's. What does not: what the kernel would choose
(`lookup`).
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import NamedTuple

from podwire.kernel import messages
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe.lookup_messages import (
    NUD_PERMANENT,
    FibEntry,
    NeighborAnswer,
    get_routes_of_type,
    parse_fib_entry,
    parse_neighbor_answer,
)
from podwire.model.state import IPAddress, IPNetwork

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_PREFIXLEN_AT = 1  # struct rtmsg: family, then the prefix length
_ANY_TYPE = 0
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type


class FdbState(NamedTuple):
    """An entry of a bridge (`dst` empty) or of a VXLAN device: `ifindex` is the port or device."""

    ifindex: int
    mac: bytes
    dst: bytes
    permanent: bool


def routes_of(sock: NetlinkSocket, prefix: IPNetwork) -> list[FibEntry]:
    """All tables' entries for exactly this prefix, the main table's best first."""
    question = get_routes_of_type(_FAMILY[prefix.version], _ANY_TYPE)
    found = [
        parse_fib_entry(body)
        for body in sock.dump(messages.RTM_GETROUTE, question)
        if body[_PREFIXLEN_AT] == prefix.prefixlen
    ]
    same = [one for one in found if one.dst == prefix]
    return sorted(same, key=lambda one: (one.table != messages.RT_TABLE_MAIN, one.metric))


def neighbors_of(sock: NetlinkSocket, which: IPAddress | bytes) -> list[NeighborAnswer]:
    """The ARP and NDP entries of an IP address, or with a MAC, on all interfaces."""
    families = [_FAMILY[which.version]] if not isinstance(which, bytes) else _FAMILY.values()
    found = [
        parse_neighbor_answer(body)
        for family in families
        for body in sock.dump(messages.RTM_GETNEIGH, _everything(family))
    ]
    if isinstance(which, bytes):
        return [one for one in found if one.mac == which]
    return [one for one in found if one.ip == which.packed]


def fdb_of(sock: NetlinkSocket, which: IPAddress | bytes) -> list[FdbState]:
    """The entries of bridges and VXLAN devices for a MAC, or that lead to a VTEP's address."""
    found = []
    for body in sock.dump(messages.RTM_GETNEIGH, _everything(messages.AF_BRIDGE)):
        _, ifindex, state, dst, mac = messages.parse_neighbor(body)
        if (mac == which) if isinstance(which, bytes) else (dst == which.packed):
            found.append(FdbState(ifindex, mac, dst, bool(state & NUD_PERMANENT)))
    return found


def addresses(sock: NetlinkSocket) -> dict[IPAddress, int]:
    """The interface of each address of the namespace."""
    found: dict[IPAddress, int] = {}
    for body in sock.dump(messages.RTM_GETADDR, messages.get_addresses()):
        key, _ = messages.parse_address(body)
        found.setdefault(ip_address(key.ip), key.ifindex)
    return found


def _everything(family: int) -> bytes:
    """The payload of a dump of neighbours of all interfaces."""
    return messages.get_fdb(0) if family == messages.AF_BRIDGE else _NDMSG.pack(family, 0, 0, 0, 0)
