"""What was dropped on this node and why: by the guards in nft and at pods' ports, and by the UDP
tunnel.

All of them count by themselves; here they are asked.
"""

from __future__ import annotations

from collections.abc import Callable

from podwire.agent.peering import Peering
from podwire.agent.worker import KernelWorker
from podwire.errors import KernelError, PodwireError
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from podwire.kernel.nft_counters import Counts, read_counters
from podwire.model.cluster import NetworkConfig
from podwire.model.state import NFT_TABLE, NftTable
from podwire.model.tunnel import DROPS, ENCRYPTION_DROPS, Stats
from podwire.plan import spoofing
from podwire.trace.status import DropCount

#: Where both have a name, what the tunnel itself means by it is the wider sense.
TUNNEL_DROPS = {**ENCRYPTION_DROPS, **DROPS}


class Drops:
    """Reads all counters of one node; `network` says what that is planned with."""

    def __init__(
        self,
        worker: KernelWorker,
        peering: Peering,
        network: Callable[[], NetworkConfig | None],
    ) -> None:
        self._worker = worker
        self._peering = peering
        self._network = network

    async def read(self) -> tuple[DropCount, ...]:
        """Everything that is counted, also what has not been dropped yet."""
        guards = await self._worker.call(lambda: self._guards() + self._at_ports())
        stats = await self._peering.tunnel.stats()
        return (*guards, *(of_tunnel(stats) if stats is not None else ()))

    def _guards(self) -> tuple[DropCount, ...]:
        """In the worker's thread."""
        tables = [
            entry
            for entries in self._worker.reconciler.desired.values()
            for entry in entries
            if isinstance(entry, NftTable) and entry.counters
        ]
        if not tables:
            return ()
        counts: Counts = {}
        try:
            with NetlinkSocket(NETLINK_NETFILTER) as sock:
                counts = read_counters(sock)
        except KernelError:
            pass  # The table is not there: it is about to be mended, or the node is held.
        return tuple(
            DropCount(
                reason=counter.name,
                meaning=counter.meaning,
                packets=counts.get((table.family, table.name, counter.name), (0, 0))[0],
            )
            for table in tables
            for counter in table.counters
            if table.name == NFT_TABLE
        )

    def _at_ports(self) -> tuple[DropCount, ...]:
        """In the worker's thread."""
        network = self._network()
        counters = spoofing.counted_at_ports(network) if network is not None else ()
        if not counters:
            return ()
        try:
            counts = self._worker.reconciler.guards.counts()
        except PodwireError:
            counts = {}
        return tuple(
            DropCount(reason=one.name, meaning=one.meaning, packets=counts.get(one.name, 0))
            for one in counters
        )


def of_tunnel(stats: Stats) -> tuple[DropCount, ...]:
    """What the tunnel's process counted."""
    return tuple(
        DropCount(reason=reason, meaning=TUNNEL_DROPS.get(reason, ""), packets=packets)
        for reason, packets in stats.dropped.items()
    )
