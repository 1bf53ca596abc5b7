"""Executes CNI requests: the store and the kernel, in the order that survives a crash.

What lives here: what each command does. What does not: parsing (`protocol`), the shape of results
(`results`), sockets (`server`), and what an interface is made of (`wiring`).

How it works. Everything here runs in one event loop; the database is used from its thread, and the
kernel from worker threads. One container's interface is worked on by one request at a time.

    ADD   row `pending` ─▶ kernel ─▶ row `ready` ─▶ answer
    DEL   host end cut off ─▶ row `deleting`, addresses free ─▶ answer ─▶ (later) kernel ─▶ no row

ADD for an attachment that is `ready` answers the same again if the interface is really there.
Otherwise, and for one that is `pending` (the agent died in the middle), what is left is cleaned up
and it is made anew. Requests that the node's network is not ready for get error 11: DEL and GC are
never among them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import msgspec

from podwire.cni import protocol, results, wiring
from podwire.cni.annotations import PodWish, parse
from podwire.cni.failures import as_cni_error, netns_error
from podwire.cni.locks import KeyedLocks
from podwire.cni.naming import host_ifname
from podwire.cni.types import CniError, Code, Command, Reply, Request
from podwire.cni.unregister import Unregistrar
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

#: Threads that talk to the kernel. It serialises them (the RTNL lock); more would only queue there.
_WORKERS = 4


async def _no_annotations(pod: PodIdentity) -> Mapping[str, str]:
    return {}


class CniService:
    """The node's CNI plugin, less its socket.

    `annotations(pod)` are those of a pod; it raises PodwireError where they can't be found out.
    `observe(command, code, seconds)` is called after every request, code 0 for success;
    `attached(attachment)` and `detached(attachment)` when an interface has come or is going.
    """

    def __init__(
        self,
        store: Store,
        *,
        annotations: Callable[[PodIdentity], Awaitable[Mapping[str, str]]] = _no_annotations,
        observe: Callable[[str, int, float], None] = lambda command, code, seconds: None,
        attached: Callable[[Attachment], None] = lambda attachment: None,
        detached: Callable[[Attachment], None] = lambda attachment: None,
    ) -> None:
        self._store = store
        self._annotations = annotations
        self._observe = observe
        self._attached = attached
        self._detached = detached
        self._wiring = wiring.Wiring()
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="cni")
        self._unregistrar = Unregistrar(store, self._unregister)
        self._locks: KeyedLocks[Key] = KeyedLocks()
        self._lost: set[Key] = set()
        #: Who hands out addresses where that is not the node's own subnet. Set before `network`.
        self.allocator: Allocator | None = None
        #: This node's network; None until the lease is known.
        self.network: NetworkConfig | None = None
        #: Why there is none, for the runtime.
        self.not_ready = "the node has no lease of a pod subnet yet"
        #: Why what a new pod sends would be lost although there is one; None where it would not.
        self.awaited: str | None = None

    # Life.

    async def start(self) -> list[Key]:
        """Compare the store with the kernel, and release what is gone; the keys of that.

        Gone is an attachment without host end whose namespace can't be opened either (a reboot),
        and one that was `pending` when the agent died: the runtime will ask for it again.
        """
        ports = await self._in_worker(self._wiring.ports)
        released = []
        for record in list(self._store.records.values()):
            if record.state is State.PENDING or (
                record.state is State.READY
                and record.attachment.host_ifname not in ports
                and not _namespace_exists(record.attachment)
            ):
                self._give_back(record.key)
                released.append(record.key)
                log.info("released at start", extra=_about(record))
        self._unregistrar.start()
        return released

    async def stop(self) -> None:
        """Finish the background work. The interfaces stay."""
        await self._unregistrar.stop()
        self._workers.shutdown()

    @property
    def attachments(self) -> list[Attachment]:
        """The interfaces that should be there."""
        return [
            record.attachment
            for record in self._store.records.values()
            if record.state is State.READY
        ]

    async def attach_again(self, host_ifnames: Iterable[str]) -> list[str]:
        """Make interfaces that vanished anew, with the addresses they had; the names of those made.

        One whose namespace can't be opened, or that the kernel refuses, is not tried again: it
        stays away until the runtime's DEL.
        """
        names, made = set(host_ifnames), []
        for record in list(self._store.records.values()):
            if record.attachment.host_ifname not in names or self.network is None:
                continue
            if record.key in self._lost:
                continue
            async with self._locks.held(record.key):
                record = self._store.records.get(record.key, record)
                if record.state is not State.READY:
                    continue
                if not _namespace_exists(record.attachment):
                    log.info("gone with its namespace", extra=_about(record))
                    self._lost.add(record.key)
                    continue
                try:
                    await self._in_worker(_attach_again, self._wiring, self.network, record)
                except PodwireError as error:
                    log.error("not attached again", extra=_about(record, error=error))
                    if as_cni_error(error).code is not Code.TRY_AGAIN_LATER:
                        self._lost.add(record.key)
                else:
                    made.append(record.attachment.host_ifname)
                    log.info("attached again", extra=_about(record))
        return made

    @property
    def to_rewire(self) -> list[Attachment]:
        """The interfaces that were made for another wiring than the network's, as they are."""
        network = self.network
        return [
            record.attachment
            for record in self._store.records.values()
            if record.state is State.READY
            and network is not None
            and _rewired(network, record) is not None
        ]

    async def rewire(self) -> list[str]:
        """Make those anew, with the addresses that they have; the pods that got one.

        First the old interface goes, then the database changes, then the new one comes: whatever
        is interrupted in between is completed at the next start, or by `attach_again`.
        """
        made = []
        for record in list(self._store.records.values()):
            async with self._locks.held(record.key):
                record = self._store.records.get(record.key, record)
                network = self.network
                if record.state is not State.READY or network is None:
                    continue
                attachment = _rewired(network, record)
                if attachment is None:
                    continue
                try:
                    self._detached(record.attachment)
                    await self._in_worker(self._wiring.unregister, [record.attachment])
                    record = self._store.rewire(attachment)
                    await self._in_worker(_attach_again, self._wiring, network, record)
                except PodwireError as error:
                    log.error("not wired anew", extra=_about(record, error=error))
                else:
                    made.append(record.owner)
                    log.info("wired anew", extra=_about(record))
                # In either case it is wanted: what failed is tried again with what is missing.
                self._attached(attachment)
        return made

    # Requests.

    async def handle(
        self, env: Mapping[str, str], stdin: bytes, netns_fd: int | None, netns_errno: int = 0
    ) -> Reply:
        """Answer one call of the executable. Never raises but for cancellation.

        `netns_fd` is CNI_NETNS as the caller opened it, and stays the caller's; None with
        `netns_errno` where it could not be opened.
        """
        started = time.perf_counter()
        code = 0
        try:
            request = protocol.parse_request(env, stdin)
            reply = Reply(0, await self._execute(request, netns_fd, netns_errno))
        except Exception as error:
            failure = as_cni_error(error)
            code = int(failure.code)
            level = logging.ERROR if failure.code is Code.INTERNAL else logging.WARNING
            log.log(
                level,
                "refused",
                extra=fields(
                    command=env.get("CNI_COMMAND", ""),
                    container=env.get("CNI_CONTAINERID", ""),
                    code=code,
                    error=failure.message,
                    details=failure.details,
                ),
                exc_info=error if failure.code is Code.INTERNAL else None,
            )
            reply = protocol.error_reply(failure, protocol.version_of(stdin))
        command = env.get("CNI_COMMAND", "")
        known = command if command in Command.__members__ else "unknown"
        self._observe(known, code, time.perf_counter() - started)
        return reply

    async def _execute(self, request: Request, netns_fd: int | None, netns_errno: int) -> bytes:
        match request.command:
            case Command.ADD:
                return await self._add(request, self._usable(request, netns_fd, netns_errno))
            case Command.DEL:
                async with self._locks.held(request.key):
                    await self._release(request.key)
            case Command.CHECK:
                await self._check(request, self._usable(request, netns_fd, netns_errno))
            case Command.GC:
                await self._collect(request)
            case Command.STATUS:
                reason = self.not_ready if self.network is None else self.awaited
                if reason is not None:
                    raise CniError(Code.NOT_AVAILABLE, f"podwire is not ready: {reason}")
            case Command.VERSION:
                return protocol.version_reply(request.version).stdout
        return b""

    async def _add(self, request: Request, netns_fd: int) -> bytes:
        network = self._require_network()
        if self.awaited is not None:
            raise CniError(Code.TRY_AGAIN_LATER, f"podwire is not ready: {self.awaited}")
        prev = request.conf.prev_result
        if prev is not None and results.names_interface(prev, request.ifname):
            raise CniError(
                Code.INTERFACE_EXISTS,
                f"an earlier plugin of the chain has made {request.ifname} already",
                "podwire makes the interface itself: put it first, or where no other plugin does",
            )
        async with self._locks.held(request.key):
            record = self._store.records.get(request.key)
            if record is None or not await self._stands(network, record, request, netns_fd):
                record = await self._make(network, request, netns_fd)
        links, routes = wiring.described(network, record.attachment)
        return results.add_result(
            request.version, request.conf, record.attachment, node=links, routes=routes
        )

    async def _stands(
        self, network: NetworkConfig, record: Record, request: Request, netns_fd: int
    ) -> bool:
        """Whether this attachment can be answered with again. If not it is cleaned up."""
        if record.state is State.READY and record.attachment.netns == request.netns:
            faults = await self._in_worker(self._wiring.check, network, record.attachment, netns_fd)
            if not faults:
                log.info("added before", extra=_about(record))
                return True
        await self._release(request.key)
        return False

    async def _make(self, network: NetworkConfig, request: Request, netns_fd: int) -> Record:
        started = time.perf_counter()
        asked = await self._asked(network, request)
        name = host_ifname(network.fabric, request.key, request.pod)
        await self._replace(name, request.key)
        await self._unregistrar.make_room(request.key, request.netns, name)
        allocator = self.allocator or NodeSubnet(self._store, network.lease.subnets)
        record = await allocator.reserve(
            request.key,
            lambda ips: _attachment(network, request, ips, name, may_spoof=asked.may_spoof),
            asked.wish,
            network=request.conf.name,
            pod=request.pod,
        )
        try:
            await self._in_worker(self._wiring.attach, network, record.attachment, netns_fd)
        except BaseException:
            # The kernel has nothing of it any more; the background task makes sure of that.
            self._give_back(request.key)
            self._unregistrar.add(request.key)
            raise
        record = self._store.mark_ready(request.key)
        self._attached(record.attachment)
        log.info("added", extra=_about(record, ms=_ms_since(started)))
        return record

    async def _asked(self, network: NetworkConfig, request: Request) -> PodWish:
        """What the pod asks for, by annotation or by its runtime."""
        found: Mapping[str, str] = {}
        if request.pod.namespace and request.pod.name:
            found = await self._annotations(request.pod)
        calico = network.fabric.ipam == "blocks"
        return parse(found, calico=calico, ips=request.requested_ips)

    async def _replace(self, name: str, key: Key) -> None:
        """Release whoever has that host end. A pod that is given a new sandbox before the old one
        is taken away has it twice, where names are made of the pod's."""
        for record in list(self._store.records.values()):
            if record.attachment.host_ifname == name and record.key != key:
                async with self._locks.held(record.key):
                    await self._release(record.key)

    def _give_back(self, key: Key) -> None:
        """The addresses are free again; the row stays until the interface is gone."""
        was = self._store.records[key].state
        record = self._store.begin_delete(key)
        if self.allocator is not None and was is not State.DELETING:
            self.allocator.released(record)

    async def _release(self, key: Key) -> None:
        """Cut an attachment off and give its addresses back; nothing where there is none."""
        record = self._store.records.get(key)
        if record is None or record.state is State.DELETING:
            return
        started = time.perf_counter()
        try:
            await self._in_worker(self._wiring.cut_off, record.attachment)
        except PodwireError as error:
            # It is deleted in a moment in any case.
            log.warning("not cut off", extra=_about(record, error=error))
        self._give_back(key)
        self._lost.discard(key)
        self._unregistrar.add(key)
        if record.state is State.READY:
            self._detached(record.attachment)
        log.info("deleted", extra=_about(record, ms=_ms_since(started)))

    async def _check(self, request: Request, netns_fd: int) -> None:
        network = self._require_network()
        prev = request.conf.prev_result
        async with self._locks.held(request.key):
            record = self._store.records.get(request.key)
            if record is None or record.state is not State.READY or prev is None:
                raise CniError(
                    Code.UNKNOWN_CONTAINER,
                    f"container {request.container_id} has no attachment {request.ifname}",
                )
            faults = results.disagreements(prev, record.attachment)
            faults += await self._in_worker(
                self._wiring.check, network, record.attachment, netns_fd
            )
        if faults:
            raise CniError(
                Code.CHECK_FAILED,
                f"{record.owner}: {request.ifname}: {faults[0]}",
                "; ".join(faults),
            )

    async def _collect(self, request: Request) -> None:
        """GC: release the attachments of this network that the runtime does not know."""
        valid = request.conf.valid_attachments
        keep = {entry.key for entry in valid} if isinstance(valid, list) else set()
        for record in list(self._store.records.values()):
            if record.network != request.conf.name or record.key in keep:
                continue
            async with self._locks.held(record.key):
                await self._release(record.key)
            self._unregistrar.add(record.key)

    # What they share.

    def _require_network(self) -> NetworkConfig:
        if self.network is None:
            raise CniError(Code.TRY_AGAIN_LATER, f"podwire is not ready: {self.not_ready}")
        return self.network

    @staticmethod
    def _usable(request: Request, netns_fd: int | None, netns_errno: int) -> int:
        error = netns_error(request.netns, netns_fd, netns_errno)
        if error is not None:
            raise error
        assert netns_fd is not None  # noqa: S101  or there had been an error
        return netns_fd

    async def _unregister(self, records: Sequence[Record]) -> None:
        await self._in_worker(self._wiring.unregister, [record.attachment for record in records])

    async def _in_worker(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, lambda: call(*args, **kwargs))


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


