"""Evidence in, `Trace` out.

What lives here: putting together what the other modules find out, hops, rules and findings, and the
words of the whole. What does not: any finding out. Pure: the same evidence makes the same trace.

    evidence ── sightings ── order ── questions ⇄ (the kernels' answers)
                                └──── case ── verdict ┐
                                        └─── changes ─┴─ build ── Trace
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from shlex import quote

from podwire.trace.case import Case, Leg, PlacedStep, cases
from podwire.trace.changes import changes, crossed
from podwire.trace.evidence import Evidence
from podwire.trace.model import (
    Cause,
    Change,
    Decision,
    Endpoint,
    Hop,
    Outcome,
    Path,
    Problem,
    Round,
    Trace,
)
from podwire.trace.questions import questions
from podwire.trace.records import NftStep
from podwire.trace.sightings import Ground
from podwire.trace.verdict import Verdict, judge, round_trip_us

__all__ = ["build", "questions"]

#: Statements of nft that change a packet or where it goes.
_TRANSLATIONS = frozenset(
    {"masquerade", "snat", "dnat", "redirect", "tproxy", "queue", "dup", "fwd"}
)


def build(evidence: Evidence) -> Trace:
    """The trace of this evidence, as complete as the evidence is."""
    judged = [(case, judge(case)) for case in cases(evidence)]
    rounds = tuple(_round(case, verdict) for case, verdict in judged)
    return Trace(
        started=evidence.started,
        source=evidence.source,
        target=evidence.target,
        probe=evidence.probe,
        places=evidence.places,
        rounds=rounds,
        verdict=_verdict(evidence, rounds),
        notes=tuple(dict.fromkeys(_notes(evidence, judged, rounds))),
    )


def _round(case: Case, verdict: Verdict) -> Round:
    request = _hops(case, case.request, first=1)
    answer = _hops(case, case.answer, first=1 + len(request))
    return Round(
        number=case.journey.number,
        request=Path(request, verdict.arrived),
        reply=Path(answer, verdict.answered) if answer else None,
        rtt_us=round_trip_us(case),
        outcome=verdict.outcome,
        finding=verdict.finding,
    )


# --- hops ---------------------------------------------------------------------------------------


def _hops(case: Case, leg: Leg, *, first: int) -> tuple[Hop, ...]:
    hops: list[Hop] = []
    for at, one in enumerate(leg.sightings):
        before = leg.sightings[at - 1] if at else None
        since = None
        if before is not None and case.ground.comparable(before.place, one.place):
            # A packet is not somewhere before it was where it came from: such times are equal.
            since = max(0.0, (one.time_ns - before.time_ns) / 1000)
        decided = leg.decisions[at] if at < len(leg.decisions) else ()
        hops.append(
            Hop(
                number=first + at,
                place=one.place,
                interface=one.interface.name,
                interface_kind=one.interface.kind,
                direction="out" if one.outgoing else "in",
                time_ns=one.time_ns,
                since_us=since,
                packet=one.packet,
                changes=_changes(case, leg, at) if at else (),
                decisions=(*decided, *_ruled(leg.steps, at)),
            )
        )
    return tuple(hops)


def _changes(case: Case, leg: Leg, at: int) -> tuple[Change, ...]:
    """Since the hop before, and on the way from its node where that is another one."""
    before, one = leg.sightings[at - 1], leg.sightings[at]
    places = case.evidence.places
    found = changes(before.packet, one.packet)
    if places[before.place].node == places[one.place].node:
        return found
    decided = leg.decisions[at - 1] if at <= len(leg.decisions) else ()
    within = before.interface.kind == one.interface.kind == "tun"
    more = crossed(
        before.packet,
        one.packet,
        router=next((decision.router for decision in decided if decision.router), ""),
        encrypted=case.evidence.encrypted and within,
    )
    return (*more, *found)


def _ruled(steps: Sequence[PlacedStep], hop: int) -> Iterator[Decision]:
    """The rules that made a difference: they dropped, accepted or changed the packet. That a chain
    of somebody let it pass by its policy is no news."""
    shown: set[tuple[object, ...]] = set()
    for step, at in steps:
        key = (step.place, step.family, step.table, step.chain, step.handle, step.verdict)
        if at == hop and key not in shown and _matters(step):
            shown.add(key)
            yield _decision(step)


def _matters(step: NftStep) -> bool:
    if step.kind == "policy":
        return step.verdict == "drop"
    words = set(step.rule.split())
    return step.verdict in ("drop", "accept") or bool(words & _TRANSLATIONS) or " set " in step.rule


def _decision(step: NftStep) -> Decision:
    chain = f"{step.family} {step.table} {step.chain}"
    what = step.rule or f"rule with handle {step.handle}"
    if step.why is not None:
        # The comment is how Podwire knows its own rules, and tells a reader nothing more.
        what = what.partition(' comment "')[0]
    if step.kind == "policy":
        what = f"policy {step.verdict}"
    problem = None
    if step.verdict == "drop":
        problem = Problem(cause=Cause.NFT, text=f"{chain}: {what}", why=step.why)
    return Decision(
        kind="nft",
        text=f"{chain}: {what}",
        command=f"nft -a list chain {step.family} {quote(step.table)} {quote(step.chain)}",
        why=step.why,
        problem=problem,
    )


# --- in words -----------------------------------------------------------------------------------


def _verdict(evidence: Evidence, rounds: Sequence[Round]) -> str:
    """All in one line: of several probes, how many came through, and what the first did not."""
    ends = f"{_end(evidence.source)} → {_end(evidence.target)}"
    replied = [one for one in rounds if one.outcome is Outcome.REPLIED]
    failed = next((one for one in rounds if one.outcome is not Outcome.REPLIED), None)
    many = len(rounds) > 1
    if failed is None:
        delivered = f"delivered {len(rounds)} of {len(rounds)}" if many else "delivered"
        return f"{delivered}: {ends}{_hop_count(replied)}{_round_trips(replied)}"
    lead = f"answered {len(replied)} of {len(rounds)}, number {failed.number} " if many else ""
    finding = failed.finding
    if finding is None:
        return f"{lead}{failed.outcome}: {ends}"
    if failed.outcome is Outcome.DROPPED:
        at = "" if finding.where.startswith("between ") else "at "
        return f"{lead}dropped {at}{finding.where}: {finding.text}"
    silent = failed.outcome is Outcome.DELIVERED
    outcome = "delivered, not answered" if silent else failed.outcome
    return f"{lead}{outcome}: {ends}: {finding.text}"


def _end(end: Endpoint) -> str:
    return f"{end.kind} {end.name}" if end.name else end.ip


def _hop_count(rounds: Sequence[Round]) -> str:
    there = {len(one.request.hops) for one in rounds}
    back = {len(one.reply.hops) for one in rounds if one.reply is not None}
    if len(there) != 1 or len(back) != 1:
        return ""
    first, second = there.pop(), back.pop()
    return f", {first} {'hop' if first == 1 else 'hops'} there and {second} back"


def _round_trips(rounds: Sequence[Round]) -> str:
    times = sorted(one.rtt_us / 1000 for one in rounds if one.rtt_us is not None)
    if not times:
        return ""
    if len(times) == 1 or times[0] == times[-1]:
        return f", RTT {times[0]:.2f} ms"
    return f", RTT {times[0]:.2f}–{times[-1]:.2f} ms"


def _notes(
    evidence: Evidence, judged: Sequence[tuple[Case, Verdict]], rounds: Sequence[Round]
) -> Iterator[str]:
    yield from evidence.notes
    for node in evidence.facts.nodes:
        if node.away:
            yield f"{node.name} was not observed: {node.away}"
    for name, lost in sorted(evidence.lost.items()):
        if lost:
            yield f"{lost} frames of {name} found no room: hops there may be missing"
    ground = Ground(evidence.places)
    crossed = {
        tuple(sorted({evidence.places[one].node for one in pair}))
        for round_ in rounds
        for path in (round_.request, round_.reply)
        if path is not None
        for pair in zip(
            [hop.place for hop in path.hops], [hop.place for hop in path.hops[1:]], strict=False
        )
        if not ground.comparable(*pair)
    }
    for nodes in sorted(crossed):
        yield f"{' and '.join(nodes)} have clocks of their own: times between them are not compared"
    for case, verdict in judged:
        number, again = case.journey.number, case.journey.retransmitted
        if again and evidence.probe.protocol == "tcp":
            yield f"the SYN of probe {number} was sent {again + 1} times; the first is shown"
        told = case.result.outcome if case.result is not None else None
        if verdict.outcome is Outcome.REPLIED and told == "timeout":
            yield (
                f"the answer to probe {number} came after the {case.waited_s:.2g} s"
                " that it was waited for"
            )
