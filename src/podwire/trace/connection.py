"""The asker's side of a connection to an agent (see `podwire.trace.wire`).

What lives here: requests matched with their answers, and what is seen in between, in a queue.
What does not: how an agent is reached (a socket, a pod), or what is asked.

One task reads: an answer wakes the call that waits for it, an event goes into `events`. So when
`Stopped` has come, all that was seen is in the queue. When the agent goes away, every call that
waits fails with `AgentAwayError`, and the queue ends with None.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, overload

import msgspec

from podwire.errors import AgentAwayError, PodwireError
from podwire.trace.wire import (
    VERSION,
    Answers,
    Ask,
    Capture,
    Check,
    Checked,
    Done,
    Drops,
    Explain,
    Explained,
    Failed,
    Fire,
    Fired,
    Frames,
    GiveUp,
    Hold,
    NftSteps,
    Observe,
    Observing,
    Prepare,
    Prepared,
    Request,
    Response,
    Status,
    StatusTold,
    Stop,
    Stopped,
    Welcome,
    pack,
    read_frame,
    unpack_response,
)

Event = Frames | Drops | NftSteps | Checked

#: An agent that has accepted a connection greets at once; one that is stopped (SIGSTOP) never.
_WELCOME_S = 3.0

_ANSWERS: dict[type, type] = {
    Prepare: Prepared,
    Fire: Fired,
    GiveUp: Done,
    Observe: Observing,
    Capture: Observing,
    Stop: Stopped,
    Ask: Answers,
    Explain: Explained,
    Check: Done,
    Hold: Done,
    Status: StatusTold,
}


class Writer(Protocol):
    """What is needed of a stream to write to; `asyncio.StreamWriter` is one."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...
    async def wait_closed(self) -> None: ...


class Connection:
    """A connection that has been opened. `welcome` is what the agent said about itself.

    `events` has what the agent sees, as it comes, and None once there will be no more. `on_drops`
    is called with what is dropped, too, at once.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: Writer, welcome: Welcome, agent: str
    ) -> None:
        self.welcome = welcome
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()
        self.on_drops: Callable[[Drops], None] = lambda _: None
        self._reader = reader
        self._writer = writer
        self._agent = agent
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._gone: PodwireError | None = None
        self._task = asyncio.create_task(self._receive())

    @classmethod
    async def open(
        cls,
        reader: asyncio.StreamReader,
        writer: Writer,
        *,
        agent: str,
        welcome_s: float = _WELCOME_S,
    ) -> Connection:
        """Wait for the agent's greeting. `agent` is how errors call it (`the agent of node1`).

        The streams are closed with the connection, and where this fails. Raises AgentAwayError
        where there is no greeting, PodwireError for a refusal or another version's.
        """
        try:
            async with asyncio.timeout(welcome_s):
                body = await read_frame(reader)
        except TimeoutError:
            error = AgentAwayError(f"{agent} does not answer", remedy="is it stopped or stuck?")
        except (OSError, PodwireError) as cause:
            error = _went_away(agent, cause)
        else:
            if body is None:
                error = _went_away(agent)
            else:
                return await cls._greeted(reader, writer, agent, body)
        await _close(writer)
        raise error

    @classmethod
    async def _greeted(
        cls, reader: asyncio.StreamReader, writer: Writer, agent: str, body: bytes
    ) -> Connection:
        try:
            match unpack_response(body):
                case Welcome(version=version) as welcome if version == VERSION:
                    return cls(reader, writer, welcome, agent)
                case Welcome(version=version):
                    raise PodwireError(
                        f"{agent} speaks version {version}, this podwire {VERSION}",
                        remedy="use the podwire of the agent's release",
                    )
                case Failed(message=message, remedy=remedy):
                    raise PodwireError(f"{agent}: {message}", remedy=remedy or None)
                case _:
                    raise PodwireError(f"{agent} does not greet as an agent does")
        except PodwireError:
            await _close(writer)
            raise

    @overload
    async def call(self, request: Prepare) -> Prepared: ...
    @overload
    async def call(self, request: Fire) -> Fired: ...
    @overload
    async def call(self, request: Observe | Capture) -> Observing: ...
    @overload
    async def call(self, request: Stop) -> Stopped: ...
    @overload
    async def call(self, request: Ask) -> Answers: ...
    @overload
    async def call(self, request: Explain) -> Explained: ...
    @overload
    async def call(self, request: Status) -> StatusTold: ...
    @overload
    async def call(self, request: Check | GiveUp | Hold) -> Done: ...
    async def call(self, request: Request) -> Response:
        """Send a request and return its answer. Its `id` is set here, whatever it was.

        Raises PodwireError where the agent could not do it, AgentAwayError where it went away.
        """
        if self._gone is not None:
            raise self._gone
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(pack(msgspec.structs.replace(request, id=number)))
            # Where the agent is gone, the reading side finds out and says so.
            with suppress(OSError):
                await self._writer.drain()
            answer: Response = await future
        finally:
            del self._waiting[number]
        if isinstance(answer, Failed):
            raise PodwireError(answer.message, remedy=answer.remedy or None)
        if not isinstance(answer, _ANSWERS[type(request)]):
            raise PodwireError(
                f"{self._agent} answered {type(request).__name__} with something else"
            )
        return answer

    async def close(self) -> None:
        """End the connection, and with it all that the agent opened for it."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await _close(self._writer)

    async def _receive(self) -> None:
        gone: PodwireError = _went_away(self._agent)
        try:
            while (body := await read_frame(self._reader)) is not None:
                self._take(unpack_response(body))
        except (OSError, PodwireError) as error:
            gone = _went_away(self._agent, error)
        finally:
            self._gone = gone
            self.events.put_nowait(None)
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(gone)

    def _take(self, message: Response) -> None:
        match message:
            case Frames() | Drops() | NftSteps() | Checked():
                self.events.put_nowait(message)
                if isinstance(message, Drops):
                    self.on_drops(message)
            case Welcome():
                pass
            case _:
                future = self._waiting.get(message.to)
                # An answer to a call that has been cancelled is of no interest.
                if future is not None and not future.done():
                    future.set_result(message)


def _went_away(agent: str, cause: Exception | None = None) -> AgentAwayError:
    because = ""
    if isinstance(cause, PodwireError):
        because = f": {cause.message}"
    elif isinstance(cause, OSError) and cause.strerror:
        because = f": {cause.strerror}"
    return AgentAwayError(f"{agent} went away{because}", remedy="look at its log")


async def _close(writer: Writer) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
