"""The sandbox of one pod: made, with a network and the files in it, found lost, ended.

What lives here: all that is done to it, and the back-off of making it. What does not: when
(`worker`), the sandbox itself (`podwire.lab.sandbox`), and how a network is attached (`network`).

The record is written after each step, as what it does not have nobody would take away.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from typing import Literal

from podwire.errors import PodwireError
from podwire.lab import sandbox as sandboxes
from podwire.lab.kubelet import files
from podwire.lab.kubelet.containers import Containers
from podwire.lab.kubelet.events import reference
from podwire.lab.kubelet.node import Node
from podwire.lab.kubelet.process_end import ProcessEnd
from podwire.lab.kubelet.records import PodRecord
from podwire.lab.kubelet.spec import Pod, ignored
from podwire.lab.sandbox import POD_FILES

_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 5.0
_KILL_WAIT_S = 2.0

_log = logging.getLogger(__name__)


class PodSandbox:
    """That of the pod of `record`, which it keeps up to date."""

    def __init__(
        self, node: Node, record: PodRecord, containers: Containers, wake: Callable[[], None]
    ) -> None:
        """`wake` is called when it ends by itself."""
        self._node = node
        self._record = record
        self._containers = containers
        self._wake = wake
        self._pause: ProcessEnd | None = None
        self._failures = 0
        self._told: str | None = None
        #: When it is tried again to make one (Unix seconds); 0 where that waits for something else.
        self.retry_at = 0.0
        #: Somebody has noticed that it ends, before it has.
        self.is_ending = False

    def adopt(self) -> bool:
        """Watch one that an earlier kubelet made; False where none lives."""
        sandbox = self._record.sandbox
        if sandbox is None or not sandbox.alive:
            return False
        self._pause = ProcessEnd(sandbox.pause, lambda _code: self._wake())
        return True

    def close(self) -> None:
        """Stop watching; it goes on."""
        if self._pause is not None:
            self._pause.close()

    def is_lost(self, pod: Pod) -> bool:
        """Whether there is one that cannot be used any more."""
        sandbox = self._record.sandbox
        if sandbox is None:
            return False
        return (
            self.is_ending
            or self._network_changed(pod)
            or not (self._record.attached and sandbox.alive)
        )

    def _addresses_fit(self) -> bool:
        """Whether the node's pod network is of the same addresses as the sandbox's."""
        was, is_now = self._record.network, self._node.pod_network
        return was.partition("@")[2] == is_now.partition("@")[2]

    def _network_changed(self, pod: Pod) -> bool:
        """Whether the sandbox is in a pod network that is no longer the node's."""
        known = self._record.network and not pod.spec.host_network
        return bool(known) and self._record.network != self._node.pod_network

    async def make(self, pod: Pod) -> bool:
        """Have a sandbox with a network; False when that has to wait."""
        if time.time() < self.retry_at:
            return False
        network = self._node.network
        if not pod.spec.host_network and network.problem is not None:
            if self._told != network.problem:
                self._told = network.problem
                self._event(
                    pod, "Warning", "NetworkNotReady", f"network is not ready: {self._told}"
                )
            self.retry_at = 0.0
            return False
        try:
            await self._try(pod)
        except (PodwireError, OSError) as error:
            why = error.message if isinstance(error, PodwireError) else str(error)
            self._event(
                pod, "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {why}"
            )
            _log.warning("%s: sandbox failed: %s", pod.key, why)
            await self._discard(pod)
            self._failures += 1
            self.retry_at = time.time() + min(_MAX_BACKOFF_S, _BACKOFF_S * 2.0**self._failures)
            return False
        self._failures, self.retry_at, self._told = 0, 0.0, None
        return True

    async def _try(self, pod: Pod) -> None:
        unheard = ignored(self._record.pod)
        if unheard and not self._record.containers and not self._failures:
            message = f"a lab's kubelet does nothing about {', '.join(unheard)}"
            self._event(pod, "Warning", "IgnoredInLab", message)
        self._write_files(pod, ())
        host_network = pod.spec.host_network
        sandbox = sandboxes.create(
            self._node.records.directory(self._record.uid),
            pod.hostname,
            host_network=host_network,
        )
        self._record.sandbox = sandbox
        self._save()
        self._pause = ProcessEnd(sandbox.pause, lambda _code: self._wake())
        if host_network:
            self._record.ips = self._node.ips
        else:
            # Asked for once only: they may not be free, or none of this network any more.
            keep_ips, self._record.keep_ips = self._record.keep_ips, ()
            self._record.ips = await self._node.network.attach(pod, sandbox, keep_ips)
            self._record.network = self._node.pod_network
            unmet = self._node.network.without_effect(pod)
            if unmet is not None:
                self._event(pod, "Warning", "IgnoredByNetwork", unmet)
        self._record.attached = True
        self._write_files(pod, self._record.ips)
        self._save()

    def _write_files(self, pod: Pod, ips: tuple[str, ...]) -> None:
        """In place: a sandbox has these very files mounted."""
        directory = self._node.records.directory(self._record.uid)
        directory.mkdir(parents=True, exist_ok=True)
        contents = {
            "hosts": files.hosts(pod, ips),
            "hostname": f"{pod.hostname}\n",
            "resolv.conf": files.resolv_conf(pod, self._node.resolv_conf),
        }
        for name in POD_FILES:
            (directory / name).write_text(contents[name])

    async def replace(self, pod: Pod) -> None:
        """End one that is lost; another can be made then, and its containers are to start again."""
        message = "Pod sandbox changed, it will be killed and re-created."
        self._event(pod, "Normal", "SandboxChanged", message)
        await self._discard(pod)

    async def _discard(self, pod: Pod) -> None:
        if self._record.sandbox is None:
            return
        moved = self._network_changed(pod)
        kept = self._record.ips if self._addresses_fit() else ()
        await self.end(pod)
        if not pod.spec.host_network:
            self._record.ips = ()
        for container in pod.spec.init_containers:
            known = self._record.container(container.name)
            known.state, known.retry_at, known.failures = "waiting", 0.0, 0
            known.last, known.ended = known.ended or known.last, None
        if moved:
            # They ended through no fault of theirs.
            for known in self._record.containers.values():
                known.retry_at, known.failures = 0.0, 0
            self._record.keep_ips = kept

    async def end(self, pod: Pod) -> None:
        """End every process of the sandbox, if there is one, detach it, and forget it; tries until
        DEL succeeds."""
        sandbox = self._record.sandbox
        if sandbox is None:
            return
        self._containers.signal(signal.SIGKILL)
        await self._containers.all_ended(_KILL_WAIT_S)
        failures = 0
        while not pod.spec.host_network:
            try:
                await self._node.network.detach(pod, sandbox)
                break
            except PodwireError as error:
                failures += 1
                if failures == 1:
                    why = f"error killing pod: {error.message}"
                    self._event(pod, "Warning", "FailedKillPod", why)
                await asyncio.sleep(min(_MAX_BACKOFF_S, 0.1 * 2.0**failures))
        sandboxes.destroy(sandbox)
        self._pause = None  # goes on until it has reaped the pause process
        self.is_ending = False
        self._containers.lost()
        self._record.sandbox, self._record.attached = None, False
        self._save()

    def _save(self) -> None:
        self._node.records.save(self._record)

    def _event(
        self, pod: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        self._node.events.record(reference(pod), kind, reason, message)
