"""rtnetlink messages: links, addresses, routes, neighbours and FDB entries to bytes and back.

What lives here: the layouts of include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour}.h for the
few attributes that Podwire sets and compares. What does not: sockets, and what to send when.

The kinds that come in tens of thousands (addresses, routes, neighbours, FDB entries) are pairs of
tuples here, not objects: a key, which is the kernel's own identity of the thing, and a value, the
rest that is compared. Addresses are packed bytes and devices are interface indexes in them.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

import msgspec

from podwire.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    attr,
    attr_str,
    attr_u8,
    attr_u16be,
    attr_u32,
    message,
    nested,
    parse_attrs,
)
from podwire.model.state import DOOMED_GROUP, LINK_GROUP, ROUTE_PROTOCOL, Bridge, Link, Veth, Vxlan

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
IFF_UP = 1

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_MASTER, IFLA_PROTINFO, IFLA_LINKINFO, IFLA_IFALIAS = 10, 12, 18, 20
IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 26, 27, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_VXLAN_ID, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL = 1, 3, 4
IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 7, 15, 17
IFLA_BRPORT_STATE, IFLA_BRPORT_MODE = 1, 4
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
VETH_INFO_PEER = 1
BR_STATE_DISABLED = 0
RTEXT_FILTER_SKIP_STATS = 8

NETCONFA_IFINDEX = 1
NETCONFA_IFINDEX_ALL = b"\xff\xff\xff\xff"

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 9, 15, 18
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 254, 0, 253, 1
RTNH_F_ONLINK = 4
#: The metric that the kernel gives IPv6 routes that name none (IP6_RT_PRIO_USER).
IPV6_DEFAULT_METRIC = 1024

NDA_DST, NDA_LLADDR, NDA_IFINDEX = 1, 2, 8
NUD_NOARP, NUD_PERMANENT, NTF_SELF = 0x40, 0x80, 0x02

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change mask
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_U32 = struct.Struct("=I")

_SIZE = {socket.AF_INET: 4, socket.AF_INET6: 16}


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """A link as the kernel reports it. `vxlan` is (vni, port, local, underlay index, learning)."""

    index: int
    name: str
    kind: str
    mtu: int
    mac: bytes
    up: bool
    master: int
    alias: str
    group: int
    hairpin: bool | None
    vxlan: tuple[int, int, bytes, int, bool] | None

    @property
    def ours(self) -> bool:
        return self.group in (LINK_GROUP, DOOMED_GROUP)


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


class RouteValue(NamedTuple):
    """`via` and `src` are empty where there is none; `plain` is False for what we never make."""

    ifindex: int
    via: bytes
    src: bytes
    onlink: bool
    plain: bool = True


class NeighborKey(NamedTuple):
    ifindex: int
    family: int
    ip: bytes


class FdbKey(NamedTuple):
    ifindex: int
    mac: bytes


# --- links ------------------------------------------------------------------------------------


def get_links() -> bytes:
    """The payload of a dump of all links, without their statistics."""
    skip = attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + skip


def get_link(name: str) -> bytes:
    """The payload of a question for one link."""
    return _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attr_str(IFLA_IFNAME, name)


def parse_link(payload: bytes) -> LinkState:
    _, _, index, flags, _ = _IFINFO.unpack_from(payload)
    attrs = parse_attrs(payload, _IFINFO.size)
    info = parse_attrs(attrs.get(IFLA_LINKINFO, b""))
    kind = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
    vxlan = hairpin = None
    if kind == "vxlan":
        data = parse_attrs(info.get(IFLA_INFO_DATA, b""))
        vxlan = (
            _u32(data.get(IFLA_VXLAN_ID)),
            int.from_bytes(data.get(IFLA_VXLAN_PORT, b""), "big"),
            data.get(IFLA_VXLAN_LOCAL) or data.get(IFLA_VXLAN_LOCAL6, b""),
            _u32(data.get(IFLA_VXLAN_LINK)),
            data.get(IFLA_VXLAN_LEARNING, b"\0") != b"\0",
        )
    if info.get(IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0") == b"bridge":
        port = parse_attrs(info.get(IFLA_INFO_SLAVE_DATA, b""))
        hairpin = port.get(IFLA_BRPORT_MODE, b"\0") != b"\0"
    return LinkState(
        index=index,
        name=attrs.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        kind=kind,
        mtu=_u32(attrs.get(IFLA_MTU)),
        mac=attrs.get(IFLA_ADDRESS, b""),
        up=bool(flags & IFF_UP),
        master=_u32(attrs.get(IFLA_MASTER)),
        alias=attrs.get(IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        group=_u32(attrs.get(IFLA_GROUP)),
        hairpin=hairpin,
        vxlan=vxlan,
    )


def create_link(link: Link, indexes: dict[str, int], *, peer_netns_fd: int | None = None) -> bytes:
    """Make a link, down, already in our group; `set_link` does what a creation can't.

    A veth's peer is made in the namespace of `peer_netns_fd`, also down: the kernel refuses to
    bring up either end before both exist. This end comes up at once.
    """
    attrs = [attr_str(IFLA_IFNAME, link.name), attr_u32(IFLA_GROUP, LINK_GROUP)]
    if link.mtu is not None:
        attrs.append(attr_u32(IFLA_MTU, link.mtu))
    if link.mac is not None:
        attrs.append(attr(IFLA_ADDRESS, link.mac))
    if link.master is not None:
        attrs.append(attr_u32(IFLA_MASTER, indexes[link.master]))
    up = 0
    match link.kind:
        case Bridge():
            attrs.append(_link_info("bridge"))
        case Vxlan(vni=vni, port=port, local=local, dev=dev, learning=learning):
            attrs.append(
                _link_info(
                    "vxlan",
                    attr_u32(IFLA_VXLAN_ID, vni),
                    attr_u32(IFLA_VXLAN_LINK, indexes[dev]),
                    attr(
                        IFLA_VXLAN_LOCAL if local.version == 4 else IFLA_VXLAN_LOCAL6, local.packed
                    ),
                    attr_u16be(IFLA_VXLAN_PORT, port),
                    attr_u8(IFLA_VXLAN_LEARNING, learning),
                )
            )
        case Veth(peer=peer, peer_mac=peer_mac):
            if peer_netns_fd is None:
                raise ValueError(f"veth {link.name}: the peer needs a namespace to be made in")
            up = IFF_UP
            inside = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
            inside += attr_str(IFLA_IFNAME, peer) + attr(IFLA_ADDRESS, peer_mac)
            inside += attr_u32(IFLA_NET_NS_FD, peer_netns_fd)
            if link.mtu is not None:
                inside += attr_u32(IFLA_MTU, link.mtu)
            attrs.append(_link_info("veth", nested(VETH_INFO_PEER, inside)))
    head = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, up, up)
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, head + b"".join(attrs))


def set_link(
    name: str,
    *,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    alias: str | None = None,
    hairpin: bool | None = None,
    no_ipv6_address: bool = False,
    up: bool | None = None,
    group: int | None = None,
) -> bytes:
    """Change a link. `master` is an index, 0 for none; `no_ipv6_address`: no link-local one."""
    attrs = [attr_str(IFLA_IFNAME, name)]
    if mtu is not None:
        attrs.append(attr_u32(IFLA_MTU, mtu))
    if mac is not None:
        attrs.append(attr(IFLA_ADDRESS, mac))
    if master is not None:
        attrs.append(attr_u32(IFLA_MASTER, master))
    if alias is not None:
        attrs.append(attr_str(IFLA_IFALIAS, alias))
    if group is not None:
        attrs.append(attr_u32(IFLA_GROUP, group))
    if no_ipv6_address:
        mode = attr_u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
        attrs.append(nested(IFLA_AF_SPEC, nested(socket.AF_INET6, mode)))
    if hairpin is not None:
        port = nested(IFLA_INFO_SLAVE_DATA, attr_u8(IFLA_BRPORT_MODE, hairpin))
        attrs.append(nested(IFLA_LINKINFO, attr_str(IFLA_INFO_SLAVE_KIND, "bridge"), port))
    mask = 0 if up is None else IFF_UP
    head = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, IFF_UP if up else 0, mask)
    return message(RTM_NEWLINK, 0, head + b"".join(attrs))


def disable_port(index: int) -> bytes:
    """Stop a bridge port from forwarding, at once (a deletion waits for an RCU grace period)."""
    state = nested(IFLA_PROTINFO, attr_u8(IFLA_BRPORT_STATE, BR_STATE_DISABLED))
    return message(RTM_SETLINK, 0, _IFINFO.pack(AF_BRIDGE, 0, index, 0, 0) + state)


def delete_link(index: int) -> bytes:
    return message(RTM_DELLINK, 0, _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0))


def delete_group(group: int) -> bytes:
    """Delete all links of a device group at once."""
    head = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return message(RTM_DELLINK, 0, head + attr_u32(IFLA_GROUP, group))


def _link_info(kind: str, *data: bytes) -> bytes:
    parts = [attr_str(IFLA_INFO_KIND, kind)]
    if data:
        parts.append(nested(IFLA_INFO_DATA, *data))
    return nested(IFLA_LINKINFO, *parts)


def _u32(data: bytes | None) -> int:
    return _U32.unpack(data)[0] if data else 0


# --- addresses --------------------------------------------------------------------------------


def get_addresses() -> bytes:
    return _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)


def parse_address(payload: bytes) -> tuple[AddressKey, int]:
    """The key and the scope (0 for a global address)."""
    family, prefixlen, _, scope, index = _IFADDR.unpack_from(payload)
    attrs = parse_attrs(payload, _IFADDR.size)
    ip = attrs.get(IFA_LOCAL) or attrs.get(IFA_ADDRESS, b"")
    return AddressKey(index, family, ip, prefixlen), scope


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


def get_routes(family: int, protocol: int = ROUTE_PROTOCOL) -> bytes:
    """The payload of a dump of the main table's routes of one protocol, filtered by the kernel."""
    return _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, protocol, 0, 0, 0)


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
        _u32(attrs.get(RTA_OIF)),
        attrs.get(RTA_GATEWAY, b""),
        attrs.get(RTA_PREFSRC, b""),
        bool(flags & RTNH_F_ONLINK),
        kind == RTN_UNICAST and not tos and RTA_MULTIPATH not in attrs and RTA_VIA not in attrs,
    )
    return key, value, protocol, _u32(attrs.get(RTA_TABLE)) or table


