"""What is called what in a capture, and what is written to each packet."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.trace.capture_file import CaptureFile, names
from podwire.trace.evidence import NodeFacts, PodFacts
from podwire.trace.model import Interface, Place
from podwire.trace.records import Frame
from tests.kernel.observe.packets import ARP, arp, ethernet, icmp, ip, vxlan

POD1, POD2, NODE1, NODE2 = "10.244.1.2", "10.244.2.2", "172.18.0.11", "172.18.0.12"
NODES = (NodeFacts(name="node1", ips=(NODE1,)), NodeFacts(name="node2", ips=(NODE2,)))
PODS = (
    PodFacts(name="default/pod1", node="node1", ips=(POD1, "fd00::2")),
    PodFacts(name="default/pod2", node="node2", ips=(POD2,)),
)
PLACE = Place(
    node="node1",
    interfaces=(
        Interface(index=1, name="lo", kind="loopback", addresses=("127.0.0.1/8",)),
        Interface(
            index=2,
            name="cni0",
            kind="bridge",
            mac="0a:58:0a:f4:01:01",
            addresses=("10.244.1.1/24",),
        ),
        Interface(index=3, name="tun0", kind="tun", mac="00:00:00:00"),
    ),
)


def frame(data: bytes, ifindex: int = 2, link_type: int = 1) -> Frame:
    return Frame(0, ifindex, True, 1_000, len(data), link_type, data)


def ping(source: str, target: str) -> bytes:
    return ethernet(*ip(source, target, 1, icmp(8, 7)))


def options(data: bytes, kind: int, skip: int) -> Iterator[list[tuple[int, bytes]]]:
    """The options of each block of a kind, whose fixed part is `skip` bytes."""
    offset = 0
    while offset < len(data):
        block, size = struct.unpack_from("<II", data, offset)
        if block == kind:
            body = data[offset + 8 : offset + size - 4]
            at = skip if kind != 6 else 20 + -(-struct.unpack_from("<I", body, 12)[0] // 4) * 4
            found = []
            while at + 4 <= len(body):
                code, length = struct.unpack_from("<HH", body, at)
                if code == 0:
                    break
                found.append((code, body[at + 4 : at + 4 + length]))
                at += 4 + -(-length // 4) * 4
            yield found
        offset += size


def comments(file: CaptureFile, one: Frame, **more: object) -> list[str]:
    (found,) = options(file.packet(PLACE, one, **more), 6, 0)  # type: ignore[arg-type]
    return [value.decode() for code, value in found if code == 1]


def capture() -> CaptureFile:
    return CaptureFile(names(NODES, PODS, (PLACE,)))


def test_addresses_are_called_by_pod_and_node() -> None:
    ended = PodFacts(name="default/old", node="node1", ips=("10.244.1.9",), phase="Succeeded")
    on_host = PodFacts(name="kube-system/proxy", node="node1", ips=(NODE1,))
    assert names(NODES, (*PODS, ended, on_host), (PLACE,)) == {
        POD1: "pod:default/pod1",
        "fd00::2": "pod:default/pod1",
        POD2: "pod:default/pod2",
        "10.244.1.1": "node1",
        NODE1: "node1",
        NODE2: "node2",
    }


def test_interfaces_are_called_by_place_and_name_and_described_once() -> None:
    file = capture()
    pod = Place(
        node="node1", pod="default/pod1", interfaces=(Interface(index=2, name="eth0", kind="veth"),)
    )
    written = file.packet(PLACE, frame(ping(POD1, POD2)))
    written += file.packet(PLACE, frame(ping(POD1, POD2)))
    written += file.packet(pod, frame(ping(POD1, POD2)))
    written += file.packet(PLACE, frame(ping(POD1, POD2)[14:], 3, 65534))
    written += file.packet(PLACE, frame(ping(POD1, POD2), 17))
    found = list(options(written, 1, 8))
    assert [dict(one)[2].decode() for one in found] == [
        "node1/cni0", "pod:default/pod1/eth0", "node1/tun0", "node1/if17",
    ]  # fmt: skip
    assert dict(found[0])[3] == b"bridge 10.244.1.1/24"
    assert [6 in dict(one) for one in found] == [True, False, False, False]
    assert file.counts == {
        "node1/cni0": 2, "pod:default/pod1/eth0": 1, "node1/tun0": 1, "node1/if17": 1,
    }  # fmt: skip


def test_a_packet_says_whose_it_is() -> None:
    file = capture()
    assert comments(file, frame(ping(POD1, POD2))) == ["pod:default/pod1 → pod:default/pod2"]
    assert comments(file, frame(ping(POD1, "192.0.2.1"))) == ["pod:default/pod1 → 192.0.2.1"]
    assert comments(file, frame(ping("192.0.2.2", "192.0.2.1"))) == []
    assert comments(file, frame(b"\0" * 20)) == []
    six = ethernet(*ip("fd00::2", "fd00::9", 58, icmp(128, 7)))
    assert comments(file, frame(six)) == ["pod:default/pod1 → fd00::9"]
    assert comments(file, frame(ping(POD1, POD2)), comments=["hop 1"])[0] == "hop 1"


def test_a_packet_in_a_tunnel_says_both() -> None:
    outer = ip(NODE1, NODE2, 17, vxlan(ping(POD1, POD2)))
    assert comments(capture(), frame(ethernet(*outer))) == [
        "pod:default/pod1 → pod:default/pod2",
        "in a tunnel: node1 → node2",
    ]


_address = st.sampled_from([POD1, POD2, NODE1, NODE2, "192.0.2.1"])


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """Frames that are nearly alike: with options, in fragments, in tunnels in tunnels, cut off."""
    data = b""
    for depth in range(draw(st.integers(1, 3))):
        upper = vxlan(data, draw(st.sampled_from([8472, 53]))) if depth else bytes(8)
        data = ethernet(
            *ip(
                draw(_address),
                draw(_address),
                17 if depth else draw(st.sampled_from([1, 17])),
                upper,
                options=draw(st.sampled_from([0, 0, 1])),
                fragment=draw(st.sampled_from([None, None, (0, True), (1480, False)])),
            )
        )
    cut = draw(st.sampled_from([len(data), 84, 60, 34, 20]))
    return frame(data[:cut])


@settings(max_examples=60, deadline=None)
@given(st.lists(frames(), min_size=2, max_size=6))
def test_a_packet_that_is_like_another_gets_the_comment_that_is_its_own(
    several: list[Frame],
) -> None:
    together = capture()
    for one in several:
        assert comments(together, one) == comments(capture(), one)


def test_arp_says_who_asks_for_whom() -> None:
    asked = ethernet(ARP, arp(POD1, POD2))
    assert comments(capture(), frame(asked)) == ["pod:default/pod1 → pod:default/pod2"]


def test_what_was_lost_is_told_at_the_packet_and_at_the_end() -> None:
    file = capture()
    (found,) = options(file.packet(PLACE, frame(ping(POD1, POD2)), lost=3), 6, 0)
    assert dict(found)[4] == struct.pack("<Q", 3)
    assert file.lost == {"node1/cni0": 3}
    (statistics,) = options(file.tail(2_000), 5, 12)
    assert dict(statistics)[4] == struct.pack("<Q", 1)
    assert dict(statistics)[5] == struct.pack("<Q", 3)
