"""Datagrams put together: only what continues one flow, and so that cutting up gives it back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.tunnel.batches import Batches
from podwire.tunnel.coalesce import Shape, merge, runs, shape_of
from podwire.tunnel.headers import CWR, FIN, NEEDS_CSUM, PSH, TCP, UDP, VNET
from tests.tunnel.packets import Packet, is_valid, packets
from tests.tunnel.test_segment import Cutter, _with_ffff

AT, ROOM, SLOTS = 64, 64 + 3 * 65536, 3


class Batch:
    """A buffer with datagrams in it, as UDP GRO leaves them."""

    def __init__(self) -> None:
        self.buffer = np.zeros(SLOTS * ROOM, np.uint8)
        self.batches = Batches(self.buffer, AT, ROOM)

    def find(self, datagrams: list[bytes]) -> list[int]:
        """Where runs begin, the quick way, which has to agree with the slow one."""
        stride, last = len(datagrams[0]), len(datagrams[-1])
        assert {len(one) for one in datagrams[:-1]} <= {stride} and last <= stride
        shape = self.put(datagrams)
        count = len(datagrams)
        if shape is None or count == 1:
            return list(range(count + 1))
        slow = runs(self.buffer, AT, count, stride, last, shape)
        self.put(datagrams)
        quick = self.batches.borders(0, count, stride, last, shape)
        assert quick == slow
        return quick

    def put(self, datagrams: list[bytes], slot: int = 0) -> Shape | None:
        data, at = b"".join(datagrams), AT + slot * ROOM
        self.buffer[at : at + len(data)] = np.frombuffer(data, np.uint8)
        # What was there before must not matter.
        self.buffer[at + len(data) : at + len(data) + len(datagrams[0])] = 0xA5
        return shape_of(self.buffer.data, at, len(datagrams[0]))


BATCH, CUTTER = Batch(), Cutter()


def _is_whole(packet: Packet) -> bool:
    """Whether its segments have nothing in the middle that ends a run."""
    return packet.protocol == UDP or not packet.flags & CWR


@given(packets(min_payload=2), st.integers(1, 200))
@settings(max_examples=100)
def test_segments_of_one_packet_are_one_run_and_give_it_back(packet: Packet, mss: int) -> None:
    datagrams = [one.data() for one in packet.segments(mss)]
    borders = BATCH.find(datagrams)
    if len(datagrams) < 2:
        return
    if not _is_whole(packet):
        # The first one says something that the others don't.
        assert borders == [0, 1, *([len(datagrams)] if len(datagrams) > 1 else [])]
        return
    assert borders == [0, len(datagrams)]
    stride, last = len(datagrams[0]), len(datagrams[-1])
    shape = BATCH.put(datagrams)
    assert shape is not None
    merge(BATCH.buffer.data, AT, len(datagrams), stride, last, shape)
    flags, _, head, size, l4, field = VNET.unpack_from(BATCH.buffer.data, AT - VNET.size)
    assert (flags, head, size) == (NEEDS_CSUM, packet.header, mss)
    assert (l4, field) == (20 if packet.version == 4 else 40, 16 if packet.protocol == TCP else 6)
    merged = bytes(BATCH.buffer[AT : AT + head]) + packet.payload
    assert merged == packet.partial()
    # And what the kernel does with it then:
    assert CUTTER.cut(packet, mss) == [_with_ffff(one, packet) for one in datagrams]


@given(
    packets(min_payload=40, max_payload=40),
    st.integers(0, 1),
    st.none() | st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 3), st.integers(0, 49)),
)
@settings(max_examples=80)
def test_batches_are_runs_together_if_each_is_one(
    packet: Packet, first: int, damage: tuple[int, int, int] | None
) -> None:
    """In slots from `first` on; one byte of one packet of one batch is damaged, or none."""
    packet = replace(packet, dont_fragment=True, flags=packet.flags & ~CWR)
    batches, shapes = [], []
    for slot in range(first, SLOTS):
        # What differs from one super-packet to the next.
        flow = replace(packet, sequence=77 * slot, ack=slot, window=slot, ident=slot)
        datagrams = [bytearray(one.data()) for one in flow.segments(10)]
        if damage is not None and damage[0] == slot:
            datagrams[damage[1]][damage[2] % len(datagrams[0])] ^= 0x40
        batches.append([bytes(one) for one in datagrams])
        shapes.append(BATCH.put(batches[-1], slot))
    if any(shape is not shapes[0] or shape is None for shape in shapes):
        return
    shape, stride = shapes[0], len(batches[0][0])
    assert shape is not None
    together = BATCH.batches.are_runs(first, len(batches), 4, stride, stride, shape)
    assert together == all(BATCH.find(one) == [0, 4] for one in batches)
    assert together or damage is not None


@given(
    st.lists(packets(20, 20), min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=2, max_size=12),
)
@settings(max_examples=80)
def test_runs_never_join_what_does_not_continue(
    flows: list[Packet], order: list[tuple[int, bool]]
) -> None:
    """Interleaved flows, some packets damaged: each run is one flow's, in order, and undamaged."""
    flows = [replace(one, version=4, options=b"") for one in flows]
    protocol = flows[0].protocol
    next_of = [replace(one, protocol=protocol) for one in flows]
    sent: list[tuple[Packet, bytes]] = []
    for which, damaged in order:
        packet = next_of[which % len(next_of)]
        data = bytearray(packet.data())
        if damaged:
            data[-1] ^= 0x40
        sent.append((packet, bytes(data)))
        next_of[which % len(next_of)] = replace(
            packet,
            sequence=(packet.sequence + len(packet.payload)) % (1 << 32),
            ident=(packet.ident + 1) % (1 << 16),
        )
    borders = BATCH.find([data for _, data in sent])
    for first, end in pairwise(borders):
        run = sent[first:end]
        if len(run) == 1:
            continue
        assert all(is_valid(data) for _, data in run)
        for (one, _), (two, _) in pairwise(run):
            assert one.sport == two.sport and one.window == two.window
            if protocol == TCP:
                assert two.sequence == (one.sequence + len(one.payload)) % (1 << 32)
                assert not one.flags & (FIN | PSH)


