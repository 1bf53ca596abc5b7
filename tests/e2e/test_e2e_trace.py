"""`podwire trace` where all is well: the path is the one that the packet took."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from podwire.lab import Lab, LabPod
from podwire.lab.places import Place
from podwire.trace.decode import decode
from podwire.trace.model import Ip, Outcome, Tcp, Trace

from .tcpdump import Captured, namespace_of, tcpdumps
from .tracing import (
    Tracer,
    kinds_of_changes,
    left,
    nothing_left,
    sizes_and_ttls,
    spots,
    ttl,
)
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: An address behind the underlay's gateway, which is no node of the cluster.
OUTSIDE = "192.0.2.7"
UDP_ECHO = """\
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 5353))
while True: s.sendto(*s.recvfrom(65536))
"""
TCP_ACCEPT = """\
import socket
s = socket.create_server(("", 8080))
while True: s.accept()[0].close()
"""


@pytest.fixture(scope="module")
def pods(lab: Lab) -> dict[str, LabPod]:
    """The demo's two pods, a third beside the first, and two that answer."""
    found = {
        "pod1": lab.run("pod1", node="node1"),
        "pod2": lab.run("pod2", node="node2"),
        "beside": lab.run("beside", node="node1"),
        "tcp": lab.run("tcp", ["python3", "-c", TCP_ACCEPT], node="node2"),
        "udp": lab.run("udp", ["python3", "-c", UDP_ECHO], node="node2"),
    }
    for pod in found.values():
        pod.wait_ready()
    # ARP on the way is done with.
    assert found["pod1"].ping(found["pod2"]).lost == 0
    return found


@pytest.fixture(scope="module")
def tracer(lab: Lab) -> Tracer:
    return Tracer(lab)


@pytest.fixture(scope="module")
def outside(lab: Lab) -> str:
    subprocess.run(
        ["ip", "-n", lab.info.underlay, "address", "add", f"{OUTSIDE}/32", "dev", "lo"], check=True
    )
    return OUTSIDE


def port_of(trace: Trace, node: str, pod: str) -> str:
    """The node's end of a pod's cable, by what the trace knows of its places."""
    number = next(n for n, one in enumerate(trace.places) if one.name == f"pod:default/{pod}")
    place = next(one for one in trace.places if one.name == node)
    return next(one.name for one in place.interfaces if one.peer_place == number)


# --- pod to pod ---------------------------------------------------------------------------------


def test_two_pods_across_nodes(tracer: Tracer, pods: dict[str, LabPod]) -> None:
    trace = tracer.trace("pod1", "pod2")
    (one,) = trace.rounds
    ports = [port_of(trace, f"node{n}", f"pod{n}") for n in (1, 2)]
    there = [
        ("pod:default/pod1", "eth0", "out"),
        ("node1", ports[0], "in"),
        ("node1", "cni0", "in"),
        ("node1", "flannel.1", "out"),
        ("node1", "eth0", "out"),
        ("node2", "eth0", "in"),
        ("node2", "flannel.1", "in"),
        ("node2", "cni0", "out"),
        ("node2", ports[1], "out"),
        ("pod:default/pod2", "eth0", "in"),
    ]
    turned = {"in": "out", "out": "in"}
    back = [(place, interface, turned[way]) for place, interface, way in reversed(there)]
    assert spots(trace, one.request) == there
    assert spots(trace, one.reply) == back
    assert sizes_and_ttls(one.request) == [
        *[(98, 64)] * 3,
        *[(98, 63), (148, 63), (148, 63), (98, 63)],
        *[(98, 62)] * 3,
    ]
    assert sizes_and_ttls(one.reply) == sizes_and_ttls(one.request)
    assert one.outcome is Outcome.REPLIED
    assert one.rtt_us is not None
    assert (trace.source.ip, trace.target.ip) == (pods["pod1"].ip, pods["pod2"].ip)
    assert [hop.number for hop in one.request.hops] == list(range(1, 11))


def test_each_hop_has_a_decision_and_podwires_have_their_why(
    lab: Lab, tracer: Tracer, pods: dict[str, LabPod]
) -> None:
    trace = tracer.trace("pod1", "pod2")
    hops = trace.rounds[0].request.hops
    assert all(hop.decisions for hop in hops)
    subnet = lab.node_object("node2")["spec"]["podCIDR"]
    route = next(one for one in hops[2].decisions if one.kind == "route")
    assert str(route.why) == f"Node/node2 leases {subnet}"
    fdb = next(one for one in hops[3].decisions if one.kind == "fdb")
    assert str(fdb.why) == f"Node/node2 is reached at {lab.node('node2').ip}"
    assert hops[-1].decisions[-1].kind == "local"
    # The lines that it names show the same.
    for place, hop in ((lab.node("node1"), hops[2]), (pods["pod1"], hops[0])):
        command = next(one.command for one in hop.decisions if one.kind == "route")
        assert place.exec(["sh", "-c", command]).returncode == 0, command


