"""A store of documents to test against, each the real one, and nodes that use it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from podwire.cluster.etcd.client import EtcdClient
from podwire.cluster.etcd.documents import EtcdDocuments
from podwire.cluster.kube import ClientConfig, KubeClient
from podwire.cluster.kube.documents import KubeDocuments
from podwire.ipam.store import Store
from podwire.lab.api.server import ApiServer, ServerSettings
from podwire.model.documents import Documents
from tests.cluster.etcd.server import EtcdServer


class Stored(Protocol):
    """A store of documents, as each test has one of its own."""

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
        self.socket = directory / "api.sock"
        self._settings = ServerSettings(
            database=directory / "api.db",
            token="t" * 32,
            unix_socket=self.socket,
            controllers=None,
        )
        self._server: ApiServer | None = None

    async def connect(self) -> Documents:
        client = KubeClient(ClientConfig(server=f"unix://{self.socket}"))
        return KubeDocuments(await self._stack.enter_async_context(client))

    async def away(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def back(self) -> None:
        self._server = ApiServer(self._settings)
        await self._server.start()


class RealEtcd:
    """etcd in a process of its own."""

    def __init__(self, directory: Path, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self._server = EtcdServer(directory / "etcd")

    async def connect(self) -> Documents:
        config = replace(self._server.config, call_timeout_s=5.0)
        return EtcdDocuments(await self._stack.enter_async_context(EtcdClient(config)))

    async def away(self) -> None:
        self._server.stop()

    async def back(self) -> None:
        await asyncio.to_thread(self._server.start)


@pytest.fixture
async def stored(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stored]:
    """The Kubernetes API; etcd for tests that ask for it by parametrizing."""
    async with contextlib.AsyncExitStack() as stack:
        kind = RealEtcd if getattr(request, "param", "kube") == "etcd" else Kube
        one = kind(tmp_path, stack)
        await one.back()
        stack.push_async_callback(one.away)
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
