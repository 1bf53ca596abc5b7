"""The agent's face to operators: a Unix socket on which `podwire.trace.wire` is spoken.

What lives here: who may ask, connections, and their end. What is done for a request is in
`handlers`.

A connection is a session. Its requests are tasks of their own, so that the end of the connection
is noticed while one is worked on; then these are cancelled, and everything that was opened for
the session is closed. Whoever is neither root nor the agent's own user is sent away (SO_PEERCRED,
unix(7)), whatever the socket's mode has become; whoever sends something that is not a frame is cut
off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from podwire.decoding import from_msgpack
from podwire.errors import PodwireError
from podwire.log import fields
from podwire.trace.wire import Failed, Request, Response, pack, read_frame, unpack_request

if TYPE_CHECKING:
    from podwire.agent.daemon import Agent
    from podwire.agent.handlers import Handlers

log = logging.getLogger(__name__)

_UCRED = struct.Struct("3i")


@contextlib.asynccontextmanager
async def serve_operators(path: Path, agent: Agent) -> AsyncIterator[None]:
    """Listen at `path` until the block ends; then every session ends."""
    sessions: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        sessions.add(task)
        try:
            await _serve(reader, writer, agent)
        except asyncio.CancelledError:
            # The agent is stopping. To raise it is of no use: nobody awaits this task.
            pass
        finally:
            sessions.discard(task)
            writer.close()

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(accept, path)
    path.chmod(0o600)
    try:
        yield
    finally:
        server.close()
        for task in sessions:
            task.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
        path.unlink(missing_ok=True)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, agent: Agent) -> None:
    """One session, from its greeting to its end."""
    uid = _peer_uid(writer)
    if uid not in (0, os.geteuid()):
        log.warning("operator refused", extra=fields(uid=uid))
        writer.write(pack(Failed(to=0, message=f"user {uid} may not ask", remedy="use sudo")))
        return
    session = _Session(writer)
    try:
        # In a thread the first time: it imports a lot, and pods are wired meanwhile.
        handlers = (await asyncio.to_thread(_handlers))(agent, session)
        async with contextlib.aclosing(handlers), asyncio.TaskGroup() as tasks:
            session.send(handlers.welcome())
            while (body := await read_frame(reader)) is not None:
                try:
                    request = unpack_request(body)
                except PodwireError as error:
                    session.send(Failed(to=_id_of(body), message=error.message))
                else:
                    tasks.create_task(_answer(handlers, request, session))
            raise _EndedError
    except* _EndedError:
        pass
    except* (PodwireError, ConnectionError) as group:
        log.warning("operator cut off", extra=fields(error=group.exceptions[0]))


def _handlers() -> type[Handlers]:
    """An agent that nobody asks anything needs none of what they need: a third of its modules."""
    from podwire.agent.handlers import Handlers

    return Handlers


def _id_of(body: bytes) -> int:
    """The id of a request that isn't understood otherwise: a later version's.

    Raises PodwireError where there is none.
    """
    try:
        return from_msgpack(body, _Numbered).id
    except msgspec.DecodeError as error:
        raise PodwireError(f"not a request: {error}") from None


class _Numbered(msgspec.Struct):
    id: int


class _EndedError(Exception):
    """The operator has hung up: what is being done is for nobody any more."""


async def _answer(handlers: Handlers, request: Request, session: _Session) -> None:
    answer: Response
    try:
        answer = await handlers.handle(request)
    except PodwireError as error:
        answer = Failed(to=request.id, message=error.message, remedy=error.remedy or "")
    except Exception as error:
        log.exception("request failed", extra=fields(request=type(request).__name__))
        answer = Failed(
            to=request.id,
            message=f"{type(error).__name__}: {error}",
            remedy="this is a bug; the agent's log has more",
        )
    session.send(answer)


class _Session:
    """Where messages for one operator go."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def send(self, message: Response) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(message))

    async def deliver(self, message: Response) -> None:
        self.send(message)
        await self._writer.drain()


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    connection: socket.socket = writer.get_extra_info("socket")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return int(uid)
