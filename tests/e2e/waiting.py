"""Waiting for a condition, in place of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: How long a condition may take on a machine that has much else to do; none is waited for so long.
DEADLINE_S = 60.0


def until(condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Wait until `condition()` is true and return what it gave; fails with what it gave last."""
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}: {found!r}"
        time.sleep(0.01)
    return found
