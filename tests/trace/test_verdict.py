"""What stops a packet, as evidence made by hand, and what is said of it."""

from __future__ import annotations

import errno
from typing import Literal

import msgspec
import pytest

from podwire.model.probe import Probe, ProbeMatch, Protocol
from podwire.model.state import Why
from podwire.trace.build import build, questions
from podwire.trace.evidence import Answer, Evidence, NodeFacts
from podwire.trace.model import (
    Cause,
    Decision,
    Endpoint,
    Finding,
    Interface,
    Outcome,
    Place,
    Problem,
    Round,
)
from podwire.trace.records import Drop, NftStep, ProbeResult
from podwire.trace.user_tunnel import TunnelCount

from . import packets
from .scene import (
    IDENT,
    NODE1,
    NODE2,
    POD1,
    POD2,
    POD3,
    START_NS,
    Build,
    Cluster,
    Step,
    frames,
)

TIMEOUT = ProbeResult(number=1, outcome="timeout")
CNI, FLANNEL, UNDERLAY = 3, 4, 2
OUTSIDE = Endpoint(kind="address", ip="203.0.113.9")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


class Scene:
    """A probe from pod1 to pod2 and how far it came."""

    def __init__(self, cluster: Cluster, target: int = POD2, *, size: int = 56) -> None:
        self.cluster = cluster
        self.ends = cluster.pod_ip(POD1), cluster.endpoint(target).ip
        self.target = target
        self.request: Build = cluster.request(*self.ends, size=size)
        self.reply: Build = cluster.reply(*self.ends)
        self.there = cluster.pod_to_pod(POD1, target, self.request)
        self.back = cluster.pod_to_pod(target, POD1, self.reply)

    def seen(self, there: int = 10, back: int = 0, **more: object) -> Evidence:
        """The first steps of the way there and of the way back."""
        shown = frames([*self.there[:there], *self.back[:back]])
        return self.cluster.evidence(POD1, self.target, shown, **{"results": (TIMEOUT,), **more})

    def drop(
        self,
        place: int | None,
        interface: str,
        reason: str,
        location: str = "",
        *,
        ifindex: int = 0,
        data: bytes = b"",
    ) -> Drop:
        """Of the request after its first routing, or of the packet in `data`."""
        return Drop(
            place=place,
            ifindex=ifindex,
            interface=interface,
            time_ns=START_NS + 200_000,
            reason=reason,
            location=location,
            data=data or self.request(63),
        )


def only(evidence: Evidence) -> Round:
    (one,) = build(evidence).rounds
    return one


def dropped(evidence: Evidence) -> Finding:
    one = only(evidence)
    assert one.outcome is Outcome.DROPPED, one
    assert one.finding is not None
    assert one.finding.text
    assert one.finding.remedy
    return one.finding


def objecting(evidence: Evidence, problem: Problem) -> Evidence:
    """The kernel's answer to what stopped the packet."""
    (ended,) = [one for one in questions(evidence) if one.ended]
    answer = Answer(ended, (Decision(kind="route", text="…", problem=problem),))
    return msgspec.structs.replace(evidence, answers=(answer,))


def step(place: int, rule: str, verdict: str = "drop", **more: object) -> NftStep:
    fields: dict[str, object] = {
        "time_ns": START_NS,
        "kind": "rule",
        "family": "inet",
        "table": "theirs",
        "chain": "fw",
        "handle": 4,
        **more,
    }
    return NftStep(place=place, rule=rule, verdict=verdict, **fields)  # type: ignore[arg-type]


# --- delivered ------------------------------------------------------------------------------------


def test_an_answer_that_is_back_needs_no_finding(cluster: Cluster) -> None:
    result = ProbeResult(number=1, outcome="replied", rtt_us=250)
    one = only(Scene(cluster).seen(10, 10, results=(result,)))
    assert (one.outcome, one.finding) == (Outcome.REPLIED, None)
    assert one.rtt_us == 190.0  # 20 sightings, 10 µs apart
    assert one.reply is not None
    assert (one.request.arrived, one.reply.arrived) == (True, True)


def test_what_the_kernel_frees_on_the_way_of_an_answered_probe_is_no_drop(
    cluster: Cluster,
) -> None:
    scene = Scene(cluster)
    copy = scene.drop(POD3, "eth0", "OTHERHOST", "ip_rcv_core")
    assert only(scene.seen(10, 10, drops=(copy,), results=())).outcome is Outcome.REPLIED