def add_route(key: RouteKey, value: RouteValue, *, replace: bool, protocol: int) -> bytes:
    """Without `replace`, a route that is there already, whosever it is, is left and refused."""
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    return message(RTM_NEWROUTE, flags, _route(key, value, protocol))


def delete_route(key: RouteKey, value: RouteValue, *, protocol: int) -> bytes:
    return message(RTM_DELROUTE, 0, _route(key, value, protocol))


def _route(key: RouteKey, value: RouteValue, protocol: int) -> bytes:
    scope = RT_SCOPE_UNIVERSE if value.via or key.family != socket.AF_INET else RT_SCOPE_LINK
    onlink = RTNH_F_ONLINK if value.onlink else 0
    head = _RTMSG.pack(
        key.family, key.prefixlen, 0, 0, RT_TABLE_MAIN, protocol, scope, RTN_UNICAST, onlink
    )
    body = head + attr(RTA_DST, key.dst) + attr_u32(RTA_OIF, value.ifindex)
    if value.via:
        body += attr(RTA_GATEWAY, value.via)
    if value.src:
        body += attr(RTA_PREFSRC, value.src)
    if key.metric:
        body += attr_u32(RTA_PRIORITY, key.metric)
    return body


# --- neighbours and FDB -----------------------------------------------------------------------


