"""A session's datagrams, one by one and by the batch, and its window against replays."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, given, settings
from hypothesis import strategies as st

from podwire.tunnel.session import (
    HEADER,
    OVERHEAD,
    WINDOW,
    BatchBuffer,
    ReplayWindow,
    Session,
)

ONE, OTHER = bytes(range(32)), bytes(range(32, 64))


def _buffer(data: bytes | bytearray) -> BatchBuffer:
    return BatchBuffer(memoryview(data))


class Pair:
    """The two ends of one session."""

    def __init__(self) -> None:
        self.drops = {"replayed": 0, "not_authentic": 0}
        self.sender = self._end(local=7, remote=9, send=ONE, receive=OTHER)
        self.receiver = self._end(local=9, remote=7, send=OTHER, receive=ONE)

    def _end(self, *, local: int, remote: int, send: bytes, receive: bytes) -> Session:
        return Session(
            local=local,
            remote=remote,
            initiator=local == 7,
            send=send,
            receive=receive,
            born=0.0,
            counters=self.drops,
        )

    def seal(self, packets: bytes, segment: int) -> bytes:
        """A batch's datagrams, which nothing is written behind of."""
        out = bytearray(b"\xee" * (len(packets) * 33 + 100))
        end = self.sender.seal_into(_buffer(packets), 0, len(packets), segment, _buffer(out))
        assert out[end:] == b"\xee" * (len(out) - end)
        return bytes(out[:end])

    def open(self, datagrams: bytes, segment: int) -> bytes | None:
        """A batch's packets, which nothing is written behind of."""
        starts = range(0, len(datagrams), segment)
        counters = [HEADER.unpack_from(datagrams, at)[1] for at in starts]
        out = bytearray(b"\xee" * len(datagrams))
        end = self.receiver.open_into(
            _buffer(datagrams), len(datagrams), segment, _buffer(out), counters
        )
        if end is None:
            return None
        assert out[end:] == b"\xee" * (len(out) - end)
        return bytes(out[:end])


def _open(pair: Pair, datagram: bytes | memoryview) -> bytes | None:
    return pair.receiver.open(datagram, HEADER.unpack_from(datagram)[1])