def test_an_answer_after_the_timeout_is_an_answer(cluster: Cluster) -> None:
    scene = Scene(cluster)
    shown = frames(scene.there) + frames(scene.back, start_ns=START_NS + 1_500_000_000)
    evidence = cluster.evidence(POD1, POD2, shown, results=(TIMEOUT,))
    trace = build(evidence)
    assert trace.rounds[0].outcome is Outcome.REPLIED
    assert any("after the 1 s" in note for note in trace.notes)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_that_nobody_listens_on_is_no_fault_of_the_network(
    cluster: Cluster, protocol: Protocol
) -> None:
    source, target = cluster.pod_ip(POD1), cluster.pod_ip(POD2)
    ends, mirrored = (source, target), (target, source)
    if protocol == "tcp":
        request = cluster.segment(ends, (IDENT, 81), "S", 7)
        reply = cluster.segment(mirrored, (81, IDENT), "R.", 0, 8)
    else:
        request = cluster.datagram(ends, (IDENT, 81), packets.mark(IDENT, 1, 56))

        def reply(ttl: int) -> bytes:
            return packets.icmp_error(target, source, 3, 3, request(62), ttl=ttl)

    shown = frames(
        [*cluster.pod_to_pod(POD1, POD2, request), *cluster.pod_to_pod(POD2, POD1, reply)]
    )
    drop = Drop(
        place=POD2,
        ifindex=2,
        interface="eth0",
        time_ns=START_NS + 95_000,
        reason="NO_SOCKET",
        location="__udp4_lib_rcv",
        data=request(62),
    )
    evidence = cluster.evidence(
        POD1,
        POD2,
        shown,
        match=ProbeMatch(protocol=protocol, source=source, target=target, ident=IDENT, port=81),
        probe=Probe(protocol=protocol, target=target, port=81),
        results=(ProbeResult(number=1, outcome="refused", errno=errno.ECONNREFUSED),),
        drops=(drop,),
    )
    one = only(evidence)
    assert one.outcome is Outcome.REFUSED
    assert one.finding is not None
    assert one.finding.cause is Cause.REFUSED
    assert one.finding.where == "pod:default/pod2, eth0"
    assert f"{protocol.upper()} port 81" in one.finding.text
    assert one.finding.kernel_reason == "NO_SOCKET"
    assert one.reply is not None
    assert len(one.reply.hops) == 10
    # Nothing came back: the kernel's word is enough.
    alone = msgspec.structs.replace(evidence, frames=tuple(shown[:10]), results=(TIMEOUT,))
    assert only(alone).outcome is Outcome.REFUSED


def test_a_refusal_that_gets_lost_is_a_drop_on_the_way_back(cluster: Cluster) -> None:
    source, target = cluster.pod_ip(POD1), cluster.pod_ip(POD2)
    request = cluster.segment((source, target), (IDENT, 81), "S", 7)
    reply = cluster.segment((target, source), (81, IDENT), "R.", 0, 8)
    back = cluster.pod_to_pod(POD2, POD1, reply)[:5]
    evidence = cluster.evidence(
        POD1,
        POD2,
        frames([*cluster.pod_to_pod(POD1, POD2, request), *back]),
        match=ProbeMatch(protocol="tcp", source=source, target=target, ident=IDENT, port=81),
        probe=Probe(protocol="tcp", target=target, port=81),
        results=(TIMEOUT,),
    )
    found = dropped(evidence)
    assert (found.cause, found.where) == (Cause.UNDERLAY, "between node2, eth0 and node1, eth0")


def test_silence_at_the_target_is_delivered(cluster: Cluster) -> None:
    one = only(Scene(cluster).seen())
    assert (one.outcome, one.request.arrived, one.reply) == (Outcome.DELIVERED, True, None)
    assert one.finding is not None
    assert one.finding.cause is Cause.NO_ANSWER
    assert one.finding.where == "pod:default/pod2, eth0"
    assert build(Scene(cluster).seen()).verdict.startswith("delivered, not answered: pod ")


@pytest.mark.parametrize(
    ("place", "interface", "ifindex"), [(POD1, "eth0", 2), (POD3, "eth0", 2), (NODE1, "cni0", 3)]
)
def test_copies_that_a_bridge_flooded_tell_nothing(
    cluster: Cluster, place: int, interface: str, ifindex: int
) -> None:
    scene = Scene(cluster)
    drop = scene.drop(place, interface, "OTHERHOST", "ip_rcv_core", ifindex=ifindex)
    one = only(scene.seen(drops=(drop,)))
    assert one.finding is not None
    assert (one.outcome, one.finding.cause) == (Outcome.DELIVERED, Cause.NO_ANSWER)


