"""1,000 pods at once on 50 nodes that share a store: no address twice, none lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from podwire.ipam.allocator import SharedAllocator
from podwire.ipam.block_allocator import BlockAllocator
from podwire.ipam.range_allocator import RangeAllocator
from podwire.ipam.store import Store
from podwire.model.documents import Documents
from tests.ipam.conftest import Connect, add, ips_of

NODES, PODS = 50, 20


async def nobody_is_gone(name: str) -> bool:
    return False


def make(ipam: str, documents: Documents, store: Store, node: str, cidr: str) -> SharedAllocator:
    kind: Any = BlockAllocator if ipam == "blocks" else RangeAllocator
    settings = {"block_len": {4: 28, 6: 124}} if ipam == "blocks" else {}
    allocator: SharedAllocator = kind(
        documents,
        store,
        node=node,
        networks=(ip_network(cidr),),
        is_gone=nobody_is_gone,
        **settings,
    )
    return allocator


@pytest.mark.parametrize("ipam", ["blocks", "cluster-range"])
async def test_many_pods_at_once_on_many_nodes(
    connect: Connect, open_store: Callable[..., Store], ipam: str
) -> None:
    nodes = []
    for number in range(NODES):
        name = f"n{number}"
        nodes.append(make(ipam, connect(), open_store(name), name, "10.32.0.0/20"))
    await asyncio.gather(*(node.start() for node in nodes))
    records = await asyncio.gather(
        *(add(node, f"p{number}-{pod}") for number, node in enumerate(nodes) for pod in range(PODS))
    )
    ips = Counter(ip for record in records for ip in ips_of(record))
    assert len(ips) == NODES * PODS
    assert set(ips.values()) == {1}
    await asyncio.gather(*(node.stop() for node in nodes))
