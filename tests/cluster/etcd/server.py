"""A real etcd in a process of its own, and a wire in front of it that can be cut or go silent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from podwire.cluster.etcd.url import EtcdConfig

START_TIMEOUT_S = 30.0


def free_port() -> int:
    """A port of 127.0.0.1 that is free now, outside of what the kernel gives to connections."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class EtcdServer:
    """`etcd` with its data in `directory`; it can be stopped and started again.

    `with` starts it, and stops it in the end.
    """

    directory: Path
    scheme: str = "http"
    options: Sequence[str] = ()
    name: str = "default"
    peer_port: int = 0
    cluster: str = ""
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> EtcdConfig:
        return EtcdConfig(endpoints=(f"127.0.0.1:{self.port}",), prefix="/test")

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self, *, wait: bool = True) -> None:
        self.directory.mkdir(exist_ok=True)
        for _ in range(5):
            if not self.port:
                self.port = free_port()
            self._spawn()
            if not wait or self._is_up():
                return
            self.stop()
            self.port = 0
        raise AssertionError(self.log)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def _spawn(self) -> None:
        # A lone member dials no peer, so its port may be anything.
        peer = f"http://127.0.0.1:{self.peer_port or 1}"
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("etcd", "--name", self.name, "--data-dir", str(self.directory / "data")),
                    *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
                    *("--listen-peer-urls", f"http://127.0.0.1:{self.peer_port}"),
                    *("--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", self.cluster or f"{self.name}={peer}"),
                    *("--heartbeat-interval", "50", "--election-timeout", "500"),
                    *self.options,
                ],
                stdout=log,
                stderr=log,
            )

    def _is_up(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if "ready to serve client requests" in self.log:
                return True
            time.sleep(0.01)
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(START_TIMEOUT_S)
            self._process = None
        if self.directory.exists():
            (self.directory / "log").write_text("")

    def ctl(self, *words: str, user: str | None = None) -> str:
        """Run etcdctl; what it printed."""
        who = ["--user", user] if user else []
        done = subprocess.run(
            ["etcdctl", "--endpoints", self.url, *who, *words],
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def put(self, key: str, value: object, *words: str) -> None:
        """Put a key; what is no text goes in as JSON."""
        self.ctl("put", key, value if isinstance(value, str) else json.dumps(value), *words)


@dataclass
class Wire:
    """A byte-level proxy in front of a server's port, to cut, or to swallow what is sent."""

    target: int
    port: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None

    async def open(self) -> None:
        self._open.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """End all connections, and take no new ones until `open`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def silence(self) -> None:
        """Let nothing through, while connections stay: what a partition looks like."""
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))
        except (OSError, asyncio.CancelledError):
            return
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(UnboundLocalError):
                there[1].close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
