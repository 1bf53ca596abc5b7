"""The IPAM `blocks`: addresses out of blocks that this node claims in the shared store as needed.

What lives here: a node's part in it from its start on, and when an address is sure. What does not:
which address a pod gets (`block_picks`), the blocks that a node has (`block_set`), the decisions
themselves (`blocks`), pools (`pools`), and what nodes that are gone have left behind (`reclaim`).

    reserve:  addresses picked ─▶ documents written ─▶ database written ─▶ the pod is wired

An address is a pod's once the document says so: then nobody else takes it. The database is written
after that, and is what this node goes by. Whatever a crash, a lost answer or a store that is away
leaves between the two is mended by writing the documents anew from the database: at the start, and
before a document is used whose state is not known. Peers learn of a new block by the node's lease;
the first pod in it does not wait for that, as it does not with Calico. What this node gives back is
told first, and then free for others: peers that heard of the next one earlier would have two nodes
with one block, and believe the older one. A block is left a while before it is deleted; a borrowed
address stays this node's in the document until the lease is known to be without it (`told`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NoReturn

from podwire.errors import InputError, PodwireError
from podwire.ipam import blocks
from podwire.ipam.allocator import Make, Wish
from podwire.ipam.block import (
    DEFAULT_BLOCK_LEN,
    Block,
    Holder,
    decode_block,
    encode_block,
)
from podwire.ipam.block_picks import Pick, Picker
from podwire.ipam.block_set import SCARCE_S, BlockSet, Found
from podwire.ipam.ledger import Ledger
from podwire.ipam.node_subnet import ContendedError, ExhaustedError
from podwire.ipam.pools import Pools
from podwire.ipam.reclaim import GRACE_S, Reclaimer
from podwire.ipam.record import Key, PodIdentity, Record, State
from podwire.ipam.span import REUSE_DELAY_S
from podwire.ipam.store import Store
from podwire.log import fields
from podwire.model.documents import Document, Documents
from podwire.model.state import IPNetwork

log = logging.getLogger(__name__)

#: Seconds that a block stays claimed which this node has nothing of.
KEEP_EMPTY_S = 300.0

#: Seconds from when the lease is without a block to when it is given up.
_LEAVING_S = 5.0

#: Seconds between two tries to write what nobody waits for.
_RETRY_S = 2.0


class BlockAllocator:
    """One node's part in it. `start` it before anything else; all runs in one event loop."""

    def __init__(
        self,
        documents: Documents,
        store: Store,
        *,
        node: str,
        networks: Sequence[IPNetwork],
        block_len: Mapping[int, int] = DEFAULT_BLOCK_LEN,
        is_gone: Callable[[str], Awaitable[bool]],
        changed: Callable[[], None] = lambda: None,
        reuse_delay_s: float = REUSE_DELAY_S,
        keep_empty_s: float = KEEP_EMPTY_S,
        scarce_s: float = SCARCE_S,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`changed` is called whenever `subnets` is another than before; see `SharedAllocator`."""
        self._documents = documents
        self._store = store
        self._node = node
        self._changed = changed
        self._keep_empty_s = keep_empty_s
        self._leaving_s = min(_LEAVING_S, keep_empty_s)
        self._clock = clock
        self._announced: tuple[IPNetwork, ...] = ()
        self._starts = 0
        self._reserving: set[Key] = set()
        self._without_pool: dict[int, str] = {}
        self._wake = asyncio.Event()
        self._reclaimer = Reclaimer(
            documents, "ipamblocks", node=node, strip=_strip, is_gone=is_gone, grace_s=grace_s
        )
        self._blocks = BlockSet(documents, node, seen=self._reclaimer.mention, scarce_s=scarce_s)
        self.pools = Pools(documents, networks, block_len)
        self._picker = Picker(
            node, self._blocks, self.pools, reuse_delay_s=reuse_delay_s, clock=clock
        )

    @property
    def subnets(self) -> tuple[IPNetwork, ...]:
        """This node's blocks, those claimed first in front, and then what it has borrowed."""
        return self._blocks.subnets

    # Life.

    async def start(self) -> None:
        """Bring the documents in line with the database, and see that there is a block a family,
        where there is a pool for it.

        Raises what the store of the documents raises; call it again then.
        """
        await self.pools.load()
        found = await self._blocks.read_all()
        # From here to the end of what the database knows nothing waits.
        self._starts += 1
        self._blocks.ledgers.clear()
        for block, document in found.values():
            if self._node in blocks.nodes_of(block):
                self._prepare(self._blocks.open(block, document))
        for record in self._store.records.values():
            if record.state is not State.DELETING:
                self._know(record, found)
        for ip, at in self._store.released().items():
            if (ledger := self._blocks.with_address(ip)) is not None:
                ledger.cooling[ledger.block.offset(ip)] = at
        await self._write()
        self._announced = self.subnets

    async def run(self) -> NoReturn:
        """Write what nobody waits for, give up empty blocks, and keep up with the pools."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._documents.watch("ippools", self._use_pools))
            group.create_task(self._keep())
        raise AssertionError("neither of them ends")

    async def stop(self) -> None:
        self._starts += 1
        await self._reclaimer.stop()
        await self._blocks.stop()

    def labels_are(self, labels: Mapping[str, str] | None) -> None:
        if labels != self.pools.labels:
            self.pools.labels = labels
            self._wake.set()

    def told(self, subnets: Collection[IPNetwork]) -> None:
        for ledger in self._blocks.ledgers.values():
            if ledger.told(subnets):
                self._wake.set()

    def nodes_are(self, names: Collection[str]) -> None:
        self._reclaimer.nodes_are(names)

    def doubt(self) -> None:
        self._blocks.doubt()
        self._wake.set()

    async def _write(self) -> None:
        """Have the documents say what is true, and see that there is a block a family, where there
        is a pool for it."""
        self._forget_deleted()
        await self._blocks.flush()
        for version in self.pools.versions:
            if self._blocks.of_version(version):
                continue
            try:
                pools = self.pools.of(version, Wish())
            except ExhaustedError as error:
                # Pods may name one; the others are told the same.
                if self._without_pool.get(version) != error.message:
                    self._without_pool[version] = error.message
                    log.warning("no block", extra=fields(reason=error))
            else:
                await self._blocks.extend(pools, ())

    def _use_pools(self, found: Mapping[str, Document]) -> None:
        self.pools.use(found)
        self._wake.set()

    async def _keep(self) -> NoReturn:
        while True:
            try:
                await self._write()
                await self._give_up_empty()
            except PodwireError as error:
                log.warning("blocks are not up to date", extra=fields(reason=error))
                delay_s = _RETRY_S
            else:
                delay_s = self._leaving_s if self._blocks.is_leaving else self._keep_empty_s / 2
            self._announce()
            try:
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def _give_up_empty(self) -> None:
        """Leave own blocks that have been empty for long, and delete those that were left a while
        ago; the first of each family stays."""
        now = self._clock()
        for version in self.pools.versions:
            for ledger in self._blocks.of_version(version)[1:]:
                empty = ledger.is_empty(now, self._keep_empty_s)
                if empty and ledger.block.held:  # By others, when it was last read.
                    await ledger.reread()
                if not empty or ledger.block.held:
                    ledger.leaving_since = None
                elif ledger.leaving_since is None:
                    ledger.leaving_since = now
                elif ledger.leaving_since + self._leaving_s <= now:
                    await self._blocks.give_up(ledger.cidr)

    def _announce(self) -> None:
        now = self.subnets
        if now != self._announced:
            self._announced = now
            self._changed()

    # Handing out.

    async def reserve(
        self, key: Key, make: Make, wish: Wish, *, network: str, pod: PodIdentity
    ) -> Record:
        holder = Holder(self._node, str(pod), key.container_id, key.ifname)
        picks: list[Pick] = []
        starts = self._starts
        self._reserving.add(key)
        try:
            await self._picker.take(picks, holder, wish)
            if starts != self._starts:  # The documents may have been read without these picks.
                raise ContendedError("addresses are being set up anew", remedy="try again")
            last = {pick.ledger.cidr: pick.ip for pick in picks if not pick.asked_for}
            attachment = make(tuple(pick.ip for pick in picks))
            record = self._store.write(attachment, last=last, network=network, pod=pod)
        except BaseException:
            for pick in picks:
                if pick.is_ours:
                    pick.ledger.unwant(pick.offset)
            self._wake.set()
            raise
        finally:
            self._reserving.discard(key)
            self._announce()
        return record

    def released(self, record: Record) -> None:
        now = self._clock()
        for interface in record.attachment.ips:
            ledger = self._blocks.with_address(interface.ip)
            if ledger is not None:
                ledger.unwant(ledger.block.offset(interface.ip), now)
        self._announce()
        self._wake.set()

    # What the database knows.

    def _prepare(self, ledger: Ledger) -> Ledger:
        last = self._store.last(ledger.cidr)
        if last is not None:
            ledger.last = ledger.block.offset(last)
        return ledger

    def _forget_deleted(self) -> None:
        """Release what was deleted while nobody told this allocator, as when it was starting."""
        for ledger in self._blocks.ledgers.values():
            for offset, holder in list(ledger.wanted.items()):
                key = Key(holder.container, holder.ifname)
                record = self._store.records.get(key)
                if key not in self._reserving and (
                    record is None or record.state is State.DELETING
                ):
                    ledger.unwant(offset, self._clock())

    def _know(self, record: Record, found: Found) -> None:
        """Have the documents say what an attachment in the database has."""
        for interface in record.attachment.ips:
            ip = interface.ip
            ledger = self._blocks.with_address(ip)
            if ledger is None:
                pool = self.pools.with_address(ip)
                if pool is None:
                    log.warning("address of no pool", extra=fields(address=ip, of=record.owner))
                    continue
                cidr = pool.block(pool.index(ip))
                new = Block(cidr, self._node, self._blocks.next_sequence())
                ledger = self._prepare(self._blocks.open(*found.get(cidr, (new, None))))
            holder = Holder(self._node, str(record.pod), *record.key)
            ledger.want(ledger.block.offset(ip), holder, in_use=True)


def _strip(document: Document, gone: str) -> bytes | None:
    """A block's document without a node."""
    try:
        block = decode_block(document)
    except InputError:
        return document.value
    left = blocks.reclaim(block, {gone})
    if left is block:
        return document.value
    return encode_block(left) if left is not None else None
