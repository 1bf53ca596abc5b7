"""So many a second and no more: a token bucket."""

from __future__ import annotations


class Budget:
    """`rate` a second, of which `burst` may come at once. Time is monotonic seconds."""

    __slots__ = ("_burst", "_rate", "_since", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._since = now

    def take(self, now: float) -> bool:
        """Whether there is one more at this time, and then count it."""
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
