"""One probe with everything that is known of it: what `verdict` judges and `build` shows.

What lives here: which kernel drop, which nft step and which answer of a kernel belong to which
packet and hop. What does not: what follows from them. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from podwire.trace.decode import decode_network
from podwire.trace.evidence import Evidence
from podwire.trace.identify import Identity, Role
from podwire.trace.model import Decision, Ip, Packet
from podwire.trace.order import Journey, journeys
from podwire.trace.questions import answer_of, answers, asked
from podwire.trace.records import Drop, NftStep, ProbeResult
from podwire.trace.sightings import Ground, Seen, Sighting, look, tunnel_ports

_TUNNELS = ("vxlan", "tun")


class PlacedStep(NamedTuple):
    """`hop` is the sighting after which the rule was met; None for a packet that was met by it
    before it was seen anywhere."""

    step: NftStep
    hop: int | None


class KnownDrop(NamedTuple):
    """A drop, and the packet in it."""

    drop: Drop
    packet: Packet


class Leg(NamedTuple):
    """The way of one packet: of the request, or of what came back.

    `decisions` are one for each sighting; of a request that was not seen at all there is one, about
    why. `arrived`: seen where it was to go.
    """

    role: Role
    sightings: tuple[Sighting, ...]
    arrived: bool
    decisions: tuple[tuple[Decision, ...], ...] = ()
    steps: tuple[PlacedStep, ...] = ()
    drops: tuple[KnownDrop, ...] = ()

    @property
    def last(self) -> Sighting | None:
        return self.sightings[-1] if self.sightings else None


class Case(NamedTuple):
    """A probe. `answer` is its reply, or the target's word that nobody listens; without sightings
    where nothing came. `source` and `target` are places, None where not observed."""

    evidence: Evidence
    ground: Ground
    journey: Journey
    request: Leg
    answer: Leg
    result: ProbeResult | None
    source: int | None
    target: int | None

    @property
    def waited_s(self) -> float:
        """How long the sender waited for an answer that it did not get."""
        given_up_s = self.result.given_up_s if self.result is not None else None
        return given_up_s if given_up_s is not None else self.evidence.probe.timeout_s


def cases(evidence: Evidence) -> tuple[Case, ...]:
    """One for each probe."""
    ground, seen = Ground(evidence.places), look(evidence)
    source, target = ground.ends(evidence)
    drops = _sorted_out(evidence.drops, seen, evidence)
    steps = _sorted_out(evidence.steps, seen, evidence)
    results = {result.number: result for result in evidence.results}
    found = []
    for journey in journeys(evidence, seen):
        back, answered = answer_of(journey, evidence)
        asked_there, asked_back = asked(journey, evidence)
        legs: dict[Role, Leg] = {
            "request": Leg(
                "request",
                journey.request,
                journey.arrived,
                answers(evidence, asked_there),
            ),
            "reply": Leg("reply", back, answered, answers(evidence, asked_back)),
        }
        for role, leg in legs.items():
            key = journey.number, role
            legs[role] = leg._replace(
                steps=tuple(
                    PlacedStep(step, _hop_of(step, packet, leg.sightings))
                    for step, packet in steps.get(key, ())
                ),
                drops=tuple(KnownDrop(*one) for one in drops.get(key, ())),
            )
        found.append(
            Case(
                evidence=evidence,
                ground=ground,
                journey=journey,
                request=legs["request"],
                answer=legs["reply"],
                result=results.get(journey.number),
                source=source,
                target=target,
            )
        )
    return tuple(found)


# --- whose is it --------------------------------------------------------------------------------

Told = TypeVar("Told", Drop, NftStep)


def _sorted_out(
    told: Iterable[Told], seen: Seen, evidence: Evidence
) -> dict[tuple[int, Role], list[tuple[Told, Packet]]]:
    """What the kernels told of packets, by the packet. What can't be told is left out."""
    found: dict[tuple[int, Role], list[tuple[Told, Packet]]] = defaultdict(list)
    for one in told:
        if one.place is not None and one.place >= len(evidence.places):
            continue
        packet = decode_network(one.data, ports=tunnel_ports(evidence))
        identity = seen.identifier.identify(packet) or _by_tunnel(one, packet, seen)
        if identity is None:
            continue
        # An error about the request is the answer to it.
        role: Role = "reply" if identity.error else identity.role
        number = identity.number or _latest(one, seen, evidence)
        found[number, role].append((one, packet))
    return found


def _by_tunnel(told: Drop | NftStep, packet: Packet, seen: Seen) -> Identity | None:
    """Of a packet that was told only up to its tunnel's header: by the tunnel's ends, which are
    the other way round for the reply. Where nobody has seen it in the tunnel, it is what was last
    seen going into one there."""
    ends = _outer_ends(packet)
    if ends is None:
        return None
    for (_, role), sightings in seen.packets.items():
        if any(_outer_ends(one.packet) == ends for one in sightings):
            return Identity(role, None)
    for (_, role), sightings in seen.packets.items():
        last = sightings[-1]
        if last.place == told.place and last.outgoing and last.interface.kind in _TUNNELS:
            return Identity(role, None)
    return None


def _outer_ends(packet: Packet) -> tuple[str, str] | None:
    ip = next((one for one in packet.headers if isinstance(one, Ip)), None)
    return (ip.source, ip.target) if ip is not None and packet.encapsulated else None


def _latest(told: Drop | NftStep, seen: Seen, evidence: Evidence) -> int:
    """The probe that was the last to be seen before, at that place."""
    sent = sorted(
        (one.time_ns, number)
        for (number, role), sightings in seen.packets.items()
        for one in sightings
        if role == "request" and (told.place is None or one.place == told.place)
    )
    return max((number for time_ns, number in sent if time_ns <= told.time_ns), default=1)


def _hop_of(step: NftStep, packet: Packet, path: Sequence[Sighting]) -> int | None:
    """The sighting after which the packet met the rule.

    The kernel tells the interfaces and no time: on the way in and through a place that is the last
    sighting at the interface that it came in by; on the way out the one before it left.
    """
    here = [
        at
        for at, one in enumerate(path)
        if one.place == step.place and one.packet.encapsulated == packet.encapsulated
    ]
    came_in = [at for at in here if not path[at].outgoing]
    if step.iif:
        by_it = [at for at in came_in if path[at].interface.index == step.iif]
        return next(iter((by_it or came_in or here)[-1:]), None)
    for at in here:
        if path[at].outgoing and path[at].interface.index == step.oif:
            before = at - 1
            return before if at and path[before].place == step.place else at
    earlier = [at for at, one in enumerate(path) if one.place == step.place]
    return earlier[-1] if earlier else None
