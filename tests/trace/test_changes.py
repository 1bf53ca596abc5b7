"""Two sightings of a packet compared: what became of it in between."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from podwire.trace.changes import changes, crossed
from podwire.trace.decode import decode, decode_network
from podwire.trace.model import Change

from . import packets
from .scene import IDENT, NODE1, NODE2, POD1, POD2, Cluster, Step


def between(before: bytes, after: bytes) -> list[Change]:
    first, second = (decode(one, packets.ETHERNET, len(one)) for one in (before, after))
    return list(changes(first, second))


def along(steps: Sequence[Step]) -> list[list[str]]:
    """The changes' texts at each step but the first."""
    return [
        [change.text for change in between(one.frame, other.frame)]
        for one, other in pairwise(steps)
    ]


@pytest.mark.parametrize("version", [4, 6])
def test_on_the_way_to_another_node(version: int) -> None:
    cluster = Cluster(version)
    build = cluster.request(cluster.pod_ip(POD1), cluster.pod_ip(POD2))
    steps = cluster.pod_to_pod(POD1, POD2, build)
    size = len(steps[0].frame)
    vtep1, vtep2 = cluster.mac("vtep", NODE1), cluster.mac("vtep", NODE2)
    cni2, pod2 = cluster.mac("cni", NODE2), cluster.mac("pod", POD2)
    assert along(steps) == [
        [],
        [],
        ["TTL 64 → 63", f"MACs {vtep1} → {vtep2}"],
        [f"in VXLAN (VNI 1), {size} → {size + 50} bytes"],
        [],
        [f"out of VXLAN, {size + 50} → {size} bytes"],
        ["TTL 63 → 62", f"MACs {cni2} → {pod2}"],
        [],
        [],
    ]


def test_a_switched_packet_does_not_change() -> None:
    cluster = Cluster()
    build = cluster.request(cluster.pod_ip(POD1), cluster.pod_ip(POD2))
    assert not any(along(list(cluster.switched(POD1, POD2, build))))


ENDS = "0a:00:00:00:00:01", "0a:00:00:00:00:02"


def frame(packet: bytes) -> bytes:
    return packets.ethernet(*ENDS, packet)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            packets.echo("10.0.0.1", "192.0.2.1", IDENT, 1),
            packets.echo("172.18.0.11", "192.0.2.1", IDENT, 1),
            [Change("source-nat", "source 10.0.0.1 → 172.18.0.11")],
        ),
        (
            packets.echo("10.0.0.1", "192.0.2.1", IDENT, 1),
            packets.echo("172.18.0.11", "192.0.2.1", 9, 1),
            [Change("source-nat", "source 10.0.0.1 id 4711 → 172.18.0.11 id 9")],
        ),
        (
            packets.echo("192.0.2.1", "172.18.0.11", 9, 1, reply=True),
            packets.echo("192.0.2.1", "10.0.0.1", IDENT, 1, reply=True),
            [Change("target-nat", "target 172.18.0.11 id 9 → 10.0.0.1 id 4711")],
        ),
        (
            packets.tcp("10.0.0.1", "10.96.0.1", (4000, 80)),
            packets.tcp("10.0.0.1", "10.0.0.7", (4000, 8080)),
            [Change("target-nat", "target 10.96.0.1:80 → 10.0.0.7:8080")],
        ),
        (
            packets.udp("fd00::1", "fd01::1", (4000, 80)),
            packets.udp("fd00::2", "fd01::1", (5000, 80)),
            [Change("source-nat", "source [fd00::1]:4000 → [fd00::2]:5000")],
        ),
        (
            packets.ip("10.0.0.1", "10.0.0.2", 17, bytes(3000), dont_fragment=False),
            packets.ip("10.0.0.1", "10.0.0.2", 17, bytes(1480), dont_fragment=False, more=True),
            [Change("fragmented", "in fragments, the first 1500 bytes")],
        ),
        (
            packets.ip("10.0.0.1", "10.0.0.2", 17, bytes(1480), dont_fragment=False, more=True),
            packets.ip("10.0.0.1", "10.0.0.2", 17, bytes(3000), dont_fragment=False),
            [Change("size", "put together again: 3020 bytes")],
        ),
        (
            packets.ip("10.0.0.1", "10.0.0.2", 17, bytes(30), dont_fragment=True),
            packets.ip("10.0.0.1", "10.0.0.2", 17, bytes(40), dont_fragment=False),
            [Change("size", "50 → 60 bytes"), Change("df", "DF cleared")],
        ),
    ],
)
def test_what_else_may_become_of_it(
    before: bytes, after: bytes, expected: Sequence[Change]
) -> None:
    assert between(frame(before), frame(after)) == expected


def test_changes_of_the_packet_around_it_are_told_as_such() -> None:
    inner = frame(packets.echo("10.0.0.1", "10.0.0.2", IDENT, 1))
    before = packets.vxlan(("172.18.0.11", "172.18.0.12"), ENDS, inner)
    after = packets.vxlan(("172.18.0.11", "172.18.0.12"), ENDS[::-1], inner, ttl=63)
    assert [change.text for change in between(before, after)] == [
        "outer TTL 64 → 63",
        f"outer MACs {ENDS[1]} → {ENDS[0]}",
    ]


def test_what_is_no_packet_has_no_changes() -> None:
    assert between(b"", b"\0" * 40) == []


# --- between nodes --------------------------------------------------------------------------------

A, B = "02:00:00:00:00:01", "02:00:00:00:00:02"


def carried(ttl: int) -> bytes:
    """A probe in a tunnel whose outer header has this TTL."""
    inner = packets.ethernet(A, B, packets.echo("10.244.1.2", "10.244.2.2", 1, 1))
    return packets.vxlan(("172.18.1.11", "172.18.2.12"), (A, B), inner, ttl=ttl)


def crossing(before: bytes, after: bytes, router: str = "") -> list[str]:
    first, second = (decode(one, packets.ETHERNET, len(one)) for one in (before, after))
    return [one.text for one in crossed(first, second, router=router)]


def test_a_router_shows_by_the_outermost_ttl() -> None:
    assert crossing(carried(64), carried(64)) == []
    assert crossing(carried(64), carried(63), "172.18.1.1") == ["through a router, 172.18.1.1"]
    assert crossing(carried(64), carried(62)) == ["through 2 routers"]


def test_what_went_encrypted_says_that_it_was_not_seen() -> None:
    packet = decode_network(packets.echo("10.244.1.2", "10.244.2.2", 1, 1))
    (only,) = crossed(packet, packet, encrypted=True)
    assert only.kind == "unseen"


def test_a_packet_bare_in_a_datagram_is_encapsulated() -> None:
    inner = packets.echo("10.244.1.2", "10.244.2.2", 1, 1)
    outer = packets.udp("172.18.0.11", "172.18.0.12", (8285, 8285), inner)
    first, second = decode_network(inner), decode_network(outer)
    assert [one.text for one in changes(first, second)] == ["in UDP (port 8285), 84 → 112 bytes"]
    assert [one.text for one in changes(second, first)] == ["out of UDP, 112 → 84 bytes"]