def _rewired(network: NetworkConfig, record: Record) -> Attachment | None:
    """The interface that an attachment has in the network; None where it has it already, and for
    addresses that are not of this node's lease: to wire these would lead nowhere."""
    before = record.attachment
    if not all(any(ip.ip in one for one in network.lease.subnets) for ip in before.ips):
        return None
    seen = [wiring_of(network.fabric).seen_by_pod(network, ip.ip) for ip in before.ips]
    after = msgspec.structs.replace(
        before,
        host_ifname=host_ifname(network.fabric, record.key, record.pod),
        ips=tuple(ip for ip, _ in seen),
        gateways=tuple(gateway for _, gateway in seen),
    )
    # A pod keeps the MTU that it was made with, unless it is made anew for something else.
    return None if after == before else msgspec.structs.replace(after, mtu=network.mtu)


def _attach_again(kernel: wiring.Wiring, network: NetworkConfig, record: Record) -> None:
    fd = netns.open_netns(record.attachment.netns)
    try:
        kernel.attach(network, record.attachment, fd)
    finally:
        os.close(fd)


def _about(record: Record, **more: object) -> dict[str, object]:
    return fields(
        pod=str(record.pod) or "-",
        container=record.key.container_id,
        ifname=record.key.ifname,
        ips=",".join(str(ip.ip) for ip in record.attachment.ips),
        **more,
    )


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)


def _namespace_exists(attachment: Attachment) -> bool:
    try:
        os.close(netns.open_netns(attachment.netns))
    except KernelError:
        return False
    return True