def test_tcpdump_at_each_interface_says_the_same(
    lab: Lab, tracer: Tracer, pods: dict[str, LabPod]
) -> None:
    known = tracer.trace("pod1", "pod2")
    namespaces = {
        "pod:default/pod1": namespace_of(pods["pod1"]),
        "pod:default/pod2": namespace_of(pods["pod2"]),
        "node1": lab.node("node1").netns,
        "node2": lab.node("node2").netns,
    }
    where = [(place, interface) for place, interface, _ in spots(known, known.rounds[0].request)]
    listened = [(namespaces[place], interface) for place, interface in where]
    with tcpdumps(listened, "icmp or udp port 8472") as witnesses:
        trace = tracer.trace("pod1", "pod2")
        seen = {spot: one.frames() for spot, one in zip(where, witnesses, strict=True)}
    round_ = trace.rounds[0]
    assert round_.reply is not None
    times = []
    for number, path in enumerate((round_.request, round_.reply)):
        assert len(path.hops) == 10
        for hop in path.hops:
            frames = seen[trace.places[hop.place].name, hop.interface]
            assert len(frames) == 2, "a request and a reply, each once"
            frame = frames[number]
            assert decode(frame.data, 1, frame.size) == hop.packet
            assert frame.size == hop.packet.size
            times.append(frame)
    assert times == sorted(times, key=lambda one: one.time_ns), "in the order of the hops"
    assert [size_and_ttl(one) for one in times[:10]] == sizes_and_ttls(round_.request)


def size_and_ttl(frame: Captured) -> tuple[int, int]:
    """Read by hand: the IPv4 TTL, of the inner packet where it is VXLAN's."""
    inner = frame.data[50:] if frame.data[23] == 17 else frame.data
    return frame.size, inner[22]


def test_two_pods_of_one_node(tracer: Tracer, pods: dict[str, LabPod]) -> None:
    trace = tracer.trace("pod1", "default/beside")
    (one,) = trace.rounds
    first, second = (port_of(trace, "node1", name) for name in ("pod1", "beside"))
    there = [
        ("pod:default/pod1", "eth0", "out"),
        ("node1", first, "in"),
        ("node1", second, "out"),
        ("pod:default/beside", "eth0", "in"),
    ]
    assert spots(trace, one.request) == there
    assert sizes_and_ttls(one.request) == [(98, 64)] * 4
    assert spots(trace, one.reply)[0] == ("pod:default/beside", "eth0", "out")
    assert len(trace.places) == 3


# --- nodes and the outside ----------------------------------------------------------------------


def test_from_a_node_to_a_pod_of_another(tracer: Tracer, pods: dict[str, LabPod]) -> None:
    trace = tracer.trace("node1", "pod2")
    (one,) = trace.rounds
    assert spots(trace, one.request) == [
        ("node1", "flannel.1", "out"),
        ("node1", "eth0", "out"),
        ("node2", "eth0", "in"),
        ("node2", "flannel.1", "in"),
        ("node2", "cni0", "out"),
        ("node2", port_of(trace, "node2", "pod2"), "out"),
        ("pod:default/pod2", "eth0", "in"),
    ]
    assert len(spots(trace, one.reply)) == 7
    assert trace.source.ip.endswith(".0"), "the VTEP's address, which peers can route back"


def test_from_a_node_to_its_own_pod(tracer: Tracer, pods: dict[str, LabPod]) -> None:
    trace = tracer.trace("node/node1", "pod/pod1")
    (one,) = trace.rounds
    assert spots(trace, one.request) == [
        ("node1", "cni0", "out"),
        ("node1", port_of(trace, "node1", "pod1"), "out"),
        ("pod:default/pod1", "eth0", "in"),
    ]


def test_from_a_pod_to_its_own_node(lab: Lab, tracer: Tracer, pods: dict[str, LabPod]) -> None:
    trace = tracer.trace("pod1", "node1")
    (one,) = trace.rounds
    assert spots(trace, one.request) == [
        ("pod:default/pod1", "eth0", "out"),
        ("node1", port_of(trace, "node1", "pod1"), "in"),
        ("node1", "cni0", "in"),
    ]
    assert trace.target.ip == lab.node("node1").ip


def test_from_a_pod_to_another_node_is_masqueraded(
    lab: Lab, tracer: Tracer, pods: dict[str, LabPod]
) -> None:
    trace = tracer.trace("pod1", lab.node("node2").ip)
    (one,) = trace.rounds
    assert trace.target.name == "node2"
    assert [where for where in spots(trace, one.request) if where[0] == "node2"] == [
        ("node2", "eth0", "in")
    ]
    assert kinds_of_changes(one.request).count("source-nat") == 1
    assert kinds_of_changes(one.reply).count("target-nat") == 1


