"""A real embedded API server in a process of its own, and ways to disturb the path to it.

Imported by the fixtures of `tests/cluster` and `tests/cli`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from podwire.cluster.kube import ClientConfig

START_TIMEOUT_S = 60.0


@dataclass
class ApiProcess:
    """`python -m podwire.lab.api` with its state in `directory`; it can be stopped and started.

    `with` starts it, and stops it in the end.
    """

    directory: Path
    _process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "api.sock"

    @property
    def config(self) -> ClientConfig:
        return ClientConfig(server=f"unix://{self.socket}")

    @property
    def nodes(self) -> Path:
        """Where kubelets put their sockets: `<node>/kubelet.sock`."""
        return self.directory / "nodes"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        ready = self.directory / "ready"
        ready.unlink(missing_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "podwire.lab.api"),
                    *("--db", str(self.directory / "api.db")),
                    *("--unix", str(self.socket)),
                    *("--token-file", str(self.directory / "token")),
                    *("--ready-file", str(ready)),
                    *("--node-socket-dir", str(self.nodes)),
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError((self.directory / "log").read_text())
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_TIMEOUT_S)
            self._process = None


@dataclass
class Wire:
    """A byte-level proxy in front of a server's Unix socket, to cut and to answer instead of."""

    path: Path
    target: Path
    answers: list[bytes] = field(default_factory=list)
    """Whole HTTP answers; each is given to one request in place of the server's."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    @property
    def config(self) -> ClientConfig:
        return ClientConfig(server=f"unix://{self.path}")

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """End every connection without a word."""
        for writer in self._writers:
            writer.transport.abort()

    def answer(self, status: str, body: bytes) -> None:
        """Give the next request this answer."""
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.answers.append(head.encode() + body)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(self.target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, upstream_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(reader, upstream_writer, writer))
                group.create_task(self._answers(upstream_reader, writer))
        except* (ConnectionError, OSError):
            pass
        finally:
            for each in (writer, upstream_writer):
                each.close()
            self._writers -= {writer, upstream_writer}

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        while chunk := await reader.read(65536):
            if self.answers:
                client.write(self.answers.pop(0))
                continue
            upstream.write(chunk)
        upstream.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
        writer.close()
