"""The pod network as the kubelet sees it: is it ready, and attach a sandbox to it.

What lives here: following /etc/cni/net.d, asking the plugin for its status, GC once at start.
What does not: running plugins (`podwire.lab.runtime_cni`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from podwire.errors import InputError
from podwire.kernel.inotify import ENTRIES, Watch
from podwire.lab.cni_network import Attachment, CniError, Network, addresses, load_network
from podwire.lab.kubelet.attachment import IFNAME, attachment, without_effect
from podwire.lab.kubelet.spec import Pod
from podwire.lab.runtime_cni import CniRuntime
from podwire.lab.sandbox import Sandbox

CONF_DIR = Path("/etc/cni/net.d")
BIN_DIRS = (Path("/opt/cni/bin"),)
#: What a kubelet reports while /etc/cni/net.d is empty.
_UNINITIALIZED = "cni config uninitialized"

_FIRST_RETRY_S = 0.05
_MAX_RETRY_S = 2.0

_log = logging.getLogger(__name__)


class PodNetwork:
    """`problem` is None while pods can be attached, else why they cannot."""

    def __init__(self, valid: Callable[[], Iterable[Attachment]]) -> None:
        """`valid` names the attachments that GC must keep."""
        self._runtime = CniRuntime(BIN_DIRS)
        self._valid = valid
        self._network: Network | None = None
        self._collected = False
        self._listeners: list[Callable[[], None]] = []
        self.problem: str | None = _UNINITIALIZED

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever `problem` has changed."""
        self._listeners.append(listener)

    async def follow(self) -> None:
        """Keep `problem` up to date, for ever."""
        watch = Watch(CONF_DIR, ENTRIES)
        retry_s = _FIRST_RETRY_S
        while True:
            watch.changed.clear()
            problem = await self._examine()
            if problem != self.problem:
                _log.info("network %s", "ready" if problem is None else f"not ready: {problem}")
                self.problem = problem
                for listener in self._listeners:
                    listener()
            # Only a plugin's own status changes without a file that changes.
            plugin_busy = problem is not None and self._network is not None
            try:
                await asyncio.wait_for(watch.changed.wait(), retry_s if plugin_busy else None)
                retry_s = _FIRST_RETRY_S
            except TimeoutError:
                retry_s = min(_MAX_RETRY_S, 2 * retry_s)

    async def _examine(self) -> str | None:
        try:
            network = self._network = load_network(CONF_DIR)
            if network is None:
                return _UNINITIALIZED
            await self._runtime.status(network)
        except CniError as error:
            return error.message
        if not self._collected:
            # Before the first ADD: an attachment in the making would not be among the valid ones.
            self._collected = True
            for failure in await self._runtime.collect(network, self._valid()):
                _log.warning("GC: %s", failure.message)
        return None

    async def attach(
        self, pod: Pod, sandbox: Sandbox, keep_ips: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """ADD; returns the pod's IPs, `keep_ips` where the plugin lets them be asked for.

        Raises CniError or InputError; `detach` is then due.
        """
        if self._network is None:
            raise CniError(self.problem or _UNINITIALIZED)
        result = await self._runtime.add(self._network, attachment(pod, sandbox, keep_ips))
        ips = tuple(addresses(result, IFNAME))
        if not ips:
            raise CniError(f"network {self._network.name} gave the pod no IP")
        return ips

    def without_effect(self, pod: Pod) -> str | None:
        """A sentence on what the pod asks of the network and no plugin does, if there is such."""
        return without_effect(pod, self._network) if self._network is not None else None

    async def detach(self, pod: Pod, sandbox: Sandbox) -> None:
        """DEL, also of what was attached in part, or not at all. Raises CniError."""
        if self._network is None:
            raise CniError(self.problem or _UNINITIALIZED)
        try:
            wanted = attachment(pod, sandbox)
        except InputError:
            wanted = Attachment(sandbox.id, sandbox.netns, IFNAME)
        netns = sandbox.netns if sandbox.alive else ""
        await self._runtime.delete(
            self._network,
            Attachment(wanted.container_id, netns, IFNAME, wanted.args, wanted.capabilities),
        )
