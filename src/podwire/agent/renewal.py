"""This node's own lease: looked at again whenever something that it depends on may have changed.

    store's own ┐                    ┌─ not ready: what is missing
    underlay    ┼─▶ acquire ─▶ look ─┼─ nothing new can be known: the store is away
    kernel      ┘                    └─ NetworkConfig ─▶ (adopted, `control`) ─▶ publish

What lives here: the questions and their order. What does not: what a lease consists of (`lease`),
telling of it (`publication`), and what follows from it (`control`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from podwire.agent.allocation import Allocation
from podwire.agent.config import AgentConfig
from podwire.agent.fabrics import stored_fabric
from podwire.agent.files import read_subnet_env, subnet_env
from podwire.agent.lease import check_mtu, check_subnets, network_config, relevant, wanted_lease
from podwire.agent.pods import Pods
from podwire.agent.publication import Publication
from podwire.agent.worker import KernelWorker
from podwire.cluster.source import LeaseSource
from podwire.errors import ApiUnavailableError, PodwireError, StoreUnavailableError
from podwire.files import write_atomically
from podwire.kernel.link_queries import find_link
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.underlay import find_underlay
from podwire.log import fields
from podwire.model.cluster import Lease, NetworkConfig, Underlay
from podwire.model.fabric import Fabric, Guard
from podwire.model.state import IPNetwork
from podwire.tunnel.keys import load_or_create_key, public_key

log = logging.getLogger(__name__)

_AWAY = (ApiUnavailableError, StoreUnavailableError)


class NotReady(PodwireError):
    """Something is missing that pods can't be wired without; the message says what."""


class Renewal:
    """Asks for this node's lease, and tells of it. `try_again` is called when it is time to."""

    def __init__(
        self,
        config: AgentConfig,
        source: LeaseSource,
        worker: KernelWorker,
        pods: Pods,
        allocation: Allocation,
        *,
        guard: Guard,
        try_again: Callable[[], None],
    ) -> None:
        self._config = config
        #: What keeps pods to their own addresses; another one counts from the next look on.
        self.guard = guard
        self._source = source
        self._worker = worker
        self._allocation = allocation
        self._publication = Publication(source, pods, try_again)
        self._socket = NetlinkSocket()

        #: X25519, of the encrypted tunnel; None until it is used.
        self.private_key: bytes | None = None

    def close(self) -> None:
        self._socket.close()

    @property
    def is_put_off(self) -> bool:
        """Whether it is tried again later; at once, if the store is back."""
        return self._publication.is_put_off

    async def look(self, before: NetworkConfig | None) -> NetworkConfig | None:
        """What this node is to be planned with from now on; None where the store is away and
        nothing better is known than `before`, what it is planned with now.

        Raises NotReady.
        """
        own = self._source.own
        if own is None:
            raise NotReady(f"node {self._config.node_name} does not exist in the cluster")
        underlay = await self._worker.call(self._find_underlay)
        own = self._source.own
        if own is None:
            # Gone meanwhile, and looked for without its addresses: the next round tells.
            return None
        if isinstance(underlay, str):
            raise NotReady(underlay)
        self._publication.begin()
        try:
            fabric, networks = stored_fabric(
                self._config.options, self._config.network, self._source.network
            )
            self._config.refuse_idle(fabric)
            underlay = relevant(underlay, networks)
            check_mtu(fabric, networks, underlay)
            macs = await self._vtep_macs(fabric, before)
            wanted = wanted_lease(fabric, own, underlay, macs, self._public_key(fabric))
            lease = await self._leased(fabric, networks, wanted)
        except _AWAY as error:
            self._publication.put_off()
            if before is None:
                raise NotReady(str(error)) from error
            log.error("lease not renewed", extra=fields(error=error))
            return None
        except PodwireError as error:
            raise NotReady(str(error)) from error
        return network_config(
            self._config.node_name,
            fabric,
            networks,
            lease,
            underlay,
            masquerade=self._config.masquerade,
            guard=self.guard,
        )

    async def _leased(
        self, fabric: Fabric, networks: tuple[IPNetwork, ...], wanted: Lease
    ) -> Lease:
        """`wanted` with this node's subnets, from its allocator or from the store."""
        subnets = await self._allocation.subnets(fabric, networks)
        if subnets is not None:
            return msgspec.structs.replace(wanted, subnets=subnets)
        previous = read_subnet_env(self._config.subnet_file)
        lease = await self._source.acquire(wanted, previous)
        check_subnets(self._config.node_name, networks, lease.subnets)
        return lease

    async def publish(self, network: NetworkConfig, *, again: bool) -> str | None:
        """Let others know the lease; None, or why that could not be done and is tried again."""
        self._publication.begin()
        try:
            content = subnet_env(network).encode()
            write_atomically(self._config.subnet_file, content, parents=True)
            await self._publication.publish(network, again=again)
            self._allocation.told(network.lease.subnets)
        except PodwireError as error:
            # Peers that know the old lease still reach us; the kernel here is right already.
            log.error("not published", extra=fields(error=error))
            self._publication.put_off()
            return str(error)
        return None

    async def underlay_differs(self, network: NetworkConfig | None) -> bool:
        """Whether the underlay is another than the one that `network` uses."""
        found = await self._worker.call(self._find_underlay)
        if network is None or isinstance(found, str):
            return True
        return relevant(found, network.network) != network.underlay

    def _find_underlay(self) -> Underlay | str:
        """In the worker's thread."""
        own = self._source.own
        candidates = own.node.internal_ips if own is not None else ()
        return find_underlay(self._socket, candidates, self._config.iface)

    def _public_key(self, fabric: Fabric) -> bytes | None:
        if not fabric.encrypt:
            return None
        if self.private_key is None:
            self.private_key = load_or_create_key(self._config.tunnel_key)
        return public_key(self.private_key)

    async def _vtep_macs(self, fabric: Fabric, before: NetworkConfig | None) -> dict[int, bytes]:
        """The MACs of this node's VTEPs, by the underlay's IP version."""
        found: dict[int, bytes] = {}
        for version in (4, 6):
            endpoint = before.lease.endpoint(version) if before is not None else None
            if endpoint is not None and endpoint.vtep_mac is not None:
                found[version] = endpoint.vtep_mac
                continue
            device = fabric.vxlan_dev_over(version)
            link = await self._worker.call(find_link, self._socket, device)
            if link is not None and link.ours and link.mac:
                found[version] = link.mac
        return found
