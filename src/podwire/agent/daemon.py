"""The node's agent: its loop, the servers beside it, and what those who ask are told.

What lives here: the parts put together. What does not: what the agent does (`control`), and how it
is asked (`server`, `operator`, `status`).

Stopping, however it happens, leaves the kernel as it is: pods go on talking.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from podwire.agent import guard
from podwire.agent.config import AgentConfig
from podwire.agent.control import Control
from podwire.agent.document import plan_document
from podwire.agent.drops import Drops
from podwire.agent.nodes import Nodes
from podwire.agent.operator import serve_operators
from podwire.agent.peering import Peering
from podwire.agent.pods import Pods
from podwire.agent.server import serve
from podwire.agent.worker import KernelWorker
from podwire.cluster.kube import KubeClient
from podwire.cluster.kube.leases import KubeLeases
from podwire.cluster.source import LeaseSource
from podwire.errors import PodwireError, UnsupportedError
from podwire.kernel.reconcile import Report
from podwire.model.cluster import NetworkConfig
from podwire.model.state import IPNetwork


class Agent:
    """One node's agent. `run` returns when it is cancelled; all but the configuration and the store
    is there once it runs. `drops` is what was dropped here."""

    drops: Drops

    def __init__(self, config: AgentConfig, source: LeaseSource) -> None:
        self._config = config
        self._source = source

    @property
    def config(self) -> AgentConfig:
        return self._config

    @property
    def network(self) -> NetworkConfig | None:
        """What this node is planned with; None until its lease is known."""
        return self._control.network

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """The cluster's pod networks, as far as they are known."""
        return self.network.network if self.network is not None else self._config.network

    @property
    def pods(self) -> Pods:
        return self._control.pods

    @property
    def worker(self) -> KernelWorker:
        return self._worker

    @property
    def nodes(self) -> Nodes:
        """The cluster's nodes, as far as they have been seen."""
        return self._control.nodes

    @property
    def peering(self) -> Peering:
        """The ways to its peers."""
        return self._control.peering

    @property
    def source(self) -> LeaseSource:
        """The store that leases are in."""
        return self._source

    @property
    def client(self) -> KubeClient:
        """Of the Kubernetes API. Raises UnsupportedError where the node has none."""
        if not isinstance(self._source, KubeLeases):
            raise UnsupportedError(
                f"this agent's leases are in {self._source.title}: it has no Kubernetes API to ask",
                remedy="use --store kube where there is a cluster",
            )
        return self._source.client

    @property
    def connected(self) -> bool:
        """Whether the store is being watched."""
        return self._control.connected

    @property
    def held(self) -> bool:
        """Whether the kernel is left as it is, whatever becomes of it; see `hold`."""
        return self._control.mender.held

    def hold(self, on: bool) -> None:
        """Stop mending the kernel, or start again with all that differs by then.

        While it is held, the agent goes on watching, publishing and wiring new pods. It is not
        held any more when it is started anew. Raises PodwireError where nothing has been made yet
        that could be left as it is.
        """
        if on == self._control.mender.held:
            return
        if on and self.network is None:
            raise PodwireError(
                f"there is nothing to hold yet: {self.not_ready}", remedy="wait until it is ready"
            )
        self._control.mender.hold(on)

    async def mend(self, reason: str) -> Report:
        """Apply all that differs now, also while held; what was done."""
        return await self._control.mender.mend(reason)

    @property
    def not_ready(self) -> str | None:
        """Why pods can't be wired yet; None when they can."""
        return self._control.readiness.reason

    async def plan_document(self) -> dict[str, Any]:
        """What is desired and what differs, for `podwire plan`."""
        reconciler = self._worker.reconciler
        name = self._config.node_name
        document = await self._worker.call(plan_document, reconciler, name)
        return {**document, "held": self.held}

    async def run(self) -> None:
        self._worker = KernelWorker()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._worker.close)
            guarded_by = await asyncio.to_thread(guard.choose, self._config)
            self._control = Control(self._config, self._source, self._worker, guarded_by)
            self.drops = Drops(self._worker, self._control.peering, lambda: self.network)
            await stack.enter_async_context(self._control)
            await stack.enter_async_context(serve(self._config, self))
            await stack.enter_async_context(serve_operators(self._config.operator_socket, self))
            await stack.enter_async_context(self._source)
            await self._control.run()
