"""What is on the wire between nodes, and what the outside sees."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from podwire.kernel import netns
from podwire.lab import Lab, LabPod
from podwire.lab.registry import NETNS_DIR

from .capture import Capture, Encapsulated, Packet

pytestmark = [pytest.mark.root, pytest.mark.slow]

ICMP = 1
UNDERLAY_GATEWAY = "172.18.0.1"


@pytest.fixture(scope="module")
def a(lab: Lab) -> LabPod:
    return lab.run("a", node="node1")


@pytest.fixture(scope="module")
def b(lab: Lab, a: LabPod) -> LabPod:
    """A pod on another node than `a`, which has pinged it: ARP on the way is done with."""
    b = lab.run("b", node="node2")
    assert a.ping(b).lost == 0
    return b


@pytest.fixture
def wire(lab: Lab, b: LabPod) -> Iterator[Capture]:
    """Node 1's cable, at the far end."""
    with Capture(NETNS_DIR / lab.info.underlay, "node1") as capture:
        yield capture


def pings(packets: list[Packet]) -> list[Packet]:
    return [packet for packet in packets if packet.protocol == ICMP]


@pytest.mark.parametrize("size", [84, 1450])
def test_each_packet_between_pods_is_one_vxlan_packet_between_nodes(
    lab: Lab, a: LabPod, b: LabPod, wire: Capture, size: int
) -> None:
    assert a.ping(b, count=5, size=size).received == 5
    packets = wire.packets()
    carried = [found for packet in packets if (found := Encapsulated.of_packet(packet))]
    assert len(carried) == 2 * 5, "5 requests and 5 replies, and nothing else in the overlay"
    assert {(one.vni, one.port) for one in carried} == {(1, 8472)}
    nodes = {a.ip: lab.node("node1").ip, b.ip: lab.node("node2").ip}
    for one in carried:
        inner = one.inner
        assert inner is not None
        assert {inner.source, inner.target} == {a.ip, b.ip}
        assert (one.outer.source, one.outer.target) == (nodes[inner.source], nodes[inner.target])
        assert (inner.protocol, inner.size, inner.ttl) == (ICMP, size, 63)
        assert one.outer.size == inner.size + 50
        assert len(one.outer.payload) == 8 + 8 + 14 + size, "UDP, VXLAN, Ethernet"
    bare = [packet for packet in packets if {packet.source, packet.target} & {a.ip, b.ip}]
    assert bare == [], "no pod's address is outside of the encapsulation"


def test_packets_between_pods_of_one_node_do_not_leave_it(
    lab: Lab, a: LabPod, wire: Capture
) -> None:
    neighbour = lab.run("neighbour", node="node1")
    assert a.ping(neighbour).lost == 0
    assert [packet for packet in wire.packets() if packet.protocol in (ICMP, 17)] == []


def test_a_nodes_own_packets_to_a_pod_are_encapsulated_too(
    lab: Lab, b: LabPod, wire: Capture
) -> None:
    assert lab.node("node1").ping(b, count=3).lost == 0
    carried = [found for packet in wire.packets() if (found := Encapsulated.of_packet(packet))]
    assert len(carried) == 2 * 3
    base = lab.node_object("node1")["spec"]["podCIDR"].partition("/")[0]
    for one in carried:
        assert one.inner is not None
        assert {one.inner.source, one.inner.target} == {base, b.ip}


def test_what_leaves_the_cluster_has_the_nodes_address(lab: Lab, a: LabPod, wire: Capture) -> None:
    assert a.ping(UNDERLAY_GATEWAY, count=3).lost == 0
    seen = {(packet.source, packet.target) for packet in pings(wire.packets())}
    node = lab.node("node1").ip
    assert seen == {(node, UNDERLAY_GATEWAY), (UNDERLAY_GATEWAY, node)}


def test_a_server_outside_sees_the_node(lab: Lab, a: LabPod) -> None:
    with closing(listen(NETNS_DIR / lab.info.underlay)) as server:
        port = server.getsockname()[1]
        asking = ["bash", "-c", 'cat < "/dev/tcp/$1/$2"', "bash", UNDERLAY_GATEWAY, str(port)]
        with a.popen(asking) as client:
            connection, (ip, _) = server.accept()
            connection.sendall(b"welcome")
            connection.close()
            assert client.communicate(timeout=60) == ("welcome", "")
    assert ip == lab.node("node1").ip


def listen(namespace: Path) -> socket.socket:
    """A TCP server in a network namespace."""
    fd = netns.open_netns(namespace)
    try:
        with netns.entered(fd):
            server = socket.create_server(("", 0))
    finally:
        os.close(fd)
    server.settimeout(60)
    return server


def test_the_masquerade_is_one_rule_for_the_whole_network(lab: Lab) -> None:
    for node in lab.nodes:
        listed = node.exec(["nft", "list", "table", "inet", "podwire"]).stdout
        assert listed.count("masquerade") == 1, listed
        assert "elements = { 10.244.0.0/16 }" in listed
