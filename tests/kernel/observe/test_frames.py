"""The tap: what it sees of real packets in real namespaces, and that it outlives its interfaces."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podwire.errors import KernelError
from podwire.kernel import netns
from podwire.kernel.observe import cbpf
from podwire.kernel.observe.cbpf import Assembler, Insn, Label
from podwire.kernel.observe.frames import ETHERNET, LOOPBACK, NO_HEADER, FrameTap, RawFrame
from tests.conftest import Namespace
from tests.kernel.observe.conftest import MakeTun
from tests.kernel.observe.packets import ethernet, ip, udp

pytestmark = pytest.mark.root

TEST_TYPE = 0x88B5  # IEEE 802: for local experiments


def only(ethertype: int) -> tuple[Insn, ...]:
    asm, other = Assembler(), Label("other")
    asm.load(cbpf.HALF, cbpf.AD_PROTOCOL)
    asm.jump_if(cbpf.JEQ, ethertype, otherwise=other)
    asm.end(cbpf.ALL)
    asm.place(other)
    asm.end(0)
    return asm.assemble()


TESTS = only(TEST_TYPE)


def numbered(number: int, size: int = 60) -> bytes:
    return ethernet(TEST_TYPE, struct.pack("!I", number)).ljust(size, b".")


@pytest.fixture
def pair(inside: Namespace) -> Namespace:
    """A namespace, and this test in it, with v0 and v1 wired to each other."""
    inside.run(
        "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 && ip link add v0 type veth peer name v1"
        " && ip link set v0 up && ip link set v1 up"
    )
    return inside


@pytest.fixture
def send() -> Iterator[Callable[..., None]]:
    """Sends frames out of an interface of the namespace that the test is in."""
    made: list[socket.socket] = []

    def send(interface: str, *frames: bytes) -> None:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.append(sock)
        sock.bind((interface, 0))
        for frame in frames:
            sock.send(frame)

    yield send
    for sock in made:
        sock.close()


def wait(tap: FrameTap, count: int) -> list[RawFrame]:
    """`count` frames; fails where they do not come, or more."""
    seen: list[RawFrame] = []
    while len(seen) < count:
        assert select.select([tap], [], [], 10)[0], f"{len(seen)} of {count} frames came"
        seen += tap.read()
    assert len(seen) == count
    return seen


def test_both_ends_of_a_wire_are_seen_in_order(pair: Namespace, send: Callable[..., None]) -> None:
    before = time.time_ns()
    with FrameTap(None, TESTS) as tap:
        send("v0", numbered(1), numbered(2, 1400))
        seen = wait(tap, 4)
    v0, v1 = socket.if_nametoindex("v0"), socket.if_nametoindex("v1")
    by_frame = sorted(seen, key=lambda one: one.length)
    assert [(one.ifindex, one.outgoing) for one in by_frame] == [(v0, True), (v1, False)] * 2
    assert [one.length for one in by_frame] == [60, 60, 1400, 1400]
    assert {one.data for one in seen} == {numbered(1), numbered(2, 1400)}
    assert {one.link_type for one in seen} == {ETHERNET}
    times = [one.time_ns for one in by_frame]
    assert before < times[0] < times[1] < time.time_ns()


def test_one_interface_alone(pair: Namespace, send: Callable[..., None]) -> None:
    index = socket.if_nametoindex("v1")
    with FrameTap(None, TESTS, ifindex=index) as tap:
        send("v0", numbered(1))
        send("v1", numbered(2))
        seen = wait(tap, 2)
    assert [(one.ifindex, one.outgoing, one.data) for one in seen] == [
        (index, False, numbered(1)),
        (index, True, numbered(2)),
    ]


def test_it_looks_into_another_namespace(
    namespace: Namespace, make_namespace: Callable[[], Namespace]
) -> None:
    other = make_namespace()
    other.run("ip address add 10.0.0.1/24 dev lo")
    fd = netns.open_netns(other.path)
    with FrameTap(fd, only(0x0800)) as tap:
        namespace.run("ping -c 1 -W 1 127.0.0.1")
        other.run("ping -c 1 -W 1 10.0.0.1")
        seen = wait(tap, 4)
    os.close(fd)
    assert [one.outgoing for one in seen] == [True, False] * 2
    assert {one.link_type for one in seen} == {LOOPBACK}
    assert {one.length for one in seen} == {98}


def test_what_does_not_match_is_never_seen(pair: Namespace, send: Callable[..., None]) -> None:
    asm = Assembler()
    asm.end(0)
    with FrameTap(None, asm.assemble()) as nothing, FrameTap(None, TESTS) as tap:
        send("v0", ethernet(0x88B6, b"x" * 50), numbered(1))
        assert {one.data for one in wait(tap, 2)} == {numbered(1)}
        assert nothing.read() == []
        assert nothing.lost == 0


def test_the_ring_goes_round_and_counts_what_found_no_room(
    pair: Namespace, send: Callable[..., None]
) -> None:
    index = socket.if_nametoindex("v0")
    with FrameTap(None, TESTS, ifindex=index, frames=20) as tap:
        number = 0
        for _ in range(20):
            send("v0", *map(numbered, range(number, number + 17)))
            assert [one.data for one in tap.read()] == [
                numbered(one) for one in range(number, number + 17)
            ]
            number += 17
        assert tap.lost == 0
        send("v0", *map(numbered, range(100)))
        kept = tap.read()
        assert 20 <= len(kept) < 100
        assert [one.data for one in kept] == [numbered(one) for one in range(len(kept))]
        assert tap.lost == 100 - len(kept)
        send("v0", numbered(7))
        assert [one.data for one in tap.read()] == [numbered(7)]


def test_a_packet_larger_than_a_slot_is_whole(namespace: Namespace, make_tun: MakeTun) -> None:
    tun = make_tun(namespace, "tun0")
    fd = netns.open_netns(namespace.path)
    packets = [
        ip("10.1.1.1", "10.1.1.2", 17, udp(5, 6, bytes([number]) * size))[1]
        for number, size in enumerate((60000, 100, 4000, 2020, 1400, 60000))
    ]
    with (
        FrameTap(fd, only(0x0800), snaplen=262144) as whole,
        FrameTap(fd, only(0x0800)) as usual,
        FrameTap(fd, only(0x0800), snaplen=64) as short,
    ):
        for packet in packets:
            os.write(tun, packet)
        for tap, keep in ((whole, 262144), (usual, 2048), (short, 64)):
            seen = wait(tap, len(packets))
            assert [one.data for one in seen] == [packet[:keep] for packet in packets]
            assert [one.length for one in seen] == list(map(len, packets))
            assert {(one.link_type, one.outgoing) for one in seen} == {(NO_HEADER, False)}
    os.close(fd)


def test_where_the_queue_for_large_packets_is_full_they_are_cut(
    namespace: Namespace, make_tun: MakeTun
) -> None:
    tun = make_tun(namespace, "tun0")
    fd = netns.open_netns(namespace.path)
    packets = [
        ip("10.1.1.1", "10.1.1.2", 17, udp(5, 6, struct.pack("!H", number) * 30000))[1]
        for number in range(300)
    ]
    with FrameTap(fd, only(0x0800), snaplen=262144) as tap:
        for packet in packets:
            os.write(tun, packet)
        seen = wait(tap, len(packets))
        assert tap.lost == 0
        assert all(
            one.data in (packet, packet[:2048]) and one.length == len(packet)
            for one, packet in zip(seen, packets, strict=True)
        )
        assert seen[0].data == packets[0]
        assert seen[-1].data != packets[-1]
        os.write(tun, packets[7])
        assert wait(tap, 1)[0].data == packets[7]
    os.close(fd)


def test_a_vlan_tag_is_in_its_place(pair: Namespace, send: Callable[..., None]) -> None:
    plain = numbered(1)
    tagged = plain[:12] + struct.pack("!HH", 0x8100, 5) + plain[12:]
    with FrameTap(None, TESTS, ifindex=socket.if_nametoindex("v1")) as tap:
        send("v0", tagged)
        (seen,) = wait(tap, 1)
    assert seen.data == tagged
    assert seen.length == len(tagged)


def test_an_interface_that_goes_down_does_not_kill_it(
    pair: Namespace, send: Callable[..., None]
) -> None:
    index = socket.if_nametoindex("v0")
    with FrameTap(None, TESTS, ifindex=index) as one, FrameTap(None, TESTS) as all_of_them:
        pair.run("ip link set v0 down")
        assert select.select([one], [], [], 10)[0], "the kernel says that it went down"
        assert one.read() == []
        assert select.select([one, all_of_them], [], [], 0)[0] == []
        pair.run("ip link set v0 up")
        send("v1", numbered(1))
        assert [frame.data for frame in wait(one, 1)] == [numbered(1)]
        wait(all_of_them, 2)
        pair.run("ip link delete v0")
        assert one.read() == []
        assert select.select([one, all_of_them], [], [], 0)[0] == []
        pair.run("ip link add v2 type veth peer name v3; ip link set v2 up; ip link set v3 up")
        send("v2", numbered(2))
        assert {frame.data for frame in wait(all_of_them, 2)} == {numbered(2)}


def test_a_large_packet_is_taken_after_its_interface_went_down(
    namespace: Namespace, make_tun: MakeTun
) -> None:
    tun = make_tun(namespace, "tun0")
    fd = netns.open_netns(namespace.path)
    with netns.entered(fd):
        index = socket.if_nametoindex("tun0")
    packet = ip("10.1.1.1", "10.1.1.2", 17, udp(5, 6, b"?" * 60000))[1]
    with FrameTap(fd, only(0x0800), ifindex=index, snaplen=262144) as tap:
        os.write(tun, packet)
        assert select.select([tap], [], [], 10)[0]
        namespace.run("ip link set tun0 down")
        assert [one.data for one in tap.read()] == [packet]
    os.close(fd)


def test_where_times_repeat_the_order_still_holds(
    pair: Namespace, send: Callable[..., None]
) -> None:
    """Somebody asks for software timestamps: a bridge's sighting repeats that of its port."""
    pair.run("ip link add br0 type bridge && ip link set br0 up && ip link set v1 master br0")
    port, bridge = socket.if_nametoindex("v1"), socket.if_nametoindex("br0")
    frame = b"\xff" * 6 + numbered(1)[6:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ping, FrameTap(None, TESTS) as tap:
        ping.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP, asm-generic/socket.h
        send("v0", *[frame] * 50)
        seen = [one for one in wait(tap, 150) if not one.outgoing]
    assert [one.ifindex for one in seen] == [port, bridge] * 50
    times = [one.time_ns for one in seen]
    assert times == sorted(times)


def test_nothing_is_left_when_it_is_closed(pair: Namespace) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with FrameTap(None, TESTS) as tap:
        assert len(Path("/proc/thread-self/net/packet").read_text().splitlines()) == 2
    tap.close()
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert len(Path("/proc/thread-self/net/packet").read_text().splitlines()) == 1


def test_what_cannot_be_tapped_is_said(inside: Namespace) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(KernelError, match="packet socket: No such device") as caught:
        FrameTap(None, TESTS, ifindex=4711)
    assert caught.value.errno == 19
    with pytest.raises(KernelError, match="socket filter"):
        FrameTap(None, ())
    assert set(Path("/proc/self/fd").iterdir()) == before
