"""Nodes' IPAM in a process of their own, for tests that kill it.

    python -m tests.ipam.node_process IPAM DIRECTORY URL WHAT NODE…

URL is the store's: unix://SOCKET of an API, or etcd://HOST:PORT/PREFIX. Each node's database is in
DIRECTORY. Prints "started" and then, as WHAT says:

    churn   pods come and go on the node as fast as they can, until it is killed
    fill    waits for a line, and has PODS pods on each node, all asked for at once; with those that
            its database has already
    settle  brings the shared documents in line with the databases, and ends
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from podwire.cluster.etcd.client import EtcdClient
from podwire.cluster.etcd.documents import EtcdDocuments
from podwire.cluster.etcd.url import parse_url
from podwire.cluster.kube import ClientConfig, KubeClient
from podwire.cluster.kube.documents import KubeDocuments
from podwire.errors import IpamError, StoreUnavailableError
from podwire.ipam.allocator import SharedAllocator
from podwire.ipam.block_allocator import BlockAllocator
from podwire.ipam.node_subnet import ContendedError
from podwire.ipam.range_allocator import RangeAllocator
from podwire.ipam.store import Store
from podwire.model.documents import Documents
from tests.ipam.pods import add, delete

#: Small enough for nodes to get into each other's way: it has 32 blocks.
NETWORK = ip_network("10.32.0.0/21")
#: On each node that is filled.
PODS = 20
_CHURN = 40


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Documents]:
    """A connection to a store."""
    if url.startswith("etcd"):
        async with EtcdClient(replace(parse_url(url), call_timeout_s=10.0)) as etcd:
            yield EtcdDocuments(etcd)
    else:
        async with KubeClient(ClientConfig(server=url)) as kube:
            yield KubeDocuments(kube)


async def nobody_is_gone(name: str) -> bool:
    return False


def make(ipam: str, documents: Documents, store: Store, node: str) -> SharedAllocator:
    """One node of that network."""
    settings: dict[str, Any] = {
        "node": node,
        "networks": (NETWORK,),
        "is_gone": nobody_is_gone,
    }
    if ipam == "blocks":
        blocks: BlockAllocator = BlockAllocator(
            documents,
            store,
            keep_empty_s=0.1,
            changed=lambda: blocks.told(blocks.subnets),
            **settings,
        )
        return blocks
    return RangeAllocator(documents, store, **settings)


async def start(allocator: SharedAllocator) -> None:
    """As often as an agent would, on a machine that has much else to do."""
    while True:
        try:
            return await allocator.start()
        except (ContendedError, StoreUnavailableError) as error:
            print(error, file=sys.stderr)


async def churn(allocator: SharedAllocator, store: Store) -> None:
    """Pods come and go, several at once."""
    rng = random.Random()
    while True:
        names = [key.container_id for key in store.records]
        for name in rng.sample(names, rng.randrange(len(names) + 1)):
            delete(allocator, store, name)
        new = range(rng.randrange(1, max(2, _CHURN - len(store.records))))
        pods = (add(allocator, f"p{rng.getrandbits(60):x}") for _ in new)
        for result in await asyncio.gather(*pods, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(
                result, IpamError | StoreUnavailableError
            ):
                raise result


async def fill(allocator: SharedAllocator, store: Store, node: str) -> None:
    """The node's pods, each asked for as often as a runtime would."""

    async def insist(name: str) -> None:
        while True:
            try:
                await add(allocator, name)
            except (IpamError, StoreUnavailableError) as error:
                print(node, name, error, file=sys.stderr)
            else:
                return

    names = {f"{node}-{number}" for number in range(PODS)}
    names -= {key.container_id for key in store.records}
    await asyncio.gather(*map(insist, sorted(names)))


async def main(ipam: str, directory: Path, url: str, what: str, *names: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        nodes: dict[str, tuple[SharedAllocator, Store]] = {}
        for name in names:
            store = stack.enter_context(contextlib.closing(Store(directory / f"{name}.db")))
            documents = await stack.enter_async_context(connected(url))
            nodes[name] = make(ipam, documents, store, name), store
        await asyncio.gather(*(start(allocator) for allocator, _ in nodes.values()))
        print("started", flush=True)
        running = [asyncio.create_task(allocator.run()) for allocator, _ in nodes.values()]
        if what == "churn":
            await asyncio.gather(*(churn(*node) for node in nodes.values()))
        if what == "fill":
            await asyncio.to_thread(sys.stdin.readline)
            await asyncio.gather(*(fill(*node, name) for name, node in nodes.items()))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for allocator, _ in nodes.values():
            await allocator.stop()


if __name__ == "__main__":
    _ipam, _directory, *_rest = sys.argv[1:]
    asyncio.run(main(_ipam, Path(_directory), *_rest))
