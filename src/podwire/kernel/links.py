"""Links compared: what must be made, changed or removed so that the desired ones are there.

A link that has a desired name and is not in our group is somebody else's, and is refused rather
than touched. A veth that is gone can't be made from here, since its far end belongs in a pod's
namespace: it is reported as missing, and whoever attached the pod makes it again.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import msgspec

from podwire.kernel import link_messages
from podwire.kernel.link_messages import PORT_OPTIONS, LinkState, VxlanState
from podwire.kernel.netlink import Failure, NetlinkSocket, kernel_error
from podwire.kernel.tun import create_tun
from podwire.model.state import LINK_GROUP, Bridge, Link, Tun, Veth, Vxlan, Why, format_mac

#: Kinds that are ours alone to remove; a veth without a pod is removed by whoever detaches that.
_REMOVED = ("bridge", "vxlan", "tun")


class LinkOp(msgspec.Struct, frozen=True):
    """One change of one link: the messages, and the lines that a person would type for them."""

    action: str
    name: str
    link: Link | None
    ifindex: int
    changes: dict[str, Any]
    why: Why | None

    def make(self, sock: NetlinkSocket) -> None:
        """What no rtnetlink message does: make a TUN device. Raises KernelError."""
        if self.action == "add" and self.link is not None and isinstance(self.link.kind, Tun):
            create_tun(sock, self.name)

    def message(self, indexes: Mapping[str, int]) -> list[bytes]:
        """Raises KeyError where a link that this one refers to does not exist."""
        if self.action == "delete":
            return [link_messages.delete_link(self.ifindex)]
        assert self.link is not None  # noqa: S101  only a deletion has none
        changes = dict(self.changes)
        if (master := changes.get("master")) is not None:
            changes["master"] = indexes[master] if master else 0
        # In an order that the kernel takes: an address that IPv6 has made itself stays, so that is
        # switched off before the link is up; a port's options are refused while it is none.
        steps = [
            {one: changes.pop(one) for one in names if one in changes}
            for names in (("no_ipv6_address",), (*changes.keys() - {"port"},), ("port",))
        ]
        settings = [link_messages.set_link(self.name, **step) for step in steps if step]
        if self.action == "change" or isinstance(self.link.kind, Tun):
            return settings
        return [link_messages.create_link(self.link, indexes), *settings]

    def line(self) -> str:
        if self.action == "delete":
            return f"ip link del {self.name}"
        assert self.link is not None  # noqa: S101  only a deletion has none
        lines = _creation(self.link) if self.action == "add" else []
        lines += _settings(self.name, self.changes)
        return "\n".join(lines)


def refusal(op: LinkOp, failure: Failure) -> str:
    """What the kernel's refusal of an operation means, with the remedy where there is one."""
    error = kernel_error(f"{op.action} {op.name}", failure)
    kind = op.link.kind if op.link is not None else None
    name = type(kind).__name__.lower()
    match failure.errno, kind:
        case errno.EOPNOTSUPP, Vxlan() | Bridge() | Veth() if op.action == "add":
            others = {"vxlan": "--transport udp or direct", "bridge": "--wiring routed"}
            other = f", or choose {others[name]}" if name in others else ""
            return f"{op.name}: this kernel makes no {name} links; load it (modprobe {name}){other}"
        case ((errno.EADDRINUSE | errno.EEXIST), Vxlan(vni=vni, port=port)):
            error.remedy = (
                f"something else here has UDP port {port} or VNI {vni} on it (ss -ulnp; ip -d link"
                " show type vxlan): stop it, or choose another --vxlan-port for all nodes"
            )
    return str(error)


def unlike(link: Link, made: LinkState) -> str:
    """What the kernel has left out of a link without a word; empty where it is as it should be."""
    if isinstance(link.kind, Vxlan) and link.kind.gbp and made.vxlan and not made.vxlan.gbp:
        return f"{link.name}: this kernel's VXLAN has no Group Based Policy; leave out --gbp"
    return ""


class LinkDiff(msgspec.Struct, frozen=True):
    """Operations in order; veths that are gone; what is in the way, one sentence each."""

    ops: list[LinkOp]
    missing: list[Link]
    refused: list[str]


def diff(wanted: Mapping[str, Link], actual: Mapping[str, LinkState]) -> LinkDiff:
    """Compare links by name. Extra bridges and tunnels of our group go; veths are the pods'."""
    result = LinkDiff([], [], [])
    for name, state in actual.items():
        if state.ours and state.kind in _REMOVED and name not in wanted:
            result.ops.append(LinkOp("delete", name, None, state.index, {}, None))
    for name, link in wanted.items():
        state_or_none = actual.get(name)
        if state_or_none is None:
            if isinstance(link.kind, Veth):
                result.missing.append(link)
            else:
                result.ops.append(_create(link))
        elif not state_or_none.ours:
            result.refused.append(
                f"link {name} exists and was not made by Podwire; delete it (ip link del {name})"
                " or choose another name"
            )
        elif not _same_kind(link, state_or_none, actual):
            result.ops.append(LinkOp("delete", name, None, state_or_none.index, {}, link.why))
            if not isinstance(link.kind, Veth):
                result.ops.append(_create(link))
        elif changes := _changes(link, state_or_none, actual):
            result.ops.append(LinkOp("change", name, link, state_or_none.index, changes, link.why))
    # Ports after their bridge.
    result.ops.sort(key=_rank)
    return result


def _rank(op: LinkOp) -> int:
    if op.action == "delete":
        return 0
    return 1 if op.link is not None and isinstance(op.link.kind, Bridge) else 2


