"""The interfaces of a namespace, as a trace shows them: kind, state, pairs, ports, addresses.

What lives here: reading links with what `podwire.kernel.messages` leaves out, since the reconciler
does not compare it: a veth's other end, the operational state, a bridge port's state, the tunnel's
numbers. What does not: which of them belong to the pod network; no more than the kernel knows.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

from podwire.kernel import link_messages, messages
from podwire.kernel.link_messages import IFF_UP
from podwire.kernel.netlink import NetlinkSocket, parse_attrs
from podwire.model.state import DOOMED_GROUP, LINK_GROUP, format_mac

_IFF_LOOPBACK, _IFF_RUNNING, _IFF_LOWER_UP = 0x8, 0x40, 0x10000
IFF_NOARP = 0x80

_IFLA_OPERSTATE, _IFLA_LINK_NETNSID = 16, 37
_IFLA_VXLAN_DF = 29
_BRPORT_STATE = link_messages.IFLA_BRPORT_STATE
_BR_STATE_FORWARDING = 3
_OPERSTATES = (
    "unknown",
    "notpresent",
    "down",
    "lowerlayerdown",
    "testing",
    "dormant",
    "up",
)  # include/uapi/linux/if.h, in the words of `ip link`

_IFINFO = struct.Struct("=BxHiII")
_U32 = struct.Struct("=I")
_I32 = struct.Struct("=i")


class VxlanState(NamedTuple):
    """A VXLAN device's numbers: `local` is packed bytes, `underlay` an interface index.

    `df` says whether outer IPv4 headers carry DF: 0 never, 1 always, 2 as the inner one does.
    """

    vni: int
    port: int
    local: bytes
    underlay: int
    df: int


class InterfaceState(msgspec.Struct, frozen=True, kw_only=True):
    """An interface now.

    `kind` is the kernel's own word (`veth`, `bridge`, `vxlan`, `tun`), `loopback` for that, and
    `device` where the kernel names none; `link_type` is the ARPHRD_ number. `link` is IFLA_LINK:
    a veth's other end, in the namespace that this one knows as `link_netnsid` (-1: this very one).
    `up` is the administrator's wish, `carrier` whether it is also connected. `forwarding` is a
    bridge port's state, True for others.
    `addresses` have their prefix length and are filled in by `read_interfaces` only.
    """

    index: int
    name: str
    kind: str
    mac: bytes
    mtu: int
    up: bool
    carrier: bool
    operstate: str
    arp: bool
    master: int
    forwarding: bool
    link: int
    link_netnsid: int
    group: int
    alias: str
    link_type: int
    vxlan: VxlanState | None = None
    addresses: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Made by Podwire: its device group says so."""
        return self.group in (LINK_GROUP, DOOMED_GROUP)

    @property
    def mac_text(self) -> str:
        return format_mac(self.mac)


def read_interfaces(sock: NetlinkSocket) -> list[InterfaceState]:
    """All interfaces of the socket's namespace with their addresses, by index. Two dumps."""
    addresses: dict[int, list[str]] = {}
    for body in sock.dump(messages.RTM_GETADDR, messages.get_addresses()):
        key, _ = messages.parse_address(body)
        addresses.setdefault(key.ifindex, []).append(f"{ip_address(key.ip)}/{key.prefixlen}")
    found = [
        parse_interface(body) for body in sock.dump(messages.RTM_GETLINK, link_messages.get_links())
    ]
    return [
        msgspec.structs.replace(one, addresses=tuple(addresses.get(one.index, ())))
        for one in sorted(found, key=lambda one: one.index)
    ]


def find_interface(sock: NetlinkSocket, which: int | str) -> InterfaceState | None:
    """One interface by index or name, without its addresses; None where there is none."""
    if not which:
        return None
    if isinstance(which, str):
        question = link_messages.get_link(which)
    else:
        question = _IFINFO.pack(socket.AF_UNSPEC, 0, which, 0, 0)
    body = sock.get(messages.RTM_GETLINK, question)
    return parse_interface(body) if body is not None else None


def parse_interface(payload: bytes) -> InterfaceState:
    """An RTM_NEWLINK message's payload (include/uapi/linux/if_link.h)."""
    _, link_type, index, flags, _ = _IFINFO.unpack_from(payload)
    attrs = parse_attrs(payload, _IFINFO.size)
    info = parse_attrs(attrs.get(link_messages.IFLA_LINKINFO, b""))
    kind = _text(info.get(link_messages.IFLA_INFO_KIND))
    if not kind:
        kind = "loopback" if flags & _IFF_LOOPBACK else "device"
    forwarding = True
    if _text(info.get(link_messages.IFLA_INFO_SLAVE_KIND)) == "bridge":
        port = parse_attrs(info.get(link_messages.IFLA_INFO_SLAVE_DATA, b""))
        forwarding = port.get(_BRPORT_STATE, b"\3")[0] == _BR_STATE_FORWARDING
    state = attrs.get(_IFLA_OPERSTATE, b"\0")[0]
    nsid = attrs.get(_IFLA_LINK_NETNSID)
    return InterfaceState(
        index=index,
        name=_text(attrs.get(link_messages.IFLA_IFNAME)),
        kind=kind,
        mac=attrs.get(link_messages.IFLA_ADDRESS, b""),
        mtu=_u32(attrs.get(link_messages.IFLA_MTU)),
        up=bool(flags & IFF_UP),
        carrier=bool(flags & _IFF_RUNNING and flags & _IFF_LOWER_UP),
        operstate=_OPERSTATES[state] if state < len(_OPERSTATES) else "unknown",
        arp=not flags & IFF_NOARP,
        master=_u32(attrs.get(link_messages.IFLA_MASTER)),
        forwarding=forwarding,
        link=_u32(attrs.get(link_messages.IFLA_LINK)),
        link_netnsid=_I32.unpack(nsid)[0] if nsid else -1,
        group=_u32(attrs.get(link_messages.IFLA_GROUP)),
        alias=_text(attrs.get(link_messages.IFLA_IFALIAS)),
        link_type=link_type,
        vxlan=_vxlan(info) if kind == "vxlan" else None,
    )


def _vxlan(info: dict[int, bytes]) -> VxlanState:
    data = parse_attrs(info.get(link_messages.IFLA_INFO_DATA, b""))
    return VxlanState(
        vni=_u32(data.get(link_messages.IFLA_VXLAN_ID)),
        port=int.from_bytes(data.get(link_messages.IFLA_VXLAN_PORT, b""), "big"),
        local=data.get(link_messages.IFLA_VXLAN_LOCAL)
        or data.get(link_messages.IFLA_VXLAN_LOCAL6, b""),
        underlay=_u32(data.get(link_messages.IFLA_VXLAN_LINK)),
        df=data.get(_IFLA_VXLAN_DF, b"\0")[0],
    )


def _u32(data: bytes | None) -> int:
    return int(_U32.unpack(data)[0]) if data else 0


def _text(data: bytes | None) -> str:
    return data.rstrip(b"\0").decode(errors="replace") if data else ""