# --- packet filters -------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped_by_kernel", [False, True])
def test_the_rule_that_drops_it_is_named(cluster: Cluster, dropped_by_kernel: bool) -> None:
    scene = Scene(cluster)
    rule = step(NODE1, "icmp type echo-request drop", iif=CNI, data=scene.request(64)[:40])
    drop = scene.drop(NODE1, "cni0", "NETFILTER_DROP", "nft_do_chain")
    evidence = scene.seen(3, steps=(rule,), drops=(drop,) if dropped_by_kernel else ())
    # What else is wrong there did not stop it.
    other = Problem(cause=Cause.NO_ROUTE, text="no route")
    found = dropped(objecting(evidence, other))
    assert (found.cause, found.where) == (Cause.NFT, "node1, cni0")
    assert "`icmp type echo-request drop`" in found.text
    assert "chain inet theirs fw" in found.text
    assert "not Podwire's" in found.text
    assert "nft delete rule inet theirs fw handle 4" in found.remedy
    assert found.kernel_reason == ("NETFILTER_DROP" if dropped_by_kernel else None)
    decision = only(evidence).request.hops[-1].decisions[-1]
    assert decision.kind == "nft"
    assert decision.problem is not None


def test_a_rule_of_podwire_says_for_whom_it_is(cluster: Cluster) -> None:
    scene = Scene(cluster)
    why = Why("NetworkPolicy/default/closed", "allows nobody")
    rule = step(NODE2, "drop", iif=FLANNEL, data=scene.request(63), why=why, table="podwire")
    found = dropped(scene.seen(7, steps=(rule,)))
    assert "because NetworkPolicy/default/closed allows nobody" in found.text
    assert found.why == why
    assert "delete" not in found.remedy


def test_a_policy_drops_what_no_rule_accepts(cluster: Cluster) -> None:
    scene = Scene(cluster)
    policy = step(NODE2, "", kind="policy", iif=FLANNEL, data=scene.request(63))
    found = dropped(scene.seen(7, steps=(policy,)))
    assert (found.cause, found.where) == (Cause.NFT, "node2, flannel.1")
    assert "policy drop of chain inet theirs fw" in found.text
    assert "nft insert rule inet theirs fw ip daddr 10.244.2.2" in found.remedy


def test_a_rule_on_the_tunnel_is_met_by_what_is_in_it(cluster: Cluster) -> None:
    """Of such a packet the kernel tells no more than the headers around it."""
    scene = Scene(cluster)
    outer = scene.there[5].frame[14 : 14 + 40]
    rule = step(NODE2, "udp dport 8472 drop", iif=UNDERLAY, data=outer)
    found = dropped(scene.seen(6, steps=(rule,)))
    assert (found.cause, found.where) == (Cause.NFT, "node2, eth0")


def test_a_rule_that_lets_the_tunnel_send_nothing(cluster: Cluster) -> None:
    scene = Scene(cluster)
    outer = scene.there[5].frame[14 : 14 + 40]
    rule = step(NODE1, "udp dport 8472 drop", oif=UNDERLAY, data=outer)
    found = dropped(scene.seen(4, steps=(rule,)))
    assert (found.cause, found.where) == (Cause.NFT, "node1, eth0")


def test_a_rule_that_drops_where_the_packet_was_to_go(cluster: Cluster) -> None:
    scene = Scene(cluster)
    rule = step(POD2, "icmp type echo-request drop", iif=2, data=scene.request(62))
    one = only(scene.seen(10, steps=(rule,)))
    assert one.outcome is Outcome.DROPPED
    assert not one.request.arrived
    assert one.finding is not None
    assert one.finding.where == "pod:default/pod2, eth0"


def test_a_rule_that_drops_the_reply(cluster: Cluster) -> None:
    scene = Scene(cluster)
    rule = step(NODE2, "icmp type echo-reply drop", iif=CNI, data=scene.reply(64))
    one = only(scene.seen(10, 3, steps=(rule,)))
    assert one.request.arrived
    assert one.finding is not None
    assert (one.finding.cause, one.finding.where) == (Cause.NFT, "node2, cni0")
    assert "drops the answer" in one.finding.text


@pytest.mark.parametrize("back", [0, 10])
def test_a_rule_that_keeps_the_reply_from_leaving_or_arriving(
    cluster: Cluster, back: Literal[0, 10]
) -> None:
    scene = Scene(cluster)
    place = POD1 if back else POD2
    rule = step(place, "drop", data=scene.reply(64), iif=2 if back else 0, oif=0 if back else 2)
    found = dropped(scene.seen(10, back, steps=(rule,)))
    assert found.where == f"pod:default/{'pod1' if back else 'pod2'}, eth0"


