"""What became of a probe, and why: the outcome and the finding of a round.

What lives here: the order in which evidence counts. What does not: gathering it (`case`), what
explains an end (`endings`), what lies beyond what is seen (`beyond`). Pure.

What is sure goes first:

1. The answer is back: replied.
2. A packet filter dropped the request, or answered in the target's name. That goes before
   "refused", since a rule that rejects looks like a target that does.
3. The target said no: refused.
4. Else the last packet that was seen is judged, request or answer alike: by what explains its end;
   by where it went that nobody watches. What nothing explains stays unknown.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import NamedTuple

import msgspec

from podwire.trace import observations as seen
from podwire.trace.beyond import beyond
from podwire.trace.case import Case, Leg
from podwire.trace.endings import drop_of, explained
from podwire.trace.filters import filtered
from podwire.trace.model import Cause, Finding, Outcome, Tcp
from podwire.trace.observations import finding
from podwire.trace.order import Journey

#: What is found where a packet is for a subnet that nobody has told of.
_NOWHERE = frozenset(
    {
        Cause.NO_ROUTE,
        Cause.WRONG_ROUTE,
        Cause.BLACKHOLE,
        Cause.UNDERLAY,
        Cause.AGENT_AWAY,
        Cause.NO_ANSWER,
        Cause.UNKNOWN,
    }
)


#: From the interface to a sender that is busy, so much later it may have given up.
_JUST_US = 50_000


class Verdict(NamedTuple):
    """`arrived` and `answered`: the request and the answer were seen where they were to go, and
    were not dropped there."""

    outcome: Outcome
    finding: Finding | None
    arrived: bool
    answered: bool


def judge(case: Case) -> Verdict:
    """The outcome of one probe, and why it is not better."""
    there, back = case.request.arrived, case.answer.arrived
    if _replied(case):
        return Verdict(Outcome.REPLIED, None, there, back)
    if (found := filtered(case, case.request) or _rejected(case)) is not None:
        return Verdict(Outcome.DROPPED, found, False, back)
    if (found := _refused(case)) is not None:
        return Verdict(Outcome.REFUSED, found, there, back)
    if case.answer.sightings:
        outcome, found = _stopped(case, case.answer)
        return Verdict(outcome, found, there, False)
    if there:
        return _unanswered(case)
    outcome, found = _without_lease(case, *_stopped(case, case.request))
    return Verdict(outcome, found, False, False)


# --- the answer -----------------------------------------------------------------------------------


def _replied(case: Case) -> bool:
    """The sender got its answer; or would have, had it waited longer."""
    if case.result is not None and case.result.outcome == "replied":
        return True
    if not case.journey.answered or _is_reset(case.journey):
        return False
    if case.result is None:
        return True
    waited_us = case.waited_s * 1e6 - _JUST_US
    rtt_us = round_trip_us(case)
    return case.result.outcome == "timeout" and rtt_us is not None and rtt_us >= waited_us


def round_trip_us(case: Case) -> float | None:
    """From the request's first sighting to the answer's last, both at the source."""
    if not case.request.sightings or case.answer.last is None or not case.answer.arrived:
        return case.result.rtt_us if case.result is not None else None
    first, last = case.request.sightings[0], case.answer.last
    if not first.place == last.place == case.source:
        return case.result.rtt_us if case.result is not None else None
    return (last.time_ns - first.time_ns) / 1000


def _is_reset(journey: Journey) -> bool:
    return any(
        isinstance(header, Tcp) and "R" in header.flags
        for one in journey.reply[:1]
        for header in one.packet.inner
    )


def _refused(case: Case) -> Finding | None:
    """The target said no, or its kernel had nobody to give the packet to."""
    told = case.result is not None and case.result.outcome == "refused"
    said = bool(case.answer.sightings) and (_is_reset(case.journey) or not case.journey.reply)
    unwanted = [
        known.drop
        for known in case.request.drops
        if known.drop.reason == "NO_SOCKET" and not known.packet.encapsulated
    ]
    silently = case.journey.arrived and bool(unwanted) and not case.answer.sightings
    if not (told or (said and case.answer.arrived) or silently):
        return None
    place, end = case.target, case.evidence.target
    last = case.request.last
    at = str(end)
    if place is not None:
        is_there = last is not None and last.place == place
        at = seen.where(case, place, last.interface.name if last and is_there else "")
    what = f"{case.evidence.probe.protocol.upper()} port {case.evidence.probe.port}"
    whose = f"{end.kind} {end.name}" if end.name else end.ip
    return finding(
        case,
        case.request,
        Cause.REFUSED,
        f"delivered, but nothing listens on {what} there: not a fault of the network",
        where=at,
        remedy=f"start what should listen in {whose}, or ask for a port that it has (ss -tuln)",
        reason=unwanted[0].reason if unwanted else None,
    )


def _unanswered(case: Case) -> Verdict:
    """The request is there, and of an answer nothing was seen."""
    if (found := explained(case, case.answer)) is not None:
        return Verdict(Outcome.DROPPED, found, True, False)
    if (found := explained(case, case.request)) is not None:
        # Without a drop of the request itself, it is its answer that is in trouble.
        return Verdict(Outcome.DROPPED, found, drop_of(case.request) is None, False)
    last, probe = case.request.last, case.evidence.probe
    hint, command = {
        "icmp": ("may ignore echo requests", "sysctl net.ipv4.icmp_echo_ignore_all"),
        "udp": ("may listen and keep silent, as UDP services do", f"ss -uln sport = {probe.port}"),
        "tcp": (
            "did not answer the SYN, as with a full backlog (Recv-Q over Send-Q)",
            f"ss -ltn sport = {probe.port}",
        ),
    }[probe.protocol]
    end = case.evidence.target
    found = finding(
        case,
        case.request,
        Cause.NO_ANSWER,
        f"it arrived, and no answer was seen to leave within {case.waited_s:.2g} s:"
        f" {end.name or end.ip} {hint}",
        where=seen.where_seen(case, last) if last is not None else str(end),
        remedy=f"look there: {command}",
    )
    return Verdict(Outcome.DELIVERED, found, True, False)


def _rejected(case: Case) -> Finding | None:
    """Somebody on the way said no in the target's name: the target itself has seen nothing."""
    first = case.answer.sightings[0] if case.answer.sightings else None
    said = first is not None and (_is_reset(case.journey) or not case.journey.reply)
    if first is None or not said or case.target in (None, first.place) or case.journey.arrived:
        return None
    node = case.evidence.places[first.place].node
    return finding(
        case,
        case.request,
        Cause.NETFILTER,
        f"refused in the name of {case.evidence.target.ip}, which the request never reached:"
        " a packet filter rejects it",
        where=seen.where_seen(case, first),
        remedy=f"look for who rejects it: nft list ruleset; iptables-save  # on {node}",
    )


