"""What a session watches, and how that comes from the observer's thread to the operator.

What lives here: the join of `podwire.trace`'s observer, which knows threads, and the agent's event
loop. What does not: what is watched, and frames on the wire.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Protocol

from podwire.trace.observer import Observer, Seen
from podwire.trace.places import Places
from podwire.trace.wire import Response


class Sender(Protocol):
    """Where a session's messages go."""

    def send(self, message: Response) -> None: ...
    async def deliver(self, message: Response) -> None:
        """Send, and wait while the operator does not keep up. Raises ConnectionError."""


class Watched:
    """Places and their observer, opened together. `places` are there until it is closed."""

    def __init__(
        self, places: Places, deliver: Callable[[Seen], bool], fill: Callable[[Observer], None]
    ) -> None:
        """`fill` says what is to be watched. Takes over `places`, also where it fails."""
        self.places = places
        try:
            self.observer = Observer(places, deliver)
            try:
                fill(self.observer)
            except BaseException:
                self.observer.close()
                raise
        except BaseException:
            places.close()
            raise

    def close(self) -> None:
        self.observer.close()
        self.places.close()


class Deliverer:
    """Called in the observer's thread, sends in the event loop; waits until there is room.

    After `end` it says that nothing more is wanted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sender: Sender) -> None:
        self._loop = loop
        self._sender = sender
        self._lock = threading.Lock()
        self._ended = False
        self._under_way: futures.Future[None] | None = None

    def __call__(self, message: Seen) -> bool:
        with self._lock:
            if self._ended:
                return False
            sending = self._sender.deliver(message)
            self._under_way = asyncio.run_coroutine_threadsafe(sending, self._loop)
        try:
            self._under_way.result()
        except (futures.CancelledError, ConnectionError):
            return False
        return True

    def end(self) -> None:
        with self._lock:
            self._ended = True
            if self._under_way is not None:
                self._under_way.cancel()
