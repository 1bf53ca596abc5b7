"""What a node that was removed from the cluster has left in documents is given back to all.

What lives here: when that is done, by whom, and safely. What does not: what is in the documents
(`strip` says what one is without a node).

How it works. Whoever is nearest to the removed node (by a hash of both names) begins after a grace
period, in which a node that was deleted by mistake may come back; if that one fails, the next one
follows a little later. A document is read, then the store of the nodes is asked whether the node
has really gone, and then that very version of the document is changed: a node that came back by
then has written to it, or will find that its own next write is refused.

What has to be looked at is learned from the nodes that go, and from every document that is read: so
whatever a node has left that went while nobody looked is found by the next agent that starts, or
the next node that needs a block.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable

from podwire.errors import PodwireError
from podwire.log import fields
from podwire.model.documents import Document, DocumentConflictError, DocumentKind, Documents

log = logging.getLogger(__name__)

#: Seconds that a node has been gone for before anything of it is given away.
GRACE_S = 30.0
#: Seconds that each next node waits longer, and how many nodes try at all.
_STEP_S, _RANKS = 5.0, 8
#: Seconds before trying again what the store could not do.
_RETRY_S = 5.0


class Reclaimer:
    """One node's part in it. `nodes_are` says when there may be something to do."""

    def __init__(
        self,
        documents: Documents,
        kind: DocumentKind,
        *,
        node: str,
        strip: Callable[[Document, str], bytes | None],
        is_gone: Callable[[str], Awaitable[bool]],
        grace_s: float = GRACE_S,
    ) -> None:
        """`strip` gives the document's value without a node, None where nothing is left of it.

        `is_gone` asks the store itself whether a node of that name exists no longer; it raises
        PodwireError where that can't be found out.
        """
        self._documents = documents
        self._kind = kind
        self._node = node
        self._strip = strip
        self._is_gone = is_gone
        self._grace_s = grace_s
        self._names: frozenset[str] = frozenset()
        self._mentioned: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def mention(self, names: Iterable[str]) -> None:
        """Documents mention these nodes, which may be gone by now."""
        self._mentioned.update(names)
        if self._names:
            self._plan()

    def nodes_are(self, names: Collection[str]) -> None:
        """These are all nodes there are."""
        self._mentioned |= self._names
        self._names = frozenset(names)
        for name in self._names & self._tasks.keys():
            self._tasks.pop(name).cancel()
        self._plan()

    def _plan(self) -> None:
        for name in self._mentioned - self._names - self._tasks.keys() - {self._node}:
            rank = self._rank(name)
            if rank < _RANKS:
                task = asyncio.create_task(self._reclaim(name, self._grace_s + rank * _STEP_S))
                self._tasks[name] = task
        self._mentioned -= self._tasks.keys()

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        self._names = frozenset()

    def _rank(self, gone: str) -> int:
        """How many nodes are nearer to that one than this node is."""
        mine = _distance(gone, self._node)
        return sum(_distance(gone, name) < mine for name in self._names)

    async def _reclaim(self, gone: str, delay_s: float) -> None:
        while True:
            await asyncio.sleep(delay_s)
            try:
                freed = await self._sweep(gone)
            except PodwireError as error:
                log.warning("not reclaimed", extra=fields(node=gone, reason=error))
                delay_s = _RETRY_S
                continue
            if freed:
                log.info("reclaimed", extra=fields(node=gone, documents=freed))
            self._tasks.pop(gone, None)
            return

    async def _sweep(self, gone: str) -> int:
        """Strip all documents of a node; how many had something of it."""
        found = await self._documents.list(self._kind)
        waiting = [one for one in found.values() if self._strip(one, gone) != one.value]
        if not waiting or not await self._is_gone(gone):
            return 0
        for document in waiting:
            await self._strip_one(document, gone)
        return len(waiting)

    async def _strip_one(self, document: Document, gone: str) -> None:
        current: Document | None = document
        while current is not None:
            value = self._strip(current, gone)
            if value == current.value:
                return
            try:
                if value is None:
                    await self._documents.delete(current)
                else:
                    await self._documents.replace(current, value)
            except DocumentConflictError:
                current = await self._documents.get(self._kind, document.name)
                if not await self._is_gone(gone):
                    return
            else:
                return


def _distance(gone: str, name: str) -> bytes:
    return hashlib.sha256(f"{gone} {name}".encode()).digest()