def test_a_rule_that_keeps_the_request_from_leaving(cluster: Cluster) -> None:
    scene = Scene(cluster)
    rule = step(POD1, "drop", oif=2, data=scene.request(64))
    told = ProbeResult(number=1, outcome="error", errno=errno.EPERM, text="Operation not permitted")
    found = dropped(scene.seen(0, steps=(rule,), results=(told,)))
    assert (found.cause, found.where) == (Cause.NFT, "pod:default/pod1, eth0")


def test_names_in_a_remedy_can_be_pasted(cluster: Cluster) -> None:
    """Whoever may make chains and links in a pod may give them any name."""
    dropping = step(POD2, "drop", iif=2, chain="x; reboot", data=Scene(cluster).request(62))
    found = dropped(Scene(cluster).seen(steps=(dropping,)))
    assert "nft delete rule inet theirs 'x; reboot' handle 4 " in found.remedy


def test_a_filter_whose_rules_can_not_be_seen(cluster: Cluster) -> None:
    scene = Scene(cluster)
    drop = scene.drop(NODE1, "cni0", "NETFILTER_DROP", "nf_hook_slow")
    found = dropped(scene.seen(3, drops=(drop,)))
    assert (found.cause, found.where) == (Cause.NETFILTER, "node1, cni0")


def test_a_reset_in_the_targets_name_is_no_refusal(cluster: Cluster) -> None:
    source, target = cluster.pod_ip(POD1), cluster.pod_ip(POD2)
    request = cluster.segment((source, target), (IDENT, 81), "S", 7)
    reset = cluster.segment((target, source), (81, IDENT), "R.", 0, 8)
    there = cluster.pod_to_pod(POD1, POD2, request)[:3]
    evidence = cluster.evidence(
        POD1,
        POD2,
        frames([*there, *cluster.enter_pod(POD1, reset, 64)]),
        match=ProbeMatch(protocol="tcp", source=source, target=target, ident=IDENT, port=81),
        probe=Probe(protocol="tcp", target=target, port=81),
        results=(ProbeResult(number=1, outcome="refused", errno=errno.ECONNREFUSED),),
    )
    found = dropped(evidence)
    assert (found.cause, found.where) == (Cause.NETFILTER, "node1, cni0")


# --- what the kernel objects to -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "place", "interface", "cause", "reason", "location"),
    [
        (3, NODE1, "cni0", Cause.NO_ROUTE, "IP_INNOROUTES", "ip_error"),
        (3, NODE1, "cni0", Cause.BLACKHOLE, "NOT_SPECIFIED", "ip_error"),
        (3, NODE1, "cni0", Cause.NOT_FORWARDING, "IP_INADDRERRORS", "ip_error"),
        (3, NODE1, "cni0", Cause.LINK_DOWN, "IP_INNOROUTES", "ip_error"),
        (3, NODE1, "cni0", Cause.TOO_BIG, "PKT_TOO_BIG", "ip_forward"),
        (3, NODE1, "flannel.1", Cause.NO_NEIGHBOR, "NEIGH_FAILED", "neigh_invalidate"),
        (4, NODE1, "flannel.1", Cause.NO_FDB, "NO_TX_TARGET", "vxlan_xmit"),
        (4, NODE1, "flannel.1", Cause.WRONG_NEIGHBOR, "NO_TX_TARGET", "vxlan_xmit"),
        (6, NODE2, "eth0", Cause.LINK_DOWN, "NO_SOCKET", "__udp4_lib_rcv"),
        (6, NODE2, "eth0", Cause.LINK_MISSING, "VXLAN_VNI_NOT_FOUND", "vxlan_rcv"),
        (7, NODE2, "flannel.1", Cause.RP_FILTER, "IP_RPFILTER", "ip_rcv_finish_core"),
        (7, NODE2, "flannel.1", Cause.WRONG_NEIGHBOR, "OTHERHOST", "ip_rcv_core"),
        (8, NODE2, "cni0", Cause.LINK_DOWN, "NO_TX_TARGET", "br_dev_xmit"),
        (9, NODE2, "vethpod2", Cause.LINK_DOWN, "NOT_SPECIFIED", "__dev_forward_skb2"),
    ],
)
def test_a_problem_that_fits_the_kernels_reason_is_the_cause(
    cluster: Cluster,
    there: int,
    place: int,
    interface: str,
    cause: Cause,
    reason: str,
    location: str,
) -> None:
    scene = Scene(cluster)
    name = cluster.places[place].name
    ifindex = next(one.index for one in cluster.places[place].interfaces if one.name == interface)
    data = scene.there[5].frame[14:] if there == 6 else scene.request(63)
    drop = scene.drop(place, interface, reason, location, ifindex=ifindex, data=data)
    problem = Problem(cause=cause, text="so it is", place=name, interface=interface, remedy="do")
    with_both = objecting(scene.seen(there, drops=(drop,)), problem)
    for evidence in (with_both, msgspec.structs.replace(with_both, drops=())):
        found = dropped(evidence)
        assert (found.cause, found.text) == (cause, "so it is")
        assert found.where == f"{name}, {interface}"
        assert found.kernel_reason == (reason if evidence.drops else None)
    # Without an answer the reason is all there is, and it must not say what it can't know.
    found = dropped(msgspec.structs.replace(with_both, answers=()))
    assert found.kernel_reason == reason
    assert found.where == f"{name}, {interface}"


