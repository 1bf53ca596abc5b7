"""rtnetlink questions about one packet, and their answers: to bytes and back.

What lives here: the layouts of include/uapi/linux/{rtnetlink,neighbour,netconf}.h for `get` (not
`dump`) requests, and the names that iproute2 gives their numbers. What does not: the socket, and
which question to ask (`podwire.kernel.observe.lookup`).

Interfaces are indexes and addresses are packed bytes, as everywhere below `podwire.kernel`, except
in what is only ever shown or compared with what is desired: the prefix of a FIB entry.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address, ip_network

import msgspec

from podwire.kernel import messages
from podwire.kernel.netlink import attr, attr_u8, attr_u16be, attr_u32, parse_attrs
from podwire.model.state import IPNetwork

RTM_GETNETCONF = 82

RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST = 1, 2, 3, 4, 5
RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW = 6, 7, 8, 9
ROUTE_TYPES = {
    RTN_UNICAST: "unicast",
    RTN_LOCAL: "local",
    RTN_BROADCAST: "broadcast",
    RTN_ANYCAST: "anycast",
    RTN_MULTICAST: "multicast",
    RTN_BLACKHOLE: "blackhole",
    RTN_UNREACHABLE: "unreachable",
    RTN_PROHIBIT: "prohibit",
    RTN_THROW: "throw",
}
#: Routes of these types stop a packet.
REFUSING = frozenset({RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT})

NUD_NONE, NUD_INCOMPLETE, NUD_REACHABLE, NUD_STALE, NUD_DELAY = 0, 0x01, 0x02, 0x04, 0x08
NUD_PROBE, NUD_FAILED, NUD_NOARP, NUD_PERMANENT = 0x10, 0x20, 0x40, 0x80
NEIGHBOR_STATES = {
    NUD_NONE: "NONE",
    NUD_INCOMPLETE: "INCOMPLETE",
    NUD_REACHABLE: "REACHABLE",
    NUD_STALE: "STALE",
    NUD_DELAY: "DELAY",
    NUD_PROBE: "PROBE",
    NUD_FAILED: "FAILED",
    NUD_NOARP: "NOARP",
    NUD_PERMANENT: "PERMANENT",
}

#: Without the first of these every answer of IPv4 is said to be of the main table; IPv6 tells its
#: table always, and refuses the flag.
RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x1000, 0x2000
_RTA_SRC, _RTA_IIF, _RTA_METRICS, _RTA_CACHEINFO, _RTA_MARK = 2, 3, 8, 12, 16
_RTA_IP_PROTO, _RTA_SPORT, _RTA_DPORT = 27, 28, 29
_RTAX_MTU = 2
_NDA_MASTER = 9
_NETCONFA_FORWARDING, _NETCONFA_RP_FILTER = 2, 3
#: The protocols that a route may be asked for; all others are refused with EOPNOTSUPP.
_PROTOCOLS: dict[int, tuple[int, ...]] = {
    socket.AF_INET: (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP),
    socket.AF_INET6: (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMPV6),
}
_USER_HZ = 100  # clock ticks in what the kernel tells user space, on every architecture of today

_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_NEXT_HOP = struct.Struct("=HBBi")  # length, flags, hops, index
_CACHE_INFO = struct.Struct("=IIi")  # clients, last use, expires
_I32 = struct.Struct("=i")
_U32 = struct.Struct("=I")


class RouteQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A packet to route: packed addresses (`src` empty for one whose source is still to be
    chosen), the interface it came in by (0: sent from here) or must leave by, and what policy
    rules look at."""

    dst: bytes
    src: bytes = b""
    iif: int = 0
    oif: int = 0
    mark: int = 0
    tos: int = 0
    protocol: int = 0
    sport: int = 0
    dport: int = 0

    @property
    def family(self) -> int:
        return socket.AF_INET if len(self.dst) == 4 else socket.AF_INET6


class FibEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of a routing table. `via` is empty for what is on the link; of a multipath entry
    `ifindex` and `via` are the first hop's, and `hops` all of them."""

    dst: IPNetwork
    kind: int
    protocol: int
    table: int
    metric: int
    scope: int
    ifindex: int
    via: bytes
    src: bytes
    onlink: bool
    mtu: int
    hops: tuple[tuple[int, bytes], ...] = ()


class RouteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel does with a packet. `errno` is 0 where it has a way, and else says why not.

    `mtu` is the path's where the kernel knows one that is smaller than the interface's (a route's
    own, or learned: then `expires_s` says for how much longer), 0 otherwise. `match` is the entry
    of the table, None where none matches.
    """

    errno: int = 0
    kind: int = RTN_UNICAST
    ifindex: int = 0
    via: bytes = b""
    mtu: int = 0
    expires_s: float = 0.0
    match: FibEntry | None = None


class NeighborAnswer(msgspec.Struct, frozen=True):
    """A neighbour entry; `mac` is empty as long as it is not known."""

    ifindex: int
    ip: bytes
    mac: bytes
    state: int

    @property
    def state_name(self) -> str:
        return NEIGHBOR_STATES.get(self.state, f"{self.state:#x}")

    @property
    def usable(self) -> bool:
        """Packets go out with it now."""
        return bool(self.mac) and not self.state & (NUD_INCOMPLETE | NUD_FAILED)


class NetConf(msgspec.Struct, frozen=True):
    """Settings of the stack for an interface (`net.ipv4.conf.NAME`), or for all. `rp_filter` is 0,
    1 (strict) or 2 (loose), and always 0 for IPv6, which has none."""

    forwarding: bool
    rp_filter: int


def get_route(question: RouteQuestion, *, fib_match: bool) -> bytes:
    """The payload of RTM_GETROUTE. `fib_match`: the table's entry, not what comes of it."""
    bits = len(question.dst) * 8
    flags = RTM_F_LOOKUP_TABLE if question.family == socket.AF_INET else 0
    body = _RTMSG.pack(
        question.family,
        bits,
        bits if question.src else 0,
        question.tos & 0x1C if question.family == socket.AF_INET else question.tos,
        0,
        0,
        0,
        0,
        flags | (RTM_F_FIB_MATCH if fib_match else 0),
    )
    body += attr(messages.RTA_DST, question.dst)
    if question.src:
        body += attr(_RTA_SRC, question.src)
    if question.iif:
        body += attr_u32(_RTA_IIF, question.iif)
    if question.oif:
        body += attr_u32(messages.RTA_OIF, question.oif)
    if question.mark:
        body += attr_u32(_RTA_MARK, question.mark)
    if question.protocol in _PROTOCOLS[question.family]:
        body += attr_u8(_RTA_IP_PROTO, question.protocol)
        if question.sport:
            body += attr_u16be(_RTA_SPORT, question.sport)
        if question.dport:
            body += attr_u16be(_RTA_DPORT, question.dport)
    return body


def get_routes_of_type(family: int, kind: int) -> bytes:
    """The payload of a dump of all tables' entries of one type, filtered by the kernel."""
    return _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, kind, 0)


def parse_route_answer(payload: bytes) -> RouteAnswer:
    """What RTM_GETROUTE answers without `fib_match`."""
    kind = _RTMSG.unpack_from(payload)[7]
    attrs = parse_attrs(payload, _RTMSG.size)
    expires = 0
    if len(cache := attrs.get(_RTA_CACHEINFO, b"")) >= _CACHE_INFO.size:
        expires = _CACHE_INFO.unpack_from(cache)[2]
    return RouteAnswer(
        kind=kind,
        ifindex=_u32(attrs.get(messages.RTA_OIF)),
        via=_gateway(attrs),
        mtu=_u32(parse_attrs(attrs.get(_RTA_METRICS, b"")).get(_RTAX_MTU)),
        expires_s=max(0, expires) / _USER_HZ,
    )


