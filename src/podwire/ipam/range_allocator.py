"""The IPAM `cluster-range`: addresses of one big layer-2 network, out of this node's own ranges.

What lives here: which address of the ranges is handed out. What does not: how a node comes by
ranges (`range_ring`), and what nodes that are gone have left behind (`reclaim`).

    reserve:  own range with room ─▶ (a free slot, or a part of another node's range) ─▶ database

Handing out asks nobody: the database of the node is all there is, and a pod starts as fast as with
a subnet of its own. Only who runs out of addresses has to ask. The first range has the address of
the node's own bridge, which is the gateway of its pods; it stays for as long as the node does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NoReturn

from podwire.errors import InputError
from podwire.ipam import ranges
from podwire.ipam.allocator import Make, Wish, one_a_family, refuse_pools
from podwire.ipam.node_subnet import ContendedError
from podwire.ipam.range_pool import RangePool
from podwire.ipam.range_ring import RangeRing
from podwire.ipam.reclaim import GRACE_S, Reclaimer
from podwire.ipam.record import Key, PodIdentity, Record, State
from podwire.ipam.span import REUSE_DELAY_S
from podwire.ipam.store import Store
from podwire.model.documents import Document, Documents
from podwire.model.state import IPAddress, IPNetwork

log = logging.getLogger(__name__)


class RangeAllocator:
    """One node's part in it. `start` it before anything else; all runs in one event loop."""

    def __init__(
        self,
        documents: Documents,
        store: Store,
        *,
        node: str,
        networks: Sequence[IPNetwork],
        is_gone: Callable[[str], Awaitable[bool]],
        changed: Callable[[], None] = lambda: None,
        reuse_delay_s: float = REUSE_DELAY_S,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`changed` is called whenever `subnets` is another than before; see `SharedAllocator`."""
        self._store = store
        self._changed = changed
        self._clock = clock
        self._announced: tuple[IPNetwork, ...] = ()
        self._reserving = 0
        self._stopped = True
        self._extending = asyncio.Lock()
        self._pools = {
            network: RangePool(network, reuse_delay_s=reuse_delay_s) for network in networks
        }
        self._ring = RangeRing(
            documents,
            node,
            networks=networks,
            held=lambda network: self._pools[network].in_use,
            updated=self._update,
        )
        self._reclaimer = Reclaimer(
            documents, "ipamranges", node=node, strip=_strip, is_gone=is_gone, grace_s=grace_s
        )

    @property
    def subnets(self) -> tuple[IPNetwork, ...]:
        """This node's ranges as networks: the one with the bridge's address in front."""
        own = [self._ring.own(network) for network in self._pools]
        if not all(own):
            return self._announced  # Another one is on its way.
        return tuple(cidr for found in own for one in found for cidr in one.cidrs)

    # Life.

    async def start(self) -> None:
        """Learn of the ranges, and see that there is one of each family."""
        for ip, owner in self._known().items():
            if (pool := self._pool_of(ip)) is not None:
                pool.hold(ip, owner)
        for ip, at in self._store.released().items():
            if (pool := self._pool_of(ip)) is not None:
                pool.release(ip, at)
        for network, pool in self._pools.items():
            pool.last = self._store.last(network)
        self._stopped = False
        await self._ring.start()
        # Nobody has told this allocator of what was deleted meanwhile.
        if not self._reserving:
            known, now = self._known(), self._clock()
            for pool in self._pools.values():
                pool.keep(known, now)
        self._update()

    async def run(self) -> NoReturn:
        """Follow the documents, and answer other nodes' requests."""
        await self._ring.run()

    async def stop(self) -> None:
        """Stop following."""
        self._stopped = True
        await self._reclaimer.stop()
        await self._ring.stop()

    def labels_are(self, labels: Mapping[str, str] | None) -> None:
        """There is one network, for all nodes."""

    def told(self, subnets: Collection[IPNetwork]) -> None:
        """Nobody goes by what nodes tell of their ranges."""

    def nodes_are(self, names: Collection[str]) -> None:
        self._reclaimer.nodes_are(names)

    def doubt(self) -> None:
        """The watch shows what has become of the ranges."""

    def _update(self) -> None:
        """The ranges may be others now."""
        self._reclaimer.mention({token.node for token in self._ring.tokens})
        for network, pool in self._pools.items():
            own = self._ring.own(network)
            if not own:
                return  # Another one is on its way; until then nothing is given up.
            pool.use(own)
        now = self.subnets
        if now != self._announced:
            self._announced = now
            self._changed()

    # Handing out.

    async def reserve(
        self, key: Key, make: Make, wish: Wish, *, network: str, pod: PodIdentity
    ) -> Record:
        refuse_pools(wish, "cluster-range")
        requested = one_a_family(wish)
        owner = f"pod {pod}" if pod.name else f"container {key.container_id}"
        chosen: list[IPAddress] = []
        self._reserving += 1
        last: dict[IPNetwork, IPAddress] = {}
        try:
            for version in requested.keys() - {one.version for one in self._pools}:
                raise wish.refused(
                    f"{requested[version]} is of a family that the pod network does not have"
                )
            for whole, pool in self._pools.items():
                ip = requested.get(whole.version)
                if ip is None:
                    ip = last[whole] = await self._next(pool)
                else:
                    self._check(ip, pool, wish)
                pool.hold(ip, owner, advance=whole in last)
                chosen.append(ip)
            if self._stopped:
                raise ContendedError("addresses are being set up anew", remedy="try again")
            return self._store.write(make(tuple(chosen)), last=last, network=network, pod=pod)
        except BaseException:
            for ip, pool in zip(chosen, self._pools.values(), strict=False):
                pool.drop(ip)
            raise
        finally:
            self._reserving -= 1

    def released(self, record: Record) -> None:
        now = self._clock()
        for interface in record.attachment.ips:
            if (pool := self._pool_of(interface.ip)) is not None:
                pool.release(interface.ip, now)

    async def _next(self, pool: RangePool) -> IPAddress:
        while True:
            ip = pool.next_free(self._clock())
            if ip is not None:
                return ip
            async with self._extending:
                if pool.next_free(self._clock()) is None:
                    await self._ring.extend(pool.network)

    def _check(self, ip: IPAddress, pool: RangePool, wish: Wish) -> None:
        if ip not in pool.network:
            raise wish.refused(
                f"{ip} is outside of the pod network {pool.network}",
                remedy="ask for an address of this node's ranges (podwire.io/ranges of its Node)",
            )
        if not pool.has(ip):
            whose = self._ring.owner(ip, pool.network)
            raise wish.refused(
                f"{ip} is in a range of node {whose}"
                if whose
                else f"{ip} is in no range of this node",
                remedy="ask for an address of this node's ranges (podwire.io/ranges of its Node)",
            )
        if (holder := pool.holder(ip)) is not None:
            raise wish.refused(f"{ip} is held by {holder}", remedy="ask for another one")

    def _known(self) -> dict[IPAddress, str]:
        """Who has which address, as the database says."""
        held = (one for one in self._store.records.values() if one.state is not State.DELETING)
        return {face.ip: record.owner for record in held for face in record.attachment.ips}

    def _pool_of(self, ip: IPAddress) -> RangePool | None:
        return next((pool for network, pool in self._pools.items() if ip in network), None)


def _strip(document: Document, gone: str) -> bytes | None:
    """A range's document without a node."""
    try:
        token = ranges.decode_token(document)
    except InputError:
        return document.value
    if token.node == gone:
        return None
    return document.value