def test_a_problem_that_does_not_fit_the_reason_came_later(cluster: Cluster) -> None:
    scene = Scene(cluster)
    drop = scene.drop(NODE2, "flannel.1", "IP_RPFILTER", "ip_rcv_finish_core")
    evidence = objecting(
        scene.seen(7, drops=(drop,)), Problem(cause=Cause.NO_ROUTE, text="no route by now")
    )
    found = dropped(evidence)
    assert found.cause is Cause.RP_FILTER
    assert any("no route by now" in line for line in found.evidence)


def test_a_problem_of_the_answer_is_a_drop_on_the_way_back(cluster: Cluster) -> None:
    problem = Problem(cause=Cause.NO_ROUTE, text="the answer: no route", place="pod:default/pod2")
    evidence = objecting(Scene(cluster).seen(), problem)
    found = dropped(evidence)
    assert (found.cause, found.where) == (Cause.NO_ROUTE, "pod:default/pod2, eth0")
    assert only(evidence).request.arrived


def test_a_wrong_tunnel_end_is_found_where_it_is(cluster: Cluster) -> None:
    """The other node drops the frame, which is not for it."""
    scene = Scene(cluster)
    drop = scene.drop(None, "flannel.1", "OTHERHOST", "ip_rcv_core")
    problem = Problem(
        cause=Cause.WRONG_FDB, text="sent to 172.18.0.13", place="node1", interface="flannel.1"
    )
    found = dropped(objecting(scene.seen(5, drops=(drop,)), problem))
    assert (found.cause, found.where) == (Cause.WRONG_FDB, "node1, flannel.1")


# --- the sender's stack, routers, silence ---------------------------------------------------------


def test_a_packet_over_the_senders_own_mtu(cluster: Cluster) -> None:
    told = ProbeResult(number=1, outcome="error", errno=errno.EMSGSIZE, text="too long")
    probe = Probe(target=cluster.pod_ip(POD2), size=1451)
    found = dropped(Scene(cluster).seen(0, results=(told,), probe=probe))
    assert (found.cause, found.where) == (Cause.TOO_BIG, "pod:default/pod1, eth0")
    assert "1451" in found.text
    assert "1450" in found.text


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (errno.ENETUNREACH, Cause.NO_ROUTE),
        (errno.EACCES, Cause.BLACKHOLE),
        (errno.EPERM, Cause.NETFILTER),
        (errno.ENETDOWN, Cause.LINK_DOWN),
        (errno.EADDRNOTAVAIL, Cause.SOCKET),
    ],
)
def test_a_stack_that_refuses_to_send(cluster: Cluster, code: int, cause: Cause) -> None:
    told = ProbeResult(number=1, outcome="error", errno=code, text="refused")
    found = dropped(Scene(cluster).seen(0, results=(told,)))
    assert (found.cause, found.where) == (cause, "pod:default/pod1, eth0")


def test_nothing_at_all_is_unknown(cluster: Cluster) -> None:
    found = dropped(Scene(cluster).seen(0, results=()))
    assert (found.cause, found.where) == (Cause.UNKNOWN, "pod:default/pod1")


def test_a_router_that_can_not_pass_on_so_much(cluster: Cluster) -> None:
    scene = Scene(cluster, size=1400)
    source = scene.ends[0]

    def error(ttl: int) -> bytes:
        return packets.icmp_error("10.244.1.1", source, 3, 4, scene.request(64), mtu=1300, ttl=ttl)

    flannel = msgspec.structs.replace(cluster.places[NODE1].interfaces[3], mtu=1300)
    places = _with_interface(cluster, NODE1, flannel)
    shown = frames([*scene.there[:3], *cluster.enter_pod(POD1, error, 64)])
    found = dropped(cluster.evidence(POD1, POD2, shown, places=places, results=(TIMEOUT,)))
    assert (found.cause, found.where) == (Cause.TOO_BIG, "node1, flannel.1")
    assert "1428 bytes" in found.text
    assert "1300" in found.text


