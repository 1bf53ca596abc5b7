"""A remote command's standard streams as a pair of asyncio streams.

What lives here: the adapter from `ExecSession` to a reader and a writer, for protocols that are
spoken over any stream. What the command writes on standard error is kept for whoever asks why it
ended.
"""

from __future__ import annotations

import asyncio

from podwire.cluster.kube.exec import STDERR, ExecSession
from podwire.errors import PodwireError

#: More of standard error is not kept.
_KEPT_BYTES = 4096


class ExecStream:
    """Writes to the command's standard input; `reader` has its standard output."""

    def __init__(self, session: ExecSession) -> None:
        self._session = session
        self._flow = _Flow()
        self._pending: list[bytes] = []
        self._complaint = b""
        self.reader = asyncio.StreamReader()
        self.reader.set_transport(self._flow)
        self._task = asyncio.create_task(self._receive())

    @property
    def complaint(self) -> str:
        """What the command has written on standard error."""
        return self._complaint.decode(errors="replace").strip()

    def write(self, data: bytes) -> None:
        """Have `data` sent by the next `drain`."""
        self._pending.append(data)

    async def drain(self) -> None:
        while self._pending:
            await self._session.write(self._pending.pop(0))

    def close(self) -> None:
        self._task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.wait([self._task])
        await self._session.__aexit__(None, None, None)

    async def _receive(self) -> None:
        try:
            async for channel, data in self._session:
                if channel == STDERR:
                    self._complaint = (self._complaint + data)[:_KEPT_BYTES]
                    continue
                self.reader.feed_data(data)
                await self._flow.wanted.wait()
        except PodwireError as error:
            # The command could not be run at all.
            self._complaint = self._complaint or error.message.encode()
        finally:
            self.reader.feed_eof()


class _Flow(asyncio.ReadTransport):
    """Tells us what a StreamReader tells its transport: that its buffer is full, or no more so."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = asyncio.Event()
        self.wanted.set()

    def pause_reading(self) -> None:
        self.wanted.clear()

    def resume_reading(self) -> None:
        self.wanted.set()
