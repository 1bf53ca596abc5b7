"""In which order a packet was where it was seen: one `Journey` for each probe.

What lives here: the order of sightings, and where a path has arrived. What does not: which packet
is whose (`sightings`), what a path means (`verdict`). Pure; the order of the input does not
matter, and neither does how far the clocks of two machines are apart.

How it works, for the sightings of one packet:

1. What is no step of the path is left out: frames that an interface saw and that were for somebody
   else's MAC (a switch flooded them, or someone captures there), and a bridge's copies to ports
   that did not lead on.
2. *Within a node*, all of whose places share one clock, sightings are sorted by time, but never
   against what must have been (`_precedes`): TTL falls, and as long as it is the same: a veth's
   one end sends before the other receives; a pod sends before and receives after its node has
   seen it; a place receives before it sends; a port comes before its bridge on the way in and
   after it on the way out, a tunnel packet before its device on the way in and after it on the
   way out. The kernel may give one timestamp to several sightings of a packet, and clocks may be
   set while it travels. It is a topological sort that takes the earliest of what is possible
   next; where there is a circle, which only a loop of bridges can make, the earliest of all.
3. A packet may leave a node and come back, so its sightings there are cut into *visits*, where one
   was sent out and the next came in by another way than the two ends of a veth.
4. *Across nodes*, visits are chained from the one that starts at the packet's origin: the next is
   the one with the highest TTL that is not higher than it was, of these the one that received
   what the last had sent, of these the earliest if the clocks are the same.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from podwire.trace.evidence import Evidence
from podwire.trace.model import Ethernet, Ip
from podwire.trace.sightings import ErrorKind, Ground, NeighborAsk, Seen, Sighting, look

Visit = list[Sighting]


class ErrorPath(msgspec.Struct, frozen=True):
    """An ICMP error about the journey's request or reply, where it was seen, in order."""

    kind: ErrorKind
    sightings: tuple[Sighting, ...]
    arrived: bool


class Journey(msgspec.Struct, frozen=True, kw_only=True):
    """One probe: `request` and `reply` in the order of their paths, empty where nothing was seen.

    `arrived` and `answered`: the last sighting is where the packet was to go. `neighbor_asks` are
    those of the whole trace. `retransmitted`: so often was the request sent again (TCP).
    """

    number: int
    request: tuple[Sighting, ...] = ()
    reply: tuple[Sighting, ...] = ()
    arrived: bool = False
    answered: bool = False
    errors: tuple[ErrorPath, ...] = ()
    neighbor_asks: tuple[NeighborAsk, ...] = ()
    retransmitted: int = 0


def journeys(evidence: Evidence, seen: Seen | None = None) -> tuple[Journey, ...]:
    """One for each probe that was asked for, from number 1 on, also where nothing was seen.

    `seen` is what `look` made of this evidence, if that has been done.
    """
    seen, ground = seen or look(evidence), Ground(evidence.places)
    source, target = ground.ends(evidence)
    found = []
    for number in range(1, evidence.probe.count + 1):
        request = order(seen.packets.get((number, "request"), ()), ground, source)
        reply = order(seen.packets.get((number, "reply"), ()), ground, target)
        errors = []
        for kind, sightings in seen.errors.items():
            if kind.number == number:
                back_at = source if kind.about == "request" else target
                path = order(sightings, ground, ground.with_address(kind.sender))
                errors.append(ErrorPath(kind, path, has_arrived(path, back_at)))
        found.append(
            Journey(
                number=number,
                request=request,
                reply=reply,
                arrived=has_arrived(request, target),
                answered=has_arrived(reply, source),
                errors=tuple(errors),
                neighbor_asks=seen.asks,
                retransmitted=seen.retransmitted.get(number, 0),
            )
        )
    return tuple(found)


def has_arrived(path: Sequence[Sighting], place: int | None) -> bool:
    """Whether the last sighting hands the packet to the stack of `place`."""
    if place is None or not path:
        return False
    last = path[-1]
    inside = last.place == place and not last.outgoing
    return inside and not last.packet.encapsulated and not last.interface.master


def order(
    sightings: Iterable[Sighting], ground: Ground, origin: int | None
) -> tuple[Sighting, ...]:
    """The sightings of one packet in the order of its path, which begins at the place `origin`
    if it was seen there. Some may be left out (see above)."""
    by_node: dict[str, list[Sighting]] = defaultdict(list)
    for one in _steps(list(sightings), ground):
        by_node[ground.places[one.place].node].append(one)
    visits = [
        visit for node in sorted(by_node) for visit in _visits(_within_node(by_node[node], ground))
    ]
    return tuple(_chained(visits, ground, origin))


# --- 1. what is a step of the path ----------------------------------------------------------------


def _steps(sightings: list[Sighting], ground: Ground) -> list[Sighting]:
    taken = [one for one in sightings if not _for_another(one, ground)]
    flooded: dict[tuple[int, int, int], list[Sighting]] = defaultdict(list)
    for one in taken:
        if one.outgoing and one.interface.master:
            flooded[one.place, one.interface.master, one.ttl].append(one)
    aside: set[object] = set()
    for copies in flooded.values():
        aside |= set(map(_key, copies)) - set(map(_key, _led_on(copies, taken)))
    return [one for one in taken if _key(one) not in aside]


