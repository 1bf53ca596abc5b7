"""rtnetlink messages about links, to bytes and back.

What lives here: the layouts of include/uapi/linux/{if_link,if_bridge}.h for the few attributes that
Podwire sets and compares. What does not: addresses, routes and neighbours (`messages`), and what
differs between two links (`links`).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

import msgspec

from podwire.kernel.messages import AF_BRIDGE, RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK
from podwire.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    attr,
    attr_str,
    attr_u8,
    attr_u16be,
    attr_u32,
    message,
    nested,
    parse_attrs,
)
from podwire.model.state import DOOMED_GROUP, LINK_GROUP, Bridge, Link, Veth, Vxlan

IFF_UP, IFF_PROMISC = 0x1, 0x100

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_MASTER, IFLA_PROTINFO, IFLA_LINKINFO, IFLA_IFALIAS = 10, 12, 18, 20
IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 26, 27, 28, 29
IFLA_TXQLEN, IFLA_GSO_MAX_SIZE = 13, 41
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_VXLAN_ID, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL = 1, 3, 4
IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6, IFLA_VXLAN_GBP = 7, 15, 17, 23
IFLA_BR_MCAST_SNOOPING = 23
IFLA_BRPORT_STATE, IFLA_BRPORT_MODE, IFLA_BRPORT_LEARNING = 1, 4, 8
IFLA_BRPORT_NEIGH_SUPPRESS, IFLA_BRPORT_ISOLATED = 32, 33
IFLA_TUN_VNET_HDR, IFLA_TUN_PERSIST = 5, 6
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
VETH_INFO_PEER = 1
BR_STATE_DISABLED = 0
RTEXT_FILTER_SKIP_STATS = 8

#: A bridge port's options by their names in `Link`; each is a byte.
PORT_OPTIONS: Mapping[str, int] = {
    "hairpin": IFLA_BRPORT_MODE,
    "isolated": IFLA_BRPORT_ISOLATED,
    "neigh_suppress": IFLA_BRPORT_NEIGH_SUPPRESS,
    "port_learning": IFLA_BRPORT_LEARNING,
}

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change mask
_U32 = struct.Struct("=I")


class VxlanState(msgspec.Struct, frozen=True):
    """What of a VXLAN device can't be changed in place. `local` is packed, `dev` an index."""

    vni: int
    port: int
    local: bytes
    dev: int
    learning: bool
    gbp: bool


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """A link as the kernel reports it.

    `port` are the options of a bridge port by their names in `Link`, empty where it is none.
    `tun` is whether a TUN device is as Podwire makes them, persistent and with virtio_net headers.
    """

    index: int
    name: str
    kind: str
    mtu: int
    mac: bytes
    up: bool
    promiscuous: bool
    master: int
    alias: str
    group: int
    port: dict[str, bool] = {}
    vxlan: VxlanState | None = None
    multicast_snooping: bool | None = None
    tun: bool = False

    @property
    def ours(self) -> bool:
        return self.group in (LINK_GROUP, DOOMED_GROUP)


def get_links() -> bytes:
    """The payload of a dump of all links, without their statistics."""
    skip = attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + skip


def get_link(which: str | int) -> bytes:
    """The payload of a question for one link, by name or index."""
    skip = attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    if isinstance(which, int):
        return _IFINFO.pack(socket.AF_UNSPEC, 0, which, 0, 0) + skip
    return _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attr_str(IFLA_IFNAME, which) + skip


def parse_link(payload: bytes) -> LinkState:
    _, _, index, flags, _ = _IFINFO.unpack_from(payload)
    attrs = parse_attrs(payload, _IFINFO.size)
    info = parse_attrs(attrs.get(IFLA_LINKINFO, b""))
    kind = _text(info.get(IFLA_INFO_KIND))
    data = parse_attrs(info.get(IFLA_INFO_DATA, b""))
    port: dict[str, bool] = {}
    if _text(info.get(IFLA_INFO_SLAVE_KIND)) == "bridge":
        options = parse_attrs(info.get(IFLA_INFO_SLAVE_DATA, b""))
        port = {name: _flag(options.get(kind)) for name, kind in PORT_OPTIONS.items()}
    return LinkState(
        index=index,
        name=_text(attrs.get(IFLA_IFNAME)),
        kind=kind,
        mtu=_u32(attrs.get(IFLA_MTU)),
        mac=attrs.get(IFLA_ADDRESS, b""),
        up=bool(flags & IFF_UP),
        promiscuous=bool(flags & IFF_PROMISC),
        master=_u32(attrs.get(IFLA_MASTER)),
        alias=_text(attrs.get(IFLA_IFALIAS)),
        group=_u32(attrs.get(IFLA_GROUP)),
        port=port,
        vxlan=_vxlan(data) if kind == "vxlan" else None,
        multicast_snooping=_flag(data.get(IFLA_BR_MCAST_SNOOPING)) if kind == "bridge" else None,
        tun=kind == "tun"
        and _flag(data.get(IFLA_TUN_VNET_HDR))
        and _flag(data.get(IFLA_TUN_PERSIST)),
    )


