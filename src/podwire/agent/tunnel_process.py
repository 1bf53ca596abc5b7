"""The UDP tunnel's process: started, taken over where one runs, watched, ended.

What lives here: the process, and its heartbeat. What does not: what it is told (`tunnel`), and what
it does (`podwire.tunnel`).

It is a session of its own and outlives the agent: packets flow on while an agent is started anew,
which takes it over. One that is there and does not answer, since it hangs or was stopped
(SIGSTOP), is killed. Silence is counted in short waits, not by the clock: an agent that was kept
from running itself, or a machine that slept, takes that for one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from podwire.errors import PodwireError
from podwire.log import fields
from podwire.tunnel.client import TunnelAwayError, TunnelClient, command
from podwire.tunnel.endpoint import clear

log = logging.getLogger(__name__)

#: A process that has been started has to listen within this time.
_STARTING_S = 30.0
_LOOK_AGAIN_S = 0.02
#: Seconds from an answer to the next question.
_BEAT_S = 2.0
#: So many waits of so many seconds without an answer are too long. A busy machine is no reason: it
#: would have to keep the tunnel from running at all for as long.
_WAITS, _WAIT_S = 10, 1.0
#: Seconds that a process has to be gone in, once it was killed.
_DYING_S = 5.0


class TunnelSilentError(PodwireError):
    """The tunnel's process is there and does not answer."""


class TunnelProcess:
    """The one that listens at `path`, whoever has started it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None

    async def connect(self, on_start: Callable[[], None]) -> TunnelClient:
        """A connection to the one that runs, or to one that is started, after `on_start()`.

        Raises TunnelAwayError.
        """
        with contextlib.suppress(TunnelAwayError):
            client = await TunnelClient.connect(self._path)
            if not await _is_dead(client):
                return client
        self.reap()
        on_start()
        process = self._process = _start(self._path)
        deadline = time.monotonic() + _STARTING_S
        while True:
            with contextlib.suppress(TunnelAwayError):
                return await TunnelClient.connect(self._path)
            if process.poll() is not None:
                raise TunnelAwayError(f"it ended with exit code {process.returncode}")
            if time.monotonic() > deadline:
                raise TunnelAwayError(f"it did not come up in {_STARTING_S:g} s")
            await asyncio.sleep(_LOOK_AGAIN_S)

    def reap(self) -> None:
        """Leave no zombie of one that has ended."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None

    async def end(self, go_on: Callable[[], bool]) -> None:
        """Have none, and nothing of one, also of one that is just being started or was killed; as
        long as `go_on()`."""
        while go_on():
            await stop_tunnel(self._path)
            self.reap()
            if clear(self._path):
                return
            await asyncio.sleep(_LOOK_AGAIN_S)


def _start(path: Path) -> subprocess.Popen[bytes]:
    # Not asyncio's: those end with the loop, and this one is to go on.
    return subprocess.Popen(command(path), stdin=subprocess.DEVNULL, start_new_session=True)


async def listen_to(client: TunnelClient) -> None:
    """Ask again and again; return when it is gone.

    Raises TunnelSilentError for one that does not answer, once it was killed.
    """
    while not client.is_closed:
        asked = asyncio.ensure_future(client.is_alive())
        try:
            await _answered(asked, _WAITS)
        except TunnelSilentError:
            await kill(client)
            raise
        finally:
            asked.cancel()
        await _closed_within(client, _BEAT_S)


async def _is_dead(client: TunnelClient) -> bool:
    """Whether it has hung up. The kernel may close the listener of one that was killed last, and
    let somebody connect until then."""
    asked = asyncio.ensure_future(client.is_alive())
    await asyncio.wait({asked}, timeout=_WAIT_S)
    if not asked.done():
        asked.cancel()
        return False
    if not asked.result():
        await client.close()
        return True
    return False


async def _answered(asked: asyncio.Future[bool], waits: int) -> None:
    """Raises TunnelSilentError."""
    for _ in range(waits):
        if (await asyncio.wait({asked}, timeout=_WAIT_S))[0]:
            return
    raise TunnelSilentError(f"its process did not answer for {waits * _WAIT_S:g} s, and was killed")


async def kill(client: TunnelClient) -> None:
    """End the process at the other end, which does not answer."""
    if client.pid > 0:
        log.error("the tunnel does not answer, and is killed", extra=fields(pid=client.pid))
        # It is that process as long as it holds the connection.
        with contextlib.suppress(ProcessLookupError):
            os.kill(client.pid, signal.SIGKILL)
    await _closed_within(client, _DYING_S)


async def _closed_within(client: TunnelClient, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await client.wait_closed()


async def stop_tunnel(path: Path, *, waits: int = _WAITS) -> bool:
    """End the tunnel that listens at `path`, by force where it does not answer for so many seconds;
    False where there is none."""
    try:
        client = await TunnelClient.connect(path)
    except TunnelAwayError:
        return False
    stopping = asyncio.ensure_future(_stop(client))
    try:
        await _answered(stopping, waits)
    except TunnelSilentError:
        await kill(client)
    finally:
        stopping.cancel()
        await client.close()
    return True


async def _stop(client: TunnelClient) -> bool:
    with contextlib.suppress(TunnelAwayError):
        await client.stop()
        await client.wait_closed()
    return True
