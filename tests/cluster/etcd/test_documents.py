"""Documents in a real etcd: compare-and-swap, and watching them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import pytest

from podwire.cluster.etcd.client import EtcdClient
from podwire.cluster.etcd.documents import EtcdDocuments
from podwire.model.documents import Document, DocumentConflictError, Documents

pytestmark = pytest.mark.slow


@pytest.fixture
def documents(client: EtcdClient) -> Documents:
    return EtcdDocuments(client)


async def test_a_document_is_written_and_read(documents: Documents) -> None:
    assert await documents.get("ipamblocks", "10-5-0-0-26") is None
    made = await documents.create("ipamblocks", "10-5-0-0-26", b'{"a":1}')
    assert await documents.get("ipamblocks", "10-5-0-0-26") == made
    assert await documents.list("ipamblocks") == {"10-5-0-0-26": made}
    assert await documents.list("ippools") == {}
    again = await documents.replace(made, b'{"a":2}')
    assert (again.value, again.revision != made.revision) == (b'{"a":2}', True)
    await documents.delete(again)
    assert await documents.list("ipamblocks") == {}


async def test_who_is_late_is_told(documents: Documents) -> None:
    first = await documents.create("ippools", "default", b"{}")
    with pytest.raises(DocumentConflictError):
        await documents.create("ippools", "default", b"{}")
    second = await documents.replace(first, b'{"a":1}')
    with pytest.raises(DocumentConflictError):
        await documents.replace(first, b'{"a":2}')
    with pytest.raises(DocumentConflictError):
        await documents.delete(first)
    await documents.delete(second)
    with pytest.raises(DocumentConflictError):
        await documents.delete(second)
    with pytest.raises(DocumentConflictError):
        await documents.replace(second, b"{}")


async def test_of_many_at_once_one_wins_each_round(documents: Documents) -> None:
    document = await documents.create("ipamranges", "r", b"0")

    async def count() -> None:
        while True:
            found = await documents.get("ipamranges", "r")
            assert found is not None
            try:
                await documents.replace(found, str(int(found.value) + 1).encode())
            except DocumentConflictError:
                continue
            return

    await asyncio.gather(*(count() for _ in range(20)))
    found = await documents.get("ipamranges", "r")
    assert found is not None
    assert (found.value, found.revision != document.revision) == (b"20", True)


async def test_a_watch_tells_all_of_a_kind(documents: Documents) -> None:
    told: list[Mapping[str, Document]] = []
    changed = asyncio.Event()

    def tell(found: Mapping[str, Document]) -> None:
        told.append(found)
        changed.set()

    async def until(names: set[str]) -> None:
        while not told or set(told[-1]) != names:
            changed.clear()
            await changed.wait()

    first = await documents.create("ippools", "a", b"{}")
    task = asyncio.create_task(documents.watch("ippools", tell))
    try:
        async with asyncio.timeout(60):
            await until({"a"})
            await documents.create("ippools", "b", b"{}")
            await documents.create("ipamblocks", "elsewhere", b"{}")
            await until({"a", "b"})
            await documents.delete(first)
            await until({"b"})
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
