"""One pod's life on this node, from the first sandbox to the last trace.

What lives here: the order of things for one pod, and its sandbox. What does not: how each is done
(`network`, `containers`, `podwire.lab.sandbox`), and which pods there are (`pods`).

How it works: level-triggered. Whatever happens (the Pod changed, a process ended, the network
became ready, a back-off is over) only wakes the worker, which then looks at what is and does the
next thing that is missing:

    leaving?      end containers, DEL, end sandbox, delete the object, done
    finished?     DEL, end sandbox
    no sandbox?   wait for the network, make one, ADD
    containers    start those that should run and may

After each step the record is on disk, so that a kubelet killed anywhere has a successor that looks
and goes on. A worker that is cancelled leaves all as it is.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import Any, Literal

from podwire.errors import PodwireError
from podwire.lab import sandbox as sandboxes
from podwire.lab.kubelet import decide, files
from podwire.lab.kubelet.containers import Containers
from podwire.lab.kubelet.events import reference
from podwire.lab.kubelet.node import Node
from podwire.lab.kubelet.pod_status import PodStatus
from podwire.lab.kubelet.process_end import ProcessEnd
from podwire.lab.kubelet.records import PodRecord, now
from podwire.lab.kubelet.spec import Pod, ignored, parse
from podwire.lab.sandbox import POD_FILES, Sandbox, SandboxEndedError

_SANDBOX_BACKOFF_S = 0.2
_MAX_SANDBOX_BACKOFF_S = 5.0
_KILL_WAIT_S = 2.0

_log = logging.getLogger(__name__)


class PodWorker:
    """Runs one pod. `run` returns when the pod has left the node."""

    def __init__(self, node: Node, record: PodRecord) -> None:
        self._node = node
        self.record = record
        self.pod: Pod = parse(record.pod)
        self._status = PodStatus(node, record.uid)
        self._wake = asyncio.Event()
        self._containers = Containers(node, record, self.wake)
        self._pause: ProcessEnd | None = None
        self._removed = False
        self._sandbox_ending = False
        self._sandbox_retry_at = 0.0
        self._sandbox_failures = 0
        self._told: str | None = None

    # -- from outside -------------------------------------------------------------------------

    def update(self, obj: dict[str, Any]) -> None:
        """The Pod object changed."""
        self.pod = parse(obj)
        self.record.pod = obj
        self._status.seen(obj)
        self.wake()

    def remove(self) -> None:
        """The Pod object is gone."""
        self._removed = True
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    def ended(self, container: str) -> asyncio.Event:
        """Set when the container's present run has ended."""
        return self._containers.run(container).ended

    def working_directory(self, container: str) -> str:
        declared = (*self.pod.spec.init_containers, *self.pod.spec.containers)
        return next((one.working_dir for one in declared if one.name == container), "/")

    @property
    def leaving(self) -> bool:
        return self._removed or self.pod.metadata.deletion_timestamp is not None

    # -- the loop -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the pod has left. Raises what is not expected; `successor` goes on then."""
        self._adopt()
        try:
            async with asyncio.TaskGroup() as tasks:
                reporter = tasks.create_task(self._status.report())
                while not self.leaving:
                    self._wake.clear()
                    await self._sync()
                    self._save()
                    self._status.publish(self.pod, self.record)
                    await self._sleep(self._next_due())
                await self._leave()
                reporter.cancel()
        finally:
            self._containers.close()
            if self._pause is not None:
                self._pause.close()

    def successor(self) -> PodWorker:
        """One that goes on from what is on record."""
        worker = PodWorker(self._node, self.record)
        worker._removed = self._removed
        return worker

    def _adopt(self) -> None:
        sandbox = self.record.sandbox
        if sandbox is not None and sandbox.alive:
            self._pause = ProcessEnd(sandbox.pause, lambda _code: self.wake())
            self._containers.adopt()

    def _save(self) -> None:
        self._node.records.save(self.record)

    async def _sleep(self, until: float | None) -> None:
        timeout_s = None if until is None else max(0.0, until - time.time())
        try:
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        except TimeoutError:
            return

    def _next_due(self) -> float | None:
        """When a back-off ends next; None: nothing is to be done before something happens."""
        if self.record.finished:
            return None
        if self.record.sandbox is None:
            return self._sandbox_retry_at or None
        waiting = decide.startable(self.pod, self.record)
        due = [self.record.known(container.name).retry_at for container in waiting]
        return min((at for at in due if at), default=None)

    async def _sync(self) -> None:
        if not self.record.finished:
            if self._sandbox_lost():
                await self._discard_sandbox("SandboxChanged")
            self.record.phase = decide.phase(self.pod, self.record)
        if self.record.finished:
            await self._stop()
        elif self.record.sandbox is not None or await self._make_sandbox():
            await self._start_containers()
            self.record.phase = decide.phase(self.pod, self.record)
            if self.record.finished:
                await self._stop()

    async def _start_containers(self) -> None:
        for container in decide.startable(self.pod, self.record):
            try:
                await self._containers.start(self.pod, container)
            except SandboxEndedError:
                # Its processes' ends are noticed before its own.
                self._sandbox_ending = True
                self.wake()

    # -- sandbox ------------------------------------------------------------------------------

    def _sandbox_lost(self) -> bool:
        sandbox = self.record.sandbox
        if sandbox is None:
            return False
        return (
            self._sandbox_ending
            or self._network_changed()
            or not (self.record.attached and sandbox.alive)
        )

    def _addresses_fit(self) -> bool:
        """Whether the node's pod network is of the same addresses as the sandbox's."""
        was, is_now = self.record.network, self._node.pod_network
        return was.partition("@")[2] == is_now.partition("@")[2]

    def _network_changed(self) -> bool:
        """Whether the sandbox is in a pod network that is no longer the node's."""
        known = self.record.network and not self.pod.spec.host_network
        return bool(known) and self.record.network != self._node.pod_network

    async def _make_sandbox(self) -> bool:
        """Have a sandbox with a network; False when that has to wait."""
        if time.time() < self._sandbox_retry_at:
            return False
        network = self._node.network
        if not self.pod.spec.host_network and network.problem is not None:
            if self._told != network.problem:
                self._told = network.problem
                self._event("Warning", "NetworkNotReady", f"network is not ready: {self._told}")
            self._sandbox_retry_at = 0.0
            return False
        try:
            await self._try_sandbox()
        except (PodwireError, OSError) as error:
            why = error.message if isinstance(error, PodwireError) else str(error)
            self._event("Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {why}")
            _log.warning("%s: sandbox failed: %s", self.pod.key, why)
            await self._discard_sandbox(None)
            self._sandbox_failures += 1
            self._sandbox_retry_at = time.time() + min(
                _MAX_SANDBOX_BACKOFF_S, _SANDBOX_BACKOFF_S * 2.0**self._sandbox_failures
            )
            return False
        self._sandbox_failures, self._sandbox_retry_at, self._told = 0, 0.0, None
        return True

    async def _try_sandbox(self) -> None:
        unheard = ignored(self.record.pod)
        if unheard and not self.record.containers and not self._sandbox_failures:
            message = f"a lab's kubelet does nothing about {', '.join(unheard)}"
            self._event("Warning", "IgnoredInLab", message)
        self._write_files(())
        host_network = self.pod.spec.host_network
        sandbox = sandboxes.create(
            self._node.records.directory(self.record.uid),
            self.pod.hostname,
            host_network=host_network,
        )
        self.record.sandbox = sandbox
        self._save()
        self._pause = ProcessEnd(sandbox.pause, lambda _code: self.wake())
        if host_network:
            self.record.ips = self._node.ips
        else:
            # Asked for once only: they may not be free, or none of this network any more.
            keep_ips, self.record.keep_ips = self.record.keep_ips, ()
            self.record.ips = await self._node.network.attach(self.pod, sandbox, keep_ips)
            self.record.network = self._node.pod_network
        self.record.attached = True
        self._write_files(self.record.ips)
        self._save()

    def _write_files(self, ips: tuple[str, ...]) -> None:
        """In place: a sandbox has these very files mounted."""
        directory = self._node.records.directory(self.record.uid)
        directory.mkdir(parents=True, exist_ok=True)
        contents = {
            "hosts": files.hosts(self.pod, ips),
            "hostname": f"{self.pod.hostname}\n",
            "resolv.conf": files.resolv_conf(self.pod, self._node.resolv_conf),
        }
        for name in POD_FILES:
            (directory / name).write_text(contents[name])

    async def _discard_sandbox(self, event: Literal["SandboxChanged"] | None) -> None:
        """End a sandbox that cannot be used (any more); its containers are to start again."""
        sandbox, moved = self.record.sandbox, self._network_changed()
        if sandbox is None:
            return
        if event:
            message = "Pod sandbox changed, it will be killed and re-created."
            self._event("Normal", event, message)
        kept = self.record.ips if self._addresses_fit() else ()
        await self._end_sandbox(sandbox)
        if not self.pod.spec.host_network:
            self.record.ips = ()
        for container in self.pod.spec.init_containers:
            known = self.record.container(container.name)
            known.state, known.retry_at, known.failures = "waiting", 0.0, 0
            known.last, known.ended = known.ended or known.last, None
        if moved:
            # They ended through no fault of theirs.
            for known in self.record.containers.values():
                known.retry_at, known.failures = 0.0, 0
            self.record.keep_ips = kept

    async def _end_sandbox(self, sandbox: Sandbox) -> None:
        """End every process of the sandbox, detach it, and forget it; tries until DEL succeeds."""
        self._containers.signal(signal.SIGKILL)
        await self._all_ended(_KILL_WAIT_S)
        failures = 0
        while not self.pod.spec.host_network:
            try:
                await self._node.network.detach(self.pod, sandbox)
                break
            except PodwireError as error:
                failures += 1
                if failures == 1:
                    why = f"error killing pod: {error.message}"
                    self._event("Warning", "FailedKillPod", why)
                await asyncio.sleep(min(_MAX_SANDBOX_BACKOFF_S, 0.1 * 2.0**failures))
        sandboxes.destroy(sandbox)
        self._pause = None  # goes on until it has reaped the pause process
        self._sandbox_ending = False
        self._containers.lost()
        self.record.sandbox, self.record.attached = None, False
        self._save()

    async def _stop(self) -> None:
        """A finished pod keeps its status, and nothing else."""
        if self.record.sandbox is not None:
            await self._end_sandbox(self.record.sandbox)

    # -- leaving ------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """End the pod, gracefully, and take away every trace of it."""
        for name in self._containers.running:
            self._event("Normal", "Killing", f"Stopping container {name}")
        self._containers.signal(signal.SIGTERM)
        deadline = time.time() + self._grace_s()
        while self._containers.running and time.time() < deadline:
            self._wake.clear()
            # A second, more impatient deletion shortens the wait.
            deadline = min(deadline, time.time() + self._grace_s())
            await self._sleep(deadline)
        if self.record.sandbox is not None:
            await self._end_sandbox(self.record.sandbox)
        self.record.phase = decide.phase(self.pod, self.record)
        if not self._removed:
            await self._status.send_last(self.pod, self.record)
        self._node.records.remove(self.record.uid)

    def _grace_s(self) -> float:
        given = self.pod.metadata.deletion_grace_period_seconds
        return float(self.pod.spec.termination_grace_period_seconds if given is None else given)

    async def _all_ended(self, timeout_s: float) -> None:
        deadline = time.time() + timeout_s
        while self._containers.running:
            if time.time() >= deadline:
                break
            self._wake.clear()
            await self._sleep(deadline)
        # What else may have woken the worker meanwhile is still to be looked at.
        self._wake.set()

    def _event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self._node.events.record(reference(self.pod), kind, reason, message)


def new_record(obj: dict[str, Any]) -> PodRecord:
    """The record of a pod that is new to this node. Raises InputError for one that does not fit."""
    return PodRecord(uid=parse(obj).metadata.uid, pod=obj, start_time=now())
