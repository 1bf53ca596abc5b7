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
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from podwire.agent import metrics
from podwire.agent.config import AgentConfig
from podwire.agent.files import subnet_env, write_atomically
from podwire.agent.lease import node_config
from podwire.agent.pods import Pods
from podwire.agent.server import serve
from podwire.agent.watch import KernelWatch
from podwire.agent.worker import KernelWorker
from podwire.cluster.kube import NODES, ClientConfig, KubeClient, WatchEvent, reflect
from podwire.cluster.nodes import (
    NodeObject,
    differs,
    lease_annotations,
    network_available,
    node_from_object,
)
from podwire.errors import InputError, PodwireError
from podwire.kernel import messages
from podwire.kernel.attach import find_link
from podwire.kernel.netlink import Message, NetlinkSocket
from podwire.kernel.reconcile import Report
from podwire.kernel.underlay import find_underlay
from podwire.log import fields
from podwire.model.cluster import ClusterView, NetworkConfig, Node, Underlay
from podwire.model.describe import describe, kind_of
from podwire.plan.node import cause_of_node, objections, plan, plan_peer

log = logging.getLogger(__name__)

#: Two full reconciles are at least this far apart, so that a burst of notifications costs one.
_SETTLE_S = 0.02
#: Seconds after which a lease that the API refused, or could not take, is published again.
_PUBLISH_AGAIN_S = 1.0
#: Seconds after which the kernel is asked again for a device that it refused, where it did not
#: notify before that what was in the way is gone.
_REFUSED_AGAIN_S = 5.0
#: Somebody who keeps undoing what we do is answered at this pace, after so many rounds.
_FIGHT_ROUNDS, _FIGHT_WINDOW_S, _FIGHT_PACE_S = 20, 10.0, 1.0


