"""What the kernels are asked: for each hop, what decided the next one; at a path's end, what
stopped it.

What lives here: making questions out of journeys, and finding the answers again. What does not:
answering (`decide`, at the agents), and who is asked over which connection (`session`). Pure.

Probes of one trace take the same way most of the time, so a question that differs from another in
no more than its number is asked once.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from podwire.trace.decode import ICMP, ICMPV6, TCP, UDP, decode_network
from podwire.trace.evidence import Evidence
from podwire.trace.model import Decision, Header, Icmp, Ip, Packet, Payload, Tcp, Udp
from podwire.trace.order import ErrorPath, Journey, journeys
from podwire.trace.records import Question
from podwire.trace.sightings import Ground, Sighting

#: Destination unreachable: port unreachable (RFC 792, RFC 4443), by IP version.
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}


def questions(evidence: Evidence) -> tuple[Question, ...]:
    """All that is to be asked, each once. `place` says whom."""
    found: dict[Question, Question] = {}
    for journey in journeys(evidence):
        request, reply = asked(journey, evidence)
        for question in (*request, *reply):
            found.setdefault(_likeness(question), question)
    return tuple(found.values())


def asked(
    journey: Journey, evidence: Evidence
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """The questions about one journey's request and about its answer, one for each sighting.

    Of a request that was not seen at all there is one, about what its place was to send.
    """
    ground = Ground(evidence.places)
    source, target = ground.ends(evidence)
    answer, answered = answer_of(journey, evidence)
    # What has been answered has arrived, wherever it was seen last.
    request = _questions(evidence, journey.request, source, ended=not answer)
    if not journey.request and not answer and source is not None:
        request = (_unsent(evidence, source),)
    return request, _questions(evidence, answer, target, ended=not answered)


def answer_of(journey: Journey, evidence: Evidence) -> tuple[tuple[Sighting, ...], bool]:
    """What came back, and whether it has arrived: the reply, or the target's own word that nobody
    listens there."""
    if journey.reply:
        return journey.reply, journey.answered
    for error in journey.errors:
        if is_refusal(error, evidence):
            return error.sightings, error.arrived
    return (), False


def is_refusal(error: ErrorPath, evidence: Evidence) -> bool:
    """Whether it says that the request is there and nothing listens."""
    kind = error.kind
    unreachable = (kind.type, kind.code) == PORT_UNREACHABLE[kind.version]
    return unreachable and kind.about == "request" and kind.sender == evidence.match.target


def answers(evidence: Evidence, asked_for: Sequence[Question]) -> tuple[tuple[Decision, ...], ...]:
    """The decisions for each of these; none where nobody answered."""
    known = {_likeness(one.question): one.decisions for one in evidence.answers}
    return tuple(known.get(_likeness(question), ()) for question in asked_for)


def _questions(
    evidence: Evidence, path: Sequence[Sighting], origin: int | None, *, ended: bool
) -> tuple[Question, ...]:
    found = []
    for at, one in enumerate(path):
        after = path[at + 1] if at + 1 < len(path) else None
        found.append(
            Question(
                place=one.place,
                ifindex=one.interface.index,
                direction="out" if one.outgoing else "in",
                packet=one.packet,
                ended=ended and after is None,
                origin=at == 0 and one.outgoing and one.place == origin,
                mark=_mark(evidence, one),
            )
        )
    return tuple(found)


def _mark(evidence: Evidence, seen: Sighting) -> int:
    """The packet's mark when its route was chosen: what nft rules had made of it before.

    Those have seen the interface that it came in by, and none that it leaves by yet.
    """
    if seen.outgoing:
        return 0
    source = _source(seen.packet.headers)
    for step in reversed(evidence.steps):
        met = (step.place, step.iif, step.oif) == (seen.place, seen.interface.index, 0)
        if met and _source(decode_network(step.data, len(step.data)).headers) == source:
            return step.mark
    return 0


def _source(headers: Sequence[Header]) -> str:
    """The outermost IP header's."""
    return next((header.source for header in headers if isinstance(header, Ip)), "")


def _unsent(evidence: Evidence, source: int) -> Question:
    """About a packet that its place was to send, as it would be."""
    probe, match = evidence.probe, evidence.match
    is_ipv6, port = ":" in match.target, probe.port or 0
    length = probe.size or (60 if probe.protocol == "tcp" else 84) + 20 * is_ipv6
    upper: Header
    if probe.protocol == "tcp":
        protocol = TCP
        upper = Tcp(match.ident, port, sequence=0, acknowledgement=0, flags="S")
    elif probe.protocol == "udp":
        protocol = UDP
        upper = Udp(match.ident, port, length=length - (40 if is_ipv6 else 20))
    else:
        protocol = ICMPV6 if is_ipv6 else ICMP
        upper = Icmp(type=128 if is_ipv6 else 8, code=0, id=match.ident, sequence=1)
    ip = Ip(
        version=6 if is_ipv6 else 4,
        source=match.source,
        target=match.target,
        ttl=64,
        protocol=protocol,
        length=length,
        dont_fragment=True,
    )
    return Question(
        place=source,
        ifindex=0,
        direction="out",
        packet=Packet(size=length, headers=(ip, upper)),
        ended=True,
        origin=True,
    )


def _likeness(question: Question) -> Question:
    """Equal for questions whose answers are."""
    headers = tuple(
        _plain(header) for header in question.packet.headers if not isinstance(header, Payload)
    )
    packet = msgspec.structs.replace(question.packet, headers=headers)
    return msgspec.structs.replace(question, packet=packet)


def _plain(header: Header) -> Header:
    """Without what numbers packets."""
    match header:
        case Ip():
            return msgspec.structs.replace(header, id=0)
        case Tcp():
            return msgspec.structs.replace(header, sequence=0, acknowledgement=0)
        case Icmp():
            return msgspec.structs.replace(header, sequence=None, quoted=())
    return header
