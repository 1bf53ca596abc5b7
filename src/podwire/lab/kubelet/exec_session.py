"""A command run in a container over a WebSocket: `kubectl exec`.

What lives here: the process, its pipes or terminal, and the channels of `v4.channel.k8s.io` and
`v5.channel.k8s.io`: each binary message begins with a byte that names its stream.

    0 stdin   1 stdout   2 stderr   3 how it ended (a Status)   4 terminal size   255 end of (v5)

Source: k8s.io/apimachinery/pkg/util/remotecommand/constants.go, KEP-4006.

A command whose client goes away is killed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from podwire.decoding import from_json
from podwire.errors import LabError
from podwire.lab import sandbox as sandboxes
from podwire.lab.kubelet.container import with_busybox
from podwire.lab.kubelet.process_end import ProcessEnd
from podwire.lab.processes import Process
from podwire.lab.sandbox import Sandbox

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDIN, _STDOUT, _STDERR, _STATUS, _RESIZE = range(5)
_CLOSE = 255
_CHUNK = 32 * 1024
_NOT_FOUND = 127  # what a shell reports for a command that it cannot find


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and which streams the client wants."""

    argv: Sequence[str]
    env: dict[str, str]
    cwd: str
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


@dataclass(slots=True)
class _Streams:
    """Our ends of the command's streams. With a terminal all are one descriptor."""

    stdin: int | None = None
    outputs: dict[int, int] = field(default_factory=dict)  # channel → descriptor
    theirs: tuple[int, int, int] = (-1, -1, -1)
    terminal: int | None = None

    def close_theirs(self) -> None:
        for fd in set(self.theirs):
            os.close(fd)

    def close(self) -> None:
        ours = {self.stdin, self.terminal, *self.outputs.values()}
        for fd in ours - {None}:
            os.close(fd)  # type: ignore[arg-type]
        self.stdin, self.terminal, self.outputs = None, None, {}


async def serve(websocket: web.WebSocketResponse, sandbox: Sandbox, command: Command) -> None:
    """Run the command and talk to the client until one of the two ends."""
    streams = _open_terminal() if command.tty else _open_pipes(command)
    try:
        pid = sandboxes.run(
            sandbox,
            with_busybox(command.argv),
            env=command.env,
            cwd=command.cwd,
            stdio=streams.theirs,
            terminal=command.tty,
        )
    except (OSError, LabError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message
        text = f"exec: {command.argv[0]!r}: {reason}\n"
        await websocket.send_bytes(bytes([_STDERR]) + text.encode())
        await websocket.send_bytes(_status(_NOT_FOUND))
        streams.close()
        return
    finally:
        streams.close_theirs()
    try:
        await _Session(websocket, streams, pid).run()
    finally:
        streams.close()


class _Session:
    def __init__(self, websocket: web.WebSocketResponse, streams: _Streams, pid: int) -> None:
        self._websocket = websocket
        self._streams = streams
        self._code = 0
        self._ended = asyncio.Event()
        self._pid = pid
        self._end = ProcessEnd(Process.unreaped(pid), self._note_end)

    async def run(self) -> None:
        reader = asyncio.create_task(self._read_client())
        writers = [
            asyncio.create_task(self._send_output(channel, fd))
            for channel, fd in self._streams.outputs.items()
        ]
        ended = asyncio.create_task(self._finish(writers))
        try:
            await asyncio.wait([reader, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, ended, *writers):
                task.cancel()
            await asyncio.gather(reader, ended, *writers, return_exceptions=True)
            if not self._ended.is_set():
                with suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
                # Leaves the pidfd watched until then, so that no zombie stays.
                await self._ended.wait()

    def _note_end(self, code: int | None) -> None:
        self._code = code if code is not None else 0
        self._ended.set()

    async def _finish(self, writers: list[asyncio.Task[None]]) -> None:
        await self._ended.wait()
        if writers:
            await asyncio.wait(writers)
        code = self._code if self._code >= 0 else 128 - self._code
        with suppress(ConnectionError):
            await self._websocket.send_bytes(_status(code))

    async def _send_output(self, channel: int, fd: int) -> None:
        """Pass on what the command writes, until it ends and all of that is read."""
        prefix = bytes([channel])
        while True:
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                if self._ended.is_set():
                    return  # something that it left behind may hold the pipe open for ever
                await _ready(fd, self._ended, write=False)
                continue
            except OSError:
                return  # EIO: the last holder of the terminal's other end has closed it
            if not data:
                return
            await self._websocket.send_bytes(prefix + data)

    async def _read_client(self) -> None:
        """Pass on what the client sends, until it goes."""
        async for message in self._websocket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == _STDIN:
                await self._write_stdin(data)
            elif channel == _RESIZE and self._streams.terminal is not None:
                _resize(self._streams.terminal, data)
            elif channel == _CLOSE and data[:1] == bytes([_STDIN]):
                self._close_stdin()

    async def _write_stdin(self, data: bytes) -> None:
        while data and self._streams.stdin is not None and not self._ended.is_set():
            try:
                data = data[os.write(self._streams.stdin, data) :]
            except BlockingIOError:
                await _ready(self._streams.stdin, self._ended, write=True)
            except OSError:
                return  # EPIPE: the command reads no more

    def _close_stdin(self) -> None:
        if self._streams.terminal is None and self._streams.stdin is not None:
            os.close(self._streams.stdin)
            self._streams.stdin = None


def _open_pipes(command: Command) -> _Streams:
    streams = _Streams()
    theirs = []
    if command.stdin:
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write, False)
        streams.stdin = write
        theirs.append(read)
    else:
        theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    for channel, wanted in ((_STDOUT, command.stdout), (_STDERR, command.stderr)):
        if wanted:
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(read, False)
            streams.outputs[channel] = read
            theirs.append(write)
        else:
            theirs.append(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    streams.theirs = (theirs[0], theirs[1], theirs[2])
    return streams


def _open_terminal() -> _Streams:
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    return _Streams(
        stdin=ours, outputs={_STDOUT: ours}, theirs=(theirs, theirs, theirs), terminal=ours
    )


def _resize(terminal: int, data: bytes) -> None:
    with suppress(msgspec.DecodeError, KeyError, TypeError, struct.error):
        size = from_json(data, dict[str, int])
        packed = struct.pack("HHHH", size["Height"], size["Width"], 0, 0)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, packed)


async def _ready(fd: int, or_ended: asyncio.Event, *, write: bool) -> None:
    """Wait until a descriptor can be read or written, or the command has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    add: Callable[..., Any] = loop.add_writer if write else loop.add_reader
    remove: Callable[[int], bool] = loop.remove_writer if write else loop.remove_reader
    add(fd, ready.set)
    waits = [asyncio.ensure_future(event.wait()) for event in (ready, or_ended)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        remove(fd)
        for wait in waits:
            wait.cancel()


def _status(code: int) -> bytes:
    """The last message: how the command ended, as a Status."""
    status: dict[str, Any] = {"metadata": {}, "status": "Success"}
    if code != 0:
        status = {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: {code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        }
    return bytes([_STATUS]) + msgspec.json.encode(status)