def settings(link: Link) -> dict[str, Any]:
    """What is set of a link once it is there, as arguments of `set_link`."""
    finish: dict[str, Any] = {"alias": link.alias, "up": True}
    if link.promiscuous:
        finish["promiscuous"] = True
    if port := _port(link):
        finish["port"] = port
    if not isinstance(link.kind, Bridge) and link.master is None:
        # Its neighbours are known, so it needs no automatic link-local address, which would send
        # router solicitations and multicast reports there; where one is wanted, it is added
        # without the second that duplicate address detection takes. A bridge needs its own: it
        # asks for the pods' MACs with it.
        finish["no_ipv6_address"] = True
    return finish


def _create(link: Link) -> LinkOp:
    finish = settings(link)
    if isinstance(link.kind, Vxlan):
        finish["no_ipv6_address"] = True
    if isinstance(link.kind, Bridge | Tun) and link.mtu is not None:
        # A bridge keeps an MTU only that it was given when it existed: one from its creation
        # gives way to the smallest of its ports, and to 1500 when there is none.
        finish["mtu"] = link.mtu
        link = msgspec.structs.replace(link, mtu=None)
    if isinstance(link.kind, Tun) and link.master is not None:
        finish["master"] = link.master
    return LinkOp("add", link.name, link, 0, finish, link.why)


def _port(link: Link) -> dict[str, bool]:
    """The options of the bridge port that are wanted some way."""
    return {name: on for name in PORT_OPTIONS if (on := getattr(link, name)) is not None}


def _same_kind(link: Link, state: LinkState, actual: Mapping[str, LinkState]) -> bool:
    """Whether the link can stay: its kind and all that can't be changed in place are right."""
    match link.kind:
        case Vxlan() as kind:
            underlay = actual[kind.dev].index if kind.dev in actual else -1
            return state.vxlan == VxlanState(
                kind.vni, kind.port, kind.local.packed, underlay, kind.learning, kind.gbp
            )
        case Bridge():
            return state.kind == "bridge"
        case Veth():
            return state.kind == "veth"
        case Tun():
            return state.tun


def _changes(link: Link, state: LinkState, actual: Mapping[str, LinkState]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if link.mtu is not None and link.mtu != state.mtu:
        changes["mtu"] = link.mtu
    if link.mac is not None and link.mac != state.mac:
        changes["mac"] = link.mac
    if link.master is not None:
        master = actual.get(link.master)
        if master is None or master.index != state.master:
            changes["master"] = link.master
    elif isinstance(link.kind, Veth) and state.master:
        changes["master"] = ""
    if port := {name: on for name, on in _port(link).items() if state.port.get(name) != on}:
        changes["port"] = port
    if link.promiscuous is not None and link.promiscuous != state.promiscuous:
        changes["promiscuous"] = link.promiscuous
    if isinstance(link.kind, Bridge):
        snooping = link.kind.multicast_snooping
        if snooping is not None and snooping != state.multicast_snooping:
            changes["multicast_snooping"] = snooping
    if link.alias != state.alias:
        changes["alias"] = link.alias
    if not state.up:
        changes["up"] = True
    return changes


def _creation(link: Link) -> list[str]:
    if isinstance(link.kind, Tun):
        return [
            f"ip tuntap add dev {link.name} mode tun vnet_hdr",
            f"ip link set {link.name} group {LINK_GROUP}",
        ]
    parts = [f"ip link add {link.name} group {LINK_GROUP}"]
    if link.mtu is not None:
        parts.append(f"mtu {link.mtu}")
    if link.mac is not None:
        parts.append(f"address {format_mac(link.mac)}")
    if link.master is not None:
        parts.append(f"master {link.master}")
    match link.kind:
        case Bridge(multicast_snooping=snooping):
            parts.append("type bridge")
            parts += [f"mcast_snooping {int(snooping)}"] if snooping is not None else []
        case Vxlan(vni=vni, port=port, local=local, dev=dev, learning=learning, gbp=gbp):
            learn = "learning" if learning else "nolearning"
            parts.append(f"type vxlan id {vni} local {local} dev {dev} dstport {port} {learn}")
            parts += ["gbp"] if gbp else []
        case Veth(peer=peer, peer_gso_max_size=size):
            parts.append(f"type veth peer name {peer}")
            parts += [f"gso_max_size {size}"] if size is not None else []
    return [" ".join(parts)]


#: What `bridge link set` calls an option.
_WORDS = {"port_learning": "learning"}


def _settings(name: str, changes: Mapping[str, Any]) -> list[str]:
    words, more = [], []
    for key, value in changes.items():
        match key:
            case "mac":
                words.append(f"address {format_mac(value)}")
            case "alias":
                words.append(f'alias "{value}"')
            case "up":
                words.append("up")
            case "master":
                words.append(f"master {value}" if value else "nomaster")
            case "promiscuous":
                words.append(f"promisc {_on(value)}")
            case "multicast_snooping":
                more.append(f"ip link set {name} type bridge mcast_snooping {int(value)}")
            case "port":
                options = (f"{_WORDS.get(one, one)} {_on(on)}" for one, on in value.items())
                more.append(f"bridge link set dev {name} {' '.join(options)}")
            case "no_ipv6_address":
                pass  # A line of its own, below.
            case _:
                words.append(f"{key} {value}")
    lines = [f"ip link set {name} addrgenmode none"] if "no_ipv6_address" in changes else []
    lines += [f"ip link set {name} {' '.join(words)}"] if words else []
    return lines + more


def _on(value: bool) -> str:
    return "on" if value else "off"
