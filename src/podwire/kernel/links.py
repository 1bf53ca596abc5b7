"""Links compared: what must be made, changed or removed so that the desired ones are there.

A link that has a desired name and is not in our group is somebody else's, and is refused rather
than touched. A veth that is gone can't be made from here, since its far end belongs in a pod's
namespace: it is reported as missing, and whoever attached the pod makes it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from podwire.kernel import messages
from podwire.kernel.messages import LinkState
from podwire.model.state import LINK_GROUP, Bridge, Link, Veth, Vxlan, Why, format_mac


class LinkOp(msgspec.Struct, frozen=True):
    """One change of one link: the messages, and the lines that a person would type for them."""

    action: str
    name: str
    link: Link | None
    ifindex: int
    changes: dict[str, Any]
    why: Why | None

    def message(self, indexes: dict[str, int]) -> list[bytes]:
        """Raises KeyError where a link that this one refers to does not exist."""
        if self.action == "delete":
            return [messages.delete_link(self.ifindex)]
        assert self.link is not None  # noqa: S101  only a deletion has none
        changes = dict(self.changes)
        if changes.get("master"):
            changes["master"] = indexes[changes["master"]]
        if self.action == "change":
            # A port's settings are refused for as long as the link is none.
            hairpin = {"hairpin": changes.pop("hairpin")} if "hairpin" in changes else {}
            return [messages.set_link(self.name, **one) for one in (changes, hairpin) if one]
        # First, and before the link is up: an address that IPv6 has made itself stays.
        first = {one: changes.pop(one) for one in ("no_ipv6_address",) if one in changes}
        settings = [messages.set_link(self.name, **one) for one in (first, changes) if one]
        return [messages.create_link(self.link, indexes), *settings]

    def line(self) -> str:
        if self.action == "delete":
            return f"ip link del {self.name}"
        assert self.link is not None  # noqa: S101  only a deletion has none
        lines = [_creation(self.link)] if self.action == "add" else []
        lines += _settings(self.name, self.changes)
        return "\n".join(lines)


class LinkDiff(msgspec.Struct, frozen=True):
    """Operations in order; veths that are gone; what is in the way, one sentence each."""

    ops: list[LinkOp]
    missing: list[Link]
    refused: list[str]


def diff(wanted: Mapping[str, Link], actual: Mapping[str, LinkState]) -> LinkDiff:
    """Compare links by name. Extra bridges and tunnels of our group go; veths are the pods'."""
    result = LinkDiff([], [], [])
    for name, state in actual.items():
        if state.ours and state.kind in ("bridge", "vxlan") and name not in wanted:
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
            result.ops.append(_create(link))
        elif changes := _changes(link, state_or_none, actual):
            result.ops.append(LinkOp("change", name, link, state_or_none.index, changes, link.why))
    return result


def _create(link: Link) -> LinkOp:
    finish: dict[str, Any] = {"alias": link.alias, "up": True}
    if isinstance(link.kind, Vxlan):
        # Its neighbours are all permanent, so it needs no automatic link-local address, which
        # would send router solicitations and multicast reports into the overlay. A bridge needs
        # its own: it asks for the pods' MACs with it.
        finish["no_ipv6_address"] = True
    if isinstance(link.kind, Bridge) and link.mtu is not None:
        # A bridge keeps an MTU only that it was given when it existed: one from its creation
        # gives way to the smallest of its ports, and to 1500 when there is none.
        finish["mtu"] = link.mtu
        link = msgspec.structs.replace(link, mtu=None)
    return LinkOp("add", link.name, link, 0, finish, link.why)


def _same_kind(link: Link, state: LinkState, actual: Mapping[str, LinkState]) -> bool:
    """Whether the link can stay: its kind and all that can't be changed in place are right."""
    match link.kind:
        case Vxlan(vni=vni, port=port, local=local, dev=dev, learning=learning):
            underlay = actual[dev].index if dev in actual else -1
            return state.vxlan == (vni, port, local.packed, underlay, learning)
        case Bridge():
            return state.kind == "bridge"
        case Veth():
            return state.kind == "veth"


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
    if link.hairpin is not None and link.hairpin != bool(state.hairpin):
        changes["hairpin"] = link.hairpin
    if link.alias != state.alias:
        changes["alias"] = link.alias
    if not state.up:
        changes["up"] = True
    return changes


def _creation(link: Link) -> str:
    parts = [f"ip link add {link.name} group {LINK_GROUP}"]
    if link.mtu is not None:
        parts.append(f"mtu {link.mtu}")
    if link.mac is not None:
        parts.append(f"address {format_mac(link.mac)}")
    match link.kind:
        case Bridge():
            parts.append("type bridge")
        case Vxlan(vni=vni, port=port, local=local, dev=dev, learning=learning):
            learn = "learning" if learning else "nolearning"
            parts.append(f"type vxlan id {vni} local {local} dev {dev} dstport {port} {learn}")
        case Veth(peer=peer):
            parts.append(f"type veth peer name {peer}")
    return " ".join(parts)


def _settings(name: str, changes: Mapping[str, Any]) -> list[str]:
    words = []
    for key, value in changes.items():
        match key:
            case "mac":
                words.append(f"address {format_mac(value)}")
            case "alias":
                words.append(f'alias "{value}"')
            case "up":
                words.append("up")
            case "hairpin" | "no_ipv6_address":
                pass  # A line of its own, below.
            case _:
                words.append(f"{key} {value}")
    lines = [f"ip link set {name} addrgenmode none"] if "no_ipv6_address" in changes else []
    lines += [f"ip link set {name} {' '.join(words)}"] if words else []
    if "hairpin" in changes:
        lines.append(f"bridge link set dev {name} hairpin {'on' if changes['hairpin'] else 'off'}")
    return lines
