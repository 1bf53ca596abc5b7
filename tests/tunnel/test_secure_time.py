"""What two ends do as time passes: renew, repeat, give up, keep alive, erase; and on a bad wire."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.tunnel import association
from podwire.tunnel.association import (
    ATTEMPT_S,
    FIRST_RETRY_S,
    KEEPALIVE_S,
    LAST_RETRY_S,
    REJECT_AFTER_S,
    REKEY_AFTER_S,
    UNANSWERED_S,
)
from podwire.tunnel.session import OVERHEAD
from tests.tunnel.ends import Ends


def _talk(ends: Ends, seconds: float, *, both: bool = True, step: float = 1.0) -> int:
    """Packets each way at every step; how many were sent one way."""
    count = 0

    def packets() -> None:
        nonlocal count
        count += 1
        ends.send("a", b"to b")
        if both:
            ends.send("b", b"to a")

    ends.pass_time(seconds, meanwhile=packets, step=step)
    return count


def test_a_session_in_use_is_renewed_and_nothing_is_lost() -> None:
    ends = Ends()
    count = _talk(ends, 10 * REKEY_AFTER_S)
    assert ends.received == {"a": [b"to a"] * count, "b": [b"to b"] * count}
    assert ends.a.counters["handshakes_done"] == 10
    # Only the end that asked first asks again: not both at once.
    assert ends.b.counters["handshakes_sent"] == 0


@pytest.mark.parametrize(("sender", "receiver"), [("a", "b"), ("b", "a")])
def test_a_session_with_traffic_one_way_is_renewed_by_either_end(
    sender: str, receiver: str
) -> None:
    ends = Ends()
    ends.send("a", b"first")
    ends.pass_time(600, meanwhile=lambda: ends.send(sender, b"p"), step=1)
    assert ends.received[receiver].count(b"p") == 600


def test_an_unused_session_is_erased_and_made_again_when_needed() -> None:
    ends = Ends()
    ends.send("a", b"1")
    ends.pass_time(REJECT_AFTER_S + 1)
    assert ends.a.session_age("b") is None
    assert ends.b.session_age("a") is None
    assert ends.a.deadline == ends.b.deadline == float("inf")
    assert not ends.a._handshakes._sessions
    ends.send("b", b"2")
    assert ends.received == {"a": [b"2"], "b": [b"1"]}


def test_messages_too_are_a_reason_to_renew() -> None:
    ends = Ends()
    ends.send("a", b"1")
    for end, name in ((ends.a, "b"), (ends.b, "a")):
        current = end._peers[name].current
        assert current is not None
        current.sent = association.REKEY_AFTER_MESSAGES
    ends.send("b", b"2")
    assert ends.b.counters["handshakes_sent"] == 1
    assert ends.a.session_age("b") == 0
    current = ends.a._peers["b"].current
    assert current is not None
    assert current.sent < 5
    current.sent = association.REJECT_AFTER_MESSAGES
    assert ends.a.seal("b", b"waits for the next session") is None
    ends.settle()
    assert ends.received["b"] == [b"1", b"waits for the next session"]


def test_an_end_that_only_receives_says_that_it_is_there() -> None:
    ends = Ends()
    ends.send("a", b"1")
    ends.pass_time(KEEPALIVE_S - 1)
    assert not ends.b.outbox
    ends.clock.now += 1.5
    ends.b.poll()
    ((name, datagram),) = ends.b.take_outbox()
    assert (name, len(datagram)) == ("a", OVERHEAD)
    # It is answered by nothing, and once is enough.
    ends.deliver("a", datagram)
    ends.pass_time(60)
    assert not ends.received["a"]
    assert ends.a.counters["handshakes_sent"] == 1


def test_a_peer_that_answers_nothing_is_asked_for_a_new_session() -> None:
    ends = Ends()
    ends.send("a", b"1")
    ends.b.poll = lambda: None  # type: ignore[method-assign]
    ends.pass_time(UNANSWERED_S - 1)
    assert ends.a.counters["handshakes_sent"] == 1
    ends.pass_time(2)
    assert ends.a.counters["handshakes_sent"] == 2


def test_a_handshake_is_repeated_ever_more_slowly_and_given_up() -> None:
    ends = Ends()
    assert ends.a.seal("b", b"for nobody") is None
    times = []
    start = ends.clock.now
    while ends.a.deadline < float("inf"):
        if ends.a.take_outbox():
            times.append(ends.clock.now - start)
        ends.clock.now = ends.a.deadline
        ends.a.poll()
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert FIRST_RETRY_S <= pauses[0] < FIRST_RETRY_S * 4 / 3
    assert all(LAST_RETRY_S <= pause < LAST_RETRY_S * 4 / 3 for pause in pauses[4:])
    assert ATTEMPT_S - LAST_RETRY_S * 4 / 3 <= times[-1] < ATTEMPT_S
    assert ends.clock.now - start >= ATTEMPT_S
    assert ends.a.counters["unreachable"] == 1
    # The next packet tries again.
    assert ends.a.seal("b", b"maybe now") is None
    ends.settle()
    assert ends.received["b"] == [b"maybe now"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.4), st.floats(0, 0.2), st.floats(0, 0.3))
def test_on_a_bad_wire_packets_come_at_most_once_and_it_heals(
    seed: int, loss: float, repeat: float, delay: float
) -> None:
    """Datagrams are lost, repeated and delayed for minutes, in which sessions are renewed."""
    chance = random.Random(seed)
    ends = Ends(seed)
    late: list[tuple[float, str, bytes]] = []
    deliver = ends.deliver

    def wire(target: str, datagram: bytes) -> None:
        if chance.random() < loss:
            return
        for _ in range(1 + (chance.random() < repeat)):
            if chance.random() < delay:
                late.append((ends.clock.now + chance.random() * 8, target, datagram))
            else:
                deliver(target, datagram)

    ends.deliver = wire  # type: ignore[method-assign]
    sent: dict[str, set[bytes]] = {"a": set(), "b": set()}

    def step() -> None:
        for entry in [entry for entry in late if entry[0] <= ends.clock.now]:
            late.remove(entry)
            deliver(entry[1], entry[2])
        for source, target in (("a", "b"), ("b", "a")):
            packet = f"{target} {len(sent[target])}".encode()
            sent[target].add(packet)
            ends.send(source, packet)

    ends.pass_time(400, meanwhile=step, step=2)
    for target in ("a", "b"):
        assert len(set(ends.received[target])) == len(ends.received[target])
        assert set(ends.received[target]) <= sent[target]
        assert len(ends.received[target]) > 0.2 * len(sent[target])
    # The wire is good again: no later than the next try, all packets arrive at once.
    ends.deliver = deliver  # type: ignore[method-assign]
    ends.pass_time(20, meanwhile=step, step=1)
    before = {name: len(packets) for name, packets in ends.received.items()}
    late.clear()
    for _ in range(3):
        step()
    assert {name: len(packets) - before[name] for name, packets in ends.received.items()} == {
        "a": 3,
        "b": 3,
    }
    for end in (ends.a, ends.b):
        assert len(end._handshakes._sessions) <= 3
        assert len(end._handshakes._asked) <= 1
