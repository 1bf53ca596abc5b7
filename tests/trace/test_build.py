"""Evidence put together: hops with their decisions, notes, and the whole in one line."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.model.probe import Probe, ProbeMatch
from podwire.model.state import Why
from podwire.trace.build import build, questions
from podwire.trace.evidence import Answer, Evidence, moved
from podwire.trace.model import Decision, Endpoint, Outcome, Trace
from podwire.trace.records import Drop, Frame, NftStep, ProbeResult

from . import packets
from .scene import IDENT, NODE1, POD1, POD2, START_NS, Cluster, frames

OUTSIDE = Endpoint(kind="address", ip="203.0.113.9")
MASQUERADE = "ip saddr @cluster4 ip daddr != @cluster4 masquerade fully-random"


def pings(cluster: Cluster, count: int = 1, *, every_ns: int = 10_000, **more: object) -> Evidence:
    """pod1 asks pod2, and is answered."""
    ends = cluster.pod_ip(POD1), cluster.pod_ip(POD2)
    shown: list[Frame] = []
    for number in range(1, count + 1):
        steps = cluster.pod_to_pod(POD1, POD2, cluster.request(*ends, number))
        steps += cluster.pod_to_pod(POD2, POD1, cluster.reply(*ends, number))
        shown += frames(steps, start_ns=START_NS + number * 10**9, every_ns=every_ns)
    return cluster.evidence(POD1, POD2, shown, probe=Probe(target=ends[1], count=count), **more)


def masqueraded(cluster: Cluster) -> Evidence:
    """pod1 asks outside; node1's rule gives the request an address of its own."""
    pod, node = cluster.pod_ip(POD1), cluster.node_ip(NODE1)
    mark = packets.mark(IDENT, 1, 56)
    request = cluster.request(pod, OUTSIDE.ip)
    steps = list(cluster.leave_pod(POD1, request))
    sent = packets.echo(node, OUTSIDE.ip, 777, 1, ttl=63, payload=mark)
    steps.append(cluster.underlay(NODE1, True, sent))
    back = packets.echo(OUTSIDE.ip, node, 777, 1, reply=True, ttl=57, payload=mark)
    steps.append(cluster.underlay(NODE1, False, back))
    steps += cluster.enter_pod(POD1, cluster.reply(pod, OUTSIDE.ip), 56)
    rule = NftStep(
        place=NODE1,
        time_ns=START_NS,
        kind="rule",
        family="inet",
        table="podwire",
        chain="postrouting",
        rule=f'{MASQUERADE} comment "podwire 1234"',
        handle=7,
        verdict="accept",
        iif=3,
        oif=2,
        data=request(63)[:40],
        why=Why("Network/10.244.0.0/16", "is unknown outside"),
    )
    policy = msgspec.structs.replace(rule, kind="policy", rule="", chain="forward", handle=0)
    match = ProbeMatch(protocol="icmp", source=pod, target=OUTSIDE.ip, ident=IDENT, translated=True)
    return cluster.evidence(POD1, OUTSIDE, frames(steps), match=match, steps=(policy, rule, rule))


def test_the_whole_in_one_line() -> None:
    trace = build(pings(Cluster()))
    assert trace.verdict == (
        "delivered: pod default/pod1 → pod default/pod2, 10 hops there and 10 back, RTT 0.19 ms"
    )
    assert trace.ok
    assert trace.notes == ()


def test_several_probes_in_one_line() -> None:
    cluster = Cluster()
    evidence = pings(cluster, 3)
    assert build(evidence).verdict.startswith("delivered 3 of 3: pod default/pod1 → ")
    cut = [one for one in evidence.frames if one.time_ns < START_NS + 2 * 10**9 + 45_000]
    trace = build(msgspec.structs.replace(evidence, frames=tuple(cut)))
    assert trace.verdict == (
        "answered 1 of 3, number 2 dropped between node1, eth0 and node2, eth0:"
        " left node1 in UDP to 172.18.0.12:8472 and never reached node2"
    )
    assert not trace.ok
    assert [one.outcome for one in trace.rounds][::2] == [Outcome.REPLIED, Outcome.DROPPED]


def test_hops_are_numbered_through_and_timed() -> None:
    (one,) = build(pings(Cluster())).rounds
    assert one.reply is not None
    hops = [*one.request.hops, *one.reply.hops]
    assert [hop.number for hop in hops] == list(range(1, 21))
    assert [hop.since_us for hop in one.request.hops] == [None, *[10.0] * 9]
    assert hops[3].interface_kind == "vxlan"
    assert [change.kind for change in hops[3].changes] == ["ttl", "mac"]
    assert [change.kind for change in hops[4].changes] == ["encapsulated"]


def test_times_of_two_clocks_are_not_compared() -> None:
    trace = build(pings(Cluster(one_clock=False)))
    (one,) = trace.rounds
    assert [hop.since_us for hop in one.request.hops] == [None, *[10.0] * 4, None, *[10.0] * 4]
    assert one.rtt_us == 190.0
    assert trace.notes == (
        "node1 and node2 have clocks of their own: times between them are not compared",
    )


def test_equal_times_are_no_time() -> None:
    (one,) = build(pings(Cluster(), every_ns=0)).rounds
    assert {hop.since_us for hop in one.request.hops[1:]} == {0.0}