def test_a_router_outside_says_why(cluster: Cluster) -> None:
    source = cluster.pod_ip(POD1)
    request = cluster.request(source, OUTSIDE.ip)
    steps = list(cluster.leave_pod(POD1, request))
    steps.append(cluster.underlay(NODE1, True, request(63)))
    node = cluster.node_ip(NODE1)
    error = packets.icmp_error("198.51.100.1", node, 11, 0, request(1), ttl=60)
    steps.append(cluster.underlay(NODE1, False, error))
    found = dropped(cluster.evidence(POD1, OUTSIDE, frames(steps), results=(TIMEOUT,)))
    assert (found.cause, found.where) == (Cause.TTL, "198.51.100.1")


def _with_interface(cluster: Cluster, place: int, one: Interface) -> tuple[Place, ...]:
    """The cluster's places, one interface of one changed."""
    places = list(cluster.places)
    places[place] = msgspec.structs.replace(
        places[place],
        interfaces=tuple(
            one if other.index == one.index else other for other in places[place].interfaces
        ),
    )
    return tuple(places)


def _ask(cluster: Cluster, place: int, ifindex: int, target: str) -> Step:
    where = cluster.places[place]
    interface = next(one for one in where.interfaces if one.index == ifindex)
    asker = interface.addresses[0].partition("/")[0]
    return Step(place, ifindex, True, packets.arp(interface.mac, asker, target))


def test_an_address_that_nobody_has(cluster: Cluster) -> None:
    target = Endpoint(kind="address", ip="10.244.2.99")
    request = cluster.request(cluster.pod_ip(POD1), target.ip)
    steps = [*cluster.leave_pod(POD1, request), *cluster.cross(NODE1, NODE2, request, 63)]
    steps += [_ask(cluster, NODE2, CNI, target.ip)] * 2
    found = dropped(cluster.evidence(POD1, target, frames(steps), results=(TIMEOUT,)))
    assert (found.cause, found.where) == (Cause.NOT_IN_USE, "node2, cni0")
    assert "ARP for 10.244.2.99" in found.text
    assert any("2 times" in line for line in found.evidence)


def test_an_address_that_nobody_has_on_the_same_node(cluster: Cluster) -> None:
    target = Endpoint(kind="address", ip="10.244.1.99")
    steps = [_ask(cluster, POD1, 2, target.ip)]
    found = dropped(cluster.evidence(POD1, target, frames(steps), results=(TIMEOUT,)))
    assert (found.cause, found.where) == (Cause.NOT_IN_USE, "pod:default/pod1, eth0")


def test_whom_others_packets_are_for_is_no_cause(cluster: Cluster) -> None:
    """A node asks for dead pods all the time, whatever becomes of the probe."""
    scene, other = Scene(cluster), "10.244.2.77"
    steps = [*scene.there[:7], _ask(cluster, NODE2, CNI, other)]
    found = dropped(cluster.evidence(POD1, POD2, frames(steps), results=(TIMEOUT,)))
    assert found.cause is Cause.UNKNOWN
    assert not any(other in line for line in found.evidence)


def test_who_is_asked_for_elsewhere_is_no_cause_once_it_has_left(cluster: Cluster) -> None:
    request = cluster.request(cluster.pod_ip(POD1), OUTSIDE.ip)
    out = cluster.underlay(NODE1, True, request(63))
    for ifindex, asked in ((CNI, "10.244.1.3"), (FLANNEL, "10.244.2.0")):
        steps = [*cluster.leave_pod(POD1, request), out, _ask(cluster, NODE1, ifindex, asked)]
        one = only(cluster.evidence(POD1, OUTSIDE, frames(steps), results=(TIMEOUT,)))
        assert (one.outcome, one.finding and one.finding.cause) == (
            Outcome.UNANSWERED,
            Cause.NO_ANSWER,
        )


def test_a_neighbour_that_the_tunnel_asks_for(cluster: Cluster) -> None:
    scene = Scene(cluster)
    steps = [*scene.there[:3], _ask(cluster, NODE1, FLANNEL, "10.244.2.0")]
    found = dropped(cluster.evidence(POD1, POD2, frames(steps), results=(TIMEOUT,)))
    assert (found.cause, found.where) == (Cause.NO_NEIGHBOR, "node1, flannel.1")


def test_a_node_that_does_not_answer_on_the_underlay(cluster: Cluster) -> None:
    scene = Scene(cluster)
    steps = [*scene.there[:4], _ask(cluster, NODE1, UNDERLAY, cluster.node_ip(NODE2))]
    found = dropped(cluster.evidence(POD1, POD2, frames(steps), results=(TIMEOUT,)))
    assert found.cause is Cause.UNDERLAY
    assert "node2" in found.text


