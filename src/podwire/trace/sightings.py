"""What the frames show: each probe's sightings, those of its answer, of errors, and who asked for
whose MAC.

What lives here: decoding frames, telling probes apart, taking each sighting once. What does not:
the order in which a packet was at its sightings (`order`). Pure; the order of the frames that are
given does not matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

from podwire.model.probe import IPText
from podwire.trace.decode import USUAL, TunnelPorts, decode
from podwire.trace.evidence import Evidence
from podwire.trace.identify import Identifier, Identity, Role, inner_ip
from podwire.trace.model import Arp, Endpoint, Ethernet, Icmp, Interface, Ip, Packet, Place
from podwire.trace.records import Frame


class Sighting(NamedTuple):
    """A packet seen once: at an interface of a place, on the way in or out of it.

    `ttl` is of the header that the packet's ends see, which each routing takes one from.
    """

    place: int
    interface: Interface
    outgoing: bool
    time_ns: int
    packet: Packet
    ttl: int


class ErrorKind(NamedTuple):
    """Which ICMP error, from whom, about the request or the reply of which probe."""

    about: Role
    number: int
    sender: IPText
    version: int
    type: int
    code: int
    mtu: int | None


class NeighborAsk(msgspec.Struct, frozen=True, kw_only=True):
    """`asker` wants to know who has `target` (ARP or NDP), `count` times.

    `place` and `interface` are where the first such question was sent from (for a stranger's:
    where it was first seen). `answered`: an answer was seen there.
    """

    place: int
    interface: Interface
    asker: IPText
    target: IPText
    time_ns: int
    count: int
    answered: bool


class Seen(NamedTuple):
    """Everything in the frames, by what it belongs to; sightings in the order of their times.

    `identifier` has learned from all of them, and knows packets that were told of otherwise.
    """

    packets: Mapping[tuple[int, Role], Sequence[Sighting]]
    errors: Mapping[ErrorKind, Sequence[Sighting]]
    asks: tuple[NeighborAsk, ...]
    retransmitted: Mapping[int, int]
    identifier: Identifier


class Ground:
    """The places of a trace, looked up by what one has in hand."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places
        self._interfaces = {
            (number, one.index): one
            for number, place in enumerate(places)
            for one in place.interfaces
        }

    def interface(self, place: int, ifindex: int) -> Interface:
        """The interface; one that came after the places were read has its number for a name."""
        found = self._interfaces.get((place, ifindex))
        return found or Interface(index=ifindex, name=f"if{ifindex}", kind="device")

    def macs(self, place: int, interface: Interface) -> set[str]:
        """The MACs that an interface takes frames for: its own, and a bridge those of its ports."""
        ports = self.places[place].interfaces if interface.kind == "bridge" else ()
        return {interface.mac, *(one.mac for one in ports if one.master == interface.index)}

    def addresses(self, place: int) -> set[IPText]:
        """All addresses of a place, without their prefix lengths."""
        interfaces = self.places[place].interfaces
        return {ip.partition("/")[0] for one in interfaces for ip in one.addresses}

    def with_address(self, ip: IPText) -> int | None:
        """The place that has this address."""
        return next((n for n in range(len(self.places)) if ip in self.addresses(n)), None)

    def of(self, end: Endpoint) -> int | None:
        """An endpoint's place, None where it is not observed.

        By its name; and by its address where it has no place of its own, as a pod that uses its
        node's network.
        """
        pod = end.name if end.kind == "pod" else ""
        node = end.name if end.kind == "node" else end.node
        if end.kind != "address":
            for number, place in enumerate(self.places):
                if (place.node, place.pod) == (node, pod):
                    return number
        return self.with_address(end.ip)

    def ends(self, evidence: Evidence) -> tuple[int | None, int | None]:
        """The places of source and target. A loopback address is the source itself."""
        source = self.of(evidence.source)
        if ip_address(evidence.target.ip).is_loopback:
            return source, source
        return source, self.of(evidence.target)

    def comparable(self, one: int, other: int) -> bool:
        """Whether times of the two places are of one clock."""
        clock = self.places[one].clock
        return one == other or (bool(clock) and clock == self.places[other].clock)


def tunnel_ports(evidence: Evidence) -> TunnelPorts:
    """The UDP ports of tunnels here."""
    match = evidence.match
    return TunnelPorts(
        tuple({*USUAL.vxlan, *match.tunnel_ports} - {*match.bare_ports}),
        tuple({*USUAL.bare, *match.bare_ports}),
    )


def look(evidence: Evidence) -> Seen:
    """Sort out all frames."""
    ground = Ground(evidence.places)
    source = ground.of(evidence.source)
    ports = tunnel_ports(evidence)
    sightings = [
        _sighting(frame, ground, ports)
        for frame in sorted(evidence.frames, key=_moment)
        if frame.place < len(evidence.places)
    ]
    identifier = Identifier(evidence.match)
    # The source knows best in which order its connections came.
    for one in sorted(sightings, key=lambda one: one.place != source):
        identifier.learn(one.packet)
    known = [
        (identity, one)
        for one in sightings
        if (identity := identifier.identify(one.packet)) is not None
    ]
    packets, errors = _by_probe(_numbered(known, ground), evidence.probe.count)
    return Seen(
        packets={key: _first_of_each(those) for key, those in packets.items()},
        errors={kind: _first_of_each(those) for kind, those in errors.items()},
        asks=_asks(sightings, ground),
        retransmitted={
            number: _most_often(those) - 1
            for (number, role), those in packets.items()
            if role == "request" and _most_often(those) > 1
        },
        identifier=identifier,
    )


