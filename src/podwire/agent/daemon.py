"""The node's agent: watch → plan → apply, and the CNI server beside it.

One loop does all that changes the kernel; everything else only says that there is something to do:

    API (nodes) ──┐                       ┌─ own lease: underlay, annotations, full reconcile
    notifications ┼─▶ pending work ─▶ loop ┼─ peers that changed: just their entries
    signals ──────┘                       └─ something amiss: full reconcile

Stopping, however it happens, leaves the kernel as it is: pods go on talking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from podwire.agent import metrics
from podwire.agent.config import AgentConfig
from podwire.agent.document import plan_document
from podwire.agent.files import subnet_env, write_atomically
from podwire.agent.lease import node_config
from podwire.agent.nodes import Nodes
from podwire.agent.operator import serve_operators
from podwire.agent.pods import Pods
from podwire.agent.publication import Publication
from podwire.agent.rounds import Rounds
from podwire.agent.server import serve
from podwire.agent.telling import account, log_failures, log_objections, warn_of_strays
from podwire.agent.watch import KernelWatch, may_concern_underlay
from podwire.agent.worker import KernelWorker
from podwire.cluster.kube import NODES, ClientConfig, KubeClient, WatchEvent, reflect
from podwire.cluster.nodes import NodeObject
from podwire.errors import InputError, PodwireError
from podwire.kernel.attach import find_link
from podwire.kernel.netlink import Message, NetlinkSocket
from podwire.kernel.reconcile import Report
from podwire.kernel.underlay import find_underlay
from podwire.log import fields
from podwire.model.cluster import ClusterView, NetworkConfig, Underlay
from podwire.plan.node import cause_of_node, plan, plan_peer

log = logging.getLogger(__name__)

_AT_FIRST = "waiting for the Kubernetes API"
#: Two full reconciles are at least this far apart, so that a burst of notifications costs one.
_SETTLE_S = 0.02
#: Seconds after which the kernel is asked again for a device that it refused, where it did not
#: notify before that what was in the way is gone.
_REFUSED_AGAIN_S = 5.0
#: Somebody who keeps undoing what we do is answered at this pace, after so many rounds.
_FIGHT_ROUNDS, _FIGHT_PACE_S = 20, 1.0
#: So many leases that are not used are logged one by one at the start, of the others the number.
_OBJECTIONS_LOGGED = 10


class Agent:
    """One node's agent. `run` returns when it is cancelled."""

    def __init__(self, config: AgentConfig, client_config: ClientConfig) -> None:
        self._config = config
        self._client_config = client_config
        self._nodes = Nodes(config.node_name)
        self._network: NetworkConfig | None = None
        self._wake = asyncio.Event()
        self._own_changed = False
        self._amiss = False
        self._refused = False
        self._refused_timer: asyncio.TimerHandle | None = None
        self._failures: frozenset[str] = frozenset()
        self._repairs = Rounds(_FIGHT_ROUNDS)
        self._not_ready: str | None = _AT_FIRST
        self._held = False
        self._connected = False

    @property
    def config(self) -> AgentConfig:
        return self._config

    @property
    def network(self) -> NetworkConfig | None:
        """What this node is planned with; None until its lease is known."""
        return self._network

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
    def client(self) -> KubeClient:
        return self._client

    @property
    def connected(self) -> bool:
        """Whether the API is being watched."""
        return self._connected

    @property
    def held(self) -> bool:
        """Whether the kernel is left as it is, whatever becomes of it; see `hold`."""
        return self._held

    def hold(self, on: bool) -> None:
        """Stop mending the kernel, or start again with all that differs by then.

        While it is held, the agent goes on watching, publishing and wiring new pods. It is not
        held any more when it is started anew. Raises PodwireError where nothing has been made yet
        that could be left as it is.
        """
        if on == self._held:
            return
        if on and self._network is None:
            raise PodwireError(
                f"there is nothing to hold yet: {self._not_ready}", remedy="wait until it is ready"
            )
        self._held = on
        metrics.HELD.set(on)
        if on:
            log.warning("held: the kernel is left as it is")
            return
        log.info("resumed")
        self._amiss = True
        self._wake.set()

    @property
    def not_ready(self) -> str | None:
        """Why pods can't be wired yet; None when they can."""
        return self._not_ready

    def _say_not_ready(self, reason: str | None) -> None:
        """What /readyz, the metrics and the runtime are told from now on."""
        if reason is not None and reason != self._not_ready:
            log.warning("not ready", extra=fields(reason=reason))
        self._not_ready = reason
        metrics.READY.set(reason is None)
        if reason is not None:
            self._pods.say_not_ready(reason)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._worker = KernelWorker()
        self._route = NetlinkSocket()
        self._pods = Pods(self._config, self._worker)
        self._publication = Publication(self._pods, self._look_at_own)
        watch = KernelWatch(
            loop,
            on_rtnetlink=lambda found: self._spawn(self._judge(found)),
            on_nft=lambda tables: self._spawn(self._judge_nft(tables)),
            on_loss=self._on_loss,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(self._pods)
                self._say_not_ready(_AT_FIRST)
                await stack.enter_async_context(serve(self._config, self))
                operators = serve_operators(self._config.operator_socket, self)
                await stack.enter_async_context(operators)
                client = await stack.enter_async_context(KubeClient(self._client_config))
                self._client = client
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._watch_nodes(client))
                    group.create_task(self._work())
        finally:
            watch.close()
            for task in self._tasks:
                task.cancel()
            self._route.close()
            self._worker.close()

    # --- what happens ---------------------------------------------------------------------

    async def _watch_nodes(self, client: KubeClient) -> None:
        await reflect(
            client,
            NODES,
            on_sync=self._on_sync,
            on_event=self._on_event,
            on_connected=self._on_connected,
            on_disconnected=self._on_disconnected,
            type=NodeObject,
        )

    def _on_connected(self) -> None:
        self._connected = True
        metrics.API_CONNECTED.set(1)
        if self._publication.is_put_off:
            self._look_at_own()

    def _on_disconnected(self, error: PodwireError) -> None:
        self._connected = False
        metrics.API_CONNECTED.set(0)
        log.warning("kubernetes API is away", extra=fields(error=error))

    def _on_sync(self, items: Sequence[NodeObject]) -> None:
        self._nodes.sync(items)
        self._note_own()
        self._wake.set()

    def _on_event(self, event: WatchEvent[NodeObject]) -> None:
        if not self._nodes.event(event):
            return
        if event.object.metadata.name == self._config.node_name:
            self._note_own()
        self._wake.set()

    def _note_own(self) -> None:
        if self._nodes.own is None:
            self._say_not_there()
        self._own_changed = True

    def _say_not_there(self) -> None:
        self._say_not_ready(f"node {self._config.node_name} does not exist in the cluster")

    def _look_at_own(self) -> None:
        """Have `_renew` done."""
        self._own_changed = True
        self._wake.set()

    async def _judge(self, found: list[Message]) -> None:
        if await self._worker.any_amiss(found):
            self._amiss = True
            self._wake.set()
        dev = self._network.underlay.dev if self._network is not None else None
        if any(may_concern_underlay(one, dev) for one in found):
            # Not ready: whatever is missing may be there now.
            used = self._network if self._not_ready is None else None
            underlay = used.underlay if used is not None else None
            if await self._worker.call(self._find_underlay) != underlay:
                self._look_at_own()

    async def _judge_nft(self, tables: set[str]) -> None:
        if await self._worker.any_nft_amiss(tables):
            self._amiss = True
            self._wake.set()

    def _on_loss(self) -> None:
        log.warning("kernel notifications were lost; reading everything anew")
        self._amiss = True
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
            if self._amiss and not self._held:
                await asyncio.sleep(_FIGHT_PACE_S if self._repairs.too_many() else _SETTLE_S)
                self._amiss = False
                await self._reconcile("amiss")
            if changed := self._nodes.take_changed():
                await self._update_peers(self._network, changed)

    async def _renew(self) -> None:
        """Look at our own node and underlay again; plan anew where that changes anything."""
        own = self._nodes.own
        if own is None:
            self._say_not_there()
            return
        underlay = await self._worker.call(self._find_underlay)
        if self._nodes.own is None:
            return  # Deleted meanwhile, and looked for without its addresses: the next round tells.
        if isinstance(underlay, str):
            self._say_not_ready(underlay)
            return
        try:
            network = node_config(self._config, own, underlay, await self._own_mac())
        except InputError as error:
            self._say_not_ready(str(error))
            return
        if isinstance(network, str):
            self._say_not_ready(network)
            return
        if network != self._network:
            await self._adopt(network)
        if self._refused:
            return
        self._publication.begin()
        try:
            write_atomically(self._config.subnet_file, subnet_env(network))
            await self._publish(own, network)
        except PodwireError as error:
            # Peers that know the old lease still reach us; the kernel here is right already.
            log.error("not published", extra=fields(error=error))
            if self._not_ready is not None:
                self._say_not_ready(str(error))
            self._publication.put_off()

    async def _adopt(self, network: NetworkConfig) -> None:
        """Use a new configuration: everything is planned and compared."""
        log.info(
            "lease",
            extra=fields(
                node=network.node,
                subnets=",".join(map(str, network.lease.subnets)),
                underlay=network.underlay.dev,
                address=network.underlay.ip,
                mtu=network.mtu,
            ),
        )
        attachments = self._pods.use(network)
        warn_of_strays(network, attachments)
        self._network = network
        self._nodes.take_changed()
        log_objections(network, self._nodes.by_name, self._nodes.claims, _OBJECTIONS_LOGGED)
        desired = plan(ClusterView(network, self._nodes.by_name), attachments)
        await self._worker.call(self._worker.reconciler.replace, desired)
        await self._reconcile("start")

    async def _publish(self, own: NodeObject, network: NetworkConfig) -> None:
        """Have the lease known; once it is, pods can be wired."""
        again = self._not_ready is not None
        await self._publication.publish(self._client, own, network, again=again)
        if self._not_ready is not None and self._nodes.own is not None and not self._refused:
            self._say_not_ready(None)
            log.info("ready", extra=fields(node=network.node, peers=self._nodes.leased_peers))

    async def _reconcile(self, reason: str) -> None:
        if not self._held:
            await self.mend(reason)

    async def mend(self, reason: str) -> Report:
        """Apply all that differs now, also while held; what was done."""
        verbose = log.isEnabledFor(logging.DEBUG)
        report = await self._worker.call(self._worker.reconciler.reconcile, record=verbose)
        account("full", report)
        log_failures(report.failures, known=self._failures)
        self._failures = frozenset(report.failures)
        for change in report.lines:
            log.debug("changed", extra=fields(line=change.line, why=change.why))
        if report.changes or reason == "start":
            log.info(
                "reconciled",
                extra=fields(
                    reason=reason, changes=report.changes, ms=round(report.seconds * 1000, 1)
                ),
            )
        metrics.PEERS.set(self._nodes.leased_peers)
        self._note_refused(report.refused)
        if report.missing:
            await self._pods.attach_again([link.name for link in report.missing])
        return report

    def _note_refused(self, refused: list[str]) -> None:
        """Without its own devices a node is of no use: not ready until the kernel has them."""
        if self._refused_timer is not None:
            self._refused_timer.cancel()
            self._refused_timer = None
        if refused:
            self._say_not_ready(refused[0])
            loop = asyncio.get_running_loop()
            self._refused_timer = loop.call_later(_REFUSED_AGAIN_S, self._ask_again)
        elif self._refused:
            # `_renew` publishes what it did not, and says that we are ready.
            self._look_at_own()
        self._refused = bool(refused)

    def _ask_again(self) -> None:
        self._amiss = True
        self._wake.set()

    async def _update_peers(self, network: NetworkConfig, names: set[str]) -> None:
        peers = {name: self._nodes.by_name.get(name) for name in names}
        claims = self._nodes.claims
        plans = {
            name: plan_peer(network, peer, claims) if peer is not None else ()
            for name, peer in peers.items()
        }
        log_objections(network, {name: one for name, one in peers.items() if one}, claims)
        whole = False
        # First what goes: whatever takes its place finds it free.
        for name in sorted(plans, key=lambda name: bool(plans[name])):
            cause = cause_of_node(name)
            if self._held:
                await self._worker.call(self._worker.reconciler.want, cause, plans[name])
                continue
            update = self._worker.reconciler.update
            report = await self._worker.call(update, cause, plans[name])
            if report is None:
                whole = True
                continue
            account("peer", report)
            log_failures(report.failures)
            if report.changes:
                log.info("peer", extra=fields(node=name, changes=report.changes))
        metrics.PEERS.set(self._nodes.leased_peers)
        if whole:
            await self._reconcile("peers")

    # --- looking --------------------------------------------------------------------------

    def _find_underlay(self) -> Underlay | str:
        """In the worker's thread."""
        own = self._nodes.by_name.get(self._config.node_name)
        candidates = own.internal_ips if own is not None else ()
        return find_underlay(self._route, candidates, self._config.iface)

    async def _own_mac(self) -> bytes | None:
        if self._network is not None:
            return self._network.lease.vtep_mac
        device = f"flannel.{self._config.vni}"
        link = await self._worker.call(find_link, self._route, device)
        return link.mac if link is not None and link.ours else None

    async def plan_document(self) -> dict[str, Any]:
        """What is desired and what differs, for `podwire plan`."""
        reconciler = self._worker.reconciler
        name = self._config.node_name
        document = await self._worker.call(plan_document, reconciler, name)
        return {**document, "held": self._held}
