"""The node's agent: watch → plan → apply, and the CNI server beside it.

One loop does all that changes the kernel; everything else only says that there is something to do:

    store (leases) ─┐                       ┌─ own lease: underlay, publication, full reconcile
    notifications ──┼─▶ pending work ─▶ loop ┼─ peers that changed: just their entries
    signals ────────┘                       └─ something amiss: full reconcile

Stopping, however it happens, leaves the kernel as it is: pods go on talking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from podwire.agent import metrics
from podwire.agent.allocation import Allocation, differ_in_further_subnets
from podwire.agent.config import AgentConfig
from podwire.agent.document import plan_document
from podwire.agent.drops import Drops
from podwire.agent.memory import FabricMemory
from podwire.agent.mending import Mender
from podwire.agent.nodes import Nodes
from podwire.agent.operator import serve_operators
from podwire.agent.peering import Peering
from podwire.agent.planner import Planner
from podwire.agent.pods import Pods
from podwire.agent.podwatch import PodWatch
from podwire.agent.renewal import NotReady, Renewal
from podwire.agent.server import serve
from podwire.agent.telling import warn_of_strays
from podwire.agent.watch import KernelWatch, may_concern_underlay
from podwire.agent.worker import KernelWorker
from podwire.cluster.kube import KubeClient
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
from podwire.errors import PodwireError, UnsupportedError
from podwire.kernel.netlink import Message
from podwire.kernel.reconcile import Report
from podwire.log import fields
from podwire.model.cluster import NetworkConfig
from podwire.model.state import IPNetwork
from podwire.plan.change import interruptions

log = logging.getLogger(__name__)


class Agent:
    """One node's agent. `run` returns when it is cancelled.

    `peering` are the ways to its peers, `drops` what was dropped here; both are there once it runs.
    """

    peering: Peering
    drops: Drops

    def __init__(self, config: AgentConfig, source: LeaseSource) -> None:
        self._config = config
        self._source = source
        self._nodes = Nodes(config.node_name)
        self._network: NetworkConfig | None = None
        self._wake = asyncio.Event()
        self._own_changed = False
        self._refused: str | None = None
        self._not_ready: str | None = f"waiting for {source.title}"
        self._connected = False
        self._memory = FabricMemory(config.fabric_file)

    # --- for those who ask ----------------------------------------------------------------

    @property
    def config(self) -> AgentConfig:
        return self._config

    @property
    def network(self) -> NetworkConfig | None:
        """What this node is planned with; None until its lease is known."""
        return self._network

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """The cluster's pod networks, as far as they are known."""
        return self._network.network if self._network is not None else self._config.network

    @property
    def pods(self) -> Pods:
        return self._pods

    @property
    def worker(self) -> KernelWorker:
        return self._worker

    @property
    def nodes(self) -> Nodes:
        """The cluster's nodes, as far as they have been seen."""
        return self._nodes

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
        return self._connected

    @property
    def held(self) -> bool:
        """Whether the kernel is left as it is, whatever becomes of it; see `hold`."""
        return self._mender.held

    def hold(self, on: bool) -> None:
        """Stop mending the kernel, or start again with all that differs by then.

        While it is held, the agent goes on watching, publishing and wiring new pods. It is not
        held any more when it is started anew. Raises PodwireError where nothing has been made yet
        that could be left as it is.
        """
        if on == self._mender.held:
            return
        if on and self._network is None:
            raise PodwireError(
                f"there is nothing to hold yet: {self._not_ready}", remedy="wait until it is ready"
            )
        self._mender.hold(on)

    async def mend(self, reason: str) -> Report:
        """Apply all that differs now, also while held; what was done."""
        return await self._mender.mend(reason)

    @property
    def not_ready(self) -> str | None:
        """Why pods can't be wired yet; None when they can."""
        return self._not_ready

    async def plan_document(self) -> dict[str, Any]:
        """What is desired and what differs, for `podwire plan`."""
        reconciler = self._worker.reconciler
        name = self._config.node_name
        document = await self._worker.call(plan_document, reconciler, name)
        return {**document, "held": self.held}

    # --- life -----------------------------------------------------------------------------

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._worker = KernelWorker()
        self._pod_watch = self._watch_for_pods()
        annotations = self._pod_watch.annotations if self._pod_watch is not None else None
        self._pods = Pods(self._config, self._worker, annotations)
        self._mender = Mender(
            self._worker,
            wake=self._wake.set,
            attach_again=self._pods.attach_again,
            note_refused=self._note_refused,
        )
        self._allocation = Allocation(
            self._config.node_name, self._source, self._pods, self._look_at_own
        )
        self._renewal = Renewal(
            self._config,
            self._source,
            self._worker,
            self._pods,
            self._allocation,
            try_again=self._look_at_own,
        )
        self.peering = Peering(
            self._config, self._nodes, on_paths=self._note_paths, on_tunnel=self._note_tunnel
        )
        self.drops = Drops(self._worker, self.peering)
        self._planner = Planner(self._nodes, self.peering, self._pod_watch)
        watch = KernelWatch(
            loop,
            on_rtnetlink=lambda found: self._spawn(self._judge(found)),
            on_nft=lambda found: self._spawn(self._judge_nft(found)),
            on_loss=self._on_loss,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(self._pods)
                stack.push_async_callback(self._allocation.close)
                self._say_not_ready(self._not_ready)
                await stack.enter_async_context(serve(self._config, self))
                operators = serve_operators(self._config.operator_socket, self)
                await stack.enter_async_context(operators)
                await stack.enter_async_context(self._source)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._source.run(self._on_event))
                    group.create_task(self.peering.run())
                    if self._pod_watch is not None:
                        group.create_task(self._pod_watch.run())
                    group.create_task(self._work())
        finally:
            watch.close()
            for task in self._tasks:
                task.cancel()
            self._renewal.close()
            self._worker.close()

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

    def _say_not_ready(self, reason: str | None) -> None:
        """What /readyz, the metrics and the runtime are told from now on."""
        if reason is not None and reason != self._not_ready:
            log.warning("not ready", extra=fields(reason=reason))
        self._not_ready = reason
        metrics.READY.set(reason is None)
        if reason is not None:
            self._pods.say_not_ready(reason)

    # --- what happens ---------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case Synced(nodes):
                self._nodes.sync(nodes)
                self._note_names()
                self._look_at_own()
            case Changed(name, node):
                is_other = (node is None) != (name not in self._nodes.by_name)
                self._nodes.put(name, node)
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
        if self._config.node_name not in self._nodes.by_name:
            self._allocation.doubt()
        self._allocation.nodes_are({*self._nodes.by_name, self._config.node_name})

    def _note_connected(self, connected: bool) -> None:
        self._connected = connected
        metrics.API_CONNECTED.set(connected)

    def _note_paths(self, names: frozenset[str]) -> None:
        """VXLAN gets through to these now and did not, or the other way round."""
        self._nodes.note(*names)
        self._wake.set()

    def _note_tunnel(self) -> None:
        """The tunnel forwards and did not, or the other way round."""
        self._pods.wait_for(self.peering.not_ready)
        self._look_at_own()

    def _look_at_own(self) -> None:
        """Have `_renew` done."""
        self._own_changed = True
        self._wake.set()

    async def _judge(self, found: list[Message]) -> None:
        if await self._worker.any_amiss(found):
            self._mender.note_amiss()
        dev = self._network.underlay.dev if self._network is not None else None
        if any(may_concern_underlay(one, dev) for one in found):
            # Not ready: whatever is missing may be there now.
            used = self._network if self._not_ready is None else None
            if await self._renewal.underlay_differs(used):
                self._look_at_own()

    async def _judge_nft(self, found: list[Message]) -> None:
        if await self._worker.any_amiss(found):
            self._mender.note_amiss()

    def _on_loss(self) -> None:
        log.warning("kernel notifications were lost; reading everything anew")
        self._mender.note_amiss()
        self._look_at_own()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._judged)

    def _judged(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("notification not judged", extra=fields(error=error), exc_info=error)
            self._on_loss()

    def _note_refused(self, refused: str | None) -> None:
        """Without its own devices a node is of no use: not ready until the kernel has them."""
        if refused is not None:
            self._say_not_ready(refused)
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
            if self._network is None:
                continue
            await self._mender.mend_amiss()
            if plans := self._planner.changed(self._network):
                await self._mender.update(plans)
                metrics.PEERS.set(self._nodes.leased_peers)

    async def _renew(self) -> None:
        """Look at our own lease and underlay again; plan anew where that changes anything."""
        try:
            network = await self._renewal.look(self._network)
        except NotReady as error:
            self._say_not_ready(error.message)
            return
        if network is None:
            return
        if network != self._network:
            await self._adopt(network)
        if self._refused is not None:
            return
        # Nobody is to send us anything, nor any pod to be made, that would be lost.
        problem = self.peering.not_ready
        if problem is None:
            problem = await self._renewal.publish(network, again=self._not_ready is not None)
            if self._not_ready is None:
                return
        if problem is not None:
            self._say_not_ready(problem)
        elif self._source.own is not None and self._refused is None:
            self._say_not_ready(None)
            log.info("ready", extra=fields(node=network.node, peers=self._nodes.leased_peers))

    async def _adopt(self, network: NetworkConfig) -> None:
        """Use a new configuration: everything is planned and compared."""
        log.info(
            "lease",
            extra=fields(
                node=network.node,
                fabric=network.fabric.profile,
                subnets=",".join(map(str, network.lease.subnets)),
                underlay=network.underlay.dev,
                address=",".join(map(str, network.underlay.ips)),
                mtu=network.mtu,
            ),
        )
        self._tell_of_change(network)
        if self._network is None or not differ_in_further_subnets(self._network, network):
            self._pods.wait_for("the node's network is being made")
        for protocol in self._memory.begin(network):
            await self._worker.call(self._worker.reconciler.own_protocol, protocol)
        attachments = self._pods.use(network)
        warn_of_strays(network, attachments)
        self._network = network
        moving = self._pods.to_rewire
        staying = [one for one in attachments if one not in moving]
        await self._mender.replace(self._planner.whole(network, staying))
        if moving:
            await self._pods.rewire()
        if not self._mender.held:
            self._memory.done(network)
        if self._refused is None:
            self._use_peers()
        else:
            self._pods.wait_for(self._refused)
        metrics.PEERS.set(self._nodes.leased_peers)

    def _use_peers(self) -> None:
        """Once the kernel has what is wanted: the tunnel's device is ours, probes have routes."""
        if self._network is not None:
            self.peering.use(self._network, self._renewal.private_key)
            self._pods.wait_for(self.peering.not_ready)

    def _tell_of_change(self, network: NetworkConfig) -> None:
        """What becomes of pods, where this is another fabric than the last one."""
        last = self._memory.last
        if last is None or last.fabric == network.fabric:
            return
        log.warning(
            "another fabric", extra=fields(was=last.fabric.profile, now=network.fabric.profile)
        )
        other = set(last.network) != set(map(str, network.network))
        for sentence in interruptions(last.fabric, network.fabric, other_network=other):
            log.warning("another fabric", extra=fields(means=sentence))