def test_a_translation_is_shown_with_the_rule_that_made_it() -> None:
    trace = build(masqueraded(Cluster()))
    (one,) = trace.rounds
    before, after = one.request.hops[2:]
    assert (before.interface, after.interface) == ("cni0", "eth0")
    (decision,) = before.decisions
    assert decision.kind == "nft"
    assert decision.text == f"inet podwire postrouting: {MASQUERADE}"
    assert decision.why == Why("Network/10.244.0.0/16", "is unknown outside")
    assert [change.kind for change in after.changes] == ["source-nat", "ttl", "mac"]
    assert one.reply is not None
    assert [change.kind for change in one.reply.hops[1].changes] == ["target-nat", "ttl", "mac"]
    # Nobody can look outside, so it was not seen to arrive.
    assert (one.outcome, one.request.arrived) == (Outcome.REPLIED, False)
    assert trace.verdict.startswith("delivered: pod default/pod1 → 203.0.113.9, 4 hops there")


def test_each_question_is_asked_once_and_its_answer_shown_each_time() -> None:
    evidence = pings(Cluster(), 3)
    asked = questions(evidence)
    assert len(asked) == 20
    assert not any(one.ended for one in asked)
    assert [one.origin for one in asked] == [True, *[False] * 9] * 2
    answers = tuple(
        Answer(one, (Decision(kind="route", text=f"{one.place} {one.ifindex} {one.direction}"),))
        for one in asked
    )
    trace = build(msgspec.structs.replace(evidence, answers=answers))
    for one in trace.rounds:
        for hop in one.request.hops:
            (decision,) = hop.decisions
            assert decision.text.startswith(f"{hop.place} ")
            assert decision.text.endswith(hop.direction)


def test_what_was_never_sent_is_asked_about_at_its_place() -> None:
    evidence = Cluster().evidence(POD1, POD2, [])
    (question,) = questions(evidence)
    assert (question.place, question.ifindex, question.ended) == (POD1, 0, True)
    assert question.packet.size == 84


def test_what_arrived_and_was_not_answered_is_asked_about_where_it_is() -> None:
    cluster = Cluster()
    evidence = pings(cluster)
    asked = questions(msgspec.structs.replace(evidence, frames=evidence.frames[:10]))
    (ended,) = [one for one in asked if one.ended]
    assert (ended.place, ended.direction) == (POD2, "in")


def test_what_could_not_be_seen_is_noted() -> None:
    cluster = Cluster()
    evidence = pings(cluster, notes=("drop reasons can't be seen: no BTF",), lost={"node2": 4})
    trace = build(evidence)
    assert trace.notes == (
        "drop reasons can't be seen: no BTF",
        "4 frames of node2 found no room: hops there may be missing",
    )


def test_places_that_follow_others_keep_their_cables() -> None:
    places = Cluster().places
    (cable,) = moved(places, 7)[POD1].interfaces
    assert cable.peer_place == NODE1 + 7
    assert moved(places, 0) == places


def test_evidence_and_trace_are_plain_data() -> None:
    evidence = masqueraded(Cluster())
    answers = tuple(
        Answer(one, (Decision(kind="route", text="default"),)) for one in questions(evidence)
    )
    evidence = msgspec.structs.replace(evidence, answers=answers)
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(evidence), type=Evidence)
    assert kept == evidence
    trace = build(kept)
    assert msgspec.json.decode(msgspec.json.encode(trace), type=Trace) == trace


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_no_evidence_is_an_error(dice: random.Random, one_clock: bool) -> None:
    """Whatever was seen or not, in whatever order: it makes a trace."""
    cluster = Cluster(one_clock=one_clock)
    evidence = pings(cluster, 2)
    shown = [one for one in evidence.frames if dice.random() < 0.8]
    for at in range(len(shown)):
        if dice.random() < 0.2:
            data = bytearray(shown[at].data)
            data[dice.randrange(len(data))] = dice.randrange(256)
            moved_to = dice.randrange(6)
            shown[at] = msgspec.structs.replace(shown[at], data=bytes(data), place=moved_to)
    dice.shuffle(shown)
    some = dice.sample(shown, k=min(len(shown), 3))
    drops = tuple(
        Drop(
            place=dice.choice([None, *range(5)]),
            ifindex=dice.randrange(5),
            interface="eth0",
            time_ns=one.time_ns,
            reason=dice.choice(["NETFILTER_DROP", "NO_SOCKET", "OTHERHOST", "NEW_ONE"]),
            location="somewhere",
            data=one.data[14 : 14 + dice.randrange(100)],
        )
        for one in some
    )
    steps = tuple(
        NftStep(
            place=dice.randrange(5),
            time_ns=one.time_ns,
            kind=dice.choice(["rule", "policy"]),
            family="inet",
            table="t",
            chain="c",
            rule="",
            handle=1,
            verdict=dice.choice(["accept", "drop", "continue", "jump x"]),
            iif=dice.randrange(5),
            oif=dice.randrange(5),
            data=one.data[14:60],
        )
        for one in some
        if dice.random() < 0.3
    )
    results = tuple(
        ProbeResult(number=number, outcome=dice.choice(["timeout", "error", "refused"]), errno=111)
        for number in (1, 2)
        if dice.random() < 0.7
    )
    evidence = msgspec.structs.replace(
        evidence, frames=tuple(shown), drops=drops, steps=steps, results=results
    )
    questions(evidence)
    trace = build(evidence)
    assert len(trace.rounds) == 2
    assert "\n" not in trace.verdict
    for one in trace.rounds:
        assert (one.finding is None) is (one.outcome is Outcome.REPLIED)
    backwards = msgspec.structs.replace(evidence, frames=evidence.frames[::-1])
    assert build(backwards) == trace
