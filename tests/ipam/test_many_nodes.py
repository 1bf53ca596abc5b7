"""1,000 pods at once on 50 nodes that share a store: no address twice, none lost.

Nodes also die in the middle, and come back with nothing but their databases.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from podwire.ipam.block import decode_block
from podwire.ipam.ranges import decode_token, ranges
from podwire.ipam.record import State
from podwire.ipam.store import Store
from podwire.model.documents import Documents
from tests.ipam.conftest import Stored
from tests.ipam.node_process import NETWORK, make
from tests.ipam.pods import add, ips_of

ROOT = Path(__file__).parents[2]
NODES, PODS = 50, 20
IPAMS = ["blocks", "cluster-range"]

pytestmark = pytest.mark.slow


async def written(documents: Documents) -> Counter[str]:
    """How often each address is held, as blocks say."""
    found = await documents.list("ipamblocks")
    blocks = map(decode_block, found.values())
    return Counter(str(block.address(offset)) for block in blocks for offset in block.held)


@pytest.mark.parametrize("ipam", IPAMS)
@pytest.mark.parametrize("stored", ["kube", "etcd"], indirect=True)
async def test_many_pods_at_once_on_many_nodes(
    stored: Stored, open_store: Callable[..., Store], ipam: str
) -> None:
    names = [f"n{number}" for number in range(NODES)]
    nodes = {name: make(ipam, await stored.connect(), open_store(name), name) for name in names}
    await asyncio.gather(*(node.start() for node in nodes.values()))
    records = await asyncio.gather(
        *(add(node, f"{name}-{pod}") for name, node in nodes.items() for pod in range(PODS))
    )
    ips = Counter(ip for record in records for ip in ips_of(record))
    assert len(ips) == NODES * PODS
    assert set(ips.values()) == {1}
    if ipam == "blocks":
        assert await written(await stored.connect()) == ips
    await asyncio.gather(*(node.stop() for node in nodes.values()))


@pytest.mark.parametrize("ipam", IPAMS)
async def test_nodes_that_are_killed_in_the_middle(
    stored: Stored, open_store: Callable[..., Store], tmp_path: Path, ipam: str
) -> None:
    rng = random.Random(ipam)
    names = ["n1", "n2", "n3", "n4"]
    documents = await stored.connect()

    async def lead(name: str) -> None:
        """A node's life: killed a few times, and in the end left alone until it has settled."""
        for _ in range(3):
            process = await spawn(name, ipam, tmp_path)
            await asyncio.sleep(rng.uniform(0, 0.3))
            process.kill()
            await process.wait()
        process = await spawn(name, ipam, tmp_path, "--settle")
        assert await process.wait() == 0

    await asyncio.gather(*map(lead, names))
    held: Counter[str] = Counter()
    for name in names:
        records = open_store(name).records.values()
        ips = [ip for one in records if one.state is not State.DELETING for ip in ips_of(one)]
        assert ips, f"{name} got nothing done"
        held.update(ips)
        if ipam == "cluster-range":
            assert await all_inside(documents, name, ips)
    assert set(held.values()) == {1}
    if ipam == "blocks":
        assert await written(documents) == held


async def spawn(name: str, ipam: str, directory: Path, *flags: str) -> asyncio.subprocess.Process:
    """A node that has started."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.ipam.node_process", name, ipam, str(directory), *flags),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"started\n"
    return process


async def all_inside(documents: Documents, node: str, ips: list[str]) -> bool:
    """Whether a node's addresses are in its own ranges."""
    tokens = [decode_token(one) for one in (await documents.list("ipamranges")).values()]
    own = [one for one in ranges(tokens, NETWORK) if one.token.node == node]
    return all(any(one.has(ip_address(ip)) for one in own) for ip in ips)
