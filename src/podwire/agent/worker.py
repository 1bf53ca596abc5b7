"""The one thread that changes the kernel, and what the agent asks of it.

The reconciler, its netlink socket and its nft context live in this thread and are touched by no
other; calls queue up and run one after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from podwire.errors import PodwireError
from podwire.kernel import netns
from podwire.kernel.netlink import Message
from podwire.kernel.reconcile import Reconciler

P = ParamSpec("P")
T = TypeVar("T")


#: An agent that is just stopping is waited for that long.
_STOPPING_S = 5.0


class KernelWorker:
    """Runs functions on its `Reconciler`, in the network namespace the process is in."""

    def __init__(self) -> None:
        """Raises PodwireError where another agent has this network namespace's kernel state."""
        self._lock = netns.claim("podwire-agent", _STOPPING_S)
        if self._lock is None:
            raise PodwireError(
                "another podwire agent is running in this network namespace",
                remedy="stop it first; a node has one",
            )
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kernel")
        self._reconciler = self._executor.submit(Reconciler).result()

    def close(self) -> None:
        self._executor.submit(self._reconciler.close).result()
        self._executor.shutdown()
        if self._lock is not None:
            self._lock.close()

    @property
    def reconciler(self) -> Reconciler:
        """For use inside of `call` only."""
        return self._reconciler

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def submit(self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Queue a call that can't fail and whose end nobody waits for."""
        self._executor.submit(function, *args, **kwargs)

    async def any_amiss(self, messages: list[Message]) -> bool:
        """Whether any of these notifications shows what is not wanted."""
        return await self.call(self._reconciler.any_amiss, messages)
