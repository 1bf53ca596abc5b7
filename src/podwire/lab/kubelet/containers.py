"""The containers of one pod: started with what they need to know, backed off, signalled, lost.

What lives here: all of them together, and what a start takes. What does not: which should run
(`decide`), when (`worker`), and one container's runs (`container`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from typing import Literal

from podwire.cluster.kube import CONFIGMAPS
from podwire.errors import NotFoundError, PodwireError
from podwire.lab.kubelet import environment
from podwire.lab.kubelet.container import ContainerRun, back_off_s
from podwire.lab.kubelet.events import reference
from podwire.lab.kubelet.node import Node
from podwire.lab.kubelet.records import PodRecord
from podwire.lab.kubelet.spec import Container, Pod

_CONFIG_RETRY_S = 5.0


class Containers:
    """Those of the pod of `record`, which they keep up to date."""

    def __init__(self, node: Node, record: PodRecord, on_change: Callable[[], None]) -> None:
        """`on_change` is called after each change that nobody here waits for."""
        self._node = node
        self._record = record
        self._on_change = on_change
        self._runs: dict[str, ContainerRun] = {}

    def run(self, name: str) -> ContainerRun:
        """A container, which need not have run yet."""
        if name not in self._runs:
            self._runs[name] = ContainerRun(self._record.container(name), self._on_change)
        return self._runs[name]

    def succeed(self, earlier: Containers) -> None:
        """Take over from those of a worker that failed; they are watched from `adopt` on."""
        for name, run in earlier._runs.items():
            self.run(name).succeed(run)

    @property
    def running(self) -> list[str]:
        """The names of those that run and are watched."""
        return [name for name, run in self._runs.items() if run.record.state == "running"]

    def adopt(self) -> None:
        """Watch those that an earlier kubelet or worker started."""
        for name in self._record.containers:
            self.run(name).adopt()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to each one's first process."""
        for run in self._runs.values():
            run.signal(number)

    async def all_ended(self, timeout_s: float) -> None:
        """Wait until none runs, so many seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for run in tuple(self._runs.values()):
                    await run.ended.wait()

    def lost(self) -> None:
        """Record that those which run have ended with their sandbox."""
        for name in self._record.containers:
            self.run(name).lost()

    def close(self) -> None:
        """Stop watching; they go on running."""
        for run in self._runs.values():
            run.close()

    async def start(self, pod: Pod, container: Container) -> None:
        """Start one in the pod's sandbox, or record why it waits.

        Raises SandboxEndedError.
        """
        known, sandbox = self._record.container(container.name), self._record.sandbox
        if known.retry_at > time.time():
            if known.state == "terminated":
                self._back_off(pod, container, known.retry_at)
            return
        if sandbox is None:
            return
        run = self.run(container.name)
        try:
            env = await self._environment(pod, container)
            argv = environment.command_line(container, env)
        except PodwireError as error:
            run.wait_with("CreateContainerConfigError", str(error), _CONFIG_RETRY_S)
            self._event(pod, container, "Warning", "Failed", f"Error: {error}")
            return
        name, uid = container.name, self._record.uid
        self._event(pod, container, "Normal", "Created", f"Created container {name}")
        log = self._node.records.log(uid, name, known.restarts + 1 if known.ran else 0)
        if run.start(sandbox, argv, env, container.working_dir, log):
            self._event(pod, container, "Normal", "Started", f"Started container {name}")
        else:
            message = known.ended.message if known.ended else ""
            self._event(pod, container, "Warning", "Failed", f"Error: {message}")
            self._on_change()
        self._node.records.save(self._record)

    def _back_off(self, pod: Pod, container: Container, until: float) -> None:
        known = self._record.container(container.name)
        known.last, known.ended = known.ended, None
        message = (
            f"back-off {back_off_s(known.failures):.0f}s restarting failed "
            f"container={container.name} pod={pod.metadata.name}_"
            f"{pod.metadata.namespace}({self._record.uid})"
        )
        known.state, known.reason, known.message = "waiting", "CrashLoopBackOff", message
        known.retry_at = until
        self._event(pod, container, "Warning", "BackOff", message)

    async def _environment(self, pod: Pod, container: Container) -> dict[str, str]:
        maps: dict[str, dict[str, str]] = {}
        for name in environment.config_maps(container):
            try:
                found = await self._node.client.get(CONFIGMAPS, name, pod.metadata.namespace)
            except NotFoundError:
                continue
            maps[name] = found.get("data") or {}
        node = {
            "spec.nodeName": self._node.name,
            "status.hostIP": self._node.ips[0],
            "status.hostIPs": ",".join(self._node.ips),
        }
        return environment.environment(pod, container, ips=self._record.ips, node=node, maps=maps)

    def _event(
        self,
        pod: Pod,
        container: Container,
        kind: Literal["Normal", "Warning"],
        reason: str,
        message: str,
    ) -> None:
        self._node.events.record(reference(pod, container), kind, reason, message)
