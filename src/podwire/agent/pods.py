"""The pods' side of the agent: the CNI service with store and socket, and the installed files."""

from __future__ import annotations

import asyncio
import contextlib

from podwire.agent import metrics
from podwire.agent.config import AgentConfig
from podwire.agent.worker import KernelWorker
from podwire.cni import install
from podwire.cni.attachments import Annotations
from podwire.cni.server import CniServer
from podwire.cni.service import CniService
from podwire.ipam.allocator import Allocator
from podwire.ipam.store import Store
from podwire.model.cluster import Attachment, NetworkConfig
from podwire.plan.node import cause_of_attachment
from podwire.plan.wiring import plan_attachment


class Pods:
    """Answers the runtime's CNI calls from `async with` on; refuses them until `use`."""

    def __init__(
        self, config: AgentConfig, worker: KernelWorker, annotations: Annotations | None = None
    ) -> None:
        """`annotations(pod)` are those of a pod of this node; None where nobody knows any."""
        self._config = config
        self._worker = worker
        self._annotations = annotations

    async def __aenter__(self) -> Pods:
        async with contextlib.AsyncExitStack() as stack:
            store = self.store = Store(self._config.state_dir / "ipam.db")
            stack.callback(store.close)
            self._service = CniService(
                store,
                guards=self._worker.reconciler.guards,
                annotations=self._annotations,
                observe=self._observe,
                attached=lambda one: self._note(one, attached=True),
                detached=lambda one: self._note(one, attached=False),
            )
            stack.push_async_callback(self._service.stop)
            await self._service.start()
            self._server = CniServer(self._config.cni_socket, self._service)
            await self._server.start()
            stack.push_async_callback(self._server.stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def say_not_ready(self, reason: str) -> None:
        """What runtimes are told until `use`."""
        self._service.not_ready = reason

    def wait_for(self, reason: str | None) -> None:
        """Refuse new pods for this reason until it is None, as what they send would be lost."""
        self._service.awaited = reason

    def hand_out_by(self, allocator: Allocator | None) -> None:
        """Who hands out addresses from the next `use` on; None for the node's own subnet."""
        self._service.hand_out_by(allocator)

    def use(self, network: NetworkConfig) -> list[Attachment]:
        """Wire pods into `network` from now on; the pods that are there already."""
        self._service.network = network
        metrics.ADDRESSES.set(sum(len(one.ips) for one in self._service.attachments))
        return self._service.attachments

    @property
    def to_rewire(self) -> list[Attachment]:
        """The pods' interfaces that are there and were made for another wiring."""
        return self._service.to_rewire

    async def rewire(self) -> None:
        """Make those anew, with the addresses that they have."""
        await self._service.rewire()

    @property
    def attachments(self) -> list[Attachment]:
        """The pods' interfaces that should be there."""
        return self._service.attachments

    @property
    def namespaces(self) -> dict[str, str]:
        """Each pod's network namespace, a path by `namespace/name`."""
        return {one.pod: one.netns for one in self._service.attachments if one.pod}

    async def announce(self) -> None:
        """Tell the runtime that pods can be wired: the executable, then the conf that names it."""
        config = self._config
        # In a thread: the first time on a machine, the executable is compiled.
        await asyncio.to_thread(
            install.install, config.cni_bin_dir, config.cni_conf_dir, config.cni_socket
        )

    async def attach_again(self, host_ifnames: list[str]) -> None:
        """Make pods' links that somebody deleted anew."""
        await self._service.attach_again(host_ifnames)

    def _note(self, attachment: Attachment, *, attached: bool) -> None:
        assert self._service.network is not None or not attached  # noqa: S101
        network = self._service.network
        entries = plan_attachment(network, attachment).host if network and attached else ()
        note = self._worker.reconciler.note
        self._worker.submit(note, cause_of_attachment(attachment), entries)
        metrics.ADDRESSES.inc(len(attachment.ips) if attached else -len(attachment.ips))

    @staticmethod
    def _observe(command: str, code: int, seconds: float) -> None:
        metrics.CNI_SECONDS.labels(command, str(code)).observe(seconds)
