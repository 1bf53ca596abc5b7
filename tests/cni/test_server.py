"""The socket: who gets in, limits of size and time, descriptors that must not leak; no kernel."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from podwire.cni import shim
from podwire.cni.server import CniServer
from podwire.cni.service import CniService
from podwire.errors import PodwireError
from podwire.ipam.store import Store

STATUS = b"CNI_COMMAND=STATUS\0"
CONF = json.dumps({"cniVersion": "1.1.0", "name": "podwire", "type": "podwire"}).encode()


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of a server that gives a client 0.2 s."""
    store = Store(tmp_path / "ipam.db")
    service = CniService(store)
    service.not_ready = "this is a test"
    server = CniServer(tmp_path / "run" / "cni.sock", service, patience_s=0.2)
    await server.start()
    yield tmp_path / "run" / "cni.sock"
    await server.stop()
    await service.stop()
    store.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def exchange(path: Path, data: bytes, fds: list[int] | None = None) -> bytes:
    """Send `data`, then read until the server closes; the connection stays open for sending."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, str(path))
        sent = socket.send_fds(connection, [data], fds) if fds else 0
        answer = b""
        try:
            await loop.sock_sendall(connection, data[sent:])
            while part := await loop.sock_recv(connection, 65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answer


def request(env: bytes = STATUS, stdin: bytes = CONF, errno: int = 0) -> bytes:
    return shim.REQUEST_HEADER.pack(shim.MAGIC, len(env), len(stdin), errno) + env + stdin


def decode(answer: bytes) -> tuple[int, dict[str, object]]:
    status, size = shim.REPLY_HEADER.unpack_from(answer)
    body = answer[shim.REPLY_HEADER.size :]
    assert len(body) == size
    return status, json.loads(body)


async def test_answers(path: Path) -> None:
    assert decode(await exchange(path, request())) == (
        1,
        {"cniVersion": "1.1.0", "code": 50, "msg": "podwire is not ready: this is a test"},
    )


async def test_only_the_owner_gets_in(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_request_in_pieces(path: Path) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, str(path))
        for byte in request():
            await loop.sock_sendall(connection, bytes([byte]))
            await asyncio.sleep(0)
        assert (await loop.sock_recv(connection, 65536))[:4] == b"\1\0\0\0"


@pytest.mark.parametrize("sent", [0, 1, 20, 50])
async def test_a_client_that_stops_sending_is_cut_off(path: Path, sent: int) -> None:
    async with asyncio.timeout(60):
        assert await exchange(path, request()[:sent]) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        shim.REQUEST_HEADER.pack(shim.MAGIC, shim.ENVIRONMENT_MAX + 1, 0, 0),
        shim.REQUEST_HEADER.pack(shim.MAGIC, 0, 0xFFFFFFFF, 0),
        request() + b"more",
    ],
)
async def test_what_is_not_a_request_is_cut_off(path: Path, data: bytes) -> None:
    assert await exchange(path, data) == b""
    assert decode(await exchange(path, request()))[0] == 1


async def test_an_environment_that_is_not_utf8(path: Path) -> None:
    env = b"CNI_COMMAND=ADD\0CNI_CONTAINERID=\xff\0CNI_NETNS=/\xff\0CNI_IFNAME=eth0\0=\0x\0"
    status, body = decode(await exchange(path, request(env)))
    assert (status, body["code"]) == (1, 4)


async def test_descriptors_are_closed_whatever_happens(path: Path) -> None:
    with Path("/dev/null").open() as null:
        fds = [null.fileno()]
        before = open_descriptors()
        assert decode(await exchange(path, request(), fds))[0] == 1
        await exchange(path, request()[:20], fds)
        await exchange(path, b"x" * 30, fds)
        await exchange(path, request(), fds * 5)
        assert open_descriptors() == before


async def test_many_clients_at_once(path: Path) -> None:
    answers = await asyncio.gather(*(exchange(path, request()) for _ in range(300)))
    assert {decode(answer)[0] for answer in answers} == {1}


async def test_without_descriptors_left_it_waits_and_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, str(path))
        await loop.sock_sendall(connection, request())
        resource.setrlimit(resource.RLIMIT_NOFILE, (connection.fileno() + 1, hard))
        try:
            async with asyncio.timeout(60):
                while "cannot accept" not in caplog.text:
                    await asyncio.sleep(0)
                for _ in range(1000):
                    await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len([one for one in caplog.messages if one == "cannot accept"]) < 5
        async with asyncio.timeout(60):
            assert (await loop.sock_recv(connection, 65536))[:4] == b"\1\0\0\0"


async def test_stopping_does_not_wait_for_a_client_that_says_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "ipam.db")
    service = CniService(store)
    server = CniServer(tmp_path / "cni.sock", service, patience_s=60)
    await server.start()
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.setblocking(False)
        await asyncio.get_running_loop().sock_connect(silent, str(tmp_path / "cni.sock"))
        while open_descriptors() < before + 2:
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await server.stop()
    await service.stop()
    store.close()


async def test_the_socket_of_a_dead_agent_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    store = Store(tmp_path / "ipam.db")
    service = CniService(store)
    server = CniServer(path, service)
    await server.start()
    assert decode(await exchange(path, request()))[0] == 1
    await server.stop()
    assert not path.exists()
    await service.stop()
    store.close()


async def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "ipam.db")
    service = CniService(store)
    with pytest.raises(PodwireError, match="CNI socket"):
        await CniServer(tmp_path / ("x" * 120), service).start()
    await service.stop()
    store.close()
