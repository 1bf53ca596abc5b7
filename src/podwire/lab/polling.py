"""Waiting for what nothing announces, such as a socket that begins to answer: by looking again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_LOOK_AGAIN_S = 0.05


def poll(look: Callable[[], T], timeout_s: float) -> Iterator[T]:
    """What `look` finds in the way, again and again; ends when that is nothing (is false).

    Raises TimeoutError when something still is after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while found := look():
        yield found
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(_LOOK_AGAIN_S)
