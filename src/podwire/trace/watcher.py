"""One agent's part in a trace: it is asked, it watches, and it may be away.

What lives here: what becomes of an agent that can't be reached or goes away meanwhile, and what
one has seen. What does not: what is asked of which agent, and when (`session`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from podwire.errors import AgentAwayError, PodwireError
from podwire.trace.connection import Connection
from podwire.trace.records import Drop, Frame, NftStep
from podwire.trace.user_tunnel import TunnelCount
from podwire.trace.wire import Drops, Frames, NftSteps, Observing, Welcome

T = TypeVar("T")
Dial = Callable[[str], Awaitable[Connection]]

#: An agent that has not answered for so long, beyond what it was asked to wait for, is away.
_PATIENCE_S = 5.0


class Watcher:
    """The agent of a node. Where it is `needed`, its failures are raised; else kept in `away`.

    `pods` are those of its pods that matter. `away` is empty as long as it answers; what it saw
    until then remains.
    """

    def __init__(self, node: str, pods: tuple[str, ...], *, needed: bool = False) -> None:
        self.node = node
        self.pods = pods
        self.away = ""
        self.welcome: Welcome | None = None
        self.observing: Observing | None = None
        self.frames: list[Frame] = []
        self.drops: list[Drop] = []
        self.steps: list[NftStep] = []
        self.lost = 0
        self.tunnel: TunnelCount | None = None
        self.steps_lost = False
        self._needed = needed
        self._connection: Connection | None = None

    async def dial(self, dial: Dial) -> None:
        """Connect. How long that may take, `dial` knows best."""
        try:
            self._connection = await dial(self.node)
        except PodwireError as error:
            self._note(error)
        else:
            self.welcome = self._connection.welcome

    async def ask(
        self, work: Callable[[Connection], Awaitable[T]], *, beyond_s: float = 0.0
    ) -> T | None:
        """Have `work` done, which may take `beyond_s` by itself; None where the agent is away."""
        if self._connection is None or self.away:
            return None
        try:
            async with asyncio.timeout(_PATIENCE_S + beyond_s):
                return await work(self._connection)
        except TimeoutError:
            self._note(AgentAwayError(f"the agent of {self.node} does not answer"))
        except PodwireError as error:
            self._note(error)
        return None

    def on_drops(self, call: Callable[[Drops], None]) -> None:
        """Have `call` called with what the agent sees dropped, at once."""
        if self._connection is not None:
            self._connection.on_drops = call

    def collect(self) -> None:
        """Take over what has come until now."""
        if self._connection is None:
            return
        events = self._connection.events
        while not events.empty():
            match events.get_nowait():
                case Frames(frames=frames, lost=lost):
                    self.frames += frames
                    self.lost += lost
                case Drops(drops=drops):
                    self.drops += drops
                case NftSteps(steps=steps, lost=lost):
                    self.steps += steps
                    self.steps_lost |= lost > 0

    def _note(self, error: PodwireError) -> None:
        if self._needed:
            raise error
        self.away = error.message


async def together(*work: Awaitable[None]) -> None:
    """Do all of it at the same time; where one fails, the rest is given up and its error raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