def test_a_pod_that_does_not_hear_because_its_cable_is_down(cluster: Cluster) -> None:
    scene = Scene(cluster)
    port = next(one for one in cluster.places[NODE2].interfaces if one.name == "vethpod2")
    places = _with_interface(cluster, NODE2, msgspec.structs.replace(port, up=False))
    steps = [*scene.there[:7], _ask(cluster, NODE2, CNI, scene.ends[1])]
    found = dropped(cluster.evidence(POD1, POD2, frames(steps), places=places, results=(TIMEOUT,)))
    assert (found.cause, found.where) == (Cause.LINK_DOWN, "node2, vethpod2")


def test_a_pod_that_is_there_and_does_not_answer_is_not_called_unused(cluster: Cluster) -> None:
    scene = Scene(cluster)
    steps = [*scene.there[:7], _ask(cluster, NODE2, CNI, scene.ends[1])]
    found = dropped(cluster.evidence(POD1, POD2, frames(steps), results=(TIMEOUT,)))
    assert found.cause is Cause.UNKNOWN
    assert "pod default/pod2 has that address" in found.text


def test_ipv6_is_judged_the_same() -> None:
    cluster = Cluster(6)
    target = Endpoint(kind="address", ip=cluster.ip(NODE2, 0x99))
    request = cluster.request(cluster.pod_ip(POD1), target.ip)
    steps = [*cluster.leave_pod(POD1, request), *cluster.cross(NODE1, NODE2, request, 63)]
    cni = cluster.mac("cni", NODE2)
    ask = packets.ndp(cni, cluster.ip(NODE2, 1), "ff02::1:ff00:99", about=target.ip)
    steps.append(Step(NODE2, CNI, True, ask))
    found = dropped(cluster.evidence(POD1, target, frames(steps), results=(TIMEOUT,)))
    assert (found.cause, found.where) == (Cause.NOT_IN_USE, "node2, cni0")
    assert "NDP" in found.text

    scene = Scene(cluster)
    gateway = cluster.ip(NODE1, 1)

    def error(ttl: int) -> bytes:
        return packets.icmp_error(gateway, scene.ends[0], 2, 0, scene.request(64), mtu=99, ttl=ttl)

    shown = frames([*scene.there[:3], *cluster.enter_pod(POD1, error, 64)])
    found = dropped(cluster.evidence(POD1, POD2, shown, results=(TIMEOUT,)))
    assert (found.cause, found.where) == (Cause.TOO_BIG, "node1")
    assert "at most 99" in found.text


# --- beyond what is seen --------------------------------------------------------------------------


def test_lost_between_two_nodes_that_were_watched(cluster: Cluster) -> None:
    scene = Scene(cluster)
    drop = scene.drop(None, "node2", "NETFILTER_DROP", "nft_do_chain")
    found = dropped(scene.seen(5, drops=(drop,)))
    assert (found.cause, found.where) == (Cause.UNDERLAY, "between node1, eth0 and node2, eth0")
    assert found.text == "left node1 in UDP to 172.18.0.12:8472 and never reached node2"
    assert "UDP port 8472 from 172.18.0.11 to 172.18.0.12" in found.remedy
    assert found.kernel_reason == "NETFILTER_DROP"


@pytest.mark.parametrize(
    ("tunnels", "cause", "where", "says"),
    [
        (
            {"node2": TunnelCount(dropped={"not_authentic": 1, "multicast": 3})},
            Cause.TUNNEL,
            "node2, flannel.1",
            "the tunnel of node2 dropped it: the datagram fails authentication (not_authentic)",
        ),
        (
            {"node2": TunnelCount(problem="its process does not answer")},
            Cause.TUNNEL,
            "node2, flannel.1",
            "the tunnel of node2 does not forward: its process does not answer",
        ),
        (
            {"node1": TunnelCount(unmet=("node2",)), "node2": TunnelCount(unmet=("node1",))},
            Cause.UNDERLAY,
            "between node1, flannel.1 and node2",
            "does not answer the handshake",
        ),
        (
            {"node1": TunnelCount(), "node2": TunnelCount(dropped={"multicast": 3})},
            Cause.UNDERLAY,
            "between node1, flannel.1 and node2",
            "which dropped nothing",
        ),
    ],
)
def test_what_was_encrypted_is_looked_for_in_the_tunnels_counts(
    cluster: Cluster, tunnels: dict[str, TunnelCount], cause: Cause, where: str, says: str
) -> None:
    device = msgspec.structs.replace(cluster.places[NODE1].interfaces[3], kind="tun")
    places = _with_interface(cluster, NODE1, device)
    found = dropped(Scene(cluster).seen(4, places=places, encrypted=True, tunnels=tunnels))
    assert (found.cause, found.where) == (cause, where)
    assert says in found.text
    counts = [line for line in found.evidence if line.startswith("the tunnel of ")]
    assert len(counts) == 2


