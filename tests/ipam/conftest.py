"""A store of documents to test against, each the real one, and nodes that use it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podwire.cluster.kube import ClientConfig, KubeClient
from podwire.cluster.kube.documents import KubeDocuments
from podwire.ipam.allocator import Allocator, Wish
from podwire.ipam.record import Key, PodIdentity, Record
from podwire.ipam.store import Store
from podwire.lab.api.server import ApiServer, ServerSettings
from podwire.model.cluster import Attachment
from podwire.model.documents import Documents
from podwire.model.state import IPAddress

#: Opens another connection to the same store.
Connect = Callable[[], Documents]


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    """An API server; each call is another client of it."""
    socket = tmp_path / "api.sock"
    settings = ServerSettings(
        database=tmp_path / "api.db", token="t" * 32, unix_socket=socket, controllers=None
    )
    server = ApiServer(settings)
    await server.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)

        def another() -> Documents:
            client = KubeClient(ClientConfig(server=f"unix://{socket}")).open()
            stack.push_async_exit(client)
            return KubeDocuments(client)

        yield another


@pytest.fixture
async def documents(connect: Connect) -> Documents:
    return connect()


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


async def add(allocator: Allocator, name: str, *ips: str, **wish: Any) -> Record:
    """What ADD does, less the kernel."""

    def make(chosen: tuple[IPAddress, ...]) -> Attachment:
        return Attachment(
            container_id=name,
            ifname="eth0",
            netns=f"/run/netns/{name}",
            host_ifname=f"veth{name}"[:15],
            mac=bytes(6),
            ips=tuple(ip_interface(ip_network(ip)) for ip in chosen),
            gateways=chosen,
            pod=f"default/{name}",
        )

    return await allocator.reserve(
        Key(name, "eth0"),
        make,
        Wish(ips=tuple(map(ip_address, ips)), **wish),
        network="podwire",
        pod=PodIdentity("default", name, "uid"),
    )


def delete(allocator: Allocator, store: Store, name: str) -> None:
    """What DEL does, less the kernel."""
    record = store.begin_delete(Key(name, "eth0"))
    allocator.released(record)
    store.forget([record.key])


def ips_of(record: Record) -> list[str]:
    return [str(one.ip) for one in record.attachment.ips]
