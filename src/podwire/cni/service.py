"""Answers CNI requests: what each command does for the runtime.

What lives here: the commands, and when they are refused. What does not: parsing (`protocol`), the
shape of results (`results`), sockets (`server`), and how an attachment is made and released
(`attachments`).

    ADD   answers the same again for an attachment that stands; else what is left of it is released,
          and it is made
    DEL   answers as soon as the pod is cut off and its addresses are free

Everything here runs in one event loop. Requests that the node's network is not ready for get error
11: DEL and GC are never among them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from podwire.cni import protocol, recovery, results, upkeep, wiring
from podwire.cni.attachments import Annotations, Attachments, about, namespace_exists
from podwire.cni.failures import as_cni_error, netns_error
from podwire.cni.install import NETWORK_NAME
from podwire.cni.types import CniError, Code, Command, Reply, Request
from podwire.cni.wiring import Wiring
from podwire.errors import IpamError
from podwire.ipam.allocator import Allocator
from podwire.ipam.record import Key, PodIdentity, Record, State
from podwire.ipam.store import Store
from podwire.kernel.guards import Guards
from podwire.log import fields
from podwire.model.cluster import Attachment, NetworkConfig

log = logging.getLogger(__name__)


class CniService:
    """The node's CNI plugin, less its socket.

    `guards` are this node's; without them, each attachment looks for what they count in.
    `annotations(pod)` are those of a pod, None where nobody knows any.
    `observe(command, code, seconds)` is called after every request, code 0 for success;
    `attached(attachment)` and `detached(attachment)` when an interface has come or is going.
    """

    def __init__(
        self,
        store: Store,
        *,
        guards: Guards | None = None,
        annotations: Annotations | None = None,
        observe: Callable[[str, int, float], None] = lambda command, code, seconds: None,
        attached: Callable[[Attachment], None] = lambda attachment: None,
        detached: Callable[[Attachment], None] = lambda attachment: None,
    ) -> None:
        self._store = store
        self._observe = observe
        self._all = Attachments(
            store,
            Wiring(guards),
            annotations=annotations,
            attached=attached,
            detached=detached,
        )
        #: This node's network; None until the lease is known.
        self.network: NetworkConfig | None = None
        #: Why there is none, for the runtime.
        self.not_ready = "the node has no lease of a pod subnet yet"
        #: Why what a new pod sends would be lost although there is one; None where it would not.
        self.awaited: str | None = None

    def hand_out_by(self, allocator: Allocator | None) -> None:
        """Who hands out addresses; None for the node's own subnet. To be called before `network`
        is set."""
        self._all.allocator = allocator

    # Life.

    async def start(self) -> list[Key]:
        """Compare the store with the kernel: release what is gone, and write down what it does not
        know; the keys of what is gone.

        Gone is an attachment without host end whose namespace can't be opened either (a reboot),
        and one that was `pending` when the agent died: the runtime will ask for it again.
        """
        ports = await self._all.in_worker(self._all.wiring.ports)
        released = []
        for record in list(self._store.records.values()):
            if record.state is State.PENDING or (
                record.state is State.READY
                and record.attachment.host_ifname not in ports
                and not namespace_exists(record.attachment)
            ):
                self._all.give_back(record.key)
                released.append(record.key)
                log.info("released at start", extra=about(record))
        known = {record.attachment.host_ifname for record in self._store.records.values()}
        if unknown := ports - known:
            await self._recover(unknown)
        self._all.start()
        return released

    async def _recover(self, names: set[str]) -> None:
        """Write down what stands behind these host ends; see `recovery`."""
        log.warning(
            "the database does not know interfaces of pods that are here; it is made up from them",
            extra=fields(database=self._store.path, links=",".join(sorted(names))),
        )
        for attachment, pod in await self._all.in_worker(recovery.find, names):
            try:
                record = self._store.write(
                    attachment, last={}, network=NETWORK_NAME, pod=pod, state=State.READY
                )
            except IpamError as error:
                log.error("not recovered", extra=fields(link=attachment.host_ifname, error=error))
            else:
                log.warning("recovered", extra=about(record))

    async def stop(self) -> None:
        """Finish the background work. The interfaces stay."""
        await self._all.stop()

    @property
    def attachments(self) -> list[Attachment]:
        """The interfaces that should be there."""
        return [record.attachment for record in self._all.ready]

    async def attach_again(self, host_ifnames: Iterable[str]) -> list[str]:
        """Make interfaces that vanished anew, see `upkeep`; the names of those made."""
        if self.network is None:
            return []
        return await upkeep.attach_again(self._all, self.network, host_ifnames)

    @property
    def to_rewire(self) -> list[Attachment]:
        """The interfaces that were made for another wiring than the network's, as they are."""
        return upkeep.to_rewire(self._all, self.network) if self.network is not None else []

    async def rewire(self) -> list[str]:
        """Make those anew, with the addresses that they have; the pods that got one."""
        return await upkeep.rewire(self._all, self.network) if self.network is not None else []

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
                async with self._all.held(key := self._key(request)):
                    await self._all.release(key)
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
        async with self._all.held(key := self._key(request)):
            record = self._store.records.get(key)
            if record is None or not await self._stands(network, record, request, netns_fd):
                record = await self._all.add(network, request, netns_fd)
        links, routes = wiring.described(network, record.attachment)
        return results.add_result(
            request.version, request.conf, record.attachment, node=links, routes=routes
        )

    async def _stands(
        self, network: NetworkConfig, record: Record, request: Request, netns_fd: int
    ) -> bool:
        """Whether this attachment can be answered with again. If not it is cleaned up."""
        if record.state is State.READY and record.attachment.netns == request.netns:
            faults = await self._all.faults(network, record, netns_fd)
            if not faults:
                log.info("added before", extra=about(record))
                return True
        await self._all.release(record.key)
        return False

    async def _check(self, request: Request, netns_fd: int) -> None:
        network = self._require_network()
        prev = request.conf.prev_result
        async with self._all.held(key := self._key(request)):
            record = self._store.records.get(key)
            if record is None or record.state is not State.READY or prev is None:
                raise CniError(
                    Code.UNKNOWN_CONTAINER,
                    f"container {request.container_id} has no attachment {request.ifname}",
                )
            faults = results.disagreements(prev, record.attachment)
            faults += await self._all.faults(network, record, netns_fd)
        if faults:
            raise CniError(
                Code.CHECK_FAILED,
                f"{record.owner}: {request.ifname}: {faults[0]}",
                "; ".join(faults),
            )

    async def _collect(self, request: Request) -> None:
        """GC: release the attachments of this network that the runtime does not know."""
        valid, records = request.conf.valid_attachments, self._store.records
        keep: set[Key] = set()
        if isinstance(valid, list):
            keep = {recovery.recorded_key(records, one.key, PodIdentity()) for one in valid}
        for record in list(records.values()):
            if record.network != request.conf.name or record.key in keep:
                continue
            if not recovery.is_named_for_pod(record):
                await self._all.collect(record.key)

    # What they share.

    def _key(self, request: Request) -> Key:
        """The one that the attachment of a request is recorded under."""
        return recovery.recorded_key(self._store.records, request.key, request.pod)

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
