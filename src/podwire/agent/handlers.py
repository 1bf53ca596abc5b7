"""What the agent does for each request of an operator (`podwire.trace.wire`).

What lives here: one session's requests, each a method by its type, and what they have opened.
What does not: sockets and frames (`operator`), and how anything is sent, seen, decided, explained
or examined (`podwire.trace`, `podwire.agent.doctor`).

What blocks runs in threads of the session's own, so that an operator who lets a probe wait for
long takes nothing from the agent's own work.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from concurrent import futures
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from podwire.agent.doctor.run import check
from podwire.agent.status import node_status
from podwire.agent.watching import Deliverer, Sender, Watched
from podwire.errors import InputError, KernelError, PodwireError
from podwire.kernel import netns
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe.nft_trace import RawNftStep
from podwire.model.cluster import NetworkConfig
from podwire.model.probe import Probe
from podwire.model.state import Why
from podwire.model.tunnel import Stats
from podwire.trace import wire
from podwire.trace.decide import Decider
from podwire.trace.explain import answer
from podwire.trace.explanations.knowledge import Knowledge
from podwire.trace.intent import Intent
from podwire.trace.observer import Observer
from podwire.trace.places import Places, clock
from podwire.trace.probe import Prober
from podwire.trace.records import ProbeResult
from podwire.trace.user_tunnel import TunnelCount, UserTunnel, counted
from podwire.trace.wire import Request, Response

if TYPE_CHECKING:
    from podwire.agent.daemon import Agent

T = TypeVar("T")
C = TypeVar("C", bound="Closable")

#: A probe that waits, and something to ask the kernel meanwhile.
_THREADS = 3


class Closable(Protocol):
    def close(self) -> None: ...


class Handlers:
    """One session's requests. What they open is closed by `aclose`."""

    def __init__(self, agent: Agent, sender: Sender) -> None:
        self._agent = agent
        self._sender = sender
        self._threads = futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="operator")
        #: What can be done by one request at a time only.
        self._one = asyncio.Lock()
        self._deliverer = Deliverer(asyncio.get_running_loop(), sender)
        self._prober: Prober | None = None
        self._watched: Watched | None = None
        #: What the UDP tunnel had counted when this session began to watch.
        self._counted: Stats | None = None
        self._by_type: dict[type, Callable[[Any], Awaitable[Response]]] = {
            wire.Prepare: self._prepare,
            wire.Fire: self._fire,
            wire.GiveUp: self._give_up,
            wire.Observe: self._observe,
            wire.Capture: self._capture,
            wire.Stop: self._stop,
            wire.Ask: self._ask,
            wire.Explain: self._explain,
            wire.Check: self._check,
            wire.Hold: self._hold,
            wire.Status: self._status,
        }

    def welcome(self) -> wire.Welcome:
        """The greeting: this node, and its part in the pod network."""
        agent = self._agent
        network = agent.network
        about: dict[str, Any] = {}
        if network is not None:
            about = {
                "subnets": tuple(map(str, network.lease.subnets)),
                "underlay": str(network.underlay.ip),
                "mtu": network.mtu,
                **_devices(network),
            }
        return wire.Welcome(
            version=wire.VERSION,
            node=agent.config.node_name,
            clock=clock(),
            time_ns=time.time_ns(),
            not_ready=agent.not_ready or "",
            network=tuple(map(str, agent.networks)),
            held=agent.held,
            **about,
        )

    async def handle(self, request: Request) -> Response:
        """Do it. Raises PodwireError where it can't be done."""
        return await self._by_type[type(request)](request)

    async def aclose(self) -> None:
        """Close everything, once what the threads are at has ended: they use what is closed."""
        self._deliverer.end()
        if self._prober is not None:
            self._prober.close()
        # In a thread: nobody else's work is to wait.
        await asyncio.to_thread(self._threads.shutdown)
        if self._watched is not None:
            await asyncio.to_thread(self._watched.close)

    # --- probes ---------------------------------------------------------------------------

    async def _prepare(self, request: wire.Prepare) -> wire.Prepared:
        netns = self._pod_netns(request.pod) if request.pod else None
        async with self._one:
            if self._prober is not None:
                raise PodwireError("a probe is prepared already in this session")
            try:
                prober = await self._open(lambda: _prober(netns, request.probe))
            except KernelError as error:
                return _refused(request, error)
            self._prober = prober
        return wire.Prepared(to=request.id, source=prober.source, ident=prober.ident)

    async def _fire(self, request: wire.Fire) -> wire.Fired:
        if self._prober is None:
            raise PodwireError("no probe is prepared")
        results = await self._in_thread(self._prober.fire)
        return wire.Fired(to=request.id, results=tuple(results))

    async def _give_up(self, request: wire.GiveUp) -> wire.Done:
        if self._prober is not None:
            self._prober.give_up()
        return wire.Done(to=request.id)

    def _pod_netns(self, pod: str) -> str:
        found = self._agent.pods.namespaces.get(pod)
        if found is None:
            raise InputError(
                f"pod {pod} is not attached to the pod network of node"
                f" {self._agent.config.node_name}",
                field="pod",
                remedy="is it running, and not on the host's network?",
            )
        return found

    # --- watching -------------------------------------------------------------------------

    async def _observe(self, request: wire.Observe) -> wire.Observing:
        known = self._agent.pods.namespaces
        pods = {pod: known[pod] for pod in request.pods if pod in known}
        intent = await self._intent()
        self._counted = await self._agent.peering.tunnel.stats()

        def why(step: RawNftStep) -> Why | None:
            rule = intent.nft_rule(step.table, step.chain, step.rule, step.family)
            return rule.why if rule is not None else None

        return await self._watch(request.id, pods, lambda observer: observer.observe(request, why))

    async def _capture(self, request: wire.Capture) -> wire.Observing:
        known = self._agent.pods.namespaces
        pods = known
        if not request.all_pods:
            for pod in request.pods:
                self._pod_netns(pod)
            pods = {pod: known[pod] for pod in request.pods}
        return await self._watch(request.id, pods, lambda observer: observer.capture(request))

    async def _watch(
        self, to: int, pods: dict[str, str], fill: Callable[[Observer], None]
    ) -> wire.Observing:
        """Open places and taps; answered when all are open."""
        network = self._agent.network
        underlay = network.underlay.dev if network is not None else ""
        node = self._agent.config.node_name
        async with self._one:
            if self._watched is not None:
                raise PodwireError("this session has observed already", remedy="begin another one")
            watched = self._watched = await self._open(
                lambda: Watched(Places(node, underlay, pods), self._deliverer, fill)
            )
        # Nothing is delivered before the answer: that takes this loop, and it is sent first.
        watched.observer.start()
        notes = (*watched.places.notes, *watched.observer.notes)
        return wire.Observing(to=to, places=watched.places.described, notes=notes)

    async def _stop(self, request: wire.Stop) -> wire.Stopped:
        if self._watched is None:
            raise PodwireError("this session observes nothing")
        observer = self._watched.observer
        await self._in_thread(observer.stop)
        # The operator need not wait for what that takes the kernel.
        self._threads.submit(observer.close)
        return wire.Stopped(to=request.id, tunnel=await self._tunnel_count())

    # --- knowing --------------------------------------------------------------------------

    async def _intent(self, tunnel: UserTunnel | None = None) -> Intent:
        """What this node is to hold right now, indexed in a thread of ours."""
        agent = self._agent
        reconciler = agent.worker.reconciler
        by_cause = await agent.worker.call(lambda: dict(reconciler.desired))
        network, attachments = agent.network, agent.pods.attachments
        nodes, blocked = dict(agent.nodes.by_name), agent.peering.blocked
        return await self._in_thread(
            lambda: Intent(
                by_cause,
                config=network,
                attachments=attachments,
                nodes=nodes,
                blocked=blocked,
                tunnel=tunnel,
            )
        )

    async def _tunnel_count(self) -> TunnelCount | None:
        """What the UDP tunnel has counted since this session was asked to watch."""
        tunnel = self._agent.peering.tunnel
        if tunnel.config is None:
            return None
        return counted(self._counted, await tunnel.stats(), tunnel.problem)

    async def _user_tunnel(self) -> UserTunnel | None:
        """The UDP tunnel as it is now."""
        tunnel, count = self._agent.peering.tunnel, await self._tunnel_count()
        if tunnel.config is None or count is None:
            return None
        return UserTunnel(
            config=tunnel.config,
            peers=tuple(tunnel.peers.values()),
            problem=count.problem,
            dropped=count.dropped,
        )

    async def _ask(self, request: wire.Ask) -> wire.Answers:
        if self._watched is None:
            raise PodwireError("questions are about places that are observed: observe first")
        places, held = self._watched.places, self._agent.held
        intent = await self._intent(await self._user_tunnel())

        def decide() -> wire.Answers:
            sockets = [one.socket for one in places.opened]
            decider = Decider(places.described, sockets, intent, held=held)
            decisions = tuple(map(decider.decide, request.questions))
            return wire.Answers(to=request.id, decisions=decisions)

        # They use the same sockets.
        async with self._one:
            return await self._in_thread(decide)

    async def _explain(self, request: wire.Explain) -> wire.Explained:
        agent = self._agent
        intent = await self._intent(await self._user_tunnel())
        nodes, held = dict(agent.nodes.by_name), agent.held

        def explain() -> wire.Explained:
            with NetlinkSocket() as sock:
                name = agent.config.node_name
                about = Knowledge(node=name, intent=intent, nodes=nodes, sock=sock, held=held)
                return answer(request, about)

        return await self._in_thread(explain)

    async def _check(self, request: wire.Check) -> wire.Done:
        await check(self._agent, request, self._sender.send)
        return wire.Done(to=request.id)

    async def _hold(self, request: wire.Hold) -> wire.Done:
        self._agent.hold(request.on)
        return wire.Done(to=request.id)

    async def _status(self, request: wire.Status) -> wire.StatusTold:
        return wire.StatusTold(to=request.id, status=await node_status(self._agent))

    async def _open(self, make: Callable[[], C]) -> C:
        """Make something in a thread, which is closed there if nobody waits for it any more."""
        future = self._threads.submit(make)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_close_made)
            raise

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _devices(network: NetworkConfig) -> dict[str, Any]:
    """What of the greeting is about this fabric's devices and ports."""
    fabric = network.fabric
    return {
        "wiring": fabric.wiring,
        "transport": fabric.transport,
        "bridge": fabric.bridge if fabric.wiring == "bridge" else "",
        "tunnel": network.vxlan_dev
        if fabric.uses_vxlan
        else fabric.udp_dev
        if fabric.uses_udp
        else "",
        "tunnel_port": fabric.vxlan_port if fabric.uses_vxlan else 0,
        "bare_port": fabric.udp_port if fabric.uses_udp else 0,
        "encrypted": fabric.uses_udp and fabric.encrypt,
    }


def _close_made(future: futures.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()


def _refused(request: wire.Prepare, error: KernelError) -> wire.Prepared:
    """The answer where the stack has no way to send it."""
    result = ProbeResult(number=1, outcome="error", errno=error.errno, text=error.message)
    return wire.Prepared(to=request.id, source=request.probe.source or "", ident=0, refused=result)


def _prober(path: str | None, probe: Probe) -> Prober:
    if path is None:
        return Prober(None, probe)
    fd = netns.open_netns(path)
    try:
        return Prober(fd, probe)
    finally:
        os.close(fd)