def _for_another(one: Sighting, ground: Ground) -> bool:
    """Received only by who listens to everything. A bridge's port does so by profession, and that
    a tunnel delivered it at the wrong node is worth seeing. A bridge has its ports' MACs, too."""
    if one.outgoing or one.interface.master or one.interface.kind == "vxlan":
        return False
    first = one.packet.headers[0] if one.packet.headers else None
    if not isinstance(first, Ethernet) or not one.interface.mac:
        return False
    is_group = int(first.target[:2], 16) & 1
    return not is_group and first.target not in ground.macs(one.place, one.interface)


def _led_on(copies: Sequence[Sighting], taken: Sequence[Sighting]) -> Sequence[Sighting]:
    """Of the copies that a bridge sent to its ports, the one that somebody took; else the only
    one that was not for a pod here."""
    if len(copies) == 1:
        return copies
    into_pods = [copy for copy in copies if any(_cable(copy, one) for one in taken)]
    others = [copy for copy in copies if copy.interface.kind != "veth"]
    return into_pods or (others if len(others) == 1 else ())


# --- 2. within a node -----------------------------------------------------------------------------


def _within_node(sightings: Sequence[Sighting], ground: Ground) -> list[Sighting]:
    before = [
        {other for other in range(len(sightings)) if _precedes(sightings[other], one, ground)}
        for one in sightings
    ]
    waiting = set(range(len(sightings)))
    ordered: list[Sighting] = []
    ready = [(_key(sightings[n]), n) for n in waiting if not before[n]]
    heapq.heapify(ready)
    while waiting:
        if ready:
            _, number = heapq.heappop(ready)
        else:  # a circle
            number = min(waiting, key=lambda n: _key(sightings[n]))
            before[number].clear()
        waiting.discard(number)
        ordered.append(sightings[number])
        for other in waiting:
            if number in before[other]:
                before[other].discard(number)
                if not before[other]:
                    heapq.heappush(ready, (_key(sightings[other]), other))
    return ordered


def _precedes(one: Sighting, other: Sighting, ground: Ground) -> bool:
    """Whether the packet must have been at `one` before it was at `other`, on the same node."""
    if one is other:
        return False
    if one.ttl != other.ttl:
        return one.ttl > other.ttl
    if one.place != other.place:
        sent_by_pod = one.outgoing and bool(ground.places[one.place].pod)
        taken_by_pod = not other.outgoing and bool(ground.places[other.place].pod)
        return sent_by_pod or taken_by_pod or _cable(one, other)
    if one.outgoing != other.outgoing:
        if "loopback" in (one.interface.kind, other.interface.kind):
            return one.outgoing and one.interface.index == other.interface.index
        return other.outgoing
    inner, outer = (other, one) if not one.outgoing else (one, other)
    # Inwards: the port before its bridge, the tunnel packet before what was in it.
    return outer.interface.master == inner.interface.index or (
        outer.packet.encapsulated and not inner.packet.encapsulated
    )


def _cable(one: Sighting, other: Sighting) -> bool:
    """Whether `one` was sent into a veth, out of whose other end `other` came."""
    return (
        one.outgoing
        and not other.outgoing
        and one.ttl == other.ttl
        and one.interface.peer_place == other.place
        and one.interface.peer == other.interface.index
    )


def _key(one: Sighting) -> tuple[int, int, int, bool, int]:
    return one.time_ns, one.place, one.interface.index, one.outgoing, one.ttl


# --- 3. and 4. across nodes -----------------------------------------------------------------------


def _visits(ordered: Sequence[Sighting]) -> list[Visit]:
    visits: list[Visit] = []
    for one in ordered:
        last = visits[-1][-1] if visits else None
        if last is None or (last.outgoing and not one.outgoing and not _same_way(last, one)):
            visits.append([])
        visits[-1].append(one)
    return visits


def _same_way(last: Sighting, one: Sighting) -> bool:
    return _cable(last, one) or (
        last.place == one.place and last.interface.kind == one.interface.kind == "loopback"
    )


def _chained(visits: list[Visit], ground: Ground, origin: int | None) -> list[Sighting]:
    path: list[Sighting] = []
    while visits:
        if path:
            visit = min(visits, key=lambda visit: _next(path[-1], visit, ground))
        else:
            visit = min(visits, key=lambda visit: _first(visit, origin))
        visits.remove(visit)
        path += visit
    return path


def _first(visit: Visit, origin: int | None) -> tuple[object, ...]:
    start = visit[0]
    return (start.place != origin, -start.ttl, not start.outgoing, start.place, *_key(start))


def _next(last: Sighting, visit: Visit, ground: Ground) -> tuple[object, ...]:
    start = visit[0]
    comparable = ground.comparable(last.place, start.place)
    return (
        start.ttl > last.ttl,
        -start.ttl,
        not _received(last, start),
        start.time_ns if comparable else 0,
        start.place,
        *_key(start),
    )


def _received(last: Sighting, start: Sighting) -> bool:
    """Whether both are the same packet on the same wire, as far as its outermost header tells."""
    ips = [
        next((header for header in one.packet.headers if isinstance(header, Ip)), None)
        for one in (last, start)
    ]
    sent, received = ips
    if sent is None or received is None:
        return False
    return (sent.source, sent.target) == (received.source, received.target)
