"""Super-packets cut up, compared with packets made one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.tunnel.headers import TCP, UDP
from podwire.tunnel.segment import (
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    MAX_SEGMENTS,
    Segmenter,
)
from tests.tunnel.packets import Packet, packets

AT = 16


class Cutter:
    """A segmenter and its buffer, whose layouts stay from one packet to the next."""

    def __init__(self) -> None:
        self.buffer = np.zeros(3 * 65536, np.uint8)
        self.segmenter = Segmenter(self.buffer)

    def cut(self, packet: Packet, mss: int) -> list[bytes] | None:
        data = packet.partial()
        self.buffer[AT : AT + len(data)] = np.frombuffer(data, np.uint8)
        kind = GSO_UDP_L4
        if packet.protocol == TCP:
            kind = GSO_TCPV4 if packet.version == 4 else GSO_TCPV6
        layout = self.segmenter.segment(AT, len(data), kind, mss, 20 if packet.version == 4 else 40)
        if layout is None:
            return None
        stride = layout.head + layout.mss
        whole = self.segmenter.packed.view[: len(data) + (layout.count - 1) * layout.head]
        return [bytes(whole[at : at + stride]) for at in range(0, len(whole), stride)]


CUTTER = Cutter()


@given(packets(), st.integers(1, 500))
@settings(max_examples=100)
def test_segments_are_the_packets_that_would_have_been_made(packet: Packet, mss: int) -> None:
    expected = [segment.data() for segment in packet.segments(mss)]
    found = CUTTER.cut(packet, mss)
    assert found is not None
    assert [one[:40] for one in found] == [one[:40] for one in expected]
    assert found == [_with_ffff(one, packet) for one in expected]


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
    CUTTER.buffer[AT : AT + len(data)] = np.frombuffer(data, np.uint8)
    for l4 in (0, 19, 21, len(data) - 19, len(data), 65535):
        assert CUTTER.segmenter.segment(AT, len(data), GSO_TCPV4, 10, l4) is None


@given(
    st.binary(min_size=1, max_size=200),
    st.integers(0, 255),
    st.integers(0, 2000),
    st.integers(0, 200),
)
@settings(max_examples=80)
def test_nonsense_is_refused_or_cut_up(data: bytes, kind: int, mss: int, l4: int) -> None:
    CUTTER.buffer[AT : AT + len(data)] = np.frombuffer(data, np.uint8)
    CUTTER.segmenter.segment(AT, len(data), kind, mss, l4)
