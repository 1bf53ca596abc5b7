"""A node's IPAM as a process of its own, for tests that kill it.

    python -m tests.ipam.node_process NAME IPAM DIRECTORY [--settle]

Prints "started", and then pods come and go as fast as they can until it is killed. With --settle it
brings the shared documents in line with its database, and ends. The API's socket is
DIRECTORY/api.sock.
"""

from __future__ import annotations

import asyncio
import random
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from podwire.cluster.kube import ClientConfig, KubeClient
from podwire.cluster.kube.documents import KubeDocuments
from podwire.errors import IpamError
from podwire.ipam.allocator import SharedAllocator
from podwire.ipam.block_allocator import BlockAllocator
from podwire.ipam.range_allocator import RangeAllocator
from podwire.ipam.store import Store
from podwire.model.documents import Documents
from tests.ipam.pods import add, delete

#: Small enough for nodes to get into each other's way.
NETWORK = ip_network("10.32.0.0/21")
PODS = 40


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
        return BlockAllocator(documents, store, block_len={4: 28, 6: 124}, **settings)
    return RangeAllocator(documents, store, **settings)


async def churn(allocator: SharedAllocator, store: Store) -> None:
    """Pods come and go, several at once."""
    rng = random.Random()
    number = 0
    while True:
        names = [key.container_id for key in store.records]
        for name in rng.sample(names, rng.randrange(len(names) + 1)):
            delete(allocator, store, name)
        new = range(number, number + rng.randrange(1, PODS - len(store.records)))
        number = new.stop
        pods = (add(allocator, f"p{rng.getrandbits(60):x}") for _ in new)
        for result in await asyncio.gather(*pods, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, IpamError):
                raise result


async def main(name: str, ipam: str, directory: Path, *flags: str) -> None:
    store = Store(directory / f"{name}.db")
    config = ClientConfig(server=f"unix://{directory / 'api.sock'}")
    async with KubeClient(config) as client:
        allocator = make(ipam, KubeDocuments(client), store, name)
        await allocator.start()
        print("started", flush=True)
        if "--settle" not in flags:
            await churn(allocator, store)
        await allocator.stop()
    store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]))
