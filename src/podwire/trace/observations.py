"""What was observed of a probe, in words: places, packets, and the lines that a finding rests on.

What lives here: words for evidence. What does not: which cause it makes (`verdict`). Pure.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from podwire.model.probe import IPText
from podwire.model.state import Why
from podwire.trace.case import Case, Leg
from podwire.trace.identify import inner_ip
from podwire.trace.model import Cause, Finding, Icmp, Ip, Packet, Tcp
from podwire.trace.order import ErrorPath
from podwire.trace.probe_errors import icmp_words
from podwire.trace.questions import is_refusal
from podwire.trace.reasons import reason_of
from podwire.trace.records import Drop, NftStep
from podwire.trace.sightings import NeighborAsk, Sighting


def where(case: Case, place: int | None, interface: str = "") -> str:
    """`node1, flannel.1`, `pod:default/pod1, eth0`."""
    name = "nowhere that is observed" if place is None else case.evidence.places[place].name
    return f"{name}, {interface}" if interface else name


def where_seen(case: Case, one: Sighting) -> str:
    return where(case, one.place, one.interface.name)


def where_dropped(case: Case, drop: Drop) -> str:
    if drop.place is None:
        return f"{drop.interface or 'no interface'} in a namespace that is not observed"
    return where(case, drop.place, drop.interface)


def where_met(case: Case, step: NftStep) -> str:
    """Where a packet met a rule."""
    index = step.iif or step.oif
    name = case.ground.interface(step.place, index).name if index else ""
    return where(case, step.place, name)


def who_is(case: Case, ip: IPText) -> str:
    """Whose address: `10.244.1.1 (node1)`, or the address alone."""
    place = case.ground.with_address(ip)
    if place is not None:
        return f"{ip} ({case.evidence.places[place].name})"
    facts = case.evidence.facts
    if (pod := facts.pod_at(ip)) is not None:
        return f"{ip} (pod:{pod.name})"
    if (node := facts.node_at(ip)) is not None:
        return f"{ip} ({node.name})"
    return ip


def flow(case: Case) -> str:
    """`ICMP echo`, `TCP port 80`."""
    probe = case.evidence.probe
    return (
        "ICMP echo" if probe.protocol == "icmp" else f"{probe.protocol.upper()} port {probe.port}"
    )


def outermost(packet: Packet) -> Ip | None:
    """The header that the wire sees."""
    return next((one for one in packet.headers if isinstance(one, Ip)), None)


def rule_name(step: NftStep) -> str:
    """`nft rule `ip daddr … drop` of chain inet theirs fw`."""
    chain = f"chain {step.family} {step.table} {step.chain}"
    if step.kind == "policy":
        return f"nft policy {step.verdict} of {chain}"
    text = f"`{step.rule}`" if step.rule else f"with handle {step.handle}"
    return f"nft rule {text} of {chain}"


def unanswered(case: Case, leg: Leg) -> Sequence[NeighborAsk]:
    """Whose MACs the place at a leg's end asked for in vain, and may have needed for that packet.

    For other pods a node asks on behalf of others; and once a packet has left, but for a tunnel
    that has still to send it, nobody needs to be asked for.
    """
    match, facts, last, place = (
        case.evidence.match,
        case.evidence.facts,
        leg.last,
        end_of(case, leg),
    )
    if place is None:
        return []
    aims = {match.source if leg.role == "reply" else match.target, *match.neighbors}
    is_pod = bool(case.evidence.places[place].pod)
    asks = [
        one
        for one in case.journey.neighbor_asks
        if not one.answered
        and one.place == place
        and (is_pod or one.target in aims or not facts.in_network(one.target))
    ]
    if last is None or not last.outgoing:
        return asks
    tunnel = last.interface.kind == "vxlan"
    return [one for one in asks if tunnel and one.interface.index != last.interface.index]


def end_of(case: Case, leg: Leg) -> int | None:
    """The place where a leg was last seen, or that was to send it."""
    if leg.last is not None:
        return leg.last.place
    return case.source if leg.role == "request" else case.target


def asking(ask: NeighborAsk) -> str:
    """`ARP for 10.244.2.99`, `NDP for fd00::99`."""
    return f"{'NDP' if ':' in ask.target else 'ARP'} for {ask.target}"


def observations(case: Case, leg: Leg) -> tuple[str, ...]:
    """The lines that tell of the end of a leg."""
    return tuple(_lines(case, leg))


def _lines(case: Case, leg: Leg) -> Iterator[str]:
    for one in (case.request, case.answer) if leg.role == "reply" else (leg,):
        what = "the answer" if one.role == "reply" else "the request"
        if one.last is not None:
            way = "out" if one.last.outgoing else "in"
            yield f"{what} was last seen at {where_seen(case, one.last)}, on the way {way}"
        else:
            yield f"{what} was seen nowhere"
    for first in case.answer.sightings[:1] if leg.role == "request" else ():
        yield f"an answer was first seen at {where_seen(case, first)}: {_says(first.packet)}"
    for step in _dropping(leg):
        yield f"traced at {where_met(case, step)}: {rule_name(step)}"
    for drop, packet in leg.drops:
        reason = reason_of(drop.reason, drop.location, encapsulated=packet.encapsulated)
        yield (
            f"the kernel freed it at {where_dropped(case, drop)}, in {drop.location}"
            f" ({drop.reason}: {reason.words})"
        )
    for error in case.journey.errors:
        if not is_refusal(error, case.evidence):
            yield error_words(case, error)
    for ask in unanswered(case, leg):
        times = f", {ask.count} times" if ask.count > 1 else ""
        at = where(case, ask.place, ask.interface.name)
        yield f"{asking(ask)} from {ask.asker} at {at}{times}: no answer seen"
    if case.result is not None and case.result.outcome in ("error", "timeout"):
        yield _told_by_sender(case)
    for node, lost in sorted(case.evidence.lost.items()):
        yield f"{lost} frames of {node} found no room and were not seen"


def _says(packet: Packet) -> str:
    """What an answer is: `RST`, `port unreachable`, `echo reply`."""
    for header in packet.inner:
        if isinstance(header, Tcp):
            return "RST" if "R" in header.flags else "SYN-ACK"
        if isinstance(header, Icmp) and header.quoted:
            ip = inner_ip(packet)
            return icmp_words(ip.version if ip is not None else 4, header.type, header.code)
    return "an echo reply" if any(isinstance(one, Icmp) for one in packet.inner) else "a datagram"


def _dropping(leg: Leg) -> list[NftStep]:
    return [step for step, _ in leg.steps if step.verdict == "drop"]


def dropping_step(leg: Leg) -> NftStep | None:
    """The rule or policy that dropped the leg's packet."""
    return next(iter(_dropping(leg)), None)


