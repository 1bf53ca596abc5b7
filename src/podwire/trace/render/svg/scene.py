"""What is in the picture, without any coordinates.

What lives here: which nodes, pods and devices are drawn, and in which row. What does not: the words
between them (`notes.py`), geometry (`layout.py`) and shapes.

A picture is columns: what the packet leaves on the left, what it goes to on the right, in between
whatever else it came by. Down a column it goes from the pod to the underlay, up another one to
the other end:

    pod │ port │ bridge │ tunnel │ nic ──── medium ──── nic │ tunnel │ bridge │ port │ pod

On one node the medium is the bridge (or the node's routing), across nodes it is the underlay.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface

import msgspec

from podwire.trace.model import (
    Endpoint,
    Hop,
    Interface,
    Outcome,
    Path,
    Place,
    Round,
    Trace,
)


class Slot(enum.IntEnum):
    """Where in a column a device stands, from the top."""

    INSIDE = 0  # of the pod
    PORT = 1
    BRIDGE = 2
    TUNNEL = 3
    NIC = 4


@dataclass(frozen=True)
class Device:
    """An interface that is drawn; `idle` where the packet never was."""

    place: int
    name: str
    slot: Slot
    look: str
    detail: str
    idle: bool = False

    @property
    def key(self) -> tuple[int, str]:
        return self.place, self.name


@dataclass
class Column:
    """A node with the end that it has in the picture, or the outside.

    `end` is `pod`, `host` (the node's own sockets), `nobody` (an address that nobody has),
    `cloud`, or empty.
    """

    node: str
    address: str = ""
    end: str = ""
    end_name: str = ""
    end_ip: str = ""
    observed: bool = True
    devices: list[Device] = field(default_factory=list)

    @property
    def inside(self) -> bool:
        """Whether interfaces are drawn in the end's own box."""
        return any(device.slot is Slot.INSIDE for device in self.devices)


@dataclass
class Scene:
    """`local`: all on one node, whose bridge (`medium`) is between the two columns."""

    trace: Trace
    round: Round | None
    columns: list[Column]
    local: bool
    medium: Device | None = None

    @property
    def lost(self) -> Path | None:
        """The path that ended early, if one did."""
        one = self.round
        if one is None or one.outcome is not Outcome.DROPPED:
            return None
        if one.reply is not None and one.reply.hops and one.request.arrived:
            return one.reply
        return one.request


def scene(trace: Trace, shown: Round | None) -> Scene:
    """What there is to draw of one round of a trace."""
    hops = [hop for path in paths(shown) for hop in path.hops]
    source, target = trace.source, _at_home(trace)
    nodes = list(dict.fromkeys(trace.places[hop.place].node for hop in hops))
    local = bool(source.node) and target.node == source.node and set(nodes) <= {source.node}
    columns = [_column(trace, source)]
    if not local:
        between = [node for node in nodes if node not in (source.node, target.node)]
        columns += [Column(node, _address(trace, node)) for node in between]
    if local or target.node != source.node or not target.node:
        columns.append(_column(trace, target))
    found = Scene(trace, shown, columns, local)
    drawn: set[tuple[int, str]] = set()
    for hop in hops:
        if (hop.place, hop.interface) not in drawn:
            drawn.add((hop.place, hop.interface))
            _put(found, _device(trace, hop), hop)
    _add_idle(found, drawn)
    if local and found.medium is None:
        found.medium = _unseen_bridge(trace, source.node)
    for column in columns:
        column.devices.sort(key=lambda device: device.slot)
    return found


def paths(shown: Round | None) -> list[Path]:
    """The request's and, where there is one, the reply's."""
    if shown is None:
        return []
    return [shown.request, *([shown.reply] if shown.reply is not None else [])]


def _at_home(trace: Trace) -> Endpoint:
    """The target; an address that nobody has stands at the node whose pods could have it."""
    target = trace.target
    if target.kind != "address" or target.node:
        return target
    for place in trace.places:
        for one in place.interfaces:
            near = not place.pod and not one.underlay and one.kind != "loopback"
            if near and any(_has(address, target.ip) for address in one.addresses):
                return msgspec.structs.replace(target, node=place.node)
    return target


def _has(network: str, ip: str) -> bool:
    return ip_address(ip) in ip_interface(network).network


def _column(trace: Trace, end: Endpoint) -> Column:
    seen = not end.node or any(place.node == end.node for place in trace.places)
    if end.kind == "pod":
        kind = "pod"
    elif end.kind == "node":
        kind = "host"
    else:
        kind = "nobody" if end.node else "cloud"
    name = end.name if end.kind != "address" else ""
    return Column(end.node, _address(trace, end.node), kind, name, end.ip, seen)


def _address(trace: Trace, node: str) -> str:
    """The node's underlay address."""
    for place in trace.places:
        if place.node == node and not place.pod:
            for one in place.interfaces:
                if one.underlay and one.addresses:
                    return one.addresses[0].partition("/")[0]
    return ""


def _interface(place: Place, name: str) -> Interface | None:
    return next((one for one in place.interfaces if one.name == name), None)


def _device(trace: Trace, hop: Hop) -> Device:
    place = trace.places[hop.place]
    interface = _interface(place, hop.interface)
    if interface is None:
        interface = Interface(index=0, name=hop.interface, kind=hop.interface_kind)
    return _of_interface(hop.place, place, interface)


def _of_interface(index: int, place: Place, one: Interface, idle: bool = False) -> Device:
    detail = one.addresses[0] if one.addresses else ""
    if place.pod:
        return Device(index, one.name, Slot.INSIDE, "nic", one.mac, idle)
    if one.kind == "bridge":
        slot, look = Slot.BRIDGE, "bridge"
    elif one.kind in ("vxlan", "tun"):
        slot, look = Slot.TUNNEL, "tunnel"
        detail = f"VXLAN, VNI {one.vni}" if one.vni is not None else detail
    elif one.underlay or (one.kind != "loopback" and not _faces_pod(one)):
        slot, look = Slot.NIC, "nic"
    else:
        slot, look = Slot.PORT, "nic"
        detail = f"MTU {one.mtu}" if one.mtu else ""
    return Device(index, one.name, slot, look, detail, idle)


def _faces_pod(one: Interface) -> bool:
    return one.kind == "veth" and bool(one.master or one.peer_place is not None)


def _pod_behind(trace: Trace, one: Interface) -> str:
    """The pod that has the other end of a veth; empty where that is not observed."""
    known = one.peer_place is not None and one.peer_place < len(trace.places)
    return trace.places[one.peer_place].pod if known and one.peer_place is not None else ""


def _put(found: Scene, device: Device, hop: Hop) -> None:
    """Into the column that it belongs to; a bridge between two columns is the medium."""
    place = found.trace.places[device.place]
    if found.local:
        if device.slot is Slot.BRIDGE and found.medium is None:
            found.medium = device
        else:
            found.columns[_side(found, place, hop)].devices.append(device)
        return
    for column in found.columns:
        if column.node == place.node:
            column.devices.append(device)
            return


def _side(found: Scene, place: Place, hop: Hop) -> int:
    """On one node: 0 for the source's column, 1 for the target's."""
    source, target = found.columns[0], found.columns[1]
    if place.pod:
        return 0 if source.end == "pod" and place.pod == source.end_name else 1
    one = _interface(place, hop.interface)
    peer = _pod_behind(found.trace, one) if one is not None else ""
    if peer and peer in (source.end_name, target.end_name):
        return 0 if peer == source.end_name else 1
    requested = found.round is not None and hop in found.round.request.hops
    return 0 if (hop.direction == "in") == requested else 1


def _add_idle(found: Scene, drawn: set[tuple[int, str]]) -> None:
    """Where the packet would have gone on: devices of a failed trace that it never reached."""
    if found.lost is None:
        return
    for index, place in enumerate(found.trace.places):
        for one in place.interfaces:
            column = _idle_column(found, place, one)
            if column is not None and (index, one.name) not in drawn:
                drawn.add((index, one.name))
                column.devices.append(_of_interface(index, place, one, idle=True))


def _idle_column(found: Scene, place: Place, one: Interface) -> Column | None:
    columns = [column for column in found.columns if column.node == place.node]
    pod = place.pod
    if not pod and _faces_pod(one):
        pod = _pod_behind(found.trace, one)
        if not pod:
            return None
    if pod:
        mine = [column for column in columns if column.end == "pod" and column.end_name == pod]
        return mine[0] if mine and one.kind != "loopback" else None
    to_outside = found.columns[-1].end == "cloud"
    on_the_way = one.underlay or (one.kind in ("bridge", "vxlan", "tun") and not to_outside)
    return columns[0] if columns and on_the_way and not found.local else None


def _unseen_bridge(trace: Trace, node: str) -> Device:
    """A bridge does not see itself what passes between its ports; without one, the node routes."""
    for index, place in enumerate(trace.places):
        if place.node == node and not place.pod:
            for one in place.interfaces:
                if one.kind == "bridge":
                    return _of_interface(index, place, one)
    return Device(-1, "routing", Slot.BRIDGE, "nic", "")
