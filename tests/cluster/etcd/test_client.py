"""The client against a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from podwire.cluster.etcd.client import PAGE_SIZE, Batch, EtcdClient
from podwire.cluster.etcd.messages import delete, end_of, get, is_absent, is_at, put
from podwire.cluster.etcd.url import EtcdConfig
from podwire.errors import StoreCompactedError, StoreError, StoreUnavailableError

from .server import EtcdServer, Wire, free_port

pytestmark = pytest.mark.slow


async def test_keys_are_put_read_and_compared(client: EtcdClient) -> None:
    key = b"/compared/k\xc3\xb6/1"
    first = await client.txn([is_absent(key)], [put(key, b"\x00\xff")])
    assert first.succeeded
    again = await client.txn([is_absent(key)], [put(key, b"other")], [get(key)])
    assert not again.succeeded
    assert [kv.value for kv in again.kvs] == [b"\x00\xff"]
    kv = await client.get(key)
    assert kv is not None
    assert (kv.mod_revision, kv.lease) == (first.header.revision, 0)
    assert (await client.txn([is_at(key, kv.mod_revision)], [delete(key)])).succeeded
    assert await client.get(key) is None


async def test_absence_can_be_of_a_whole_range(client: EtcdClient) -> None:
    await client.txn([], [put(b"/whole/a&b", b"")])
    taken = await client.txn([is_absent(b"/whole/a", end_of(b"/whole/a"))], [])
    free = await client.txn([is_absent(b"/whole/b", end_of(b"/whole/b"))], [])
    assert (taken.succeeded, free.succeeded) == (False, True)


async def test_a_long_range_is_read_in_pages_of_one_revision(client: EtcdClient) -> None:
    count = PAGE_SIZE + 10
    keys = [f"/pages/{number:05}".encode() for number in range(count)]
    for start in range(0, count, 100):
        await client.txn([], [put(key, b"x") for key in keys[start : start + 100]])
    listing = await client.range(b"/pages/", end_of(b"/pages/"))
    assert [kv.key for kv in listing.kvs] == keys
    bare = await client.range(b"/pages/", end_of(b"/pages/"), keys_only=True)
    assert {kv.value for kv in bare.kvs} == {b""}


async def test_a_lease_takes_its_keys_along(client: EtcdClient) -> None:
    lease = await client.grant(600)
    await client.txn([], [put(b"/leased", b"", lease)])
    assert await client.keep_alive(lease) == 600
    await client.revoke(lease)
    assert await client.get(b"/leased") is None
    assert await client.keep_alive(lease) == 0
    await client.revoke(lease)


@contextlib.asynccontextmanager
async def watching(client: EtcdClient, prefix: bytes) -> AsyncGenerator[AsyncGenerator[Batch]]:
    listing = await client.range(prefix, end_of(prefix))
    batches = client.watch(prefix, end_of(prefix), after=listing, revision=listing.revision)
    async with contextlib.aclosing(batches), asyncio.timeout(60):
        yield batches


async def test_a_watch_tells_each_change(client: EtcdClient) -> None:
    async with watching(client, b"/watched/") as batches:
        done = await client.txn([], [put(b"/watched/a", b"1"), put(b"/elsewhere", b"")])
        batch = await anext(batches)
        assert [(one.kv.key, one.kv.value, one.is_delete) for one in batch.changes] == [
            (b"/watched/a", b"1", False)
        ]
        assert batch.revision == done.header.revision
        await client.txn([], [delete(b"/watched/a")])
        gone = (await anext(batches)).changes
        assert [(one.kv.key, one.is_delete) for one in gone] == [(b"/watched/a", True)]


async def test_a_watch_catches_up_with_megabytes(client: EtcdClient) -> None:
    async with watching(client, b"/many/") as batches:
        for number in range(60):
            await client.txn([], [put(f"/many/{number}".encode(), b"x" * 100_000)])
        seen = 0
        while seen < 60:
            seen += len((await anext(batches)).changes)


async def test_a_compacted_revision_is_told(etcd: EtcdServer, client: EtcdClient) -> None:
    old = await client.range(b"/compacted/", b"/compacted0")
    for _ in range(3):
        last = await client.txn([], [put(b"/compacted/a", b"")])
    etcd.ctl("compact", str(last.header.revision))
    batches = client.watch(b"/compacted/", b"/compacted0", after=old, revision=old.revision)
    with pytest.raises(StoreCompactedError):
        await anext(batches)


async def test_a_store_with_another_past_is_told(client: EtcdClient) -> None:
    listing = await client.range(b"/past/", b"/past0")
    ahead = listing.revision + 1000
    with pytest.raises(StoreCompactedError, match="another past"):
        await anext(client.watch(b"/past/", b"/past0", after=listing, revision=ahead))


async def test_a_silent_partition_is_noticed(config: EtcdConfig, wire: Wire) -> None:
    through = replace(config, endpoints=(f"127.0.0.1:{wire.port}",), call_timeout_s=0.5)
    async with EtcdClient(through) as client:
        listing = await client.range(b"/silent/", b"/silent0")
        opened = asyncio.Event()
        batches = client.watch(
            b"/silent/", b"/silent0", after=listing, revision=listing.revision, on_open=opened.set
        )
        waiting = asyncio.ensure_future(anext(batches))
        async with asyncio.timeout(60):
            await opened.wait()
            wire.silence()
            with pytest.raises(StoreUnavailableError, match="no answer in time"):
                await waiting


async def test_the_next_endpoint_is_asked_and_remembered(
    config: EtcdConfig, etcd: EtcdServer
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with EtcdClient(replace(config, endpoints=(dead, *config.endpoints))) as client:
        assert await client.get(b"/missing") is None
        await client.txn([], [put(b"/failover", b"")])
        listing = await client.range(b"/failover", b"/failover0")
        before = listing.revision - 1
        batches = client.watch(b"/failover", b"/failover0", after=listing, revision=before)
        assert (await anext(batches)).changes
        await batches.aclose()


async def test_an_unreachable_store_is_named_with_each_endpoint() -> None:
    endpoints = (f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    async with EtcdClient(EtcdConfig(endpoints=endpoints)) as client:
        with pytest.raises(StoreUnavailableError) as caught:
            await client.get(b"/x")
    assert all(one in caught.value.message for one in endpoints)
    assert "Connect call failed" in caught.value.message or "refused" in caught.value.message
    assert caught.value.remedy is not None
    assert not caught.value.may_have_happened


async def test_a_change_is_not_made_twice(config: EtcdConfig, wire: Wire) -> None:
    endpoints = (f"127.0.0.1:{wire.port}", *config.endpoints)
    async with EtcdClient(replace(config, endpoints=endpoints, call_timeout_s=0.3)) as client:
        await client.get(b"/once")
        wire.silence()
        with pytest.raises(StoreUnavailableError) as caught:
            await client.txn([], [put(b"/once", b"")])
        assert caught.value.may_have_happened
        assert await client.get(b"/once") is None


async def test_what_is_no_etcd_is_said() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, EtcdClient(EtcdConfig(endpoints=(f"127.0.0.1:{port}",))) as client:
        with pytest.raises(StoreError, match="HTTP 404: Not Found") as caught:
            await client.get(b"/x")
    assert "JSON gateway" in (caught.value.remedy or "")
