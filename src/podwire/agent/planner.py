"""What the kernel is to hold, put together from what the agent knows: nodes, pods, blocked paths.

What lives here: which plan is asked for what, as a whole or for what has changed. What does not:
the plans (`podwire.plan`), and applying them (`mending`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from podwire.agent.nodes import Nodes
from podwire.agent.peering import Peering
from podwire.agent.podwatch import PodWatch
from podwire.agent.telling import ObjectionLog
from podwire.model.cluster import Attachment, ClusterView, NetworkConfig, Node, PodPlace
from podwire.model.state import Desired, Entry
from podwire.plan.node import cause_of_node, cause_of_pod, plan, plan_peer, plan_pod

#: So many leases that are not used are logged one by one at the start, of the others the number.
_OBJECTIONS_LOGGED = 10


class Planner:
    """Plans of one node. `pod_watch` is None where nobody knows of other nodes' pods."""

    def __init__(self, nodes: Nodes, peering: Peering, pod_watch: PodWatch | None) -> None:
        self._nodes = nodes
        self._peering = peering
        self._pod_watch = pod_watch
        self._objections = ObjectionLog()

    def whole(self, network: NetworkConfig, attachments: Sequence[Attachment]) -> Desired:
        """All of it."""
        names, _ = self._take_changed()
        nodes = {**dict.fromkeys(names), **self._nodes.by_name}
        self._objections.tell(network, nodes, self._nodes.claims, _OBJECTIONS_LOGGED)
        blocked = self._peering.blocked
        return plan(ClusterView(network, self._nodes.by_name, blocked, self._places), attachments)

    def changed(self, network: NetworkConfig) -> dict[str, tuple[Entry, ...]]:
        """The entries of what has changed since any of these was asked last, by cause; the tunnel
        and the probes are told of it, too."""
        names, pods = self._take_changed()
        peers = {name: self._nodes.by_name.get(name) for name in names}
        claims, blocked = self._nodes.claims, self._peering.blocked
        plans: dict[str, tuple[Entry, ...]] = {}
        for name, peer in peers.items():
            entries = plan_peer(network, peer, claims, blocked=name in blocked) if peer else ()
            plans[cause_of_node(name)] = entries
        for pod in pods:
            place = self._places.get(pod)
            entries = plan_pod(network, place, self._home(place)) if place is not None else ()
            plans[cause_of_pod(pod)] = entries
        if names:
            self._peering.update(names)
            self._objections.tell(network, peers, claims)
        return plans

    @property
    def _places(self) -> Mapping[str, PodPlace]:
        return self._pod_watch.places if self._pod_watch is not None else {}

    def _home(self, place: PodPlace) -> Node | None:
        return self._nodes.by_name.get(place.node)

    def _take_changed(self) -> tuple[set[str], set[str]]:
        """The nodes to plan anew, and the pods: those that changed, and those on these nodes."""
        names = self._nodes.take_changed()
        if self._pod_watch is None:
            return names, set()
        pods = self._pod_watch.take_changed()
        return names, pods.union(*(self._pod_watch.pods_on(name) for name in names))
