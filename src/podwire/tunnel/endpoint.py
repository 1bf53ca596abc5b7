"""The tunnel's Unix socket: one controller at a time, the newest.

What lives here: listening, the lock, and the bytes of the connection. What does not: what is asked.

The tunnel goes on forwarding when its controller goes away, and an agent that starts looks for a
tunnel that runs, at this socket. Next to it is a lock file (flock(2)), held for as long as the
process lives: so there is one tunnel at a path, and a socket that nobody listens at is replaced.
Both go with the process; what one left that was killed goes with `clear`. Only its owner may
connect (mode 0600).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

from podwire.errors import InputError, PodwireError
from podwire.files import listen_unix
from podwire.log import fields
from podwire.model.tunnel import Answer, Failed, Request
from podwire.tunnel.control import Frames, pack

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


class Endpoint:
    """Listens at `path` and has `handle` answer each request. Driven by the caller's epoll."""

    def __init__(
        self, path: Path, epoll: select.epoll, handle: Callable[[Request], Answer]
    ) -> None:
        """Raises PodwireError where another tunnel has this path."""
        self._path, self._epoll, self._handle = path, epoll, handle
        self._lock = _locked(_lock_file(path))
        self._listener = _listen(path)
        self._connection: socket.socket | None = None
        self._frames: Frames[Request] = Frames(Request)
        self._unsent = bytearray()
        epoll.register(self._listener, select.EPOLLIN)

    def close(self) -> None:
        """Stop listening. What waits to be sent is sent first."""
        if self._connection is not None and self._unsent:
            self._connection.setblocking(True)
            with contextlib.suppress(OSError):
                self._connection.settimeout(1)
                self._connection.sendall(self._unsent)
        self._hang_up()
        self._listener.close()
        self._path.unlink(missing_ok=True)
        # While it is held: who opened it before has to look whether it is still the file.
        _lock_file(self._path).unlink(missing_ok=True)
        os.close(self._lock)

    @property
    def is_controlled(self) -> bool:
        """Whether anybody is connected."""
        return self._connection is not None

    def ready(self, fd: int) -> bool:
        """Do what is to do at a descriptor that epoll has reported; whether it was one of ours."""
        if fd == self._listener.fileno():
            self._accept()
        elif self._connection is not None and fd == self._connection.fileno():
            self._serve(self._connection)
        else:
            return False
        return True

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        self._hang_up()
        connection.setblocking(False)
        self._connection = connection
        self._frames = Frames(Request)
        self._epoll.register(connection, select.EPOLLIN)

    def _serve(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_CHUNK)
            if not data:
                self._hang_up()
                return
            for request in self._frames.feed(data):
                self._unsent += pack(self._handle(request))
        except BlockingIOError:
            pass
        except InputError as error:
            log.warning("request refused", extra=fields(error=error))
            with contextlib.suppress(OSError):
                connection.send(pack(Failed(error.message, error.remedy)))
            self._hang_up()
            return
        except OSError:
            self._hang_up()
            return
        self._send(connection)

    def _send(self, connection: socket.socket) -> None:
        try:
            while self._unsent:
                del self._unsent[: connection.send(self._unsent)]
        except BlockingIOError:
            self._epoll.modify(connection, select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            self._hang_up()
        else:
            self._epoll.modify(connection, select.EPOLLIN)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._epoll.unregister(self._connection)
            self._connection.close()
            self._connection = None
            self._unsent.clear()


def clear(path: Path) -> bool:
    """Remove what a tunnel that was killed left at a path; False where one runs, or is about to
    listen. Raises PodwireError."""
    lock = _lock_file(path)
    if not (path.exists() or lock.exists()):
        return True
    try:
        fd = _locked(lock)
    except TunnelRunsError:
        return False
    path.unlink(missing_ok=True)
    lock.unlink(missing_ok=True)
    os.close(fd)
    return True


class TunnelRunsError(PodwireError):
    """There is a tunnel at this path already."""


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _locked(path: Path) -> int:
    """The lock file, open and locked. Raises TunnelRunsError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise TunnelRunsError(
                f"{path}: another tunnel runs here", remedy="connect to it at its socket, or end it"
            ) from None
        if _is_at(path, fd):
            return fd
        os.close(fd)  # Its last holder has removed it meanwhile.


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _listen(path: Path) -> socket.socket:
    try:
        return listen_unix(path, 4)
    except OSError as error:
        raise PodwireError(f"tunnel socket {path}: {error.strerror or error}") from error
