"""What the kernel tells of its changes, judged.

What lives here: the way from a notification to who has to do something. What does not: the sockets
(`watch`), and what is wanted (`podwire.kernel.judge`, in the worker's thread).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from podwire.agent.watch import KernelWatch
from podwire.agent.worker import KernelWorker
from podwire.kernel.netlink import Message
from podwire.log import fields

log = logging.getLogger(__name__)


class Notices:
    """From `with` on, `on_amiss()` is called when somebody changed what is wanted otherwise,
    `look_at_links(found)` with all that rtnetlink tells, and `on_loss()` when some of it was
    lost."""

    def __init__(
        self,
        worker: KernelWorker,
        *,
        on_amiss: Callable[[], None],
        look_at_links: Callable[[list[Message]], Awaitable[None]],
        on_loss: Callable[[], None],
    ) -> None:
        self._worker = worker
        self._on_amiss = on_amiss
        self._look_at_links = look_at_links
        self._on_loss = on_loss
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Notices:
        self._watch = KernelWatch(
            asyncio.get_running_loop(),
            on_rtnetlink=lambda found: self._spawn(self._judge_links(found)),
            on_nft=lambda found: self._spawn(self._judge(found)),
            on_loss=self._lost,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._watch.close()
        for task in self._tasks:
            task.cancel()

    async def _judge(self, found: list[Message]) -> None:
        if await self._worker.any_amiss(found):
            self._on_amiss()

    async def _judge_links(self, found: list[Message]) -> None:
        await self._judge(found)
        await self._look_at_links(found)

    def _lost(self) -> None:
        log.warning("kernel notifications were lost; reading everything anew")
        self._on_loss()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._judged)

    def _judged(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("notification not judged", extra=fields(error=error), exc_info=error)
            self._lost()
