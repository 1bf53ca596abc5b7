"""The server as a process: readiness, who gets in, stopping, and being killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.lab.api.conftest import config_map, node

# Each test runs whole processes; script/test --fast leaves them out.
pytestmark = pytest.mark.slow

MAPS = "/api/v1/namespaces/default/configmaps"


class Process:
    """`python -m podwire.lab.api` in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self, *options: str) -> None:
        """Start it and wait until it's ready."""
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "podwire.lab.api", "--db", "api.db", "--unix", "api.sock"]
        command += ["--token-file", "token", "--ready-fd", str(writing), *options]
        with (self.directory / "log").open("ab") as log:
            self.running = subprocess.Popen(
                command, cwd=self.directory, pass_fds=[writing], stderr=log
            )
        os.close(writing)
        with os.fdopen(reading) as pipe:
            line = pipe.readline()
        assert line, (self.directory / "log").read_text()
        ready = json.loads(line)
        assert ready["pid"] == self.running.pid
        self.port = ready["port"]

    def end(self, number: int) -> int:
        """Send a signal and wait; returns the exit code."""
        assert self.running is not None
        self.running.send_signal(number)
        return self.running.wait(timeout=60)

    @property
    def token(self) -> str:
        return (self.directory / "token").read_text().strip()

    def session(self) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(str(self.directory / "api.sock"))
        return aiohttp.ClientSession("http://api", connector=connector)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    server = Process(tmp_path)
    yield server
    if server.running and server.running.poll() is None:
        server.running.kill()
        server.running.wait()


async def test_answers_once_it_is_ready(process: Process) -> None:
    process.start()
    async with process.session() as session, session.get(MAPS) as answer:
        assert answer.status == 200


def test_ready_file_appears_whole(process: Process) -> None:
    process.start("--ready-file", "ready")
    assert json.loads((process.directory / "ready").read_text())["port"] == process.port


def test_socket_and_token_are_private(process: Process) -> None:
    process.start()
    for name in ("api.sock", "token"):
        assert (process.directory / name).stat().st_mode & 0o777 == 0o600
    assert len(process.token) >= 32


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic TOKEN"}, 401),
        ({"Authorization": "Bearer TOKEN", "Host": "evil.example"}, 401),
        ({"Authorization": "Bearer TOKEN", "Host": "127.0.0.1.evil.example:80"}, 401),
        ({"Authorization": "Bearer TOKEN"}, 200),
        ({"Authorization": "bearer TOKEN", "Host": "localhost"}, 200),
    ],
)
async def test_loopback_needs_the_token(
    process: Process, headers: dict[str, str], code: int
) -> None:
    process.start()
    sent = {name: value.replace("TOKEN", process.token) for name, value in headers.items()}
    url = f"http://127.0.0.1:{process.port}{MAPS}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=sent) as answer:
        assert answer.status == code
        assert (await answer.json())["kind"] in ("Status", "ConfigMapList")


def test_listens_on_loopback_only(process: Process) -> None:
    process.start()
    inodes = {link.readlink().name for link in Path(f"/proc/{_pid(process)}/fd").iterdir()}
    listening = [
        fields[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{_pid(process)}/net/{table}").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and f"socket:[{fields[9]}]" in inodes
    ]
    assert listening == [f"0100007F:{process.port:04X}"]


def _pid(process: Process) -> int:
    assert process.running is not None
    return process.running.pid


def test_other_users_are_refused_on_the_socket(process: Process) -> None:
    """Even when the file's mode would let them in."""
    if os.geteuid() != 0:
        pytest.fail("this test becomes another user: run it as root (sudo script/test)")
    process.start()
    for path in (process.directory, *process.directory.parents):
        if path.stat().st_uid == 0 and len(path.parts) > 2:
            path.chmod(0o755)
    (process.directory / "api.sock").chmod(0o666)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(process.directory / "api.sock"))
            connection.sendall(b"GET /api HTTP/1.1\r\nHost: api\r\n\r\n")
            code = 0 if b" 401 " in connection.recv(64) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def test_tls_with_its_own_certificate(process: Process) -> None:
    process.start("--tls-dir", ".")
    assert (process.directory / "tls.key").stat().st_mode & 0o777 == 0o600
    trust = ssl.create_default_context(cafile=str(process.directory / "tls.crt"))
    url = f"https://127.0.0.1:{process.port}{MAPS}"
    headers = {"Authorization": f"Bearer {process.token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers=headers, ssl=trust) as answer,
    ):
        assert answer.status == 200


