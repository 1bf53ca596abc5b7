"""Nodes that fall silent, and nodes that are removed.

`NodeHealth`: a node renews the Lease of its name in kube-node-lease every few seconds. When it
hasn't for 40 s its Ready condition becomes Unknown; making it True again is the node's own affair.
Time is measured here, from one seen renewal to the next, so clocks need not agree. A node that has
no Lease is left alone.

`NodeRemoval`: with a Node go its pods (nobody is left to stop them gracefully) and its Lease. A pod
that names a node that there isn't gets as long as the node may yet take to appear.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from time import monotonic

from podwire.errors import NotFoundError
from podwire.lab.api.binding import put_condition
from podwire.lab.api.hub import Event
from podwire.lab.api.kinds.lease import LEASE
from podwire.lab.api.kinds.meta import condition
from podwire.lab.api.kinds.node import NODE
from podwire.lab.api.kinds.pod import POD
from podwire.lab.api.objects import Objects
from podwire.lab.api.registry import Object
from podwire.lab.controllers.events import record

log = logging.getLogger("podwire.lab.controllers.nodes")

LEASE_NAMESPACE = "kube-node-lease"
_COMPONENT = "node-controller"

_PodName = tuple[str, str]


class NodeHealth:
    """Marks nodes whose Lease isn't renewed."""

    kinds = (LEASE.resource, NODE.resource)

    def __init__(self, objects: Objects, *, lease_s: float) -> None:
        self._objects = objects
        self._lease_s = lease_s
        # In order of expiry, as each renewal puts its node last.
        self._expires: dict[str, float] = {}
        self._renewed: dict[str, str] = {}

    def sync(self) -> None:
        self._expires, self._renewed = {}, {}
        for lease in self._objects.list(LEASE, LEASE_NAMESPACE):
            self._note(lease)

    def handle(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.key.kind == NODE.resource:
                if event.type == "ADDED" and event.key.name in self._renewed:
                    self._extend(event.key.name)
            elif event.key.namespace != LEASE_NAMESPACE:
                continue
            elif event.type == "DELETED":
                self._expires.pop(event.key.name, None)
                self._renewed.pop(event.key.name, None)
            else:
                self._note(event.object)

    def due(self) -> float | None:
        return next(iter(self._expires.values()), None)

    def tick(self) -> None:
        time = monotonic()
        with self._objects.transaction():
            while (due := self.due()) is not None and due <= time:
                name = next(iter(self._expires))
                del self._expires[name]
                self._mark_unknown(name)

    def _note(self, lease: Object) -> None:
        name = lease["metadata"]["name"]
        renewed = str((lease.get("spec") or {}).get("renewTime"))
        if self._renewed.get(name) != renewed:
            self._renewed[name] = renewed
            self._extend(name)

    def _extend(self, name: str) -> None:
        self._expires.pop(name, None)
        self._expires[name] = monotonic() + self._lease_s

    def _mark_unknown(self, name: str) -> None:
        node = self._objects.find(NODE, "", name)
        if node is None or condition(node, "Ready").get("status") == "Unknown":
            return

        def change(node: Object) -> None:
            put_condition(
                node.setdefault("status", {}).setdefault("conditions", []),
                "Ready",
                "Unknown",
                "NodeStatusUnknown",
                "Kubelet stopped posting node status.",
            )

        self._objects.modify(NODE, "", name, change, subresource="status", trusted=True)
        message = f"Node {name} status is now: NodeNotReady"
        record(self._objects, node, "Normal", "NodeNotReady", message, _COMPONENT)
        log.warning("node is silent node=%s lease_s=%g", name, self._lease_s)


class NodeRemoval:
    """Deletes what a removed node leaves behind."""

    kinds = (NODE.resource, POD.resource)

    def __init__(self, objects: Objects, *, orphan_s: float) -> None:
        self._objects = objects
        self._orphan_s = orphan_s
        self._nodes: set[str] = set()
        self._pods: defaultdict[str, set[_PodName]] = defaultdict(set)
        # Nodes that pods name and that there aren't, and when to stop hoping; in that order.
        self._missing: dict[str, float] = {}

    def sync(self) -> None:
        self._nodes = {node["metadata"]["name"] for node in self._objects.list(NODE)}
        self._pods.clear()
        self._missing = {}
        for pod in self._objects.list(POD):
            self._note_pod(pod)

    def handle(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.key.kind == NODE.resource:
                self._note_node(event)
            elif event.type == "DELETED":
                node = event.object["spec"].get("nodeName")
                self._pods[node].discard((event.key.namespace, event.key.name))
            else:
                self._note_pod(event.object)

    def due(self) -> float | None:
        return next(iter(self._missing.values()), None)

    def tick(self) -> None:
        time = monotonic()
        while (due := self.due()) is not None and due <= time:
            name = next(iter(self._missing))
            del self._missing[name]
            self._remove_pods(name)

    def _note_node(self, event: Event) -> None:
        name = event.key.name
        if event.type != "DELETED":
            self._nodes.add(name)
            self._missing.pop(name, None)
            return
        self._nodes.discard(name)
        self._remove_pods(name)
        if self._objects.find(LEASE, LEASE_NAMESPACE, name):
            self._objects.delete(LEASE, LEASE_NAMESPACE, name)

    def _note_pod(self, pod: Object) -> None:
        node = pod["spec"].get("nodeName")
        if not node:
            return
        self._pods[node].add((pod["metadata"]["namespace"], pod["metadata"]["name"]))
        if node not in self._nodes:
            self._missing.setdefault(node, monotonic() + self._orphan_s)

    def _remove_pods(self, node: str) -> None:
        if self._objects.find(NODE, "", node):
            # Back already under the same name: the pods are its own.
            return
        with self._objects.transaction():
            for namespace, name in sorted(self._pods.pop(node, ())):
                try:
                    self._objects.delete(POD, namespace, name, grace_s=0)
                except NotFoundError:
                    continue
                log.info("pod deleted with its node pod=%s/%s node=%s", namespace, name, node)
