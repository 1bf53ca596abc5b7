"""A node's attachments: the database and the kernel, in the order that survives a crash.

What lives here: how one is made, kept and released. What does not: what a runtime asks and is
answered (`service`), what becomes of attachments without anybody asking (`upkeep`, `recovery`), and
what an interface is made of (`wiring`).

    add       row `pending` ─▶ kernel ─▶ row `ready`
    release   host end cut off ─▶ row `deleting`, addresses free ─▶ (later) kernel ─▶ no row

The database is used from the event loop's thread, and the kernel from worker threads. One
container's interface is worked on by one at a time: hold its key.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import ParamSpec, TypeAlias, TypeVar

from podwire.cni.annotations import PodWish, parse
from podwire.cni.locks import KeyedLocks
from podwire.cni.naming import host_ifname
from podwire.cni.types import CniError, Code, Request
from podwire.cni.unregister import Unregistrar
from podwire.cni.wiring import Wiring
from podwire.errors import KernelError, PodwireError
from podwire.ipam.allocator import Allocator, NodeSubnet
from podwire.ipam.record import Key, PodIdentity, Record, State
from podwire.ipam.store import Store
from podwire.kernel import netns
from podwire.log import fields
from podwire.model.cluster import Attachment, NetworkConfig
from podwire.model.state import IPAddress
from podwire.plan.macs import mac_for
from podwire.plan.wiring import wiring_of

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Of a pod. It raises PodwireError where they can't be found out.
Annotations: TypeAlias = Callable[[PodIdentity], Awaitable[Mapping[str, str]]]

#: Threads that talk to the kernel. It serialises them (the RTNL lock); more would only queue there.
_WORKERS = 4


class Attachments:
    """All of one node's. `start` before anything else, and `stop` at the end."""

    def __init__(
        self,
        store: Store,
        kernel: Wiring,
        *,
        annotations: Annotations | None,
        attached: Callable[[Attachment], None],
        detached: Callable[[Attachment], None],
    ) -> None:
        """`annotations` None: nobody knows any. `attached` and `detached` are told of interfaces
        that have come, or are going."""
        self.store = store
        self.wiring = kernel
        self.attached = attached
        self.detached = detached
        #: Who hands out addresses where that is not the node's own subnet.
        self.allocator: Allocator | None = None
        #: Interfaces that vanished and could not be made anew; they wait for their DEL.
        self.lost: set[Key] = set()
        self._annotations = annotations
        self._unread = False
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="cni")
        self._unregistrar = Unregistrar(store, self._unregister)
        self._locks: KeyedLocks[Key] = KeyedLocks()

    def start(self) -> None:
        """Go on with what was being released."""
        self._unregistrar.start()

    async def stop(self) -> None:
        """Finish the background work. The interfaces stay."""
        await self._unregistrar.stop()
        self._workers.shutdown()

    @property
    def ready(self) -> list[Record]:
        """Those whose interfaces should be there."""
        return [one for one in self.store.records.values() if one.state is State.READY]

    def held(self, key: Key) -> AbstractAsyncContextManager[None]:
        """The only one to work on that attachment for the duration of the block."""
        return self._locks.held(key)

    async def in_worker(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what may block, as all that is asked of the kernel."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, lambda: call(*args, **kwargs))

    # Made.

    async def add(self, network: NetworkConfig, request: Request, netns_fd: int) -> Record:
        """An attachment that there was none of. Raises PodwireError; then there is none still."""
        started = time.perf_counter()
        if request.requested_mac is not None and network.fabric.is_one_segment:
            raise CniError(
                Code.INVALID_NETWORK_CONFIG,
                "mac: no hardware address can be asked for on one segment of all nodes, which"
                " know each pod's by its IP address",
            )
        asked = await self._asked(network, request)
        name = host_ifname(network.fabric, request.key, request.pod)
        await self._replace(name, request.key)
        await self._unregistrar.make_room(request.key, request.netns, name)
        allocator = self.allocator or NodeSubnet(self.store, network.lease.subnets)
        record = await allocator.reserve(
            request.key,
            lambda ips: _attachment(network, request, ips, name, may_spoof=asked.may_spoof),
            asked.wish,
            network=request.conf.name,
            pod=request.pod,
        )
        try:
            await self.in_worker(self.wiring.attach, network, record.attachment, netns_fd)
        except BaseException:
            # The kernel has nothing of it any more; the background task makes sure of that.
            self.give_back(request.key)
            self._unregistrar.add(request.key)
            raise
        record = self.store.mark_ready(request.key)
        self.attached(record.attachment)
        log.info("added", extra=about(record, ms=_ms_since(started)))
        return record

    async def make_again(self, network: NetworkConfig, record: Record) -> None:
        """An interface with the addresses that it had. Raises PodwireError."""
        await self.in_worker(_attach_in, self.wiring, network, record.attachment)

    async def faults(self, network: NetworkConfig, record: Record, netns_fd: int) -> list[str]:
        """What is wrong with an interface, one sentence a fault."""
        return await self.in_worker(self.wiring.check, network, record.attachment, netns_fd)

    async def _asked(self, network: NetworkConfig, request: Request) -> PodWish:
        """What the pod asks for, by annotation or by its runtime."""
        found: Mapping[str, str] = {}
        if request.pod.namespace and request.pod.name:
            if self._annotations is not None:
                found = await self._annotations(request.pod)
            elif not self._unread:
                self._unread = True
                log.warning(
                    "annotations of pods are not read: without --store kube there is no API to ask",
                    extra=fields(pod=str(request.pod)),
                )
        calico = network.fabric.ipam == "blocks"
        return parse(found, calico=calico, ips=request.requested_ips)

    async def _replace(self, name: str, key: Key) -> None:
        """Release whoever has that host end. A pod that is given a new sandbox before the old one
        is taken away has it twice, where names are made of the pod's."""
        for record in list(self.store.records.values()):
            if (
                record.attachment.host_ifname == name
                and record.key != key
                and record.state is not State.DELETING
            ):
                async with self.held(record.key):
                    await self.release(record.key)

    # Released.

    def give_back(self, key: Key) -> None:
        """The addresses are free again; the row stays until the interface is gone."""
        was = self.store.records[key].state
        record = self.store.begin_delete(key)
        if self.allocator is not None and was is not State.DELETING:
            self.allocator.released(record)

    async def release(self, key: Key) -> None:
        """Cut an attachment off and give its addresses back; nothing where there is none."""
        record = self.store.records.get(key)
        if record is None or record.state is State.DELETING:
            return
        started = time.perf_counter()
        try:
            await self.in_worker(self.wiring.cut_off, record.attachment)
        except PodwireError as error:
            # It is deleted in a moment in any case.
            log.warning("not cut off", extra=about(record, error=error))
        self.give_back(key)
        self.lost.discard(key)
        self._unregistrar.add(key)
        if record.state is State.READY:
            self.detached(record.attachment)
        log.info("deleted", extra=about(record, ms=_ms_since(started)))

    async def collect(self, key: Key) -> None:
        """Release one that its runtime does not know, also where that was tried before."""
        async with self.held(key):
            await self.release(key)
        self._unregistrar.add(key)

    async def _unregister(self, records: Sequence[Record]) -> None:
        await self.in_worker(self.wiring.unregister, [record.attachment for record in records])


def about(record: Record, **more: object) -> dict[str, object]:
    """The fields of a line of the log about an attachment."""
    return fields(
        pod=str(record.pod) or "-",
        container=record.key.container_id,
        ifname=record.key.ifname,
        ips=",".join(str(ip.ip) for ip in record.attachment.ips),
        **more,
    )


def namespace_exists(attachment: Attachment) -> bool:
    """Whether the pod's network namespace can be opened."""
    try:
        os.close(netns.open_netns(attachment.netns))
    except KernelError:
        return False
    return True


def _attachment(
    network: NetworkConfig,
    request: Request,
    ips: Sequence[IPAddress],
    name: str,
    *,
    may_spoof: bool,
) -> Attachment:
    seen = [wiring_of(network.fabric).seen_by_pod(network, ip) for ip in ips]
    return Attachment(
        container_id=request.container_id,
        ifname=request.ifname,
        netns=request.netns,
        host_ifname=name,
        mac=request.requested_mac or mac_for(ips[0]),
        ips=tuple(ip for ip, _ in seen),
        gateways=tuple(gateway for _, gateway in seen),
        pod=str(request.pod),
        mtu=network.mtu,
        may_spoof=may_spoof,
    )


def _attach_in(kernel: Wiring, network: NetworkConfig, attachment: Attachment) -> None:
    fd = netns.open_netns(attachment.netns)
    try:
        kernel.attach(network, attachment, fd)
    finally:
        os.close(fd)


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