def _sighting(frame: Frame, ground: Ground, ports: TunnelPorts) -> Sighting:
    packet = decode(frame.data, frame.link_type, frame.length, ports=ports)
    ip = inner_ip(packet)
    return Sighting(
        place=frame.place,
        interface=ground.interface(frame.place, frame.ifindex),
        outgoing=frame.outgoing,
        time_ns=frame.time_ns,
        packet=packet,
        ttl=ip.ttl if ip is not None else 0,
    )


def _moment(frame: Frame) -> tuple[int, int, int, bool, bytes]:
    return frame.time_ns, frame.place, frame.ifindex, frame.outgoing, frame.data


def _numbered(
    known: Sequence[tuple[Identity, Sighting]], ground: Ground
) -> list[tuple[Identity, Sighting]]:
    """Everything with its probe's number: what can't tell belongs to the last request before it
    by the same clock, since probes are sent one after the other."""
    requests: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for identity, one in known:
        if identity.role == "request" and not identity.error and identity.number is not None:
            clock = ground.places[one.place].clock
            requests[clock].append((one.time_ns, identity.number))
    found = []
    for identity, one in known:
        if identity.number is None:
            before = requests[ground.places[one.place].clock]
            numbers = [number for time_ns, number in before if time_ns <= one.time_ns]
            identity = identity._replace(number=numbers[-1] if numbers else 1)
        found.append((identity, one))
    return found


def _by_probe(
    known: Sequence[tuple[Identity, Sighting]], count: int
) -> tuple[dict[tuple[int, Role], list[Sighting]], dict[ErrorKind, list[Sighting]]]:
    packets: dict[tuple[int, Role], list[Sighting]] = defaultdict(list)
    errors: dict[ErrorKind, list[Sighting]] = defaultdict(list)
    for identity, one in known:
        number = identity.number
        if number is None or not 1 <= number <= count:
            continue
        if not identity.error:
            packets[number, identity.role].append(one)
            continue
        ip = inner_ip(one.packet)
        icmp = next((header for header in one.packet.inner if isinstance(header, Icmp)), None)
        if ip is not None and icmp is not None:
            kind = ErrorKind(
                identity.role, number, ip.source, ip.version, icmp.type, icmp.code, icmp.mtu
            )
            errors[kind].append(one)
    return packets, errors


def _spot(one: Sighting) -> tuple[int, int, bool, int]:
    """Equal for two sightings where a packet can have been only once."""
    return one.place, one.interface.index, one.outgoing, one.ttl


def _first_of_each(sightings: Sequence[Sighting]) -> list[Sighting]:
    """Without the repetitions of a packet that was sent again (TCP)."""
    found: dict[tuple[int, int, bool, int], Sighting] = {}
    for one in sightings:
        found.setdefault(_spot(one), one)
    return list(found.values())


def _most_often(sightings: Sequence[Sighting]) -> int:
    times: dict[tuple[int, int, bool, int], int] = defaultdict(int)
    for one in sightings:
        times[_spot(one)] += 1
    return max(times.values())


# --- neighbours ---------------------------------------------------------------------------------


class _Talk(NamedTuple):
    """One ARP or NDP message: `about` is whose MAC is asked for, or told."""

    asks: bool
    asker: IPText
    asker_mac: str
    about: IPText


def _asks(sightings: Sequence[Sighting], ground: Ground) -> tuple[NeighborAsk, ...]:
    """Who asked for whom, each pair once."""
    questions: dict[tuple[IPText, IPText], list[tuple[Sighting, _Talk]]] = defaultdict(list)
    answers: dict[tuple[IPText, IPText], set[int]] = defaultdict(set)
    for one in sightings:
        talk = _talk(one.packet)
        if talk is None:
            continue
        if talk.asks:
            questions[talk.asker, talk.about].append((one, talk))
        else:
            answers[talk.asker, talk.about].add(one.place)
    found = []
    for (asker, target), asked in questions.items():
        own = [
            one
            for one, talk in asked
            if one.outgoing and one.interface.mac == talk.asker_mac and not one.interface.master
        ]
        first = own[0] if own else asked[0][0]
        repeated = [one for one, _ in asked if _spot(one) == _spot(first)]
        places = answers[asker, target]
        found.append(
            NeighborAsk(
                place=first.place,
                interface=first.interface,
                asker=asker,
                target=target,
                time_ns=first.time_ns,
                count=len(repeated),
                answered=first.place in places or (not own and bool(places)),
            )
        )
    return tuple(found)


def _talk(packet: Packet) -> _Talk | None:
    match packet.inner:
        case (Ethernet(), Arp() as arp, *_):
            if arp.operation == 1 and arp.source_ip != arp.target_ip:
                return _Talk(True, arp.source_ip, arp.source_mac, arp.target_ip)
            if arp.operation == 2:
                return _Talk(False, arp.target_ip, arp.target_mac, arp.source_ip)
        case (Ethernet() as ethernet, Ip() as ip, Icmp(target=str() as about) as icmp, *_):
            if icmp.type == 135 and ip.source != "::":
                return _Talk(True, ip.source, ethernet.source, about)
            if icmp.type == 136:
                return _Talk(False, ip.target, ethernet.target, about)
    return None