def _vxlan(data: dict[int, bytes]) -> VxlanState:
    return VxlanState(
        _u32(data.get(IFLA_VXLAN_ID)),
        int.from_bytes(data.get(IFLA_VXLAN_PORT, b""), "big"),
        data.get(IFLA_VXLAN_LOCAL) or data.get(IFLA_VXLAN_LOCAL6, b""),
        _u32(data.get(IFLA_VXLAN_LINK)),
        _flag(data.get(IFLA_VXLAN_LEARNING)),
        IFLA_VXLAN_GBP in data,
    )


def create_link(
    link: Link, indexes: Mapping[str, int], *, peer_netns_fd: int | None = None
) -> bytes:
    """Make a link, down, already in our group; `set_link` does what a creation can't.

    A veth's peer is made, down too, in the namespace of `peer_netns_fd`.
    """
    attrs = [attr_str(IFLA_IFNAME, link.name), attr_u32(IFLA_GROUP, LINK_GROUP)]
    if link.mtu is not None:
        attrs.append(attr_u32(IFLA_MTU, link.mtu))
    if link.mac is not None:
        attrs.append(attr(IFLA_ADDRESS, link.mac))
    if link.master is not None:
        attrs.append(attr_u32(IFLA_MASTER, indexes[link.master]))
    match link.kind:
        case Bridge(multicast_snooping=snooping):
            attrs.append(_link_info("bridge", *_snooping(snooping)))
        case Vxlan():
            attrs.append(_link_info("vxlan", *_vxlan_attrs(link.kind, indexes)))
        case Veth(peer=peer, peer_mac=peer_mac, peer_gso_max_size=gso_max_size):
            if peer_netns_fd is None:
                raise ValueError(f"veth {link.name}: the peer needs a namespace to be made in")
            inside = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
            inside += attr_str(IFLA_IFNAME, peer) + attr(IFLA_ADDRESS, peer_mac)
            inside += attr_u32(IFLA_NET_NS_FD, peer_netns_fd)
            if link.mtu is not None:
                inside += attr_u32(IFLA_MTU, link.mtu)
            if gso_max_size is not None:
                inside += attr_u32(IFLA_GSO_MAX_SIZE, gso_max_size)
            attrs.append(_link_info("veth", nested(VETH_INFO_PEER, inside)))
        case _:
            raise TypeError(f"{link.name}: rtnetlink makes no {type(link.kind).__name__}")
    head = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, head + b"".join(attrs))


def _vxlan_attrs(kind: Vxlan, indexes: Mapping[str, int]) -> list[bytes]:
    local = IFLA_VXLAN_LOCAL if kind.local.version == 4 else IFLA_VXLAN_LOCAL6
    attrs = [
        attr_u32(IFLA_VXLAN_ID, kind.vni),
        attr_u32(IFLA_VXLAN_LINK, indexes[kind.dev]),
        attr(local, kind.local.packed),
        attr_u16be(IFLA_VXLAN_PORT, kind.port),
        attr_u8(IFLA_VXLAN_LEARNING, kind.learning),
    ]
    # A flag: that it is there says yes.
    return [*attrs, attr(IFLA_VXLAN_GBP, b"")] if kind.gbp else attrs


def set_link(
    name: str,
    *,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    alias: str | None = None,
    no_ipv6_address: bool = False,
    up: bool | None = None,
    promiscuous: bool | None = None,
    group: int | None = None,
    multicast_snooping: bool | None = None,
    port: Mapping[str, bool] | None = None,
) -> bytes:
    """Change a link. `master` is an index, 0 for none; `no_ipv6_address`: no link-local one.

    `port` are options by their names in `PORT_OPTIONS`, `multicast_snooping` is a bridge's.
    """
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
    if multicast_snooping is not None:
        attrs.append(_link_info("bridge", *_snooping(multicast_snooping)))
    if port:
        options = (attr_u8(PORT_OPTIONS[option], on) for option, on in port.items())
        data = nested(IFLA_INFO_SLAVE_DATA, *options)
        attrs.append(nested(IFLA_LINKINFO, attr_str(IFLA_INFO_SLAVE_KIND, "bridge"), data))
    flags = mask = 0
    for bit, on in ((IFF_UP, up), (IFF_PROMISC, promiscuous)):
        mask |= 0 if on is None else bit
        flags |= bit if on else 0
    head = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, flags, mask)
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


def _snooping(on: bool | None) -> list[bytes]:
    return [] if on is None else [attr_u8(IFLA_BR_MCAST_SNOOPING, on)]


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def _flag(data: bytes | None) -> bool:
    return bool(data) and data != b"\0"


def _u32(data: bytes | None) -> int:
    return _U32.unpack(data)[0] if data else 0
