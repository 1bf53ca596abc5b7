"""A store of documents to test against, each the real one, and nodes that use it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from podwire.ipam.store import Store
from podwire.lab.api.server import ApiServer, ServerSettings
from podwire.model.documents import Documents
from tests.cluster.etcd.server import EtcdServer
from tests.ipam.node_process import connected

#: The two stores there are. Each test that names them takes a while longer.
BOTH = ["kube", pytest.param("etcd", marks=pytest.mark.slow)]


class Stored(Protocol):
    """A store of documents, as each test has one of its own."""

    url: str

    async def connect(self) -> Documents:
        """Another connection, as another node has it."""
        ...

    async def away(self) -> None:
        """Let it be away."""
        ...

    async def back(self) -> None: ...


class Kube:
    """An API server in this process, on a Unix socket."""

    def __init__(self, directory: Path, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self.url = f"unix://{directory / 'api.sock'}"
        self._settings = ServerSettings(
            database=directory / "api.db",
            token="t" * 32,
            unix_socket=directory / "api.sock",
            controllers=None,
        )
        self._server: ApiServer | None = None

    async def connect(self) -> Documents:
        return await self._stack.enter_async_context(connected(self.url))

    async def away(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def back(self) -> None:
        self._server = ApiServer(self._settings)
        await self._server.start()


class RealEtcd:
    """A prefix of the module's etcd."""

    def __init__(self, server: EtcdServer, prefix: str, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self._server = server
        self.url = f"etcd://127.0.0.1:{server.port}/{prefix}"

    async def connect(self) -> Documents:
        return await self._stack.enter_async_context(connected(self.url))

    async def away(self) -> None:
        self._server.stop()

    async def back(self) -> None:
        await asyncio.to_thread(self._server.start)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One server for all tests of a module."""
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
async def stored(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stored]:
    """The Kubernetes API; etcd for tests that ask for it by parametrizing."""
    async with contextlib.AsyncExitStack() as stack:
        one: Stored
        if getattr(request, "param", "kube") == "etcd":
            one = RealEtcd(request.getfixturevalue("etcd"), secrets.token_hex(8), stack)
        else:
            one = kube = Kube(tmp_path, stack)
            await kube.back()
            stack.push_async_callback(kube.away)
        yield one


@pytest.fixture
async def documents(stored: Stored) -> Documents:
    return await stored.connect()


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Opens the database of a node; again, after closing it, where it is open."""
    stores: dict[str, Store] = {}

    def reopen(node: str = "n1", **settings: Any) -> Store:
        if node in stores:
            stores[node].close()
        stores[node] = Store(tmp_path / f"{node}.db", **settings)
        return stores[node]

    yield reopen
    for store in stores.values():
        store.close()
