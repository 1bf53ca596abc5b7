"""An agent that says what a test wants, behind a real Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from podwire.trace.connection import Connection
from podwire.trace.wire import (
    VERSION,
    Request,
    Response,
    Welcome,
    pack,
    read_frame,
    unpack_request,
)

Answer = Callable[[Request], list[Response]]


def welcome(node: str = "node1", **fields: object) -> Welcome:
    defaults: dict[str, object] = {"version": VERSION, "clock": "boot", "time_ns": 1}
    return Welcome(node=node, **{**defaults, **fields})  # type: ignore[arg-type]


class StubAgent:
    """Greets with `greeting`, and answers each request with what `answer` returns for it.

    `requests` are those that it got; `hang_up` ends all connections.
    """

    def __init__(self, path: Path, greeting: bytes, answer: Answer) -> None:
        self.path = path
        self.requests: list[Request] = []
        self.open = 0
        self._greeting = greeting
        self._answer = answer
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.open += 1
        try:
            writer.write(self._greeting)
            while (body := await read_frame(reader)) is not None:
                self.requests.append(unpack_request(body))
                for response in self._answer(self.requests[-1]):
                    writer.write(pack(response))
        finally:
            self._writers.discard(writer)
            self.open -= 1
            writer.close()

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()

    async def dial(self, agent: str = "the agent", **options: float) -> Connection:
        reader, writer = await asyncio.open_unix_connection(self.path)
        return await Connection.open(reader, writer, agent=agent, **options)


@asynccontextmanager
async def stub_agent(
    path: Path, answer: Answer = lambda _: [], greeting: bytes | None = None
) -> AsyncIterator[StubAgent]:
    stub = StubAgent(path, pack(welcome()) if greeting is None else greeting, answer)
    server = await asyncio.start_unix_server(stub.serve, path)
    try:
        yield stub
    finally:
        stub.hang_up()
        server.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until it holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)