class Agent:
    """One node's agent. `run` returns when it is cancelled."""

    def __init__(self, config: AgentConfig, client_config: ClientConfig) -> None:
        self._config = config
        self._client_config = client_config
        self._own: NodeObject | None = None
        self._nodes: dict[str, Node] = {}
        self._network: NetworkConfig | None = None
        self._wake = asyncio.Event()
        self._changed_peers: set[str] = set()
        self._own_changed = False
        self._amiss = False
        self._refused = False
        self._rounds: list[float] = []
        self._not_ready: str | None = "starting"

    @property
    def not_ready(self) -> str | None:
        """Why pods can't be wired yet; None when they can."""
        return self._not_ready

    def _say_not_ready(self, reason: str | None) -> None:
        """What /readyz, the metrics and the runtime are told from now on."""
        self._not_ready = reason
        metrics.READY.set(reason is None)
        if reason is not None:
            self._pods.say_not_ready(reason)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._worker = KernelWorker()
        self._route = NetlinkSocket()
        self._pods = Pods(self._config, self._worker)
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
                self._say_not_ready("waiting for the Kubernetes API")
                await stack.enter_async_context(serve(self._config, self))
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
            on_connected=lambda: metrics.API_CONNECTED.set(1),
            on_disconnected=self._on_disconnected,
            type=NodeObject,
        )

    def _on_disconnected(self, error: PodwireError) -> None:
        metrics.API_CONNECTED.set(0)
        log.warning("kubernetes API is away", extra=fields(error=error))

    def _on_sync(self, items: Sequence[NodeObject]) -> None:
        nodes: dict[str, Node] = {}
        own = None
        for obj in items:
            node = _understood(obj)
            nodes[node.name] = node
            if node.name == self._config.node_name:
                own = obj
        if self._network is not None:
            self._changed_peers |= {
                name
                for name in nodes.keys() | self._nodes.keys()
                if nodes.get(name) != self._nodes.get(name)
            }
        self._nodes = nodes
        self._set_own(own)
        self._wake.set()

    def _on_event(self, event: WatchEvent[NodeObject]) -> None:
        name = event.object.metadata.name
        if event.type == "DELETED":
            self._nodes.pop(name, None)
        else:
            node = _understood(event.object)
            if self._nodes.get(name) == node and name != self._config.node_name:
                return  # A heartbeat, or something else that the network does not depend on.
            self._nodes[name] = node
        if name == self._config.node_name:
            self._set_own(None if event.type == "DELETED" else event.object)
        else:
            self._changed_peers.add(name)
        self._wake.set()

    def _set_own(self, own: NodeObject | None) -> None:
        if own is None:
            self._say_not_ready(f"node {self._config.node_name} does not exist in the cluster")
        self._own = own
        self._own_changed = True

    async def _judge(self, found: list[Message]) -> None:
        if await self._worker.any_amiss(found):
            self._amiss = True
            self._wake.set()
        if any(map(self._may_concern_underlay, found)):
            underlay = self._network.underlay if self._network is not None else None
            if await self._worker.call(self._find_underlay) != underlay:
                self._own_changed = True
                self._wake.set()

    def _may_concern_underlay(self, notified: Message) -> bool:
        match notified.type:
            case messages.RTM_NEWADDR | messages.RTM_DELADDR:
                return True
            case messages.RTM_NEWLINK | messages.RTM_DELLINK:
                name = messages.parse_link(notified.payload).name
                return self._network is None or name == self._network.underlay.dev
        return False

    async def _judge_nft(self, tables: set[str]) -> None:
        if await self._worker.any_nft_amiss(tables):
            self._amiss = True
            self._wake.set()

    def _on_loss(self) -> None:
        log.warning("kernel notifications were lost; reading everything anew")
        self._amiss = True
        self._wake.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
            if self._amiss:
                await asyncio.sleep(self._pace())
                self._amiss = False
                await self._reconcile("amiss")
            changed, self._changed_peers = self._changed_peers, set()
            for name in changed:
                await self._update_peer(name)

    async def _renew(self) -> None:
        """Look at our own node and underlay again; plan anew where that changes anything."""
        if self._own is None:
            return
        underlay = await self._worker.call(self._find_underlay)
        if isinstance(underlay, str):
            self._say_not_ready(underlay)
            log.warning("no underlay", extra=fields(reason=underlay))
            return
        try:
            network = node_config(self._config, self._own, underlay, await self._own_mac())
        except InputError as error:
            self._say_not_ready(str(error))
            log.error("unusable lease", extra=fields(error=error))
            return
        if isinstance(network, str):
            self._say_not_ready(network)
            log.info("no lease yet", extra=fields(reason=network))
            return
        if network != self._network:
            await self._adopt(network)
        if self._refused:
            return
        write_atomically(self._config.subnet_file, subnet_env(network))
        try:
            await self._publish(network)
        except PodwireError as error:
            # Peers that know the old lease still reach us; the kernel here is right already.
            log.error("lease not published", extra=fields(error=error))
            self._own_changed = True
            asyncio.get_running_loop().call_later(_PUBLISH_AGAIN_S, self._wake.set)

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
        self._network = network
        self._changed_peers.clear()
        desired = plan(ClusterView(network, self._nodes), attachments)
        await self._worker.call(self._worker.reconciler.replace, desired)
        await self._reconcile("start")

    async def _publish(self, network: NetworkConfig) -> None:
        """Tell peers the lease, then the runtime that pods can be wired, then the scheduler."""
        assert self._own is not None  # noqa: S101  checked by the caller
        name = self._config.node_name
        wanted = differs(self._own, lease_annotations(network.lease))
        if wanted:
            await self._client.merge_patch(NODES, name, {"metadata": {"annotations": wanted}})
            log.info("lease published", extra=fields(node=name))
        if self._not_ready is None:
            return
        await self._pods.announce()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"status": {"conditions": [network_available(now)]}}
        await self._client.strategic_patch(NODES, name, condition, subresource="status")
        self._say_not_ready(None)
        log.info("ready", extra=fields(node=name, peers=self._count_peers()))

    async def _reconcile(self, reason: str) -> None:
        verbose = log.isEnabledFor(logging.DEBUG)
        report = await self._worker.call(self._worker.reconciler.reconcile, record=verbose)
        self._account("full", report)
        for change in report.lines:
            log.debug("changed", extra=fields(line=change.line, why=change.why))
        if report.changes or report.failures or reason == "start":
            log.info(
                "reconciled",
                extra=fields(
                    reason=reason, changes=report.changes, ms=round(report.seconds * 1000, 1)
                ),
            )
        metrics.PEERS.set(self._count_peers())
        self._note_refused(report.refused)
        if report.missing:
            await self._pods.attach_again([link.name for link in report.missing])

    def _note_refused(self, refused: list[str]) -> None:
        """Without its own devices a node is of no use: not ready until the kernel has them."""
        if refused:
            self._say_not_ready(refused[0])
            asyncio.get_running_loop().call_later(_REFUSED_AGAIN_S, self._ask_again)
        elif self._refused:
            # `_renew` publishes what it did not, and says that we are ready.
            self._own_changed = True
            self._wake.set()
        self._refused = bool(refused)

    def _ask_again(self) -> None:
        if self._refused:
            self._amiss = True
            self._wake.set()

    async def _update_peer(self, name: str) -> None:
        assert self._network is not None  # noqa: S101  checked by the caller
        if name == self._config.node_name:
            return
        node = self._nodes.get(name)
        entries = plan_peer(self._network, node) if node is not None else ()
        for objection in objections(self._network, node) if node is not None else ():
            log.warning("lease not believed", extra=fields(reason=objection))
        update = self._worker.reconciler.update
        report = await self._worker.call(update, cause_of_node(name), entries)
        if report is None:
            await self._reconcile(f"peer {name}")
            return
        self._account("peer", report)
        metrics.PEERS.set(self._count_peers())
        if report.changes:
            log.info("peer", extra=fields(node=name, changes=report.changes))

    def _account(self, scope: str, report: Report) -> None:
        metrics.RECONCILE_SECONDS.labels(scope).observe(report.seconds)
        metrics.KERNEL_CHANGES.inc(report.changes)
        metrics.KERNEL_FAILURES.inc(len(report.failures))
        for failure in report.failures:
            log.error("refused by the kernel", extra=fields(error=failure))

    def _pace(self) -> float:
        """Seconds to wait before answering something amiss."""
        now = time.monotonic()
        self._rounds = [at for at in self._rounds if now - at < _FIGHT_WINDOW_S] + [now]
        return _FIGHT_PACE_S if len(self._rounds) > _FIGHT_ROUNDS else _SETTLE_S

    # --- looking --------------------------------------------------------------------------

    def _find_underlay(self) -> Underlay | str:
        """In the worker's thread."""
        own = self._nodes.get(self._config.node_name)
        candidates = own.internal_ips if own is not None else ()
        return find_underlay(self._route, candidates, self._config.iface)

    async def _own_mac(self) -> bytes | None:
        if self._network is not None:
            return self._network.lease.vtep_mac
        device = f"flannel.{self._config.vni}"
        link = await self._worker.call(find_link, self._route, device)
        return link.mac if link is not None and link.ours else None

    def _count_peers(self) -> int:
        return sum(
            1
            for name, node in self._nodes.items()
            if name != self._config.node_name and node.lease is not None
        )

    async def plan_document(self) -> dict[str, Any]:
        """What is desired and what differs, for `podwire plan`."""
        return await self._worker.call(_document, self._worker, self._config.node_name)


def _document(worker: KernelWorker, node: str) -> dict[str, Any]:
    reconciler = worker.reconciler
    desired = [
        {
            "cause": cause,
            "kind": kind_of(entry),
            "entry": describe(entry),
            "object": entry.why.object,
            "reason": entry.why.reason,
        }
        for cause, entries in reconciler.desired.items()
        for entry in entries
    ]
    changes = [
        {
            "kind": change.kind,
            "action": change.action,
            "line": change.line,
            "object": change.why.object if change.why is not None else "",
            "reason": change.why.reason if change.why is not None else "nobody wants it any more",
        }
        for change in reconciler.plan()
    ]
    return {"node": node, "desired": desired, "changes": changes}


def _understood(obj: NodeObject) -> Node:
    node, problems = node_from_object(obj)
    for problem in problems:
        log.warning("node is not understood", extra=fields(node=node.name, problem=problem))
    return node
