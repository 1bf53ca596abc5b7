"""The blocks that one node has: claimed, borrowed of, read, given back.

What lives here: which documents this node is concerned with, and how it comes by more. What does
not: whose address is which (`block_allocator`), and writing one document (`ledger`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_network

from podwire.errors import InputError
from podwire.ipam import blocks
from podwire.ipam.block import Block, Pool, decode_block, document_name, encode_block
from podwire.ipam.ledger import Ledger
from podwire.ipam.node_subnet import ContendedError, ExhaustedError, RequestedAddressError
from podwire.log import fields
from podwire.model.documents import Document, DocumentConflictError, Documents
from podwire.model.state import IPAddress, IPNetwork

log = logging.getLogger(__name__)

#: Seconds for which pools without a free block count as such: so many pods that start together on
#: a node borrow of the same block, after all blocks have been read once.
SCARCE_S = 1.0

#: Blocks by CIDR, with the documents that they were read from.
Found = Mapping[IPNetwork, tuple[Block, Document]]


class BlockSet:
    """The ledgers of one node, by the block's CIDR."""

    def __init__(
        self,
        documents: Documents,
        node: str,
        *,
        seen: Callable[[Iterable[str]], None],
        scarce_s: float,
    ) -> None:
        """`seen` is told which nodes have something of any block that is read."""
        self._documents = documents
        self._node = node
        self._seen = seen
        self._claiming = asyncio.Lock()
        self._scarce_s = scarce_s
        self._scarce: dict[tuple[Pool, ...], float] = {}
        self.ledgers: dict[IPNetwork, Ledger] = {}

    @property
    def subnets(self) -> tuple[IPNetwork, ...]:
        """The node's blocks, those claimed first in front, and then what it has borrowed."""
        own = [
            one
            for one in self.ledgers.values()
            if one.is_own and not one.is_gone and one.leaving_since is None
        ]
        own.sort(key=lambda one: (one.cidr.version, one.block.sequence))
        borrowed = [ip for one in self.ledgers.values() for ip in one.borrowed]
        borrowed.sort(key=lambda ip: (ip.version, int(ip)))
        return (*(one.cidr for one in own), *map(ip_network, borrowed))

    @property
    def is_leaving(self) -> bool:
        """Whether a block is on its way to being given up."""
        return any(one.leaving_since is not None for one in self.ledgers.values())

    def own(self, pools: Sequence[Pool]) -> list[Ledger]:
        """The node's own blocks of these pools, in the order that addresses are taken from them."""
        found = [
            one
            for one in self.ledgers.values()
            if one.is_own and any(pool.has(one.cidr) for pool in pools)
        ]
        return sorted(found, key=lambda one: one.block.sequence)

    def of_version(self, version: int) -> list[Ledger]:
        """The node's own blocks of an IP version, those claimed first in front."""
        found = [one for one in self.ledgers.values() if one.is_own]
        found = [one for one in found if one.cidr.version == version]
        return sorted(found, key=lambda one: one.block.sequence)

    def with_address(self, ip: IPAddress) -> Ledger | None:
        """The ledger of the block that an address is in."""
        return next((one for cidr, one in self.ledgers.items() if ip in cidr), None)

    def open(self, block: Block, document: Document | None) -> Ledger:
        """The ledger of a block, which from now on is as it was read here."""
        ledger = self.ledgers.get(block.cidr)
        if ledger is None:
            ledger = Ledger(self._documents, self._node, block, document)
            self.ledgers[block.cidr] = ledger
        else:
            ledger.refresh(block, document)
        return ledger

    def next_sequence(self) -> int:
        """The number of the block that is claimed next."""
        return 1 + max((one.block.sequence for one in self.ledgers.values()), default=0)

    async def flush(self) -> None:
        """Write all documents that do not say what they should. Raises for the first that fails."""
        waiting = [one for one in self.ledgers.values() if not one.is_written]
        results = await asyncio.gather(*(one.flush() for one in waiting), return_exceptions=True)
        for cidr, ledger in list(self.ledgers.items()):
            if ledger.is_idle and ledger.is_written and (not ledger.is_own or ledger.is_gone):
                del self.ledgers[cidr]
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def doubt(self) -> None:
        """Read every document before it is written the next time."""
        for ledger in self.ledgers.values():
            ledger.doubt()

    async def stop(self) -> None:
        """Let writes end that are under way."""
        for ledger in self.ledgers.values():
            await ledger.stop()

    async def extend(self, pools: Sequence[Pool], before: Sequence[Ledger]) -> Ledger | None:
        """Claim a block of one of the pools, or find another one's to borrow an address of.

        None where there is an own block now that was not among `before`, else the lender's. Raises
        ExhaustedError.
        """
        async with self._claiming:
            if any(one not in before for one in self.own(pools)):
                return None
            key = tuple(pools)
            if asyncio.get_running_loop().time() < self._scarce.get(key, 0.0):
                for ledger in self.ledgers.values():
                    if _lends(ledger, pools):
                        return ledger
            found = await self.read_all()
            unknown = [
                cidr
                for cidr, (block, _) in found.items()
                if block.node == self._node and cidr not in self.ledgers
            ]
            if unknown:  # Claimed, and the answer was lost.
                for cidr in unknown:
                    self.open(*found[cidr])
                return None
            self._refresh(found)
            if any(not one.is_full for one in self.own(pools)):  # What was borrowed has come back.
                return None
            for pool in pools:
                if await self._claim(pool, found):
                    return None
            # By now others have claimed what was free.
            found = await self.read_all()
            self._scarce[key] = asyncio.get_running_loop().time() + self._scarce_s
            others = [block for block, _ in found.values()]
            for block in blocks.lenders(others, pools, self._node):
                ledger = self.open(*found[block.cidr])
                if not ledger.is_full:
                    return ledger
        names = ", ".join(f"{pool.name} ({pool.cidr})" for pool in pools)
        raise ExhaustedError(
            f"no address is free in pool {names}", remedy="delete pods, or make another IPPool"
        )

    async def claim_or_open(self, ip: IPAddress, cidr: IPNetwork) -> Ledger:
        """The block of an address that somebody asks for: `cidr` is claimed where it is free.

        Raises RequestedAddressError where a block of another size is in the way.
        """
        async with self._claiming:
            if (known := self.with_address(ip)) is not None:
                return known
            document = await self._documents.get("ipamblocks", document_name(cidr))
            if document is not None:
                return self.open(decode_block(document), document)
            for other, (block, document) in (await self.read_all()).items():
                if ip in other:
                    return self.open(block, document)
                if other.version == cidr.version and other.overlaps(cidr):
                    raise RequestedAddressError(
                        f"{ip} would be of the block {cidr}, which overlaps the block {other}: the"
                        " pool had blocks of another size before",
                        remedy="ask for another one, or delete the pods that have that block's",
                    )
            if (made := await self._create(cidr)) is not None:
                return made
        raise ContendedError(f"others claim block {cidr} now", remedy="try again")

    async def give_up(self, cidr: IPNetwork) -> None:
        """Delete an own block that nobody has an address of."""
        # While it is in neither place, nobody may find the document and open another ledger for it.
        async with self._claiming:
            ledger = self.ledgers.pop(cidr)
            gone = False
            try:
                gone = await ledger.delete()
            finally:
                # Else somebody has borrowed of it meanwhile, or it is not known what became of it.
                if not gone:
                    self.ledgers[cidr] = ledger
        if gone:
            log.info("block released", extra=fields(block=cidr))

    async def read_all(self) -> Found:
        """All blocks of all nodes; objects that are none are left out."""
        found: dict[IPNetwork, tuple[Block, Document]] = {}
        for document in (await self._documents.list("ipamblocks")).values():
            try:
                block = decode_block(document)
            except InputError as error:
                log.error("block left out", extra=fields(reason=error))
                continue
            found[block.cidr] = block, document
        self._seen({node for block, _ in found.values() for node in blocks.nodes_of(block)})
        return found

    def _refresh(self, found: Found) -> None:
        """Have the ledgers know what is in the documents now."""
        for cidr, ledger in self.ledgers.items():
            if cidr in found:
                ledger.refresh(*found[cidr])
            else:
                ledger.doubt()

    async def _claim(self, pool: Pool, found: Found) -> bool:
        """Make a block of the pool this node's; False where none is free."""
        for block in blocks.orphans((one for one, _ in found.values()), pool, self._node):
            if await self._adopt(block, found[block.cidr][1]):
                return True
        unavailable = blocks.taken(pool, found)
        while True:
            index = blocks.choose_block(pool, unavailable, self._node)
            if index is None:
                return False
            if await self._create(pool.block(index)) is not None:
                return True
            unavailable.add(index)

    async def _create(self, cidr: IPNetwork) -> Ledger | None:
        """Claim a block that is not there; None where it is."""
        block = Block(cidr, self._node, self.next_sequence())
        try:
            document = await self._documents.create(
                "ipamblocks", document_name(cidr), encode_block(block)
            )
        except DocumentConflictError:
            return None
        log.info("block claimed", extra=fields(block=cidr))
        return self.open(block, document)

    async def _adopt(self, block: Block, document: Document) -> bool:
        """Claim a block that is nobody's; False where somebody was faster."""
        own = Block(block.cidr, self._node, self.next_sequence(), block.held)
        try:
            document = await self._documents.replace(document, encode_block(own))
        except DocumentConflictError:
            return False
        log.info("block claimed", extra=fields(block=block.cidr, borrowed=len(block.held)))
        self.open(own, document)
        return True


def _lends(ledger: Ledger, pools: Sequence[Pool]) -> bool:
    """Whether an address can be borrowed there, as far as this node knows."""
    if ledger.is_own or ledger.is_gone or ledger.is_full:
        return False
    return any(pool.has(ledger.cidr) for pool in pools)
