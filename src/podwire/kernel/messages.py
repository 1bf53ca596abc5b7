"""rtnetlink messages: addresses, routes, neighbours and FDB entries to bytes and back.

What lives here: the layouts of include/uapi/linux/{rtnetlink,if_addr,neighbour}.h for the few
attributes that Podwire sets and compares, and all message types. What does not: links
(`link_messages`), sockets, and what to send when.

These kinds come in tens of thousands, so they are pairs of tuples here, not objects: a key, which
is the kernel's own identity of the thing, and a value, the rest that is compared. Addresses are
packed bytes and devices are interface indexes in them.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from podwire.kernel.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    attr,
    attr_u32,
    message,
    parse_attrs,
)
from podwire.model.state import ROUTE_PROTOCOL

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWNETCONF = 80

RTNLGRP_LINK, RTNLGRP_NEIGH = 1, 3
RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE = 5, 7
RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE = 9, 11
RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF = 24, 25

AF_BRIDGE = 7

NETCONFA_IFINDEX = 1
NETCONFA_IFINDEX_ALL = -1

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_TEMPORARY, IFA_F_NODAD, IFA_F_DADFAILED = 0x01, 0x02, 0x08
IFA_F_DEPRECATED, IFA_F_TENTATIVE, IFA_F_PERMANENT = 0x20, 0x40, 0x80

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 9, 15, 18
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 254, 0, 253
RTN_UNICAST, RTN_BLACKHOLE = 1, 6
RTPROT_KERNEL = 2
RTNH_F_ONLINK = 4
#: The metric that the kernel gives IPv6 routes that name none (IP6_RT_PRIO_USER).
IPV6_DEFAULT_METRIC = 1024
#: The metric of the IPv6 routes that it makes itself with addresses (IP6_RT_PRIO_ADDRCONF).
IPV6_CONNECTED_METRIC = 256

NDA_DST, NDA_LLADDR, NDA_VLAN, NDA_IFINDEX, NDA_MASTER = 1, 2, 5, 8, 9
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_SELF, NTF_MASTER = 0x02, 0x04
#: In a VXLAN device's FDB: every MAC without an entry of its own. It may have many entries.
ANY_MAC = bytes(6)

_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_U32 = struct.Struct("=I")
_I32 = struct.Struct("=i")

_SIZE = {socket.AF_INET: 4, socket.AF_INET6: 16}


class AddressKey(NamedTuple):
    ifindex: int
    family: int
    ip: bytes
    prefixlen: int


class RouteKey(NamedTuple):
    family: int
    dst: bytes
    prefixlen: int
    metric: int


class ConnectedKey(NamedTuple):
    """A route that the kernel makes with an address: links may have the same network each."""

    route: RouteKey
    ifindex: int


class RouteValue(NamedTuple):
    """`via` and `src` are empty where there is none; `plain` is False for what we never make.

    A blackhole has no interface, also where the kernel says that it has `lo`.
    """

    ifindex: int
    via: bytes = b""
    src: bytes = b""
    onlink: bool = False
    plain: bool = True
    protocol: int = ROUTE_PROTOCOL
    kind: int = RTN_UNICAST


class NeighborKey(NamedTuple):
    ifindex: int
    family: int
    ip: bytes


class FdbKey(NamedTuple):
    """`dst` is empty, but for `ANY_MAC`, which may have many entries."""

    ifindex: int
    mac: bytes
    dst: bytes = b""


class PortFdbKey(NamedTuple):
    ifindex: int
    mac: bytes


class NeighborState(NamedTuple):
    """A neighbour or FDB entry as the kernel reports it. `master` is a bridge's index where the
    entry is one of that bridge, else 0; of those in a VLAN `vlan` is its number."""

    family: int
    ifindex: int
    state: int
    dst: bytes
    mac: bytes
    master: int = 0
    vlan: int = 0


# --- addresses --------------------------------------------------------------------------------


def get_addresses() -> bytes:
    return _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)


def parse_address(payload: bytes) -> tuple[AddressKey, int]:
    """The key and the scope (0 for a global address)."""
    family, prefixlen, _, scope, index = _IFADDR.unpack_from(payload)
    attrs = parse_attrs(payload, _IFADDR.size)
    ip = attrs.get(IFA_LOCAL) or attrs.get(IFA_ADDRESS, b"")
    return AddressKey(index, family, ip, prefixlen), scope


def address_flags(payload: bytes) -> int:
    """The IFA_F_… of an address."""
    flags: int = payload[2]
    return _u32(parse_attrs(payload, _IFADDR.size).get(IFA_FLAGS)) or flags


def add_address(key: AddressKey) -> bytes:
    flags = IFA_F_NODAD if key.family == socket.AF_INET6 else 0
    body = _address(key, flags)
    if key.family == socket.AF_INET and key.prefixlen < 31:
        host = (1 << (32 - key.prefixlen)) - 1
        broadcast = int.from_bytes(key.ip, "big") | host
        body += attr(IFA_BROADCAST, broadcast.to_bytes(4, "big"))
    return message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_address(key: AddressKey) -> bytes:
    return message(RTM_DELADDR, 0, _address(key, 0))


def _address(key: AddressKey, flags: int) -> bytes:
    head = _IFADDR.pack(key.family, key.prefixlen, flags, RT_SCOPE_UNIVERSE, key.ifindex)
    return head + attr(IFA_LOCAL, key.ip) + attr(IFA_ADDRESS, key.ip)


# --- routes -----------------------------------------------------------------------------------


def get_routes(family: int, protocol: int = ROUTE_PROTOCOL, *, ifindex: int = 0) -> bytes:
    """The payload of a dump of the main table's routes of one protocol (0: of all), and of one
    interface where it is given, filtered by the kernel."""
    head = _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, protocol, 0, 0, 0)
    return head + attr_u32(RTA_OIF, ifindex) if ifindex else head


def parse_route(payload: bytes) -> tuple[RouteKey, RouteValue, int, int]:
    """(key, value, protocol, table)."""
    family, prefixlen, _, tos, table, protocol, _, kind, flags = _RTMSG.unpack_from(payload)
    attrs = parse_attrs(payload, _RTMSG.size)
    key = RouteKey(
        family,
        attrs.get(RTA_DST) or bytes(_SIZE.get(family, 4)),
        prefixlen,
        _u32(attrs.get(RTA_PRIORITY)),
    )
    value = RouteValue(
        0 if kind == RTN_BLACKHOLE else _u32(attrs.get(RTA_OIF)),
        attrs.get(RTA_GATEWAY, b""),
        attrs.get(RTA_PREFSRC, b""),
        bool(flags & RTNH_F_ONLINK),
        not tos and RTA_MULTIPATH not in attrs and RTA_VIA not in attrs,
        protocol,
        kind,
    )
    return key, value, protocol, _u32(attrs.get(RTA_TABLE)) or table


def add_route(key: RouteKey, value: RouteValue, *, replace: bool) -> bytes:
    """Without `replace`, a route that is there already, whosever it is, is left and refused."""
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    return message(RTM_NEWROUTE, flags, _route(key, value))


def add_connected_route(key: ConnectedKey, src: bytes) -> bytes:
    """As the kernel makes it with an address; of several for one network, the first one."""
    return message(RTM_NEWROUTE, NLM_F_CREATE, _route(key.route, _connected(key, src)))


def delete_connected_route(key: ConnectedKey, src: bytes) -> bytes:
    return delete_route(key.route, _connected(key, src))


def _connected(key: ConnectedKey, src: bytes) -> RouteValue:
    return RouteValue(key.ifindex, src=src, protocol=RTPROT_KERNEL)


def delete_route(key: RouteKey, value: RouteValue) -> bytes:
    return message(RTM_DELROUTE, 0, _route(key, value))


def _route(key: RouteKey, value: RouteValue) -> bytes:
    on_link = key.family == socket.AF_INET and not value.via and value.kind == RTN_UNICAST
    head = _RTMSG.pack(
        key.family,
        key.prefixlen,
        0,
        0,
        RT_TABLE_MAIN,
        value.protocol,
        RT_SCOPE_LINK if on_link else RT_SCOPE_UNIVERSE,
        value.kind,
        RTNH_F_ONLINK if value.onlink else 0,
    )
    body = head + attr(RTA_DST, key.dst)
    if value.ifindex:
        body += attr_u32(RTA_OIF, value.ifindex)
    if value.via:
        body += attr(RTA_GATEWAY, value.via)
    if value.src:
        body += attr(RTA_PREFSRC, value.src)
    if key.metric:
        body += attr_u32(RTA_PRIORITY, key.metric)
    return body


# --- neighbours and FDB -----------------------------------------------------------------------


def get_neighbors(family: int, index: int = 0) -> bytes:
    """The payload of a dump of neighbours: of one link, or of all."""
    head = _NDMSG.pack(family, 0, 0, 0, 0)
    return head + attr_u32(NDA_IFINDEX, index) if index else head


def get_fdb(index: int) -> bytes:
    """The payload of a dump of a device's own FDB, and of its bridge's entries that lead to it."""
    return _NDMSG.pack(AF_BRIDGE, index, 0, 0, 0)


def parse_neighbor(payload: bytes) -> tuple[int, int, int, bytes, bytes]:
    """(family, interface index, state, destination, MAC); family AF_BRIDGE is an FDB entry."""
    family, index, state, _, _ = _NDMSG.unpack_from(payload)
    attrs = parse_attrs(payload, _NDMSG.size)
    return family, index, state, attrs.get(NDA_DST, b""), attrs.get(NDA_LLADDR, b"")


def parse_neighbor_state(payload: bytes) -> NeighborState:
    """The same, and where an FDB entry is kept."""
    family, index, state, _, _ = _NDMSG.unpack_from(payload)
    attrs = parse_attrs(payload, _NDMSG.size)
    return NeighborState(
        family,
        index,
        state,
        attrs.get(NDA_DST, b""),
        attrs.get(NDA_LLADDR, b""),
        _u32(attrs.get(NDA_MASTER)),
        int.from_bytes(attrs.get(NDA_VLAN, b""), "little"),
    )


def neighbor_head(payload: bytes) -> tuple[int, int]:
    """(interface index, state) of a neighbour, for telling quickly which ones are of no concern."""
    _, index, state, _, _ = _NDMSG.unpack_from(payload)
    return index, state


def set_neighbor(key: NeighborKey, mac: bytes) -> bytes:
    head = _NDMSG.pack(key.family, key.ifindex, NUD_PERMANENT, 0, 0)
    body = head + attr(NDA_DST, key.ip) + attr(NDA_LLADDR, mac)
    return message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_neighbor(key: NeighborKey) -> bytes:
    head = _NDMSG.pack(key.family, key.ifindex, 0, 0, 0)
    return message(RTM_DELNEIGH, 0, head + attr(NDA_DST, key.ip))


def set_fdb(key: FdbKey, dst: bytes) -> bytes:
    head = _NDMSG.pack(AF_BRIDGE, key.ifindex, NUD_PERMANENT, NTF_SELF, 0)
    body = head + attr(NDA_LLADDR, key.mac) + attr(NDA_DST, dst)
    # Of a MAC with several entries the kernel replaces none.
    flags = NLM_F_CREATE | (NLM_F_APPEND if key.dst else NLM_F_REPLACE)
    return message(RTM_NEWNEIGH, flags, body)


def delete_fdb(key: FdbKey, dst: bytes) -> bytes:
    head = _NDMSG.pack(AF_BRIDGE, key.ifindex, NUD_PERMANENT, NTF_SELF, 0)
    return message(RTM_DELNEIGH, 0, head + attr(NDA_LLADDR, key.mac) + attr(NDA_DST, dst))


def set_port_fdb(key: PortFdbKey) -> bytes:
    """A static entry (NUD_NOARP): those of state NUD_PERMANENT are for the bridge itself."""
    head = _NDMSG.pack(AF_BRIDGE, key.ifindex, NUD_NOARP, NTF_MASTER, 0)
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return message(RTM_NEWNEIGH, flags, head + attr(NDA_LLADDR, key.mac))


def delete_port_fdb(key: PortFdbKey) -> bytes:
    head = _NDMSG.pack(AF_BRIDGE, key.ifindex, NUD_NOARP, NTF_MASTER, 0)
    return message(RTM_DELNEIGH, 0, head + attr(NDA_LLADDR, key.mac))


# --- settings of the network stack ------------------------------------------------------------


def netconf_index(payload: bytes) -> int | None:
    """Whose setting was notified: a link's index, or NETCONFA_IFINDEX_ALL for the stack's own
    (`…/conf/all`, `ip_forward`); None where it says no such thing."""
    # struct netconfmsg is one byte, the family; attributes are aligned to 4 (linux/netconf.h).
    found = parse_attrs(payload, 4).get(NETCONFA_IFINDEX)
    index: int | None = _I32.unpack(found)[0] if found is not None and len(found) == 4 else None
    return index


def _u32(data: bytes | None) -> int:
    return _U32.unpack(data)[0] if data else 0
