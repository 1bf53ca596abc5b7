"""The agent's one loop: watch → plan → apply.

It does all that changes the kernel; everything else only says that there is something to do:

    store (leases) ─┐                       ┌─ own lease: underlay, publication, full reconcile
    notifications ──┼─▶ pending work ─▶ loop ┼─ peers that changed: just their entries
    signals ────────┘                       └─ something amiss: full reconcile

What lives here: what happens, and what is done then, in which order. What does not: each of these
steps, and those who ask (`daemon`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from podwire.agent import metrics
from podwire.agent.adoption import Adoption
from podwire.agent.allocation import Allocation
from podwire.agent.config import AgentConfig
from podwire.agent.guard import until_shaped
from podwire.agent.memory import FabricMemory
from podwire.agent.mending import Mender
from podwire.agent.nodes import Nodes
from podwire.agent.notices import Notices
from podwire.agent.peering import Peering
from podwire.agent.planner import Planner
from podwire.agent.pods import Pods
from podwire.agent.podwatch import PodWatch
from podwire.agent.readiness import Readiness
from podwire.agent.renewal import NotReady, Renewal
from podwire.agent.watch import may_concern_underlay
from podwire.agent.worker import KernelWorker
from podwire.cluster.kube.leases import KubeLeases
from podwire.cluster.source import (
    Changed,
    Connected,
    Disconnected,
    Event,
    LeaseSource,
    NetworkChanged,
    OwnChanged,
    Synced,
)
from podwire.kernel.netlink import Message
from podwire.log import fields
from podwire.model.cluster import NetworkConfig
from podwire.model.fabric import Guard

log = logging.getLogger(__name__)


class Control:
    """One node's. `async with`, then `run`; `readiness` is there from the one on, all else at once.

    `nodes` are the cluster's as far as they have been seen, `connected` is whether the store is
    being watched.
    """

    readiness: Readiness

    def __init__(
        self, config: AgentConfig, source: LeaseSource, worker: KernelWorker, guard: Guard
    ) -> None:
        self._config = config
        self._source = source
        self._worker = worker
        self._wake = asyncio.Event()
        self._own_changed = False
        self._refused: str | None = None
        self.connected = False
        self.nodes = Nodes(config.node_name)
        self._pod_watch = self._watch_for_pods()
        annotations = self._pod_watch.annotations if self._pod_watch is not None else None
        self.pods = Pods(config, worker, annotations)
        self.mender = Mender(
            worker,
            wake=self._wake.set,
            attach_again=self.pods.attach_again,
            note_refused=self._note_refused,
        )
        self._allocation = Allocation(config.node_name, source, self.pods, self._look_at_own)
        self._renewal = Renewal(
            config,
            source,
            worker,
            self.pods,
            self._allocation,
            guard=guard,
            try_again=self._look_at_own,
        )
        self.peering = Peering(
            config, self.nodes, on_paths=self._note_paths, on_tunnel=self._note_tunnel
        )
        self._planner = Planner(self.nodes, self.peering, self._pod_watch)
        memory = FabricMemory(config.fabric_file)
        self._adoption = Adoption(memory, worker, self.pods, self.mender, self._planner)

    def _watch_for_pods(self) -> PodWatch | None:
        """Where there is a Kubernetes API; a container of a plain host is no pod."""
        if not isinstance(self._source, KubeLeases):
            return None
        return PodWatch(
            self._source.client,
            self._config.node_name,
            everywhere=self._config.options.fabric().is_one_segment,
            on_change=self._wake.set,
        )

    async def __aenter__(self) -> Control:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._renewal.close)
            notices = Notices(
                self._worker,
                on_amiss=self.mender.note_amiss,
                look_at_links=self._look_at_links,
                on_loss=self._on_loss,
            )
            stack.enter_context(notices)
            await stack.enter_async_context(self.pods)
            stack.push_async_callback(self._allocation.close)
            self.readiness = Readiness(self.pods, f"waiting for {self._source.title}")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    @property
    def network(self) -> NetworkConfig | None:
        """What this node is planned with; None until its lease is known."""
        return self._adoption.network

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._source.run(self._on_event))
            group.create_task(self.peering.run())
            if self._pod_watch is not None:
                group.create_task(self._pod_watch.run())
            group.create_task(self._work())
            if self._config.guard == "auto" and self._renewal.guard == "ebpf":
                group.create_task(self._give_way())

    # --- what happens ---------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case Synced(nodes):
                self.nodes.sync(nodes)
                self._note_names()
                self._look_at_own()
            case Changed(name, node):
                is_other = (node is None) != (name not in self.nodes.by_name)
                self.nodes.put(name, node)
                if is_other:
                    self._note_names()
                self._wake.set()
            case OwnChanged(reason):
                if reason:
                    log.warning("own lease", extra=fields(reason=reason))
                self._look_at_own()
            case NetworkChanged():
                self._look_at_own()
            case Connected():
                self._note_connected(True)
                if self._renewal.is_put_off:
                    self._look_at_own()
            case Disconnected(error):
                self._note_connected(False)
                log.warning(f"{self._source.title} is away", extra=fields(error=error))

    def _note_names(self) -> None:
        """Which nodes there are is another now."""
        if self._config.node_name not in self.nodes.by_name:
            self._allocation.doubt()
        self._allocation.nodes_are({*self.nodes.by_name, self._config.node_name})

    def _note_connected(self, connected: bool) -> None:
        self.connected = connected
        metrics.API_CONNECTED.set(connected)

    def _note_paths(self, names: frozenset[str]) -> None:
        """VXLAN gets through to these now and did not, or the other way round."""
        self.nodes.note(*names)
        self._wake.set()

    def _note_tunnel(self) -> None:
        """The tunnel forwards and did not, or the other way round."""
        self.pods.wait_for(self.peering.not_ready)
        self._look_at_own()

    async def _give_way(self) -> None:
        """Guard by nftables once another plugin needs the place of the programs."""
        try:
            shaped = await until_shaped(self._config)
        except OSError as error:
            log.warning("CNI configurations are not watched", extra=fields(error=error))
            return
        log.warning("anti-spoofing by nftables now", extra=fields(bandwidth_in=str(shaped)))
        self._renewal.guard = "nftables"
        self._look_at_own()

    def _look_at_own(self) -> None:
        """Have `_renew` done."""
        self._own_changed = True
        self._wake.set()

    async def _look_at_links(self, found: list[Message]) -> None:
        """Whether the underlay is another one now."""
        dev = self.network.underlay.dev if self.network is not None else None
        if any(may_concern_underlay(one, dev) for one in found):
            # Not ready: whatever is missing may be there now.
            used = self.network if self.readiness.reason is None else None
            if await self._renewal.underlay_differs(used):
                self._look_at_own()

    def _on_loss(self) -> None:
        self.mender.note_amiss()
        self._look_at_own()

    def _note_refused(self, refused: str | None) -> None:
        """Without its own devices a node is of no use: not ready until the kernel has them."""
        if refused is not None:
            self.readiness.say(refused)
        elif self._refused is not None:
            # `_renew` publishes what it did not, and says that we are ready.
            self._use_peers()
            self._look_at_own()
        self._refused = refused

    # --- what is done ---------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._own_changed:
                self._own_changed = False
                await self._renew()
            if self.network is None:
                continue
            await self.mender.mend_amiss()
            if plans := self._planner.changed(self.network):
                await self.mender.update(plans)
                metrics.PEERS.set(self.nodes.leased_peers)

    async def _renew(self) -> None:
        """Look at our own lease and underlay again; plan anew where that changes anything."""
        try:
            network = await self._renewal.look(self.network)
        except NotReady as error:
            self.readiness.say(error.message)
            return
        if network is None:
            return
        if network != self.network:
            await self._adopt(network)
        if self._refused is not None:
            return
        # Nobody is to send us anything, nor any pod to be made, that would be lost.
        problem = self.peering.not_ready
        if problem is None:
            problem = await self._renewal.publish(network, again=self.readiness.reason is not None)
            if self.readiness.reason is None:
                return
        if problem is not None:
            self.readiness.say(problem)
        elif self._source.own is not None and self._refused is None:
            self.readiness.say(None)
            log.info("ready", extra=fields(node=network.node, peers=self.nodes.leased_peers))

    async def _adopt(self, network: NetworkConfig) -> None:
        await self._adoption.adopt(network)
        if self._refused is None:
            self._use_peers()
        else:
            self.pods.wait_for(self._refused)
        metrics.PEERS.set(self.nodes.leased_peers)

    def _use_peers(self) -> None:
        """Once the kernel has what is wanted: the tunnels' devices are ours."""
        if self.network is not None:
            self.peering.use(self.network, self._renewal.private_key)
            self.pods.wait_for(self.peering.not_ready)
