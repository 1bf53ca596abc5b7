"""Who hands out pods' addresses, where that is not the node's own subnet.

What lives here: the life of the allocator that shares documents with other nodes: when it is made,
started, told of nodes, and left. What does not: how it allocates (`podwire.ipam`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

import msgspec

from podwire.agent.pods import Pods
from podwire.cluster.source import LeaseSource
from podwire.ipam.allocator import SharedAllocator
from podwire.ipam.shared import shared_allocator
from podwire.log import fields
from podwire.model.cluster import NetworkConfig
from podwire.model.fabric import Fabric
from podwire.model.state import IPNetwork

log = logging.getLogger(__name__)


class Allocation:
    """The shared allocator of this node, where its fabric has one. `changed` is called whenever the
    node's subnets are others than before."""

    def __init__(
        self, node: str, source: LeaseSource, pods: Pods, changed: Callable[[], None]
    ) -> None:
        self._node = node
        self._source = source
        self._pods = pods
        self._changed = changed
        self._made_for: object = None
        self._allocator: SharedAllocator | None = None
        self._running: asyncio.Task[None] | None = None
        self._names: frozenset[str] = frozenset()

    async def subnets(
        self, fabric: Fabric, networks: tuple[IPNetwork, ...]
    ) -> tuple[IPNetwork, ...] | None:
        """What this node leases; None where the store says so. Made and started where it has not
        been yet.

        Raises what the store of the documents raises; to be called again then.
        """
        wanted = (fabric.ipam, fabric.block_len, fabric.block_len6, networks)
        if wanted != self._made_for:
            await self.close()
            self._allocator = shared_allocator(
                fabric,
                self._source.documents,
                self._pods.store,
                node=self._node,
                networks=networks,
                is_gone=self._source.is_gone,
                changed=self._changed,
            )
            self._made_for = wanted
        allocator = self._allocator
        if allocator is None:
            self._pods.hand_out_by(None)
            return None
        if (own := self._source.own) is not None:
            allocator.labels_are(own.labels)
        if self._running is None:
            await allocator.start()
            allocator.nodes_are(self._names)
            self._running = asyncio.get_running_loop().create_task(self._run(allocator))
            self._pods.hand_out_by(allocator)
        # What is left of a family that the network had before would make peers refuse the lease.
        versions = {network.version for network in networks}
        return tuple(one for one in allocator.subnets if one.version in versions)

    def nodes_are(self, names: Collection[str]) -> None:
        """These are all nodes of the cluster."""
        self._names = frozenset(names)
        if self._allocator is not None and self._running is not None:
            self._allocator.nodes_are(self._names)

    def told(self, subnets: Collection[IPNetwork]) -> None:
        """The store tells others that these are this node's."""
        if self._allocator is not None and self._running is not None:
            self._allocator.told(subnets)

    def doubt(self) -> None:
        """This node was not in the cluster for a while: others may have reclaimed what it has."""
        if self._allocator is not None and self._running is not None:
            self._allocator.doubt()

    async def close(self) -> None:
        """Let writes end that are under way."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            self._running = None
            assert self._allocator is not None  # noqa: S101
            await self._allocator.stop()
        self._allocator = None
        self._made_for = None

    async def _run(self, allocator: SharedAllocator) -> None:
        try:
            await allocator.run()
        except Exception as error:
            # Started anew with the next look at the lease.
            log.exception("allocator ended", extra=fields(error=error))
            self._running = None
            self._changed()


def differ_in_further_subnets(before: NetworkConfig, after: NetworkConfig) -> bool:
    """Whether only blocks or ranges differ that come after the first ones.

    No pod's start depends on them: bridges and tunnels have addresses of the first ones.
    """
    if before.fabric.ipam == "node-subnet" or _first(before) != _first(after):
        return False
    lease = msgspec.structs.replace(before.lease, subnets=after.lease.subnets)
    return msgspec.structs.replace(before, lease=lease) == after


def _first(network: NetworkConfig) -> dict[int, IPNetwork]:
    """The first subnet of each family."""
    return {one.version: one for one in reversed(network.lease.subnets)}
