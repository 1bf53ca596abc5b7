"""Super-packets cut up, compared with packets made one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.tunnel.headers import (
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    TCP,
    UDP,
    VNET,
)
from podwire.tunnel.segment import MAX_SEGMENTS, Segmenter
from tests.tunnel.packets import Packet, packets

AT, ROOM, SLOTS = 16, 3 * 65536, 3


class Cutter:
    """A segmenter and its buffer, whose layouts stay from one packet to the next."""

    def __init__(self) -> None:
        self.buffer = np.zeros(SLOTS * ROOM, np.uint8)
        self.segmenter = Segmenter(self.buffer, AT, ROOM)

    def put(self, data: bytes, kind: int, mss: int, l4: int, slot: int = 0) -> None:
        at = AT + slot * ROOM
        VNET.pack_into(self.buffer.data, at - VNET.size, NEEDS_CSUM, kind, 0, mss, l4, 0)
        self.buffer[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def cut(self, packet: Packet, mss: int) -> list[bytes] | None:
        found = self.cut_together([packet], mss)
        return None if found is None else found[0]

    def cut_together(
        self, together: list[Packet], mss: int, first: int = 0
    ) -> list[list[bytes]] | None:
        """The segments of each, in slots from `first` on; None where one can't be cut up, or not
        together with the others."""
        divisions = set()
        lengths = []
        for slot, packet in enumerate(together, first):
            data = packet.partial()
            kind = GSO_UDP_L4
            if packet.protocol == TCP:
                kind = GSO_TCPV4 if packet.version == 4 else GSO_TCPV6
            self.put(data, kind, mss, 20 if packet.version == 4 else 40, slot)
            divisions.add(self.segmenter.divide(slot, len(data)))
            lengths.append(len(data))
        division = divisions.pop()
        if divisions or division is None:
            return None
        self.segmenter.cut(first, lengths, division)
        found = []
        for slot, length in enumerate(lengths, first):
            whole = self.segmenter.packed[slot].view[: division.size_of(length)]
            begins = range(0, len(whole), division.segment)
            found.append([bytes(whole[at : at + division.segment]) for at in begins])
        return found


CUTTER = Cutter()


@given(packets(), st.integers(1, 500))
@settings(max_examples=100)
def test_segments_are_the_packets_that_would_have_been_made(packet: Packet, mss: int) -> None:
    expected = [segment.data() for segment in packet.segments(mss)]
    found = CUTTER.cut(packet, mss)
    assert found is not None
    assert [one[:40] for one in found] == [one[:40] for one in expected]
    assert found == [_with_ffff(one, packet) for one in expected]


@given(
    packets(min_payload=30),
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 255), st.integers(0, 1 << 32), st.booleans()),
        min_size=1,
        max_size=SLOTS,
    ),
    st.integers(0, SLOTS - 1),
)
@settings(max_examples=60)
def test_packets_are_cut_up_together_as_each_alone(
    packet: Packet, changes: list[tuple[int, int, int, bool]], first: int
) -> None:
    mss = (len(packet.payload) + 1) // 2
    together = [
        replace(
            packet,
            payload=bytes([flags]) * (2 * mss - shorter % mss),
            flags=flags,
            sequence=sequence % (1 << 32),
            dont_fragment=fixed,
            ident=sequence % (1 << 16),
        )
        for shorter, flags, sequence, fixed in changes
    ][: SLOTS - first]
    found = CUTTER.cut_together(together, mss, first)
    assert found is not None
    for one, segments in zip(together, found, strict=True):
        assert segments == [_with_ffff(each.data(), one) for each in one.segments(mss)]


def test_what_is_divided_otherwise_is_told_apart() -> None:
    packet = Packet(payload=bytes(100))
    for other in (
        replace(packet, payload=bytes(50)),
        replace(packet, options=bytes(4)),
        replace(packet, version=6),
        replace(packet, protocol=UDP),
    ):
        assert CUTTER.cut_together([packet, other], 30) is None


def _with_ffff(data: bytes, packet: Packet) -> bytes:
    """TCP's checksum zero is written as 0xFFFF here, which is the same number."""
    field = (20 if packet.version == 4 else 40) + 16
    if packet.protocol == TCP and data[field : field + 2] == b"\0\0":
        return data[:field] + b"\xff\xff" + data[field + 2 :]
    return data


def test_a_full_super_packet() -> None:
    packet = Packet(payload=bytes(range(256)) * 254, sequence=(1 << 32) - 30000, flags=0x18)
    found = CUTTER.cut(packet, 1420)
    assert found == [segment.data() for segment in packet.segments(1420)]


def test_layouts_are_bounded() -> None:
    for mss in range(1, 600):
        assert CUTTER.cut(Packet(protocol=UDP, payload=bytes(700)), mss) is not None


def test_what_is_no_super_packet_is_refused() -> None:
    packet = Packet(payload=bytes(100))
    assert CUTTER.cut(packet, 0) is None
    assert CUTTER.cut(replace(packet, payload=b""), 10) is None
    assert CUTTER.cut(replace(packet, payload=bytes(MAX_SEGMENTS + 1)), 1) is None
    data = packet.partial()
    for l4 in (0, 19, 21, len(data) - 19, len(data), 65535):
        CUTTER.put(data, GSO_TCPV4, 10, l4)
        assert CUTTER.segmenter.divide(0, len(data)) is None


@given(
    st.binary(min_size=1, max_size=200),
    st.integers(0, 255),
    st.integers(0, 2000),
    st.integers(0, 200),
)
@settings(max_examples=80)
def test_nonsense_is_refused_or_cut_up(data: bytes, kind: int, mss: int, l4: int) -> None:
    CUTTER.put(data, kind, mss, l4)
    division = CUTTER.segmenter.divide(0, len(data))
    if division is not None:
        CUTTER.segmenter.cut(0, [len(data)], division)