def _segments(**fields: object) -> list[Packet]:
    return Packet(payload=bytes(range(100)), **fields).segments(20)  # type: ignore[arg-type]


def test_what_ends_a_run() -> None:
    whole = _segments()
    for changed in (
        {"ttl": 3},
        {"tos": 3},
        {"ack": 7},
        {"window": 7},
        {"sport": 7},
        {"source": bytes([10, 244, 1, 9])},
        {"target": bytes([10, 244, 2, 9])},
        {"sequence": 7},
        {"flags": 0x11},
        {"flags": 0x12},
        {"flags": 0x18},
        {"dont_fragment": False},
        {"options": bytes(4), "payload": bytes(16)},
    ):
        datagrams = [*whole[:2], replace(whole[2], **changed), *whole[3:]]
        borders = BATCH.find([one.data() for one in datagrams])
        assert 2 in borders or 3 in borders, changed


def test_packets_that_may_be_fragmented_have_to_count_up() -> None:
    whole = _segments(dont_fragment=False, ident=0xFFFE)
    assert BATCH.find([one.data() for one in whole]) == [0, 5]
    other = [*whole[:2], replace(whole[2], ident=9), *whole[3:]]
    assert BATCH.find([one.data() for one in other]) == [0, 2, 3, 5]


def test_udp_without_a_checksum_goes_alone() -> None:
    datagrams = [one.with_l4_check(0) for one in _segments(protocol=UDP)]
    bare = [one[:26] + b"\0\0" + one[28:] for one in datagrams]
    assert BATCH.find(bare) == [0, 1, 2, 3, 4, 5]


def test_a_short_end_goes_alone() -> None:
    whole = [one.data() for one in _segments()]
    for size in (1, 20, 39, 40):
        assert BATCH.find([*whole, whole[0][:size]]) == [0, 5, 6]
    assert BATCH.find([whole[0], b"\x45"]) == [0, 1, 2]


def test_what_is_never_put_together() -> None:
    plain = Packet(payload=bytes(20))
    for packet in (
        replace(plain, payload=b""),
        replace(plain, flags=0x12),
        replace(plain, flags=0x14),
        replace(plain, flags=0x30),
        replace(plain, protocol=1),
        replace(plain, version=6, protocol=44),
    ):
        assert BATCH.put([packet.data()]) is None
    fragment = bytearray(plain.data())
    fragment[6] = 0x20
    assert BATCH.put([bytes(fragment)]) is None


@given(st.binary(min_size=1, max_size=80), st.integers(2, 9), st.integers(1, 80))
@settings(max_examples=80)
def test_nonsense_is_told_apart(data: bytes, count: int, last: int) -> None:
    datagrams = [*[data] * (count - 1), data[: min(last, len(data))]]
    borders = BATCH.find(datagrams)
    assert borders[0] == 0 and borders[-1] == count and borders == sorted(set(borders))