def get_neighbors(family: int, index: int) -> bytes:
    return _NDMSG.pack(family, 0, 0, 0, 0) + attr_u32(NDA_IFINDEX, index)


def get_fdb(index: int) -> bytes:
    return _NDMSG.pack(AF_BRIDGE, index, 0, 0, 0)


def parse_neighbor(payload: bytes) -> tuple[int, int, int, bytes, bytes]:
    """(family, interface index, state, destination, MAC); family AF_BRIDGE is an FDB entry."""
    family, index, state, _, _ = _NDMSG.unpack_from(payload)
    attrs = parse_attrs(payload, _NDMSG.size)
    return family, index, state, attrs.get(NDA_DST, b""), attrs.get(NDA_LLADDR, b"")


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
    return message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_fdb(key: FdbKey, dst: bytes) -> bytes:
    head = _NDMSG.pack(AF_BRIDGE, key.ifindex, NUD_PERMANENT, NTF_SELF, 0)
    return message(RTM_DELNEIGH, 0, head + attr(NDA_LLADDR, key.mac) + attr(NDA_DST, dst))


# --- settings of the network stack ------------------------------------------------------------


def netconf_is_general(payload: bytes) -> bool:
    """Whether a notified setting is the stack's (`…/conf/all`, `ip_forward`) and not one link's."""
    # struct netconfmsg is one byte, the family; attributes are aligned to 4 (linux/netconf.h).
    return parse_attrs(payload, 4).get(NETCONFA_IFINDEX) == NETCONFA_IFINDEX_ALL
