"""Tells watchers what changed.

What lives here: the recent changes in memory, and who waits for which kind. Not HTTP (`watching`),
not durability (`store`).

How it works. A watcher is a cursor: the revision up to which it has seen everything. It asks for
the changes after its cursor, handles them and asks again, sleeping when there are none. So a slow
watcher costs no memory, it reads from the database when it has fallen behind the ring, and gets
`Compacted` when it has fallen behind that. There is no moment between list and watch at which a
change could slip through, because there is nothing to subscribe to.

Each change decodes and encodes its parts once, for all watchers (`Event`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection
from functools import cached_property
from itertools import islice
from typing import Any

import msgspec

from podwire.lab.api.store import Change, Key, Store

_RING = 1_024
_PAGE = 500


class Event:
    """A change, with what watchers derive from it kept for the next watcher."""

    def __init__(self, change: Change) -> None:
        self.change = change
        self.revision = change.revision
        self.type = change.type
        self.key: Key = change.key
        self._encoded: dict[str, bytes] = {}

    @cached_property
    def object(self) -> Any:
        """The object after the change (its last state if deleted). Shared: never modify it."""
        return msgspec.json.decode(self.change.body)

    @cached_property
    def previous(self) -> Any:
        """The object before the change, or None. Shared: never modify it."""
        body = self.change.previous
        return None if body is None else msgspec.json.decode(body)

    def encoded(self, form: str, encode: Callable[[], bytes]) -> bytes:
        """The wire form called `form`, made by `encode` the first time it is asked for."""
        line = self._encoded.get(form)
        if line is None:
            line = self._encoded[form] = encode()
        return line


class Hub:
    """Connects a store's commits to watchers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ring: deque[Event] = deque(maxlen=_RING)
        self._waiting: defaultdict[str, set[asyncio.Future[int]]] = defaultdict(set)
        self._closed = False
        store.on_commit = self._publish

    @property
    def revision(self) -> int:
        """The newest revision."""
        return self._store.revision

    def knows(self, cursor: int) -> bool:
        """Whether all changes after `cursor` can still be told."""
        return self._store.compacted <= cursor <= self._store.revision

    def waiting(self, kind: str) -> int:
        """How many watchers sleep until something happens to that kind."""
        return len(self._waiting.get(kind, ()))

    @property
    def closed(self) -> bool:
        """Whether the server is going down, so that watches must end."""
        return self._closed

    def close(self) -> None:
        """Wake all watchers and have them end."""
        self._closed = True
        for kind in list(self._waiting):
            self._wake(kind, self._store.revision)

    def after(self, kinds: Collection[str], cursor: int) -> tuple[list[Event], int]:
        """Changes of `kinds` after `cursor`, and the new cursor. At most a page; none: nothing new.

        Raises `store.Compacted` when changes after `cursor` have been forgotten.
        """
        if cursor == self._store.revision:
            return [], cursor
        # Revisions are consecutive, so the position in the ring follows from the number.
        if self._ring and self._ring[0].revision - 1 <= cursor <= self._store.revision:
            start = cursor - self._ring[0].revision + 1
            recent = islice(self._ring, start, None)
            return [event for event in recent if event.key.kind in kinds], self._store.revision
        changes = self._store.changes_after(cursor, _PAGE)
        reached = changes[-1].revision if len(changes) == _PAGE else self._store.revision
        return [Event(change) for change in changes if change.key.kind in kinds], reached

    async def wait(self, kinds: Collection[str], timeout_s: float | None = None) -> int:
        """Sleep until a change of `kinds` commits or `timeout_s` passes.

        Call with a cursor at the newest revision; returns the new cursor: the revision up to which
        nothing of `kinds` has happened.
        """
        if self._closed:
            return self._store.revision
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        for kind in kinds:
            self._waiting[kind].add(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout_s)
            return waiter.result() if waiter.done() else self._store.revision
        finally:
            for kind in kinds:
                self._waiting[kind].discard(waiter)

    async def follow(self, kinds: Collection[str], cursor: int) -> AsyncIterator[list[Event]]:
        """Batches of changes of `kinds` after `cursor`, for ever; ends when the hub closes."""
        while not self._closed:
            events, cursor = self.after(kinds, cursor)
            if events:
                yield events
            elif cursor == self._store.revision:
                cursor = await self.wait(kinds)

    def _publish(self, changes: list[Change]) -> None:
        self._ring.extend(map(Event, changes))
        for kind in {change.key.kind for change in changes}:
            self._wake(kind, changes[0].revision - 1)

    def _wake(self, kind: str, cursor: int) -> None:
        for waiter in self._waiting.pop(kind, ()):
            if not waiter.done():
                waiter.set_result(cursor)