def test_what_was_not_fully_watched_is_not_called_lost(cluster: Cluster) -> None:
    one = only(Scene(cluster).seen(5, lost={"node2": 3}))
    assert one.outcome is Outcome.UNANSWERED
    assert one.finding is not None
    assert one.finding.cause is Cause.UNKNOWN


@pytest.mark.parametrize(
    ("change", "cause"), [({"up": False}, Cause.LINK_DOWN), ({"mtu": 100}, Cause.TOO_BIG)]
)
def test_the_other_nodes_interface_does_not_take_it(
    cluster: Cluster, change: dict[str, object], cause: Cause
) -> None:
    underlay = msgspec.structs.replace(cluster.places[NODE2].interfaces[1], **change)
    found = dropped(Scene(cluster).seen(5, places=_with_interface(cluster, NODE2, underlay)))
    assert (found.cause, found.where) == (cause, "node2, eth0")


@pytest.mark.parametrize("ready", [True, False])
def test_a_node_whose_agent_is_away(cluster: Cluster, ready: bool) -> None:
    away = NodeFacts(
        name="node2",
        ips=(cluster.node_ip(NODE2),),
        subnets=(cluster.subnet(NODE2),),
        ready=ready,
        away="connection refused",
    )
    facts = msgspec.structs.replace(cluster.facts, nodes=(cluster.facts.nodes[0], away))
    only_node1 = tuple(
        one if one.node == "node1" else Place(node="gone", clock=one.clock)
        for one in cluster.places
    )
    evidence = Scene(cluster).seen(5, facts=facts, places=only_node1)
    trace = build(evidence)
    (one,) = trace.rounds
    assert one.outcome is Outcome.UNANSWERED
    assert one.finding is not None
    assert (one.finding.cause, one.finding.where) == (Cause.AGENT_AWAY, "node1, eth0")
    assert "connection refused" in one.finding.text
    assert ("not ready" in one.finding.text) is not ready
    assert "node2 was not observed: connection refused" in trace.notes


def test_a_node_whose_agent_never_started(cluster: Cluster) -> None:
    """Its subnet is nobody's: the default route takes the packet."""
    target = Endpoint(kind="address", ip="10.244.9.7")
    node9 = NodeFacts(name="node9", ips=("172.18.0.19",), subnets=("10.244.9.0/24",), leased=False)
    facts = msgspec.structs.replace(cluster.facts, nodes=(*cluster.facts.nodes, node9))
    request = cluster.request(cluster.pod_ip(POD1), target.ip)
    steps = list(cluster.leave_pod(POD1, request))
    steps.append(cluster.underlay(NODE1, True, request(63)))
    evidence = cluster.evidence(POD1, target, frames(steps), facts=facts, results=(TIMEOUT,))
    problem = Problem(cause=Cause.NO_ROUTE, text="no node has leased it", place="node1")
    for one in (evidence, objecting(evidence, problem)):
        found = dropped(one)
        assert found.cause is Cause.NO_LEASE
        assert found.where.startswith("node1")
        assert "10.244.9.0/24 is for node node9" in found.text


def test_of_the_world_outside_nothing_is_claimed(cluster: Cluster) -> None:
    request = cluster.request(cluster.pod_ip(POD1), OUTSIDE.ip)
    steps = list(cluster.leave_pod(POD1, request))
    steps.append(cluster.underlay(NODE1, True, request(63)))
    one = only(cluster.evidence(POD1, OUTSIDE, frames(steps), results=(TIMEOUT,)))
    assert one.outcome is Outcome.UNANSWERED
    assert one.finding is not None
    assert (one.finding.cause, one.finding.where) == (Cause.NO_ANSWER, "node1, eth0")


def test_a_pod_that_could_not_be_looked_into(cluster: Cluster) -> None:
    places = list(cluster.places)
    port = next(one for one in places[NODE2].interfaces if one.name == "vethpod2")
    places = list(_with_interface(cluster, NODE2, msgspec.structs.replace(port, peer_place=None)))
    places[POD2] = Place(node="elsewhere")
    one = only(Scene(cluster).seen(9, places=tuple(places)))
    assert one.outcome is Outcome.UNANSWERED
    assert one.finding is not None
    assert one.finding.where == "node2, vethpod2"


def test_a_reply_that_is_lost_on_the_underlay(cluster: Cluster) -> None:
    one = only(Scene(cluster).seen(10, 5))
    assert one.outcome is Outcome.DROPPED
    assert one.request.arrived
    assert one.finding is not None
    assert one.finding.where == "between node2, eth0 and node1, eth0"