async def test_sigterm_ends_watches_and_leaves_no_socket(process: Process) -> None:
    process.start()
    async with (
        process.session() as session,
        session.get(f"{MAPS}?watch=1&resourceVersion=1") as answer,
    ):
        assert answer.status == 200
        ended = await asyncio.to_thread(process.end, signal.SIGTERM)
        assert await answer.content.read() == b""
    assert ended == 0
    assert not (process.directory / "api.sock").exists()


async def test_kill_loses_nothing_acknowledged(process: Process) -> None:
    """Killed under load, six times: what was answered is there, and revisions only grow."""
    acknowledged: dict[str, str] = {}
    newest = 0

    async def write(session: aiohttp.ClientSession, worker: int, round_: int) -> None:
        for index in range(10_000):
            name = f"m{worker}-{round_}-{index}"
            try:
                async with session.post(MAPS, json=config_map(name, x=name)) as answer:
                    metadata = (await answer.json())["metadata"]
            except (aiohttp.ClientError, OSError):
                return
            acknowledged[name] = metadata["resourceVersion"]

    for round_ in range(6):
        process.start()
        async with process.session() as session:
            async with session.get(MAPS) as answer:
                listed: dict[str, Any] = await answer.json()
            found = {
                item["metadata"]["name"]: item["metadata"]["resourceVersion"]
                for item in listed["items"]
            }
            assert acknowledged.items() <= found.items()
            assert int(listed["metadata"]["resourceVersion"]) >= newest
            before = len(acknowledged)
            writers = [asyncio.create_task(write(session, worker, round_)) for worker in range(4)]
            while len(acknowledged) < before + 20 + round_ * 7:
                await asyncio.sleep(0)
            await asyncio.to_thread(process.end, signal.SIGKILL)
            await asyncio.gather(*writers)
        newest = max(int(version) for version in acknowledged.values())


def test_database_in_use_is_an_error_with_a_remedy(process: Process, tmp_path: Path) -> None:
    process.start()
    second = subprocess.run(
        [
            *(sys.executable, "-m", "podwire.lab.api", "--db", "api.db"),
            *("--unix", "other.sock", "--token-file", "token"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "is another API server running on it" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--node-mask", "8"), "cannot cut 10.244.0.0/16 into blocks of /8"),
        (("--cluster-cidr", "10.0.0.0/8,11.0.0.0/8"), "one network for each IP family"),
        (("--cluster-cidr", "10.0.0.1/8"), "invalid _networks value"),
        (("--db", "/nowhere/api.db"), "cannot open"),
        (("--unix", "/nowhere/api.sock"), "cannot listen on /nowhere/api.sock"),
    ],
)
def test_bad_options_are_errors_in_words(
    tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    command = [sys.executable, "-m", "podwire.lab.api", "--db", "a.db", "--unix", "a.sock"]
    done = subprocess.run(
        [*command, "--token-file", "token", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


async def test_restart_keeps_the_token_and_the_objects(process: Process) -> None:
    process.start()
    token = process.token
    async with process.session() as session:
        await session.post("/api/v1/nodes", json=node())
    process.end(signal.SIGTERM)
    process.start()
    assert process.token == token
    async with process.session() as session, session.get("/api/v1/nodes/node1") as answer:
        assert answer.status == 200
