"""What an agent does with its peers besides entries in the kernel: the paths to them are watched,
and the UDP tunnel is told of them.

What lives here: which peers each of the two is given. What does not: probes (`paths`) and the
tunnel's process (`tunnel`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from podwire.agent.config import PROBE_INTERVAL_S, AgentConfig
from podwire.agent.nodes import Nodes
from podwire.agent.paths.prober import PathState, Prober
from podwire.agent.paths.targets import Key, Target, targets
from podwire.agent.tunnel import Tunnel
from podwire.agent.tunnel_ends import tunnel_config, tunnel_peer
from podwire.model.cluster import NetworkConfig, Node
from podwire.model.tunnel import TunnelPeer
from podwire.plan.node import objections
from podwire.plan.paths import paths
from podwire.trace.status import PathStatus


class Peering:
    """`on_paths(names)` is called when VXLAN gets through to these and did not, or the other way
    round; `on_tunnel` when the tunnel begins to forward, and when it no longer does."""

    def __init__(
        self,
        config: AgentConfig,
        nodes: Nodes,
        *,
        on_paths: Callable[[frozenset[str]], None],
        on_tunnel: Callable[[], None],
    ) -> None:
        self._own_name = config.node_name
        self._nodes = nodes
        self._network: NetworkConfig | None = None
        self._targets: dict[str, dict[Key, Target]] = {}
        #: By peer and IP version: the kind of way that is used, and since when.
        self._since: dict[Key, tuple[str, float]] = {}
        interval_s = config.probe_interval_s or PROBE_INTERVAL_S
        self.prober = Prober(interval_s, config.paths_file, on_paths)
        self.tunnel = Tunnel(config.tunnel_socket, on_tunnel)

    @property
    def blocked(self) -> frozenset[str]:
        """The peers that VXLAN does not get through to."""
        return self.prober.blocked

    @property
    def not_ready(self) -> str | None:
        """Why pods can't be wired although the kernel is right; None where they can.

        Where the tunnel is one way of several, no more than its first try is waited for.
        """
        network = self._network
        is_only_way = network is not None and network.fabric.transport == "udp"
        return self.tunnel.problem if is_only_way or self.tunnel.is_starting else None

    def ways(self, peer: Node) -> tuple[PathStatus, ...]:
        """The ways to a peer's pods, one a family; none where its lease is not used."""
        network = self._network
        if network is None or objections(network, peer, self._nodes.claims):
            return ()
        found = []
        for path in paths(network, peer, blocked=peer.name in self.blocked):
            key = (peer.name, path.version)
            probed = self.prober.state(key)
            told = path.reason
            if probed is not None and path.kind != "direct":
                # That VXLAN does not get through, the probes say with more.
                told = probed.text if path.kind == "udp" else f"{told}; {probed.text}"
            _, since = self._since.get(key, (path.kind, time.time()))
            found.append(
                PathStatus(
                    version=path.version,
                    kind=path.kind,
                    via=path.via,
                    reason=told,
                    since=since,
                    rtt_us=_microseconds(probed),
                    blocked=probed is not None and probed.blocked,
                )
            )
        return tuple(found)

    def _note_ways(self, name: str, node: Node | None) -> None:
        """Since when which way is used."""
        network, now = self._network, time.time()
        if network is None or node is None:
            for version in (4, 6):
                self._since.pop((name, version), None)
            return
        for path in paths(network, node, blocked=name in self.blocked):
            key = (name, path.version)
            if self._since.get(key, ("", 0.0))[0] != path.kind:
                self._since[key] = (path.kind, now)

    def use(self, network: NetworkConfig, private_key: bytes | None) -> None:
        """This is the network from now on."""
        self._network = network
        self._targets = {}
        peers: dict[str, TunnelPeer] = {}
        # In the order of age: of two at one address, the tunnel takes the newer for who is there,
        # as the other one has not left the store yet.
        by_age = sorted(self._nodes.by_name.items(), key=lambda one: (one[1].created, one[0]))
        for name, node in by_age:
            if name == self._own_name:
                continue
            self._note_ways(name, node)
            self._targets[name] = targets(network, node, self._nodes.claims)
            if (peer := tunnel_peer(network, node, self._nodes.claims)) is not None:
                peers[name] = peer
        self.tunnel.want(tunnel_config(network, private_key), peers)
        self._ask()

    def update(self, names: Iterable[str]) -> None:
        """These peers are new or others now, or gone."""
        network, claims = self._network, self._nodes.claims
        if network is None:
            return
        for name in names:
            node = self._nodes.by_name.get(name)
            self._note_ways(name, node)
            peer = tunnel_peer(network, node, claims) if node is not None else None
            self.tunnel.put(name, peer)
            self._targets[name] = targets(network, node, claims) if node is not None else {}
        self._ask()

    def _ask(self) -> None:
        found = {key: one for some in self._targets.values() for key, one in some.items()}
        self.prober.set_targets(found)

    async def run(self) -> None:
        """Both, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.prober.run())
            group.create_task(self.tunnel.run())


def _microseconds(state: PathState | None) -> float | None:
    return round(state.rtt_s * 1e6, 1) if state is not None and state.rtt_s is not None else None