def error_words(case: Case, error: ErrorPath) -> str:
    """`10.244.1.1 (node1) said: fragmentation needed, MTU 1400`."""
    kind = error.kind
    mtu = f", MTU {kind.mtu}" if kind.mtu else ""
    said = icmp_words(kind.version, kind.type, kind.code)
    about = " of the answer" if kind.about == "reply" else ""
    return f"{who_is(case, kind.sender)} said{about}: {said}{mtu}"


def _told_by_sender(case: Case) -> str:
    result = case.result
    assert result is not None  # noqa: S101  the caller looked
    if result.outcome == "timeout" and result.given_up_s is not None:
        return f"the sender waited {result.given_up_s:.2g} s for an answer, as it was dropped"
    if result.outcome == "timeout":
        return f"the sender waited {case.evidence.probe.timeout_s:g} s for an answer"
    name = errno.errorcode.get(result.errno, str(result.errno))
    return (
        f"the sender's stack told {name}: {result.text}" if result.text else f"the sender: {name}"
    )


def length(packet: Packet) -> int:
    """Bytes of the IP packet that its ends see."""
    ip = inner_ip(packet)
    return ip.length if ip is not None else packet.size


def finding(
    case: Case,
    leg: Leg,
    cause: Cause,
    text: str,
    *,
    where: str,
    remedy: str = "",
    reason: str | None = None,
    why: Why | None = None,
) -> Finding:
    """What was found out about a leg, with the observations that it rests on."""
    return Finding(
        cause=cause,
        where=where,
        text=text,
        remedy=remedy,
        kernel_reason=reason,
        evidence=observations(case, leg),
        why=why,
    )


def what(leg: Leg) -> str:
    """`request` or `answer`."""
    return "answer" if leg.role == "reply" else "request"


def inside(case: Case, place: int | None) -> str:
    """Where a command is to be typed."""
    if place is None:
        return "there"
    one = case.evidence.places[place]
    return f"in pod {one.pod}" if one.pod else f"on {one.node}"