# --- what stopped it ------------------------------------------------------------------------------


def _stopped(case: Case, leg: Leg) -> tuple[Outcome, Finding]:
    """Why a leg ended where it was last seen, or was not seen at all."""
    if (found := explained(case, leg)) is not None:
        return Outcome.DROPPED, found
    if (further := beyond(case, leg)) is not None:
        return further
    what = "answer" if leg.role == "reply" else "request"
    if leg.last is None:
        place = seen.end_of(case, leg)
        at = seen.where(case, place)
        text = f"the {what} was not seen to leave, and nothing tells why"
    else:
        place, at = leg.last.place, seen.where_seen(case, leg.last)
        text = f"the {what} was not seen after that, and nothing tells why"
        if leg.arrived:
            text = f"the {what} is back, and the sender did not get it; nothing tells why"
    node = case.evidence.places[place].node if place is not None else "NODE"
    return Outcome.DROPPED, finding(
        case,
        leg,
        Cause.UNKNOWN,
        text,
        where=at,
        remedy=f"podwire doctor --node {node}; trace again with --count",
    )


def _without_lease(case: Case, outcome: Outcome, found: Finding) -> tuple[Outcome, Finding]:
    """A subnet whose node has published no lease is nowhere, whatever the symptom."""
    owner = case.evidence.facts.owner(case.evidence.match.target)
    if owner is None or owner.leased or found.cause not in _NOWHERE:
        return outcome, found
    target = ip_address(case.evidence.match.target)
    subnet = next(one for one in owner.subnets if target in ip_network(one))
    return Outcome.DROPPED, msgspec.structs.replace(
        found,
        cause=Cause.NO_LEASE,
        text=f"{subnet} is for node {owner.name}, which has published no lease:"
        " its agent has never been ready, and no node knows the way there",
        remedy=f"start the agent of {owner.name}; podwire get nodes shows when it is ready",
        evidence=(*found.evidence, f"what was found besides: {found.text}"),
    )