def parse_fib_entry(payload: bytes) -> FibEntry:
    """An RTM_NEWROUTE message: a dumped route, or the answer with `fib_match`."""
    family, prefixlen, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(payload)
    attrs = parse_attrs(payload, _RTMSG.size)
    size = 4 if family == socket.AF_INET else 16
    hops = tuple(_hops(attrs.get(messages.RTA_MULTIPATH, b"")))
    first = hops[0] if hops else (_u32(attrs.get(messages.RTA_OIF)), _gateway(attrs))
    base = ip_address(attrs.get(messages.RTA_DST) or bytes(size))
    return FibEntry(
        # Not strict: whatever the kernel says is its own business.
        dst=ip_network((base, prefixlen), strict=False),
        kind=kind,
        protocol=protocol,
        table=_u32(attrs.get(messages.RTA_TABLE)) or table,
        metric=_u32(attrs.get(messages.RTA_PRIORITY)),
        scope=scope,
        ifindex=first[0],
        via=first[1],
        src=attrs.get(messages.RTA_PREFSRC, b""),
        onlink=bool(flags & messages.RTNH_F_ONLINK),
        mtu=_u32(parse_attrs(attrs.get(_RTA_METRICS, b"")).get(_RTAX_MTU)),
        hops=hops,
    )


def get_neighbor(ifindex: int, ip: bytes) -> bytes:
    """The payload of RTM_GETNEIGH for one ARP or NDP entry."""
    family = socket.AF_INET if len(ip) == 4 else socket.AF_INET6
    return _NDMSG.pack(family, ifindex, 0, 0, 0) + attr(messages.NDA_DST, ip)


def parse_neighbor_answer(payload: bytes) -> NeighborAnswer:
    _, ifindex, state, ip, mac = messages.parse_neighbor(payload)
    return NeighborAnswer(ifindex, ip, mac, state)


def get_tunnel_fdb(ifindex: int, mac: bytes) -> bytes:
    """The payload of RTM_GETNEIGH for a VXLAN device's own entry."""
    head = _NDMSG.pack(messages.AF_BRIDGE, ifindex, 0, messages.NTF_SELF, 0)
    return head + attr(messages.NDA_LLADDR, mac)


def get_bridge_fdb(bridge: int, mac: bytes) -> bytes:
    """The payload of RTM_GETNEIGH for what a bridge knows of a MAC, at whichever port."""
    head = _NDMSG.pack(messages.AF_BRIDGE, 0, 0, 0, 0)
    return head + attr(messages.NDA_LLADDR, mac) + attr_u32(_NDA_MASTER, bridge)


def get_netconf(family: int, ifindex: int) -> bytes:
    """The payload of RTM_GETNETCONF; -1 for what holds for all interfaces."""
    # struct netconfmsg is one byte, the family; attributes are aligned to 4 (linux/netconf.h).
    return struct.pack("=Bxxx", family) + attr(messages.NETCONFA_IFINDEX, _I32.pack(ifindex))


def parse_netconf(payload: bytes) -> NetConf:
    attrs = parse_attrs(payload, 4)
    return NetConf(
        forwarding=_i32(attrs.get(_NETCONFA_FORWARDING)) > 0,
        rp_filter=_i32(attrs.get(_NETCONFA_RP_FILTER)),
    )


def _gateway(attrs: dict[int, bytes]) -> bytes:
    """RTA_GATEWAY, or RTA_VIA (a family, then an address): an IPv4 route by an IPv6 next hop."""
    return attrs.get(messages.RTA_GATEWAY) or attrs.get(messages.RTA_VIA, b"")[2:]


def _hops(data: bytes) -> list[tuple[int, bytes]]:
    """The next hops of RTA_MULTIPATH: struct rtnexthop, each with attributes of its own."""
    found = []
    while len(data) >= _NEXT_HOP.size:
        length, _, _, ifindex = _NEXT_HOP.unpack_from(data)
        if length < _NEXT_HOP.size:
            break
        found.append((ifindex, _gateway(parse_attrs(data[:length], _NEXT_HOP.size))))
        data = data[(length + 3) & ~3 :]
    return found


def _u32(data: bytes | None) -> int:
    return int(_U32.unpack(data)[0]) if data else 0


def _i32(data: bytes | None) -> int:
    return int(_I32.unpack(data)[0]) if data else 0
