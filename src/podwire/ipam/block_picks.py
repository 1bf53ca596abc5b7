"""Which addresses a pod gets of the IPAM `blocks`, in order of preference.

    own block with room ─▶ claim a free block ─▶ borrow an address of another node's block

What lives here: choosing until the documents say that what was chosen is ours, since somebody else
may be faster. What does not: the blocks and their documents (`block_set`, `ledger`), and what
becomes of an address afterwards (`block_allocator`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from podwire.ipam.allocator import Wish, one_a_family
from podwire.ipam.block import RESERVED, Holder, Pool
from podwire.ipam.block_set import BlockSet
from podwire.ipam.ledger import Ledger
from podwire.ipam.node_subnet import ContendedError, RequestedAddressError
from podwire.ipam.pools import Pools
from podwire.model.state import IPAddress

#: So often an address is chosen anew that somebody else had taken by the time it was written.
_ATTEMPTS = 16


class Pick(NamedTuple):
    """An address chosen for `holder`, an object of its own: it tells this pick from all others."""

    ledger: Ledger
    offset: int
    holder: Holder
    asked_for: bool

    @property
    def ip(self) -> IPAddress:
        return self.ledger.block.address(self.offset)

    @property
    def is_ours(self) -> bool:
        """Whether nobody else was faster."""
        return self.ledger.wanted.get(self.offset) is self.holder


class Picker:
    """Chooses for one node."""

    def __init__(
        self,
        node: str,
        blocks: BlockSet,
        pools: Pools,
        *,
        reuse_delay_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._node = node
        self._blocks = blocks
        self._pools = pools
        self._reuse_delay_s = reuse_delay_s
        self._clock = clock

    async def take(self, picks: list[Pick], holder: Holder, wish: Wish) -> None:
        """Fill `picks` with one address of each family that the documents say are ours."""
        requested = one_a_family(wish)
        for ip in requested.values():
            if ip.version not in self._pools.versions:
                raise wish.refused(f"{ip} is of a family that the pod network does not have")
        for _ in range(_ATTEMPTS):
            picked = {pick.ip.version for pick in picks}
            for version in self._pools.versions:
                if version in picked:
                    continue
                if version in requested:
                    picks.append(await self._pick_requested(requested[version], holder, wish))
                else:
                    picks.append(await self._pick(self._pools.of(version, wish), holder))
            ledgers = {id(pick.ledger): pick.ledger for pick in picks}
            await asyncio.gather(*(one.flush() for one in ledgers.values()))
            lost = [pick for pick in picks if not pick.is_ours]
            if not lost:
                return
            for pick in lost:
                picks.remove(pick)
        raise ContendedError("others keep taking the addresses chosen", remedy="try again")

    async def _pick(self, pools: Sequence[Pool], holder: Holder) -> Pick:
        while True:
            own = self._blocks.own(pools)
            for cooling in (False, True):
                for ledger in own:
                    if (pick := self._pick_from(ledger, holder, cooling=cooling)) is not None:
                        return pick
            lender = await self._blocks.extend(pools, own)
            if lender is not None and (pick := self._pick_from(lender, holder)) is not None:
                return pick

    def _pick_from(self, ledger: Ledger, holder: Holder, *, cooling: bool = True) -> Pick | None:
        offset = ledger.next_free(self._clock(), self._reuse_delay_s, cooling=cooling)
        if offset is None:
            return None
        ledger.last = offset
        return self._want(ledger, offset, holder, asked_for=False)

    async def _pick_requested(self, ip: IPAddress, holder: Holder, wish: Wish) -> Pick:
        pool = self._pools.requested(ip, wish)
        cidr = pool.block(pool.index(ip))
        if int(ip) - int(cidr.network_address) < RESERVED:
            raise wish.refused(
                f"{ip} is the first address of the block {cidr}, which is its node's own",
                remedy="ask for another one",
            )
        try:
            ledger = await self._blocks.claim_or_open(ip, cidr)
        except RequestedAddressError as error:
            raise wish.refused(error.message, remedy=error.remedy) from error
        offset = ledger.block.offset(ip)
        other = ledger.holder(offset)
        if other is not None and other.node != self._node:
            await ledger.reread()
            other = ledger.holder(offset)
        if other is not None:
            raise wish.refused(f"{ip} is held by {other}", remedy="ask for another one")
        return self._want(ledger, offset, holder, asked_for=True)

    @staticmethod
    def _want(ledger: Ledger, offset: int, holder: Holder, *, asked_for: bool) -> Pick:
        # A holder of its own, so that this very pick is told from another one of the same pod.
        mine = msgspec.structs.replace(holder)
        ledger.want(offset, mine)
        return Pick(ledger, offset, mine, asked_for)
