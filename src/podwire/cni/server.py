"""The agent's CNI socket: one request a connection, from the executable to the service.

What lives here: the Unix socket, the frames and their limits. What does not: what is in them.

The frame, in the byte order of the machine, `podwire.cni.shim` has the structs:

    request   "PWC1" · u32 bytes of environment · u32 bytes of stdin · i32 errno of open(CNI_NETNS)
              environment: the CNI_* variables, `NAME=value` each followed by a zero byte
              stdin as it was read
    reply     u32 exit status · u32 bytes of stdout
              stdout

With the first byte comes CNI_NETNS as an open file descriptor (SCM_RIGHTS), where it could be
opened: the agent may be in another mount and PID namespace, where the path means nothing.

Only the socket's owner (root) can connect, mode 0600. A client that has not sent its request in
time, or claims too large a one, is cut off; the executable then reports error 11. asyncio's streams
know nothing of file descriptors that come along, so reading is done by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from pathlib import Path

import msgspec

from podwire.cni.service import CniService
from podwire.cni.shim import ENVIRONMENT_MAX, MAGIC, REPLY_HEADER, REQUEST_HEADER, STDIN_MAX
from podwire.errors import PodwireError
from podwire.files import listen_unix
from podwire.log import fields

log = logging.getLogger(__name__)

#: Seconds that a client has for sending its request, and then for taking the reply.
PATIENCE_S = 5.0
#: Seconds before trying again to accept after a failure.
_RESPITE_S = 0.1
_BACKLOG = 512
_CHUNK = 256 << 10


class Frame(msgspec.Struct, frozen=True):
    """A request as it was received. `netns_fd` belongs to whoever has the frame."""

    env: dict[str, str]
    stdin: bytes
    netns_errno: int
    netns_fd: int | None


class BadFrameError(PodwireError):
    """What a client sent is not a request."""


class CniServer:
    """Listens on `path` and has `service` answer."""

    def __init__(self, path: Path, service: CniService, *, patience_s: float = PATIENCE_S) -> None:
        self._path = path
        self._service = service
        self._patience_s = patience_s
        self._listener: socket.socket | None = None
        self._requests: set[asyncio.Task[None]] = set()
        self._unheard: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. A socket that a dead agent left at `path` is replaced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._listener = listen_unix(self._path, _BACKLOG)
        except OSError as error:
            raise PodwireError(f"CNI socket {self._path}: {error.strerror or error}") from error
        self._listen()

    async def stop(self) -> None:
        """Stop listening and let the requests finish that have been received."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        for task in self._unheard:
            task.cancel()
        if self._requests:
            await asyncio.wait(self._requests)

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101  the reader is removed before
        loop = asyncio.get_running_loop()
        for _ in range(_BACKLOG):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors, most likely: the clients wait in the backlog meanwhile.
                log.error("cannot accept", extra=fields(error=error))
                loop.remove_reader(self._listener)
                loop.call_later(_RESPITE_S, self._listen)
                return
            task = loop.create_task(self._serve(connection))
            for tasks in (self._requests, self._unheard):
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        frame = None
        try:
            async with asyncio.timeout(self._patience_s):
                frame = await _receive(connection)
            self._unheard.discard(asyncio.current_task())
            reply = await self._service.handle(
                frame.env, frame.stdin, frame.netns_fd, frame.netns_errno
            )
            answer = REPLY_HEADER.pack(reply.status, len(reply.stdout)) + reply.stdout
            async with asyncio.timeout(self._patience_s):
                await asyncio.get_running_loop().sock_sendall(connection, answer)
        except TimeoutError:
            log.warning("client cut off", extra=fields(reason="too slow"))
        except (BadFrameError, OSError) as error:
            log.warning("client cut off", extra=fields(reason=error))
        finally:
            connection.close()
            if frame is not None and frame.netns_fd is not None:
                os.close(frame.netns_fd)


async def _receive(connection: socket.socket) -> Frame:
    """Read one request. Raises BadFrameError; no descriptor is left open then."""
    data, fds = bytearray(), []
    try:
        while True:
            part, received, flags, _ = await _recv_fds(connection)
            fds += received
            data += part
            if flags & socket.MSG_CTRUNC or len(fds) > 1:
                raise BadFrameError("more than one file descriptor")
            if not part:
                raise BadFrameError(f"ended after {len(data)} bytes")
            frame = _frame(data, fds)
            if frame is not None:
                fds = []
                return frame
    finally:
        for fd in fds:
            os.close(fd)


def _frame(data: bytearray, fds: list[int]) -> Frame | None:
    """The request when it is all there, None while more is to come."""
    if len(data) < REQUEST_HEADER.size:
        return None
    magic, env_size, stdin_size, netns_errno = REQUEST_HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BadFrameError("not a request of the CNI executable")
    if env_size > ENVIRONMENT_MAX or stdin_size > STDIN_MAX:
        raise BadFrameError(f"too large: {env_size} bytes of environment, {stdin_size} of stdin")
    middle = REQUEST_HEADER.size + env_size
    if len(data) < middle + stdin_size:
        return None
    if len(data) > middle + stdin_size:
        raise BadFrameError("more bytes than announced")
    env = _environment(bytes(data[REQUEST_HEADER.size : middle]))
    return Frame(env, bytes(data[middle:]), netns_errno, fds[0] if fds else None)


def _environment(data: bytes) -> dict[str, str]:
    pairs = (pair.partition(b"=") for pair in data.split(b"\0") if pair)
    # What is not UTF-8 can be no identifier, name or path that anybody uses; it is made visible.
    return {
        name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs
    }


async def _recv_fds(connection: socket.socket) -> tuple[bytes, list[int], int, object]:
    """`socket.recv_fds` that waits without blocking the event loop."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return socket.recv_fds(connection, _CHUNK, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            readable = loop.create_future()
            loop.add_reader(connection, _set, readable)
            try:
                await readable
            finally:
                with contextlib.suppress(ValueError):
                    loop.remove_reader(connection)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
