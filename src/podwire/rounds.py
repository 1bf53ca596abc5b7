"""How often something happened lately: what tells a fight from a repair."""

from __future__ import annotations

import time

_WINDOW_S = 10.0


class Rounds:
    """Counts within the last 10 seconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: list[float] = []

    def too_many(self) -> bool:
        """Count once more: whether that is over the limit."""
        now = time.monotonic()
        self._times = [at for at in self._times if now - at < _WINDOW_S] + [now]
        return len(self._times) > self._limit