@pytest.mark.parametrize("target", ["172.18.0.1", OUTSIDE])
def test_from_a_pod_to_the_outside_shows_the_masquerade(
    lab: Lab, tracer: Tracer, pods: dict[str, LabPod], outside: str, target: str
) -> None:
    trace = tracer.trace("pod1", target)
    (one,) = trace.rounds
    assert spots(trace, one.request)[-1] == ("node1", "eth0", "out")
    assert one.outcome is Outcome.REPLIED
    assert kinds_of_changes(one.request).count("source-nat") == 1
    rules = [
        decision
        for hop in one.request.hops
        for decision in hop.decisions
        if decision.kind == "nft" and "masquerade" in decision.text
    ]
    assert [str(rule.why).partition(" ")[0] for rule in rules] == ["Network/10.244.0.0/16"]
    left_with = one.request.hops[-1].packet.headers[1]
    assert isinstance(left_with, Ip)
    assert left_with.source == lab.node("node1").ip
    assert spots(trace, one.reply)[-1] == ("pod:default/pod1", "eth0", "in")


# --- protocols ----------------------------------------------------------------------------------


def test_tcp_from_its_syn_to_the_answer(tracer: Tracer, pods: dict[str, LabPod]) -> None:
    trace = tracer.trace("pod1", "tcp", "--proto", "tcp", "--port", "8080")
    (one,) = trace.rounds
    assert one.reply is not None
    assert len(one.request.hops) == len(one.reply.hops) == 10
    flags = [
        header.flags
        for path in (one.request, one.reply)
        for header in path.hops[0].packet.headers
        if isinstance(header, Tcp)
    ]
    assert flags == ["S", "S."]
    assert ttl(one.request.hops[-1]) == 62


@pytest.mark.parametrize("size", [100, 1450])
def test_udp_of_a_size(tracer: Tracer, pods: dict[str, LabPod], size: int) -> None:
    options = ["--proto", "udp", "--port", "5353", "--size", str(size)]
    trace = tracer.trace("pod1", "udp", *options)
    (one,) = trace.rounds
    assert sizes_and_ttls(one.request)[0] == (size + 14, 64)
    assert sizes_and_ttls(one.request)[4] == (size + 14 + 50, 63)
    assert one.reply is not None


def test_several_probes_one_after_the_other(tracer: Tracer, pods: dict[str, LabPod]) -> None:
    trace = tracer.trace("pod1", "pod2", "--count", "5")
    assert [one.number for one in trace.rounds] == [1, 2, 3, 4, 5]
    assert {one.outcome for one in trace.rounds} == {Outcome.REPLIED}
    assert {len(one.request.hops) for one in trace.rounds} == {10}
    starts = [one.request.hops[0].time_ns for one in trace.rounds]
    assert starts == sorted(starts)


def test_nothing_listens_is_no_fault_of_the_network(
    tracer: Tracer, pods: dict[str, LabPod]
) -> None:
    trace = tracer.trace("pod1", "pod2", "--proto", "tcp", "--port", "81", code=1)
    (one,) = trace.rounds
    assert one.outcome is Outcome.REFUSED
    assert len(one.request.hops) == 10
    assert one.reply is not None


@pytest.mark.parametrize("output", ["text", "svg", "pcapng"])
def test_every_face_can_be_had(tracer: Tracer, pods: dict[str, LabPod], output: str) -> None:
    done = subprocess.run(
        tracer.command("pod1", "pod2", "-o", output), capture_output=True, check=True
    )
    begins = {"text": b"pod default/pod1", "svg": b"<", "pcapng": b"\x0a\x0d\x0d\x0a"}
    assert done.stdout.startswith(begins[output])


# --- what is left -------------------------------------------------------------------------------


@pytest.fixture
def concerned(lab: Lab, pods: dict[str, LabPod]) -> list[Place]:
    """Where a trace from pod1 to pod2 opens anything."""
    places: list[Place] = [lab.node("node1"), lab.node("node2"), pods["pod1"], pods["pod2"]]
    nothing_left(*places)
    return places


def test_a_trace_leaves_nothing(
    tracer: Tracer, pods: dict[str, LabPod], concerned: list[Place]
) -> None:
    tracer.trace("pod1", "pod2")
    nothing_left(*concerned)


@pytest.fixture
def waiting(lab: Lab, tracer: Tracer, concerned: list[Place]) -> Iterator[subprocess.Popen[bytes]]:
    """A trace that is waiting for an answer that will not come."""
    subnet = ip_address(lab.node_object("node2")["spec"]["podCIDR"].partition("/")[0])
    with tracer.start("pod1", str(subnet + 200), "--timeout", "60s") as process:
        try:
            expected = {"packet sockets", "raw sockets", "nft tables"}
            until(
                lambda: {what.partition(" at")[0] for what in left(*concerned)} == expected,
                "it watches",
            )
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_trace_leaves_nothing(
    waiting: subprocess.Popen[bytes], concerned: list[Place], number: signal.Signals
) -> None:
    waiting.send_signal(number)
    code = waiting.wait(60)
    assert code == (130 if number is signal.SIGINT else -number)
    nothing_left(*concerned)
