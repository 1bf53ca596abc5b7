"""When a path is blocked and when it is open again: a clock, probes that arrive or not, no I/O."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.agent.paths.judge import GOOD, Judge

T = 1.0
RTT = 0.001


class Wire:
    """A judge, and the path that it judges: `works(at)` tells whether an answer comes."""

    def __init__(self, works: Callable[[float], bool], interval_s: float = T) -> None:
        self.judge: Judge[str] = Judge(interval_s)
        self.works = works
        self.now = 0.0
        self.sent: list[float] = []
        self.changes: list[tuple[float, bool]] = []
        self.rtt_s = RTT
        self.judge.set_paths(["a"], 0.0)

    def run(self, until: float) -> Wire:
        coming: list[tuple[float, int]] = []
        before = bool(self.judge.blocked)
        while (at := self.judge.next_at) is not None and at <= until:
            self.now = max(self.now, at)
            arrived = [one for one in coming if one[0] <= self.now]
            coming = [one for one in coming if one[0] > self.now]
            for when, number in arrived:
                self.judge.answered("a", number, when, self.rtt_s)
            for _, number in self.judge.due(self.now):
                self.sent.append(self.now)
                if self.works(self.now):
                    coming.append((self.now + self.rtt_s, number))
            if before != (before := bool(self.judge.blocked)):
                self.changes.append((self.now, before))
        self.now = until
        return self


@pytest.mark.parametrize("fails_at", [10.0, 10.17, 10.3, 10.45, 10.59])
@pytest.mark.parametrize("interval_s", [0.5, 1.0])
def test_a_path_that_fails_is_blocked_within_an_interval(
    fails_at: float, interval_s: float
) -> None:
    wire = Wire(lambda at: at < fails_at, interval_s).run(20)
    ((at, blocked),) = wire.changes
    assert blocked
    assert at - fails_at < interval_s


def test_one_lost_answer_is_not_a_blocked_path() -> None:
    lost = iter([10.0])
    missing = next(lost)

    def works(at: float) -> bool:
        nonlocal missing
        if at >= missing:
            missing += 5.0
            return False
        return True

    wire = Wire(works).run(60)
    assert wire.changes == []
    path = wire.judge.path("a")
    assert path is not None
    assert path.lost <= 1


def test_a_path_opens_after_some_good_answers_and_not_before() -> None:
    wire = Wire(lambda at: not 10 <= at < 20).run(40)
    (_, blocked), (opened, open_) = wire.changes
    assert (blocked, open_) == (True, False)
    assert 20 + (GOOD - 1) * 0.6 <= opened <= 20 + (GOOD + 2) * 0.6


def test_a_path_that_flaps_has_to_prove_itself_for_longer_each_time() -> None:
    # Works for 4 s, enough for five good answers; fails for 2 s.
    wire = Wire(lambda at: at % 6 < 4).run(300)
    assert len(wire.changes) <= 4
    assert wire.judge.blocked == {"a"}
    calm = Wire(lambda at: not 1000 <= at < 1010 and not 10 <= at < 20).run(1100)
    assert [blocked for _, blocked in calm.changes] == [True, False, True, False]
    assert calm.changes[3][0] - 1010 <= (GOOD + 2) * 0.6


def test_a_new_peer_gets_time_to_come_up() -> None:
    wire = Wire(lambda at: at > 2.2).run(30)
    assert wire.changes == []
    ((at, blocked),) = Wire(lambda at: False).run(30).changes
    assert blocked
    assert 3 <= at <= 4


def test_a_slow_path_is_not_a_blocked_one() -> None:
    wire = Wire(lambda at: True)
    wire.rtt_s = 0.4
    wire.run(60)
    assert wire.changes == []


def test_what_was_blocked_before_stays_so_until_it_answers() -> None:
    judge: Judge[str] = Judge(T)
    judge.set_paths(["a", "b"], 0.0, blocked=["a", "gone"])
    assert judge.blocked == {"a"}
    now = 0.0
    while judge.blocked:
        now = judge.next_at or now
        for key, number in judge.due(now):
            judge.answered(key, number, now + RTT, RTT)
    assert 2 < now < 4


def test_only_the_answer_to_the_probe_sent_last_speaks_for_a_blocked_path() -> None:
    judge: Judge[str] = Judge(T)
    judge.set_paths(["a"], 0.0, blocked=["a"])
    ((_, first),) = judge.due(0.0)
    for at in (0.1, 0.2):
        for _ in range(GOOD):  # Of which one is the answer, and the others are copies.
            judge.answered("a", first, at, RTT)
    assert judge.blocked == {"a"}
    now = judge.next_at or 0.0
    ((_, second),) = judge.due(now)
    for _ in range(GOOD):
        judge.answered("a", first, now + RTT, RTT)
    assert second != first
    path = judge.path("a")
    assert path is not None
    assert (path.phase, path.good) == ("blocked", 1)


def test_paths_that_go_are_forgotten_and_new_ones_are_spread() -> None:
    judge: Judge[int] = Judge(T)
    judge.set_paths(range(500), 0.0)
    sent = [len(judge.due(step / 100)) for step in range(60)]
    assert 490 <= sum(sent) <= 500
    assert max(sent) <= 10
    judge.set_paths([], 1.0)
    assert judge.next_at is None
    assert judge.due(2.0) == []
    judge.answered(1, 1, 2.0, RTT)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=50, max_size=200))
def test_it_never_probes_too_often_and_always_goes_on(outcomes: list[bool]) -> None:
    wire = Wire(lambda at: outcomes[int(at * 10) % len(outcomes)]).run(50)
    assert 50 / 0.6 - 2 <= len(wire.sent) <= 50 / 0.1 + 2
    path = wire.judge.path("a")
    assert path is not None
    assert (path.phase == "blocked") == (wire.judge.blocked == {"a"})
