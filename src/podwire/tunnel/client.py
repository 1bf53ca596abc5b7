"""The agent's side of the tunnel: the connection to its process, and how one is run.

One connection, one request at a time. What the agent makes of it (when to start it, what to
configure) is the agent's business; `wait_closed` tells when the tunnel is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections import deque
from pathlib import Path
from typing import TypeVar

from podwire.errors import PodwireError
from podwire.model.tunnel import (
    Answer,
    Configure,
    Done,
    Failed,
    GetStats,
    Ready,
    RemovePeer,
    Request,
    SetPeer,
    Stats,
    Stop,
    TunnelConfig,
    TunnelPeer,
)
from podwire.tunnel.control import Frames, pack

T = TypeVar("T", Ready, Done, Stats)

_CHUNK = 1 << 20
#: Process, user and group of the other end (unix(7), SO_PEERCRED).
_UCRED = struct.Struct("@iII")


class TunnelAwayError(PodwireError):
    """The tunnel's process can't be reached, or went away while it was asked."""


class TunnelClient:
    """A connection to the tunnel that listens at a Unix socket.

    All methods raise `TunnelAwayError` where it is gone, and PodwireError for what it refuses.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        peer = writer.get_extra_info("socket")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self._pid: int = _UCRED.unpack(credentials)[0]
        self._frames: Frames[Answer] = Frames(Answer)
        self._turn = asyncio.Lock()
        #: For the answers that are still to come, in their order; also of those who wait no longer.
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    @classmethod
    async def connect(cls, path: Path) -> TunnelClient:
        """Raises TunnelAwayError where nobody listens."""
        try:
            return cls(*await asyncio.open_unix_connection(str(path)))
        except OSError as error:
            raise TunnelAwayError(
                f"tunnel socket {path}: {error.strerror or error}", remedy="start the tunnel"
            ) from error

    async def configure(self, config: TunnelConfig, peers: tuple[TunnelPeer, ...] = ()) -> Ready:
        """Make it this end, with all its peers."""
        return _expect(Ready, await self.ask(Configure(config, peers)))

    async def set_peer(self, peer: TunnelPeer) -> None:
        """A peer is new or changed."""
        _expect(Done, await self.ask(SetPeer(peer)))

    async def remove_peer(self, name: str) -> None:
        """A peer is gone."""
        _expect(Done, await self.ask(RemovePeer(name)))

    async def stats(self) -> Stats:
        """What passed and what was dropped."""
        return _expect(Stats, await self.ask(GetStats()))

    async def is_alive(self) -> bool:
        """Whether it answers a request that costs it nothing: to forget a peer without a name."""
        try:
            await self.ask(RemovePeer(""))
        except TunnelAwayError:
            return False
        return True

    async def stop(self) -> None:
        """Make the process end."""
        _expect(Done, await self.ask(Stop()))

    async def ask(self, request: Request) -> Answer:
        """The answer to a request, `Failed` among them."""
        async with self._turn:
            if self._listening.done():
                raise TunnelAwayError("the tunnel is gone")
            waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            try:
                self._writer.write(pack(request))
                await self._writer.drain()
                return await waiting
            except OSError as error:
                raise TunnelAwayError(f"the tunnel is gone: {error}") from error
            finally:
                waiting.cancel()

    @property
    def pid(self) -> int:
        """Of the process that listens there; 0 where it can't be seen from here."""
        return self._pid

    @property
    def is_closed(self) -> bool:
        """Whether the tunnel has hung up."""
        return self._listening.done()

    async def wait_closed(self) -> None:
        """Return when the tunnel has hung up: it ended, or somebody else controls it now."""
        await asyncio.wait([self._listening])

    async def close(self) -> None:
        """Hang up. The tunnel goes on."""
        self._listening.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _listen(self) -> None:
        try:
            while data := await self._reader.read(_CHUNK):
                for answer in self._frames.feed(data):
                    waiting = self._waiting.popleft()
                    if not waiting.done():
                        waiting.set_result(answer)
        except (OSError, PodwireError, IndexError):
            pass  # As good as gone, also if it answers what nobody asked.
        finally:
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_exception(TunnelAwayError("the tunnel is gone"))


def command(path: Path) -> list[str]:
    """What runs a tunnel that listens at `path`."""
    return [sys.executable, "-m", "podwire.tunnel", "--socket", str(path)]


def _expect(kind: type[T], answer: Answer) -> T:
    if isinstance(answer, Failed):
        raise PodwireError(f"tunnel: {answer.text}", remedy=answer.remedy)
    if not isinstance(answer, kind):
        raise TunnelAwayError(f"the tunnel answered {type(answer).__name__}")
    return answer
