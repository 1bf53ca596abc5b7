"""Sightings in the order of the packet's path, whatever the order and the clocks they come with."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.model.probe import Probe, ProbeMatch
from podwire.trace.evidence import Evidence
from podwire.trace.model import Endpoint, Interface
from podwire.trace.order import Journey, journeys
from podwire.trace.records import Frame
from podwire.trace.sightings import Sighting

from . import packets
from .scene import (
    IDENT,
    NODE1,
    NODE2,
    POD1,
    POD2,
    POD3,
    PORT,
    START_NS,
    Cluster,
    Step,
    frames,
    spot,
    spots,
)

OUTSIDE = Endpoint(kind="address", ip="203.0.113.9")
LOCAL = "127.0.0.1"
LOOPBACK = Interface(index=9, name="lo", kind="loopback", addresses=("127.0.0.1/8",))


def seen(cluster: Cluster, path: Sequence[Sighting]) -> list[str]:
    return [spot(cluster, one.place, one.interface.index, one.outgoing) for one in path]


def only(evidence: Evidence) -> Journey:
    (journey,) = journeys(evidence)
    return journey


def there_and_back(cluster: Cluster, source: int, target: int) -> tuple[list[Step], list[Step]]:
    """The steps of a request and of its reply, between any two of pods and nodes."""
    ips = [cluster.endpoint(one).ip for one in (source, target)]
    if cluster.version == 6:
        ips = [ip.replace("172.18.0.", "fd00:18::") for ip in ips]
    request, reply = cluster.request(ips[0], ips[1]), cluster.reply(ips[0], ips[1])
    walk = {
        (True, True): cluster.pod_to_pod,
        (True, False): cluster.pod_to_node,
        (False, True): cluster.node_to_pod,
    }
    kind = (source >= POD1, target >= POD1)
    return walk[kind](source, target, request), walk[kind[::-1]](target, source, reply)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ends", [(POD1, POD2), (POD1, POD3), (NODE1, POD2), (POD1, NODE2)])
def test_a_request_and_its_reply(version: int, ends: tuple[int, int]) -> None:
    cluster = Cluster(version)
    request, reply = there_and_back(cluster, *ends)
    evidence = cluster.evidence(*ends, frames([*request, *reply]))
    if version == 6:  # nodes' own addresses are IPv4 in this scene
        match = msgspec.structs.replace(
            evidence.match,
            source=evidence.match.source.replace("172.18.0.", "fd00:18::"),
            target=evidence.match.target.replace("172.18.0.", "fd00:18::"),
        )
        evidence = msgspec.structs.replace(evidence, match=match)
    journey = only(evidence)
    assert seen(cluster, journey.request) == spots(cluster, request)
    assert seen(cluster, journey.reply) == spots(cluster, reply)
    assert (journey.arrived, journey.answered) == (True, True)


def test_the_path_between_two_nodes_is_the_one_in_the_books() -> None:
    cluster = Cluster()
    request, _ = there_and_back(cluster, POD1, POD2)
    journey = only(cluster.evidence(POD1, POD2, frames(request)))
    assert seen(cluster, journey.request) == [
        "pod:default/pod1 eth0 out",
        "node1 vethpod1 in",
        "node1 cni0 in",
        "node1 flannel.1 out",
        "node1 eth0 out",
        "node2 eth0 in",
        "node2 flannel.1 in",
        "node2 cni0 out",
        "node2 vethpod2 out",
        "pod:default/pod2 eth0 in",
    ]
    assert [one.ttl for one in journey.request] == [64, 64, 64, 63, 63, 63, 63, 62, 62, 62]
    assert [one.packet.size for one in journey.request] == [98] * 4 + [148] * 2 + [98] * 4


@settings(max_examples=60)
@given(
    st.sampled_from([(POD1, POD2), (POD1, POD3), (NODE1, POD2), (POD1, NODE2)]),
    st.randoms(use_true_random=False),
    st.integers(-(10**15), 10**15),
    st.sampled_from([0, 1, 10_000]),
    st.booleans(),
)
def test_neither_the_order_of_frames_nor_clocks_nor_equal_times_matter(
    ends: tuple[int, int], shuffler: random.Random, offset: int, every_ns: int, one_clock: bool
) -> None:
    cluster = Cluster(one_clock=one_clock)
    request, reply = there_and_back(cluster, *ends)
    shown = frames(request, every_ns=every_ns)
    shown += frames(reply, start_ns=START_NS + 1_000_000, every_ns=every_ns)
    if not one_clock:
        node2 = {n for n, place in enumerate(cluster.places) if place.node == "node2"}
        shown = [_later(one, offset) if one.place in node2 else one for one in shown]
    shuffler.shuffle(shown)
    journey = only(cluster.evidence(*ends, shown))
    assert seen(cluster, journey.request) == spots(cluster, request)
    assert seen(cluster, journey.reply) == spots(cluster, reply)


def _later(frame: Frame, by_ns: int) -> Frame:
    return msgspec.structs.replace(frame, time_ns=frame.time_ns + by_ns)


@settings(max_examples=30)
@given(st.lists(st.integers(-3000, 3000), min_size=10, max_size=10))
def test_small_inversions_of_time_do_not_matter(shake: list[int]) -> None:
    cluster = Cluster()
    request, _ = there_and_back(cluster, POD1, POD2)
    shown = [_later(one, by) for one, by in zip(frames(request, every_ns=500), shake, strict=True)]
    journey = only(cluster.evidence(POD1, POD2, shown))
    assert seen(cluster, journey.request) == spots(cluster, request)


@settings(max_examples=40)
@given(st.sets(st.integers(0, 9), min_size=1), st.booleans())
def test_what_is_missing_leaves_the_rest_in_order(left: set[int], one_clock: bool) -> None:
    cluster = Cluster(one_clock=one_clock)
    request, _ = there_and_back(cluster, POD1, POD2)
    kept = [step for number, step in enumerate(request) if number in left]
    journey = only(cluster.evidence(POD1, POD2, frames(reversed(kept), every_ns=0)))
    assert seen(cluster, journey.request) == spots(cluster, kept)
    assert journey.arrived is (9 in left)


def test_a_path_that_ends_early_has_not_arrived() -> None:
    cluster = Cluster()
    request, _ = there_and_back(cluster, POD1, POD2)
    for length in range(10):
        journey = only(cluster.evidence(POD1, POD2, frames(request[:length])))
        assert len(journey.request) == length
        assert not journey.arrived


def test_a_pod_in_its_nodes_network_is_where_its_address_is() -> None:
    cluster = Cluster()
    target = Endpoint(kind="pod", ip=cluster.node_ip(NODE2), name="kube-system/proxy", node="node2")
    build = cluster.request(cluster.pod_ip(POD1), target.ip)
    steps = cluster.pod_to_node(POD1, NODE2, build)
    assert only(cluster.evidence(POD1, target, frames(steps))).arrived


def test_each_probe_has_a_journey_of_its_own() -> None:
    cluster = Cluster()
    ends = cluster.pod_ip(POD1), cluster.pod_ip(POD2)
    shown: list[Frame] = []
    for number in (1, 2, 3):
        steps = cluster.pod_to_pod(POD1, POD2, cluster.request(*ends, number))
        steps += cluster.pod_to_pod(POD2, POD1, cluster.reply(*ends, number))
        shown += frames(steps[: 10 * number], start_ns=START_NS + number * 10**9)
    probe = Probe(target=ends[1], count=3)
    found = journeys(cluster.evidence(POD1, POD2, shown, probe=probe))
    assert [(one.number, len(one.request), len(one.reply)) for one in found] == [
        (1, 10, 0),
        (2, 10, 10),
        (3, 10, 10),
    ]


def test_a_stranger_with_the_same_identifier_is_left_out() -> None:
    cluster = Cluster()
    request, _ = there_and_back(cluster, POD1, POD2)
    stranger = packets.echo("10.244.1.9", "10.244.2.2", IDENT, 1, payload=b"x" * 56)
    number = packets.echo("10.244.1.2", "10.244.2.2", IDENT, 900)
    extra = [
        Step(NODE1, 3, False, packets.ethernet("0a:00:00:00:00:09", cluster.mac("cni", NODE1), one))
        for one in (stranger, number)
    ]
    journey = only(cluster.evidence(POD1, POD2, frames([*extra, *request])))
    assert seen(cluster, journey.request) == spots(cluster, request)


def test_a_flooded_frame_is_followed_to_whom_it_is_for() -> None:
    """Also by a capture that has put the bridge into promiscuous mode."""
    cluster = Cluster()
    request, _ = there_and_back(cluster, POD2, POD1)
    frame = request[-1].frame
    copies = [
        Step(NODE1, 10 + POD3, True, frame),
        Step(POD3, 2, False, frame),
        Step(NODE1, 3, False, frame),
    ]
    journey = only(cluster.evidence(POD2, POD1, frames([*request[:-2], *copies, *request[-2:]])))
    assert seen(cluster, journey.request) == spots(cluster, request)


def test_a_bridge_takes_frames_for_its_ports_macs() -> None:
    """A pod that asked while its cable was out of the bridge knows the gateway by that MAC."""
    cluster = Cluster()
    request, _ = there_and_back(cluster, POD1, POD2)
    ends = bytes.fromhex((cluster.mac("port", POD1) + cluster.mac("pod", POD1)).replace(":", ""))
    first = [step._replace(frame=ends + step.frame[12:]) for step in request[:3]]
    journey = only(cluster.evidence(POD1, POD2, frames([*first, *request[3:]])))
    assert seen(cluster, journey.request) == spots(cluster, request)


def test_a_loopback_address_is_the_source_itself() -> None:
    cluster = Cluster()
    places = tuple(
        msgspec.structs.replace(place, interfaces=(*place.interfaces, LOOPBACK))
        for place in cluster.places
    )
    nowhere = "00:00:00:00:00:00"
    frame = packets.ethernet(nowhere, nowhere, packets.echo(LOCAL, LOCAL, IDENT, 1))
    steps = [Step(POD1, LOOPBACK.index, outgoing, frame) for outgoing in (True, False)]
    match = ProbeMatch(protocol="icmp", source=LOCAL, target=LOCAL, ident=IDENT)
    target = Endpoint(kind="address", ip=LOCAL)
    evidence = cluster.evidence(POD1, target, frames(steps), places=places, match=match)
    journey = only(evidence)
    assert len(journey.request) == 2
    assert journey.arrived


def test_a_loop_of_routes_goes_round_and_round() -> None:
    cluster = Cluster(one_clock=False)
    build = cluster.request(cluster.pod_ip(POD1), "10.244.9.9")
    steps = list(cluster.leave_pod(POD1, build))
    for ttl in (63, 61, 59):
        steps += cluster.cross(NODE1, NODE2, build, ttl)
        steps += cluster.cross(NODE2, NODE1, build, ttl - 1)
    target = Endpoint(kind="address", ip="10.244.9.9")
    journey = only(cluster.evidence(POD1, target, frames(reversed(steps), every_ns=0)))
    assert seen(cluster, journey.request) == spots(cluster, steps)


# --- translation ----------------------------------------------------------------------------------


def masqueraded(protocol: str) -> tuple[Cluster, list[Step], list[Step]]:
    """pod1 asks an outside address; node1 gives it an address, port and identifier of its own."""
    cluster = Cluster()
    pod, node = cluster.pod_ip(POD1), cluster.node_ip(NODE1)
    mark = packets.mark(IDENT, 1, 20)

    def request(source: str, ident: int, ttl: int) -> bytes:
        if protocol == "icmp":
            return packets.echo(
                source, OUTSIDE.ip, ident, 1, ttl=ttl, payload=packets.mark(IDENT, 1, 56)
            )
        if protocol == "udp":
            return packets.udp(source, OUTSIDE.ip, (ident, PORT), mark, ttl=ttl)
        return packets.tcp(source, OUTSIDE.ip, (ident, PORT), sequence=2**32 - 1, ttl=ttl)

    def reply(target: str, ident: int, ttl: int) -> bytes:
        if protocol == "icmp":
            return packets.echo(
                OUTSIDE.ip,
                target,
                ident,
                1,
                reply=True,
                ttl=ttl,
                payload=packets.mark(IDENT, 1, 56),
            )
        if protocol == "udp":
            return packets.udp(OUTSIDE.ip, target, (PORT, ident), b"an answer", ttl=ttl)
        return packets.tcp(OUTSIDE.ip, target, (PORT, ident), "S.", acknowledgement=0, ttl=ttl)

    there = list(cluster.leave_pod(POD1, lambda ttl: request(pod, IDENT, ttl)))
    there.append(cluster.underlay(NODE1, True, request(node, 777, 63)))
    back = [cluster.underlay(NODE1, False, reply(node, 777, 57))]
    back += cluster.enter_pod(POD1, lambda ttl: reply(pod, IDENT, ttl), 56)
    return cluster, there, back


@pytest.mark.parametrize("protocol", ["icmp", "udp", "tcp"])
def test_a_translated_packet_is_the_same_packet(protocol: str) -> None:
    cluster, there, back = masqueraded(protocol)
    port = None if protocol == "icmp" else PORT
    match = ProbeMatch(
        protocol=protocol,  # type: ignore[arg-type]
        source=cluster.pod_ip(POD1),
        target=OUTSIDE.ip,
        ident=IDENT,
        port=port,
        translated=True,
    )
    # A stranger's packet to the same service.
    other = packets.tcp("172.18.0.11", OUTSIDE.ip, (9, PORT), sequence=5)
    shown = frames([*there, cluster.underlay(NODE1, True, other), *back])
    journey = only(cluster.evidence(POD1, OUTSIDE, shown, match=match))
    assert seen(cluster, journey.request) == spots(cluster, there)
    assert seen(cluster, journey.reply) == spots(cluster, back)
    assert (journey.arrived, journey.answered) == (False, True)


# --- TCP and UDP ----------------------------------------------------------------------------------


def test_connections_are_numbered_as_they_began() -> None:
    cluster = Cluster()
    source, target = cluster.pod_ip(POD1), cluster.pod_ip(POD2)
    shown: list[Frame] = []
    there, back = (source, target), (target, source)
    for number, sequence, flags in ((1, 5000, "R."), (2, 40, "S.")):
        start = START_NS + number * 10**9
        build = cluster.segment(there, (IDENT, PORT), "S", sequence)
        shown += frames(cluster.pod_to_pod(POD1, POD2, build), start_ns=start)
        build = cluster.segment(back, (PORT, IDENT), flags, 9, sequence + 1)
        shown += frames(cluster.pod_to_pod(POD2, POD1, build), start_ns=start + 1_000_000)
        # What follows is no part of the question and its answer.
        build = cluster.segment(there, (IDENT, PORT), "R.", sequence + 1, 10)
        shown += frames(cluster.pod_to_pod(POD1, POD2, build), start_ns=start + 2_000_000)
    match = ProbeMatch(protocol="tcp", source=source, target=target, ident=IDENT, port=PORT)
    probe = Probe(protocol="tcp", target=target, port=PORT, count=2)
    found = journeys(cluster.evidence(POD1, POD2, shown, match=match, probe=probe))
    assert [(len(one.request), len(one.reply)) for one in found] == [(10, 10), (10, 10)]
    first, second = found
    assert first.request[0].time_ns < second.request[0].time_ns


def test_a_syn_that_is_sent_again_counts_once() -> None:
    cluster = Cluster()
    source, target = cluster.pod_ip(POD1), cluster.pod_ip(POD2)
    build = cluster.segment((source, target), (IDENT, PORT), "S", 7)
    steps = cluster.pod_to_pod(POD1, POD2, build)
    shown = frames(steps[:5]) + frames(steps, start_ns=START_NS + 10**9)
    match = ProbeMatch(protocol="tcp", source=source, target=target, ident=IDENT, port=PORT)
    probe = Probe(protocol="tcp", target=target, port=PORT)
    journey = only(cluster.evidence(POD1, POD2, shown, match=match, probe=probe))
    assert seen(cluster, journey.request) == spots(cluster, steps)
    assert journey.request[0].time_ns == START_NS
    assert journey.retransmitted == 1


def test_an_answer_without_a_number_is_to_the_last_question() -> None:
    cluster = Cluster(one_clock=False)
    source, target = cluster.pod_ip(POD1), cluster.pod_ip(POD2)
    shown: list[Frame] = []
    for number in (1, 2):
        start = START_NS + number * 10**9
        mark = packets.mark(IDENT, number, 30)
        build = cluster.datagram((source, target), (IDENT, PORT), mark)
        shown += frames(cluster.pod_to_pod(POD1, POD2, build), start_ns=start)
        build = cluster.datagram((target, source), (PORT, IDENT), b"yes")
        shown += frames(cluster.pod_to_pod(POD2, POD1, build), start_ns=start + 1_000_000)
    match = ProbeMatch(protocol="udp", source=source, target=target, ident=IDENT, port=PORT)
    probe = Probe(protocol="udp", target=target, port=PORT, count=2)
    found = journeys(cluster.evidence(POD1, POD2, shown, match=match, probe=probe))
    assert [len(one.reply) for one in found] == [10, 10]
    assert found[0].reply[0].time_ns < found[1].request[0].time_ns


# --- errors and neighbours ------------------------------------------------------------------------


def test_an_error_belongs_to_the_probe_that_it_quotes() -> None:
    cluster = Cluster()
    source, target = cluster.pod_ip(POD1), cluster.pod_ip(POD2)
    request = cluster.request(source, target)
    there = list(cluster.leave_pod(POD1, request))
    error = list(
        cluster.enter_pod(
            POD1,
            lambda ttl: packets.icmp_error(
                cluster.ip(NODE1, 1), source, 3, 4, request(64), mtu=1400, ttl=ttl
            ),
            64,
        )
    )
    journey = only(cluster.evidence(POD1, POD2, frames([*there, *error])))
    assert seen(cluster, journey.request) == spots(cluster, there)
    (path,) = journey.errors
    assert seen(cluster, path.sightings) == spots(cluster, error)
    assert path.arrived
    kind = path.kind
    assert (kind.about, kind.sender, kind.type, kind.code, kind.mtu) == (
        "request",
        "10.244.1.1",
        3,
        4,
        1400,
    )


def test_a_packet_in_fragments_is_seen_by_its_first() -> None:
    cluster = Cluster()
    request, _ = there_and_back(cluster, POD1, POD2)
    outer = cluster.node_ip(NODE1), cluster.node_ip(NODE2)
    ip = bytes(request[4].frame[14:])
    first = packets.ip(*outer, 17, ip[20:84], ident=9, more=True, dont_fragment=False)
    second = packets.ip(*outer, 17, ip[84:], ident=9, offset=64, dont_fragment=False)
    macs = cluster.mac("underlay", NODE1), cluster.mac("underlay", NODE2)
    cut = []
    for step in request:
        if step.ifindex == 2 and step.place in (NODE1, NODE2):
            cut += [step._replace(frame=packets.ethernet(*macs, one)) for one in (first, second)]
        else:
            cut.append(step)
    journey = only(cluster.evidence(POD1, POD2, frames(cut)))
    assert seen(cluster, journey.request) == spots(cluster, request)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("version", [4, 6])
def test_who_asked_for_whom(answered: bool, version: int) -> None:
    cluster = Cluster(version)
    gateway, wanted = cluster.ip(NODE2, 1), cluster.ip(NODE2, 99)
    cni, pod = cluster.mac("cni", NODE2), cluster.mac("pod", POD2)
    if version == 4:
        ask, answer = packets.arp(cni, gateway, wanted), packets.arp(pod, wanted, gateway, cni)
    else:
        ask = packets.ndp(cni, gateway, "ff02::1:ff00:99", about=wanted)
        answer = packets.ndp(pod, wanted, gateway, about=wanted, answer=True)
        answer = packets.mac(cni) + answer[6:]
    steps = [
        Step(NODE2, 3, True, ask),
        Step(NODE2, 10 + POD2, True, ask),
        Step(POD2, 2, False, ask),
    ]
    steps += [steps[0]]
    if answered:
        steps += [Step(NODE2, 10 + POD2, False, answer), Step(NODE2, 3, False, answer)]
    target = Endpoint(kind="address", ip=wanted, node="node2")
    journey = only(cluster.evidence(POD1, target, frames(steps)))
    (found,) = journey.neighbor_asks
    assert (found.place, found.interface.name) == (NODE2, "cni0")
    assert (found.asker, found.target) == (gateway, wanted)
    assert (found.count, found.answered) == (2, answered)
