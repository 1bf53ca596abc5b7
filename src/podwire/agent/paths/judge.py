"""Which paths are blocked, from what was sent and what was answered: a state machine without I/O.

Each path is probed a little more often than once an interval. One answer that is missing raises
doubt, and two more probes follow at once; if nobody answers these either, the path is blocked. All
that happens within one interval of the last good answer:

    open ──no answer──▶ doubtful ──3 lost──▶ blocked ──enough good answers in a row──▶ open
      ▲                     │
      └─────any answer──────┘

A path that was blocked has to prove itself: five good answers in a row, and twice as many each time
that it is blocked again soon after, so that one that comes and goes does not take its traffic along
each time. One that has never been answered gets more time: the peer may just be coming up.

Time is in seconds of any clock that does not jump; whoever holds a `Judge` calls `due` when
`next_at` has come and sends what it returns.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Key = TypeVar("Key", bound=Hashable)
Phase = Literal["open", "doubtful", "blocked"]

#: In intervals: from one probe to the next, until an answer is missed, and between those of a
#: burst. Together they are less than one.
_PERIOD, _PATIENCE, _BURST = 0.6, 0.15, 0.1
#: An answer may take so many times as long as those before it did.
_SLOWER = 2.5
LOST = 3
"""Probes in a row without an answer make a path blocked."""
GOOD, GOOD_MAX = 5, 80
"""Answers in a row that open a blocked path: at first, and of one that flaps."""
#: In intervals: blocked again within this time after it was opened is flapping.
_FLAPPING = 60.0
#: In intervals: a path that has never been answered is not blocked before.
_NEW = 3.0


@dataclass(slots=True)
class Path(Generic[Key]):
    """One path. `since` is when it was blocked, opened or answered for the first time; `lost` are
    probes in a row without an answer, since the one sent at `first_lost_at`; `good` are answers in
    a row while it is blocked, of which `needed` open it. `rtt_s` is smoothed, None before the first
    answer. `number` is of the probe sent last, at `sent_at`; `at` is when it is its turn again."""

    key: Key
    since: float
    at: float
    phase: Phase = "open"
    number: int = 0
    sent_at: float = 0.0
    is_answered: bool = True
    lost: int = 0
    good: int = 0
    needed: int = GOOD
    rtt_s: float | None = None
    first_lost_at: float = 0.0
    reopened_at: float | None = None

    @property
    def is_new(self) -> bool:
        """Whether it has never been answered nor judged."""
        return self.rtt_s is None and self.phase != "blocked"


class Judge(Generic[Key]):
    """All paths of a node."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._paths: dict[Key, Path[Key]] = {}
        #: When what has to be done for which path; entries that are out of date are skipped.
        self._heap: list[tuple[float, int, Key]] = []
        self._pushed = 0
        self._blocked: set[Key] = set()

    @property
    def blocked(self) -> frozenset[Key]:
        return frozenset(self._blocked)

    @property
    def next_at(self) -> float | None:
        """When `due` has to be called; None where there is no path."""
        self._skip_outdated()
        return self._heap[0][0] if self._heap else None

    def path(self, key: Key) -> Path[Key] | None:
        """What is known of a path; not to be changed."""
        return self._paths.get(key)

    def set_paths(self, keys: Iterable[Key], now: float, *, blocked: Iterable[Key] = ()) -> None:
        """These are all; new ones are probed, spread over the next interval.

        `blocked` are those that were when somebody looked last, before this was started.
        """
        wanted = set(keys)
        for key in self._paths.keys() - wanted:
            del self._paths[key]
            self._blocked.discard(key)
        new = sorted(wanted - self._paths.keys(), key=repr)
        was_blocked = set(blocked)
        for number, key in enumerate(new):
            at = now + _PERIOD * self._interval_s * number / len(new)
            path = self._paths[key] = Path(key, since=now, at=at)
            if key in was_blocked:
                path.phase, path.first_lost_at = "blocked", now
                self._blocked.add(key)
            self._schedule(path, at)

    def due(self, now: float) -> list[tuple[Key, int]]:
        """The paths to probe now, with the number that the answer has to carry.

        Whoever calls has passed on before all the answers that have come.
        """
        found: list[tuple[Key, int]] = []
        while True:
            self._skip_outdated()
            if not self._heap or self._heap[0][0] > now:
                return found
            path = self._paths[heapq.heappop(self._heap)[2]]
            if not path.is_answered:
                self._miss(path, now)
            path.number = (path.number + 1) & 0xFFFF
            path.sent_at, path.is_answered = now, False
            found.append((path.key, path.number))
            self._schedule(path, now + self._deadline_s(path))

    def answered(self, key: Key, number: int, now: float, rtt_s: float) -> None:
        """An answer has come. One to an earlier probe ends doubt, too."""
        path = self._paths.get(key)
        if path is None:
            return
        if path.is_new:
            path.since = now
        path.rtt_s = rtt_s if path.rtt_s is None else 0.75 * path.rtt_s + 0.25 * rtt_s
        is_current = number == path.number and not path.is_answered
        if path.phase == "blocked":
            if not is_current:
                return
            path.good += 1
            if path.good >= path.needed:
                self._open(path, now)
        else:
            path.phase = "open"
        path.lost = 0
        if is_current:
            path.is_answered = True
            self._schedule(path, path.sent_at + _PERIOD * self._interval_s)

    def _miss(self, path: Path[Key], now: float) -> None:
        if path.lost == 0:
            path.first_lost_at = path.sent_at
        path.lost += 1
        path.good = 0
        if path.phase == "blocked":
            return
        is_young = path.is_new and now - path.since < _NEW * self._interval_s
        path.phase = "doubtful"
        if path.lost >= LOST and not is_young:
            self._block(path, now)

    def _block(self, path: Path[Key], now: float) -> None:
        flapped = (
            path.reopened_at is not None and now - path.reopened_at < _FLAPPING * self._interval_s
        )
        path.needed = min(path.needed * 2, GOOD_MAX) if flapped else GOOD
        path.phase, path.since = "blocked", now
        self._blocked.add(path.key)

    def _open(self, path: Path[Key], now: float) -> None:
        path.phase, path.since, path.reopened_at = "open", now, now
        path.good = 0
        self._blocked.discard(path.key)

    def _deadline_s(self, path: Path[Key]) -> float:
        """Until an answer is missed. A blocked path is in no hurry, and neither is a new one."""
        if path.phase == "blocked" or path.is_new:
            return _PERIOD * self._interval_s
        share = _PATIENCE if path.phase == "open" else _BURST
        return max(share * self._interval_s, _SLOWER * (path.rtt_s or 0.0))

    def _schedule(self, path: Path[Key], at: float) -> None:
        path.at = at
        self._pushed += 1
        heapq.heappush(self._heap, (at, self._pushed, path.key))

    def _skip_outdated(self) -> None:
        while self._heap:
            at, _, key = self._heap[0]
            path = self._paths.get(key)
            if path is not None and path.at == at:
                return
            heapq.heappop(self._heap)