def test_a_datagram_byte_by_byte() -> None:
    pair = Pair()
    pair.sender.seal(b"")
    datagram = pair.sender.seal(b"packet")
    nonce = bytes(4) + (1).to_bytes(8, "big")
    assert datagram == (
        bytes([4, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
        + AESGCM(ONE).encrypt(nonce, b"packet", None)
    )
    assert len(datagram) == len(b"packet") + OVERHEAD
    assert int.from_bytes(datagram[:8], "little") == pair.receiver.prefix


@settings(max_examples=40)
@given(segment=st.integers(1, 1500), length=st.integers(1, 20_000))
@example(segment=1400, length=1400 * 45)
@example(segment=1400, length=1400 * 45 + 1)
@example(segment=1400, length=1400 * 8)
@example(segment=1400, length=1400 * 7)
@example(segment=1400, length=900)
@example(segment=1, length=WINDOW + 10)
def test_a_batch_is_what_its_packets_are_one_by_one(segment: int, length: int) -> None:
    packets = random.Random(length).randbytes(length)
    whole, single = Pair(), Pair()
    datagrams = whole.seal(packets, segment)
    each = [single.sender.seal(packets[at : at + segment]) for at in range(0, length, segment)]
    assert datagrams == b"".join(each)
    assert whole.sender.sent == single.sender.sent == len(each)
    assert whole.open(datagrams, segment + OVERHEAD) == packets
    assert [_open(single, memoryview(one)) for one in each] == [
        packets[at : at + segment] for at in range(0, length, segment)
    ]
    # Both remember the same.
    for pair in (whole, single):
        assert _open(pair, each[0]) is None
        assert _open(pair, each[-1]) is None
    assert whole.drops == single.drops == {"replayed": 2, "not_authentic": 0}


def test_a_batch_may_end_with_a_keepalive() -> None:
    pair = Pair()
    datagrams = pair.seal(b"p" * 200, 100) + pair.sender.seal(b"")
    assert pair.open(datagrams, 100 + OVERHEAD) == b"p" * 200


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("wrong", ["changed", "reordered", "repeated", "missing", "old"])
def test_a_batch_with_something_wrong_is_left_to_be_opened_one_by_one(
    wrong: str, count: int
) -> None:
    pair = Pair()
    size = 100 + OVERHEAD
    datagrams = pair.seal(b"p" * 100 * count, 100)
    each = [datagrams[at : at + size] for at in range(0, len(datagrams), size)]
    good = count
    match wrong:
        case "changed":
            each[1] = each[1][:-1] + bytes([each[1][-1] ^ 1])
            good = count - 1
        case "reordered":
            each[1], each[2] = each[2], each[1]
        case "repeated":
            each[2] = each[1]
            good = count - 1
        case "missing":
            del each[1]
            good = count - 1
        case "old":
            _open(pair, each[0])
            good = count - 1
    assert pair.open(b"".join(each), size) is None
    opened = [_open(pair, one) for one in each]
    assert [packet for packet in opened if packet is not None] == [b"p" * 100] * good


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(st.integers(0, 3 * WINDOW), st.integers(0, 40), st.integers(2**60, 2**60 + 5)),
        max_size=60,
    )
)
@example([0, 0])
@example([5, 0, WINDOW, 1, 0, WINDOW + 5, 6, 5])
@example([WINDOW - 1, 0, 2 * WINDOW - 1, WINDOW - 1, WINDOW])
def test_the_window_takes_each_counter_once_and_none_too_old(counters: list[int]) -> None:
    window = ReplayWindow()
    seen: set[int] = set()
    for counter in counters:
        newest = max(seen, default=-1)
        expected = counter not in seen and counter > newest - WINDOW
        assert window.takes(counter) == expected
        if expected:
            window.add(counter)
            seen.add(counter)


@settings(max_examples=20)
@given(st.integers(0, 3 * WINDOW), st.integers(1, WINDOW + 10))
def test_the_window_notes_a_run_as_it_notes_each(start: int, count: int) -> None:
    run = range(start, start + count)
    whole, single = ReplayWindow(), ReplayWindow()
    whole.add_run(run)
    for counter in run:
        single.add(counter)
    for counter in (start - 1, *run[:3], *run[-3:], start + count):
        if counter >= 0:
            assert whole.takes(counter) == single.takes(counter)
    assert whole.newest == single.newest


def test_a_buffer_is_cut_as_asked_each_time() -> None:
    data = bytes(range(256)) * 4
    buffer = BatchBuffer(memoryview(data))
    for start, size, stride, count in [(0, 10, 10, 3), (0, 10, 10, 5), (4, 10, 12, 2)] * 2 + [
        (start, 7, 9, 20) for start in range(40)
    ]:
        cuts = buffer.cut(start, size, stride, count)
        expected = [data[at : at + size] for at in range(start, start + count * stride, stride)]
        assert [bytes(cut) for cut in cuts[:count]] == expected


def test_one_buffer_takes_batches_of_every_shape() -> None:
    pair = Pair()
    packets = random.Random(3).randbytes(40_000)
    source, sealed = _buffer(packets), _buffer(bytearray(60_000))
    opened = _buffer(bytearray(40_000))
    for start, length, segment in [
        (0, 30_000, 1000),
        (100, 9_999, 1000),
        (0, 30_000, 1001),
        (0, 39_000, 1000),
        (7, 3, 1000),
        (0, 12_345, 1000),
    ]:
        end = pair.sender.seal_into(source, start, length, segment, sealed)
        stride = segment + OVERHEAD
        counters = [HEADER.unpack_from(sealed.view, at)[1] for at in range(0, end, stride)]
        got = pair.receiver.open_into(sealed, end, stride, opened, counters)
        assert got == length
        assert opened.view[:length] == packets[start : start + length]
