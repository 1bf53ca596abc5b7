"""One pod's life on this node, from the first sandbox to the last trace.

What lives here: the order of things for one pod. What does not: how each is done (`pod_sandbox`,
`network`, `containers`), and which pods there are (`pods`).

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
import signal
import time
from typing import Any, Literal

from podwire.lab.kubelet import decide
from podwire.lab.kubelet.containers import Containers
from podwire.lab.kubelet.events import reference
from podwire.lab.kubelet.node import Node
from podwire.lab.kubelet.pod_sandbox import PodSandbox
from podwire.lab.kubelet.pod_status import PodStatus
from podwire.lab.kubelet.records import PodRecord, now
from podwire.lab.kubelet.spec import Pod, parse
from podwire.lab.sandbox import SandboxEndedError


class PodWorker:
    """Runs one pod. `run` returns when the pod has left the node."""

    def __init__(self, node: Node, record: PodRecord) -> None:
        self._node = node
        self.record = record
        self.pod: Pod = parse(record.pod)
        self._status = PodStatus(node, record.uid)
        self._wake = asyncio.Event()
        self._containers = Containers(node, record, self.wake)
        self._sandbox = PodSandbox(node, record, self._containers, self.wake)
        self._removed = False

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
            self._sandbox.close()

    def successor(self) -> PodWorker:
        """One that goes on from what is on record."""
        worker = PodWorker(self._node, self.record)
        worker._removed = self._removed
        worker._containers.succeed(self._containers)
        return worker

    def _adopt(self) -> None:
        if self._sandbox.adopt():
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
            return self._sandbox.retry_at or None
        waiting = decide.startable(self.pod, self.record)
        due = [self.record.known(container.name).retry_at for container in waiting]
        return min((at for at in due if at), default=None)

    async def _sync(self) -> None:
        if not self.record.finished:
            if self._sandbox.is_lost(self.pod):
                await self._sandbox.replace(self.pod)
            self.record.phase = decide.phase(self.pod, self.record)
        if self.record.finished:
            await self._stop()
        elif self.record.sandbox is not None or await self._sandbox.make(self.pod):
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
                self._sandbox.is_ending = True
                self.wake()

    async def _stop(self) -> None:
        """A finished pod keeps its status, and nothing else."""
        await self._sandbox.end(self.pod)

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
        await self._sandbox.end(self.pod)
        self.record.phase = decide.phase(self.pod, self.record)
        if not self._removed:
            await self._status.send_last(self.pod, self.record)
        self._node.records.remove(self.record.uid)

    def _grace_s(self) -> float:
        given = self.pod.metadata.deletion_grace_period_seconds
        return float(self.pod.spec.termination_grace_period_seconds if given is None else given)

    def _event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self._node.events.record(reference(self.pod), kind, reason, message)


def new_record(obj: dict[str, Any]) -> PodRecord:
    """The record of a pod that is new to this node. Raises InputError for one that does not fit."""
    return PodRecord(uid=parse(obj).metadata.uid, pod=obj, start_time=now())
