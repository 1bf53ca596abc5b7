"""1,000 pods at once on 50 nodes that share a store: no address twice, none lost.

The nodes are in processes of their own, some of which die in the middle, and come back with nothing
but their databases.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from podwire.ipam.block import decode_block
from podwire.ipam.ranges import decode_token, ranges
from podwire.ipam.record import State
from podwire.ipam.store import Store
from podwire.model.documents import Documents
from tests.ipam.conftest import Stored
from tests.ipam.node_process import NETWORK, PODS
from tests.ipam.pods import ips_of

ROOT = Path(__file__).parents[2]
PROCESSES, NODES = 5, 50
#: For what takes a second on a machine that has nothing else to do.
DEADLINE_S = 120.0

pytestmark = pytest.mark.slow


class Process:
    """Some nodes in a process."""

    def __init__(self, ipam: str, directory: Path, url: str, *nodes: str) -> None:
        self.nodes = nodes
        self._arguments = ipam, str(directory), url
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, what: str) -> None:
        """Start it, and wait until the nodes have started."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.ipam.node_process"),
            *(*self._arguments, what, *self.nodes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"started\n"

    @property
    def is_over(self) -> bool:
        """Whether it has ended, its nodes filled."""
        return self._process is not None and self._process.returncode is not None

    def go(self) -> None:
        """Begin to fill the nodes."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def done(self) -> None:
        assert self._process is not None
        assert await self._process.wait() == 0


@pytest.mark.parametrize("stored", ["kube", "etcd"], indirect=True)
@pytest.mark.parametrize("ipam", ["blocks", "cluster-range"])
async def test_many_pods_at_once_on_many_nodes(
    stored: Stored, open_store: Callable[..., Store], tmp_path: Path, ipam: str
) -> None:
    names = [f"n{number}" for number in range(NODES)]
    processes = [
        Process(ipam, tmp_path, stored.url, *names[number::PROCESSES])
        for number in range(PROCESSES)
    ]
    try:
        documents = await stored.connect()
        await asyncio.gather(*(one.start("fill") for one in processes))
        for one in processes:
            one.go()
        for one in processes[:2]:
            await some_work(documents, ipam, tmp_path, processes)
            await one.kill()
            await one.start("fill")
            one.go()
        await asyncio.gather(*(one.done() for one in processes))
    finally:
        await asyncio.gather(*(one.kill() for one in processes))
    held = {name: held_by(open_store(name)) for name in names}
    assert {name: len(ips) for name, ips in held.items()} == dict.fromkeys(names, PODS)
    await agree(documents, ipam, held)


@pytest.mark.parametrize(
    ("stored", "ipam"), [("etcd", "blocks"), ("kube", "cluster-range")], indirect=["stored"]
)
async def test_nodes_that_are_killed_again_and_again(
    stored: Stored, open_store: Callable[..., Store], tmp_path: Path, ipam: str
) -> None:
    rng = random.Random(ipam)
    names = ["n1", "n2", "n3", "n4"]

    async def live(name: str) -> None:
        """Killed a few times, and in the end left alone until it has settled."""
        process = Process(ipam, tmp_path, stored.url, name)
        try:
            for _ in range(3):
                await process.start("churn")
                await changes(tmp_path / f"{name}.db-wal", rng.randrange(1, 20))
                await process.kill()
            await process.start("settle")
            await process.done()
        finally:
            await process.kill()

    await asyncio.gather(*map(live, names))
    held = {name: held_by(open_store(name)) for name in names}
    assert any(held.values())
    await agree(await stored.connect(), ipam, held)


async def some_work(
    documents: Documents, ipam: str, directory: Path, processes: Sequence[Process]
) -> None:
    """Wait until some more has been written to the store or the databases, or all is done: this
    process may get to nothing while the others work."""

    async def progress() -> int:
        size = sum(path.stat().st_size for path in directory.glob("*.db-wal"))
        return size if ipam == "cluster-range" else sum((await written(documents)).values())

    before = await progress()
    async with asyncio.timeout(DEADLINE_S):
        while await progress() == before and not all(one.is_over for one in processes):
            await asyncio.sleep(0.001)


async def changes(path: Path, count: int) -> None:
    """Wait until a file has been seen to change so often."""
    seen: set[int] = set()
    async with asyncio.timeout(DEADLINE_S):
        while len(seen) <= count:
            if path.exists():
                seen.add(path.stat().st_mtime_ns)
            await asyncio.sleep(0.001)


def held_by(store: Store) -> list[str]:
    """What a node's database says that its pods have."""
    records = store.records.values()
    return [ip for one in records if one.state is not State.DELETING for ip in ips_of(one)]


async def agree(documents: Documents, ipam: str, held: dict[str, list[str]]) -> None:
    """No address is held twice, and the documents say who has which."""
    counted = Counter(ip for ips in held.values() for ip in ips)
    assert set(counted.values()) == {1}
    if ipam == "blocks":
        assert await written(documents) == counted
        return
    tokens = [decode_token(one) for one in (await documents.list("ipamranges")).values()]
    found = ranges(tokens, NETWORK)
    for node, ips in held.items():
        own = [one for one in found if one.token.node == node]
        assert all(any(one.has(ip_address(ip)) for one in own) for ip in ips), node


async def written(documents: Documents) -> Counter[str]:
    """How often each address is held, as blocks say."""
    found = await documents.list("ipamblocks")
    blocks = map(decode_block, found.values())
    return Counter(str(block.address(offset)) for block in blocks for offset in block.held)
