"""Two ends of an encrypted tunnel: what they send each other, and what they refuse."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.errors import InputError
from podwire.tunnel.association import PEER_HANDSHAKES_BURST, WAITING_BYTES, WAITING_PACKETS
from podwire.tunnel.secure import OVERHEAD, BatchBuffer, SecurePeers
from tests.tunnel.ends import Ends


def _first(end: SecurePeers, target: str) -> bytes:
    """The handshake message that an end sends for want of a session."""
    assert end.seal(target, b"x") is None
    ((name, datagram),) = end.take_outbox()
    assert name == target
    return datagram


def _connected() -> Ends:
    ends = Ends()
    ends.send("a", b"1")
    ends.send("b", b"2")
    assert ends.received == {"a": [b"2"], "b": [b"1"]}
    return ends


def _of(data: bytes) -> BatchBuffer:
    return BatchBuffer(memoryview(data))


def _buffer(size: int) -> BatchBuffer:
    return BatchBuffer(memoryview(bytearray(size)))


def _changes(end: SecurePeers, before: dict[str, int]) -> dict[str, int]:
    return {name: n - before[name] for name, n in end.counters.items() if n != before[name]}


def test_a_packet_waits_for_the_handshake_that_it_starts() -> None:
    ends = _connected()
    assert ends.a.counters["handshakes_done"] == ends.b.counters["handshakes_done"] == 1
    assert ends.a.counters["handshakes_sent"] == 1
    assert ends.b.counters["handshakes_sent"] == 0


def test_datagrams_are_told_from_bare_packets_by_their_first_byte() -> None:
    ends = Ends()
    first = _first(ends.a, "b")
    ends.deliver("b", first)
    ((_, second),) = ends.b.take_outbox()
    ends.deliver("a", second)
    ((_, waited),) = ends.a.take_outbox()
    assert [datagram[0] for datagram in (first, second, waited)] == [1, 2, 4]
    assert [len(first), len(second), len(waited)] == [132, 76, len(b"x") + OVERHEAD]
    for version in (4, 6):
        assert ends.b.open("a", bytes([version << 4 | 5]) + bytes(60)) is None
    assert ends.b.counters["not_encrypted"] == 2


def test_batches_are_laid_out_as_the_kernels_segmentation_has_them() -> None:
    ends = _connected()
    packets = random.Random(1).randbytes(1400 * 20 + 77)
    sealed, opened = _buffer(40_000), _buffer(40_000)
    end = ends.a.seal_into("b", _of(packets), len(packets), 1400, sealed)
    assert end == len(packets) + 21 * OVERHEAD
    got = ends.b.open_into("a", sealed, end, 1400 + OVERHEAD, opened)
    assert opened.view[:got] == packets
    # The same again are replays; only what is new gets through, without gaps.
    more = ends.a.seal("b", b"n" * 1400)
    assert more is not None
    old = sealed.view.tobytes()
    mixed = old[: 2 * 1432] + more + old[2 * 1432 : 3 * 1432]
    before = ends.b.counters.copy()
    got = ends.b.open_into("a", _of(mixed), len(mixed), 1432, opened)
    assert opened.view[:got] == b"n" * 1400
    assert _changes(ends.b, before) == {"replayed": 3}


def test_a_batch_waits_packet_by_packet() -> None:
    ends = Ends()
    packets = b"-p" + b"p" * 999 + b"q" * 1000 + b"r"
    assert ends.a.seal_into("b", _of(packets), 2001, 1000, _buffer(9), start=1) == 0
    ends.settle()
    assert ends.received["b"] == [b"p" * 1000, b"q" * 1000, b"r"]


def test_waiting_is_bounded_and_the_newest_stay() -> None:
    ends = Ends()
    for number in range(WAITING_PACKETS + 10):
        ends.a.seal("b", number.to_bytes(2, "big"))
    assert ends.a.counters["waiting_full"] == 10
    ends.settle()
    assert ends.received["b"][0] == (10).to_bytes(2, "big")
    assert len(ends.received["b"]) == WAITING_PACKETS
    ends = Ends()
    for _ in range(6):
        ends.a.seal("b", bytes(WAITING_BYTES // 4))
    ends.settle()
    assert len(ends.received["b"]) == 4


def test_handshakes_that_cross_leave_both_ends_with_one_session() -> None:
    ends = Ends()
    to_b, to_a = _first(ends.a, "b"), _first(ends.b, "a")
    ends.deliver("b", to_b)
    ends.deliver("a", to_a)
    ends.settle()
    assert ends.received == {"a": [b"x"], "b": [b"x"]}
    to_b_now, to_a_now = ends.a.seal("b", b"y"), ends.b.seal("a", b"z")
    assert to_b_now is not None
    assert to_a_now is not None
    ends.deliver("b", to_b_now)
    ends.deliver("a", to_a_now)
    _assert_one_session(ends)


def _assert_one_session(ends: Ends) -> None:
    """Both ends send with the same session, which one of them asked for and so renews."""
    ours, theirs = ends.a._peers["b"].current, ends.b._peers["a"].current
    assert ours is not None
    assert theirs is not None
    assert (ours.local, ours.remote) == (theirs.remote, theirs.local)
    assert ours.initiator != theirs.initiator


@pytest.mark.parametrize("lost", ["first", "second", "confirmation"])
def test_any_lost_handshake_message_is_made_up_for(lost: str) -> None:
    ends = Ends()
    first = _first(ends.a, "b")
    if lost != "first":
        ends.deliver("b", first)
        ((_, second),) = ends.b.take_outbox()
        if lost != "second":
            ends.deliver("a", second)
            ends.a.take_outbox()
    ends.pass_time(1)
    ends.send("b", b"back")
    ends.send("a", b"more")
    ends.pass_time(1)
    assert ends.received["a"] == [b"back"]
    assert ends.received["b"][-1] == b"more"
    _assert_one_session(ends)


def test_an_end_that_was_restarted_is_back_after_a_round_trip() -> None:
    ends = _connected()
    ends.b = ends.end(2)
    ends.b.set_peer("a", ends.a.public_key)
    ends.send("a", b"lost with the session")
    # Without time passing, and though the restarted end had nothing to send itself.
    ends.send("a", b"3")
    assert ends.received["b"] == [b"1", b"3"]
    ends.send("b", b"4")
    assert ends.received["a"] == [b"2", b"4"]


def test_a_first_message_is_taken_once() -> None:
    ends = Ends()
    first = _first(ends.a, "b")
    ends.deliver("b", first)
    ends.settle()
    ends.deliver("b", first)
    assert not ends.b.outbox
    assert ends.b.counters["handshake_stale"] == 1
    ends.send("b", b"still")
    assert ends.received["a"] == [b"still"]


def test_a_second_message_that_answers_nothing_is_refused() -> None:
    ends = Ends()
    ends.deliver("b", _first(ends.a, "b"))
    ((_, second),) = ends.b.take_outbox()
    ends.deliver("a", second)
    ends.settle()
    before = ends.a.counters.copy()
    ends.deliver("a", second)
    assert _changes(ends.a, before) == {"handshake_stale": 1}


def test_time_set_back_does_not_lock_a_running_end_out() -> None:
    ends = _connected()
    ends.clock.wall_offset_s -= 3600
    ends.pass_time(200)
    ends.send("a", b"later")
    assert ends.received["b"] == [b"1", b"later"]


def test_a_peer_is_who_has_its_key_and_comes_from_its_address() -> None:
    ends = Ends()
    ends.b.set_peer("c", ends.end(3).public_key)
    first = _first(ends.a, "b")
    # The caller says whose address it came from.
    assert ends.b.open("c", first) is None
    assert not ends.b.outbox
    assert ends.b.counters["handshake_forged"] == 1
    ends = _connected()
    ends.b.set_peer("c", ends.end(3).public_key)
    datagram = ends.a.seal("b", b"from a")
    assert datagram is not None
    before = ends.b.counters.copy()
    assert ends.b.open("c", datagram) is None
    assert _changes(ends.b, before)["no_session"] == 1
    assert ends.b.open("a", datagram) == b"from a"


def test_without_a_key_a_peer_is_refused_both_ways() -> None:
    ends = _connected()
    assert ends.a.seal("c", b"x") is None
    batch = _of(bytes(250))
    assert ends.a.seal_into("c", batch, 250, 100, _buffer(900)) == 0
    assert ends.a.open("c", bytes([4, 0, 0, 0]) + bytes(40)) is None
    assert ends.a.open_into("c", batch, 250, 100, _buffer(900)) == 0
    assert ends.a.counters["no_key"] == 1 + 3 + 1 + 3
    assert not ends.a.outbox


def test_a_peers_sessions_end_with_its_key() -> None:
    ends = _connected()
    old = ends.b.seal("a", b"under the old key")
    assert old is not None
    ends.a.set_peer("b", ends.b.public_key)
    assert ends.a.session_age("b") is not None  # the same key again changes nothing
    ends.a.set_peer("b", ends.end(3).public_key)
    assert ends.a.session_age("b") is None
    assert ends.a.open("b", old) is None
    ends.a.remove_peer("b")
    ends.a.remove_peer("b")
    assert ends.a.open("b", old) is None
    assert ends.a.counters["no_key"] == 1
    ends.a.take_outbox()
    ends.a.poll()
    assert ends.a.deadline == float("inf")


def test_own_key_as_a_peers_is_refused() -> None:
    ends = Ends()
    with pytest.raises(InputError, match="two nodes share one key file"):
        ends.a.set_peer("c", ends.a.public_key)
    for no_key in (bytes(32), b"short"):
        with pytest.raises(InputError, match="public key of c"):
            ends.a.set_peer("c", no_key)


def test_forged_handshakes_cost_no_x25519_without_the_public_key() -> None:
    ends = Ends()
    first = _first(ends.a, "b")
    for _ in range(3):
        ends.deliver("b", first[:-1] + bytes([first[-1] ^ 1]))
    ends.deliver("b", first)
    assert ends.b.counters["handshake_forged"] == 3
    assert ends.b.outbox


def test_handshakes_answered_are_bounded_a_peer() -> None:
    ends = Ends()
    ends.b.set_peer("c", ends.end(3).public_key)
    answers = 0
    for _ in range(50):
        ends.a = ends.end(1)
        ends.a.set_peer("b", ends.b.public_key)
        ends.clock.wall_offset_s += 1
        ends.deliver("b", _first(ends.a, "b"))
        answers += len(ends.b.take_outbox())
    assert answers == PEER_HANDSHAKES_BURST
    assert ends.b.counters["handshake_limited"] == 50 - PEER_HANDSHAKES_BURST
    # Another peer does not pay for it, and this one is back within seconds.
    c = ends.end(3)
    c.set_peer("b", ends.b.public_key)
    assert ends.b.open("c", _first(c, "b")) is None
    assert len(ends.b.take_outbox()) == 1
    ends.pass_time(2)
    ends.send("a", b"x")
    assert ends.received["b"][-1] == b"x"


@settings(max_examples=200)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda kind, size, rest: (bytes([kind, 0, 0, 0]) + rest).ljust(size, b"\0")[:size],
            st.integers(0, 5),
            st.sampled_from([3, 4, 8, 31, 32, 33, 76, 131, 132, 133, 200]),
            st.binary(max_size=30),
        ),
    ),
    st.integers(1, 200),
)
def test_garbage_is_counted_and_never_more(datagram: bytes, segment: int) -> None:
    ends = CONNECTED
    before = ends.b.counters.copy()
    assert ends.b.open("a", datagram) is None
    assert sum(_changes(ends.b, before).values()) == 1
    before = ends.b.counters.copy()
    out = _buffer(len(datagram))
    assert ends.b.open_into("a", _of(datagram), len(datagram), segment, out) == 0
    assert sum(_changes(ends.b, before).values()) == -(-len(datagram) // segment)


@settings(max_examples=100)
@given(st.data())
def test_a_datagram_with_a_bit_changed_is_counted_and_never_more(data: st.DataObject) -> None:
    ends = CONNECTED
    datagram = ends.a.seal("b", b"a packet that matters")
    assert datagram is not None
    changed = bytearray(datagram)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    before = ends.b.counters.copy()
    assert ends.b.open("a", bytes(changed)) is None
    assert sum(_changes(ends.b, before).values()) == 1
    assert ends.b.open("a", datagram) == b"a packet that matters"


CONNECTED = _connected()
