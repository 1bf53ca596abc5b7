"""Blocks over a real API server: claimed, filled, borrowed, given back, mended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

from podwire.ipam.block import decode_block
from podwire.ipam.block_allocator import BlockAllocator
from podwire.ipam.store import Store
from podwire.model.documents import Documents
from tests.ipam.conftest import add, ips_of

NETWORK = (ip_network("172.31.0.0/24"),)


async def nobody_is_gone(name: str) -> bool:
    return False


def blocks_of(
    documents: Documents, store: Store, node: str = "n1", **settings: Any
) -> BlockAllocator:
    return BlockAllocator(
        documents,
        store,
        node=node,
        **{"networks": NETWORK, "is_gone": nobody_is_gone, **settings},
    )


async def held(documents: Documents) -> dict[str, str]:
    """Node by address, as the documents say."""
    found = await documents.list("ipamblocks")
    return {
        str(block.address(offset)): one.node
        for block in map(decode_block, found.values())
        for offset, one in block.held.items()
    }


async def test_first_block_and_first_pod(
    documents: Documents, open_store: Callable[..., Store]
) -> None:
    one = blocks_of(documents, open_store())
    await one.start()
    (block,) = one.subnets
    assert block.prefixlen == 26
    record = await add(one, "a")
    assert ips_of(record) == [str(block[1])]  # the first one is the tunnel's
    assert await held(documents) == {str(block[1]): "n1"}


async def test_many_at_once_share_writes(
    documents: Documents, open_store: Callable[..., Store]
) -> None:
    one = blocks_of(documents, open_store())
    await one.start()
    records = await asyncio.gather(*(add(one, f"p{number}") for number in range(100)))
    ips = {ip for record in records for ip in ips_of(record)}
    assert len(ips) == 100
    assert set(await held(documents)) == ips
    assert len(one.subnets) == 2
