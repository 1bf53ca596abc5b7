"""One block's document, kept in step with what this node has of the block.

What lives here: one document, written by compare-and-swap. What does not: which address to take and
when (`podwire.ipam.block_allocator`).

How it works. `wanted` is what this node has, by offset; changing it costs nothing. `flush` makes
the document say so. Who comes while a write is under way shares the next one, so any number of pods
that start together cost two writes. A lost race is no failure: the document is read again, and what
this node wants is put into what it says now. An offset that somebody else has by then is no longer
wanted; who wanted it sees that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from ipaddress import ip_network

import msgspec

from podwire.errors import StoreUnavailableError
from podwire.ipam import blocks
from podwire.ipam.block import RESERVED, Block, Holder, decode_block, document_name, encode_block
from podwire.ipam.node_subnet import ContendedError
from podwire.log import fields
from podwire.model.documents import Document, DocumentConflictError, Documents
from podwire.model.state import IPAddress, IPNetwork

log = logging.getLogger(__name__)

#: Every lost race means that somebody else has won one.
_ATTEMPTS = 64


class Ledger:
    """A block that this node owns or has addresses of."""

    def __init__(
        self, documents: Documents, node: str, block: Block, document: Document | None
    ) -> None:
        """`document` keeps `block`; None where it is to be made."""
        self._documents = documents
        self._node = node
        self._document = document
        self._unsure = False
        self._writer: asyncio.Task[None] | None = None
        self._next: asyncio.Future[None] | None = None
        #: As the document says it is.
        self.block = block
        #: What this node has of it. Change it, then `flush`.
        self.wanted: dict[int, Holder] = {}
        #: What was borrowed and given back, and is told of as this node's still: for nobody else
        #: until `told`.
        self.parting: dict[int, Holder] = {}
        self._in_use: set[int] = set()
        #: The offset that was handed out last.
        self.last = -1
        #: When offsets were released, in order.
        self.cooling: dict[int, float] = {}
        #: Since when the node has been seen to have nothing of it.
        self.empty_since: float | None = None
        #: Since when it is no longer told of as this node's, to be deleted; None for one that is.
        self.leaving_since: float | None = None

    @property
    def cidr(self) -> IPNetwork:
        return self.block.cidr

    @property
    def is_own(self) -> bool:
        return self.block.node == self._node

    @property
    def is_gone(self) -> bool:
        """Whether there is no document any more."""
        return self._document is None

    @property
    def borrowed(self) -> list[IPAddress]:
        """What the document says that this node has of another one's block, and that it wants."""
        if self.is_own:
            return []
        held = self.block.held.items()
        return [
            self.block.address(offset)
            for offset, one in sorted(held)
            if one.node == self._node and offset in self.wanted
        ]

    @property
    def is_written(self) -> bool:
        """Whether the document is known to say what it should."""
        if self._unsure or self._document is None:
            return self.is_idle and not self._unsure
        return blocks.merge(self.block, self._node, self._kept).block == self.block

    @property
    def is_idle(self) -> bool:
        """Whether this node has nothing of it."""
        return not self.wanted and not self.parting

    @property
    def is_full(self) -> bool:
        """Whether every address is held."""
        return len(self._busy) >= self.cidr.num_addresses - RESERVED

    def refresh(self, block: Block, document: Document | None) -> None:
        """The block as it was just read."""
        known = self._document.revision if self._document is not None else None
        if known != (document.revision if document is not None else None):
            # A write of our own may have come after it was read, or be under way.
            self._unsure = True
            if self._writer is None:
                self.block, self._document = block, document

    def doubt(self) -> None:
        """The document may have been changed: `is_written` no longer, until the next `flush`."""
        self._unsure = True

    def holder(self, offset: int) -> Holder | None:
        """Who has that offset."""
        if (ours := self.wanted.get(offset)) is not None:
            return ours
        found = self.block.held.get(offset)
        return found if found is not None and found.node != self._node else None

    def next_free(self, now: float, reuse_delay_s: float, *, cooling: bool = True) -> int | None:
        """The offset to hand out next, None where all are held.

        Without `cooling`, None also where only offsets are left that were released a moment ago.
        """
        while self.cooling:
            offset, at = next(iter(self.cooling.items()))
            # A release "in the future" is a clock that was set back: it has cooled too.
            if at <= now < at + reuse_delay_s:
                break
            del self.cooling[offset]
        busy = blocks.bitmap(self._busy)
        found = blocks.choose_address(self.block, busy, tuple(self.cooling), self.last)
        return found if cooling or found not in self.cooling else None

    def is_empty(self, now: float, for_s: float) -> bool:
        """Whether the node has had nothing of it for so long, from the first question on."""
        if self.wanted:
            return False
        if self.empty_since is None or now < self.empty_since:
            self.empty_since = now
        return self.empty_since + for_s <= now

    def want(self, offset: int, holder: Holder, *, in_use: bool = False) -> None:
        """Have that offset from the next `flush` on; `in_use` where a pod has it already."""
        self.wanted[offset] = holder
        if in_use:
            self._in_use.add(offset)
        self.parting.pop(offset, None)
        self.cooling.pop(offset, None)
        self.empty_since = self.leaving_since = None

    def unwant(self, offset: int, now: float | None = None) -> None:
        """Have it no longer; released at `now`, None for one that was never used."""
        holder = self.wanted.pop(offset, None)
        if holder is None:
            return
        self._in_use.discard(offset)
        if now is not None:
            if not self.is_own:
                self.parting[offset] = holder
            self.cooling.pop(offset, None)
            self.cooling[offset] = now

    def told(self, subnets: Collection[IPNetwork]) -> bool:
        """Others are told now that these are this node's; whether any offset is free by that."""
        gone = [one for one in self.parting if ip_network(self.block.address(one)) not in subnets]
        for offset in gone:
            del self.parting[offset]
        return bool(gone)

    async def flush(self) -> None:
        """Have the document say what is wanted now.

        Raises StoreUnavailableError and what else the store raises; the next `flush` tries again.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if self._writer is None:
                self._writer = asyncio.create_task(self._write_all())
        await asyncio.shield(self._next)

    async def reread(self) -> None:
        """Know what others have of it now. Raises as `flush`."""
        self.doubt()
        await self.flush()

    async def stop(self) -> None:
        """Let a write end that is under way."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def delete(self) -> bool:
        """Delete the document of a block that nobody has anything of; False where somebody has."""
        if not self.is_idle or self._writer is not None or self._document is None:
            return False
        if self._unsure or not self.is_written:
            await self.flush()
        if not self.is_idle or self.block.held:
            return False
        self._unsure = True
        try:
            await self._documents.delete(self._document)
        except DocumentConflictError:
            await self._read()
            return self._document is None
        self._document = None
        self._unsure = False
        return True

    @property
    def _kept(self) -> dict[int, Holder]:
        """What the document is to say that this node has."""
        return {**self.parting, **self.wanted}

    @property
    def _busy(self) -> set[int]:
        """What anybody has of it."""
        others = (offset for offset, one in self.block.held.items() if one.node != self._node)
        return {*self.wanted, *self.parting, *others}

    async def _write_all(self) -> None:
        try:
            while self._next is not None:
                waiting, self._next = self._next, None
                try:
                    await self._write()
                except Exception as error:
                    waiting.set_exception(error)
                    waiting.exception()  # Nobody may be waiting any more.
                except BaseException:
                    waiting.cancel()
                    raise
                else:
                    waiting.set_result(None)
        finally:
            self._writer = None

    async def _write(self) -> None:
        if self._unsure:
            await self._read()
        for _ in range(_ATTEMPTS):
            wanted = self._kept
            merged, lost = blocks.merge(self.block, self._node, wanted)
            for offset in lost:
                self._lose(offset)
            if self._document is None:
                if not wanted:
                    return
            elif merged == self.block:
                self._in_use |= wanted.keys() & self.wanted.keys()
                return
            try:
                self._unsure = True
                await self._put(merged)
            except DocumentConflictError:
                await self._read()
            except StoreUnavailableError as error:
                self._unsure = error.may_have_happened
                raise
            else:
                self._unsure = False
                self._in_use |= wanted.keys() & self.wanted.keys()
                return
        raise ContendedError(f"block {self.cidr}: others keep changing it", remedy="try again")

    async def _put(self, block: Block) -> None:
        value = encode_block(block)
        if self._document is None:
            name = document_name(block.cidr)
            self._document = await self._documents.create("ipamblocks", name, value)
        else:
            self._document = await self._documents.replace(self._document, value)
        self.block = block

    async def _read(self) -> None:
        found = await self._documents.get("ipamblocks", document_name(self.cidr))
        if found is None:
            # What others had of it is theirs to write down again.
            node = self._node if self.is_own else ""
            self.block = msgspec.structs.replace(self.block, node=node, held={})
        else:
            self.block = decode_block(found)
        self._document = found
        self._unsure = False

    def _lose(self, offset: int) -> None:
        self.parting.pop(offset, None)
        ours = self.wanted.pop(offset, None)
        if offset not in self._in_use:
            return  # Somebody was faster; another one is chosen.
        self._in_use.discard(offset)
        log.error(
            "address is somebody else's",
            extra=fields(address=self.block.address(offset), of=ours, by=self.holder(offset)),
        )
