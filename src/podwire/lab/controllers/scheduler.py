"""Each pod gets a node: the one with the fewest pods, among those that are fit for it.

Fit is a node that is Ready, not cordoned, whose NoSchedule and NoExecute taints the pod tolerates,
that has the labels of the pod's `nodeSelector`, and whose `allocatable.pods` isn't reached.
Resource requests and affinity are not looked at. A pod that no node is fit for waits: it is told
why (Event FailedScheduling, condition PodScheduled) and looked at again when a node or another pod
changes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from podwire.errors import ApiError
from podwire.lab.api.binding import bind, set_condition
from podwire.lab.api.hub import Event
from podwire.lab.api.kinds.meta import condition
from podwire.lab.api.kinds.node import NODE
from podwire.lab.api.kinds.pod import FINISHED, POD
from podwire.lab.api.objects import Objects
from podwire.lab.api.registry import Object
from podwire.lab.controllers.events import record

log = logging.getLogger("podwire.lab.controllers.scheduler")

NAME = "default-scheduler"
_DEFAULT_CAPACITY = 110

_PodName = tuple[str, str]


class Scheduler:
    """Binds pods to nodes."""

    kinds = (NODE.resource, POD.resource)

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._nodes: dict[str, Object] = {}
        self._bound: dict[_PodName, str] = {}
        self._load: Counter[str] = Counter()
        self._pending: dict[_PodName, None] = {}

    def sync(self) -> None:
        self._nodes = {node["metadata"]["name"]: node for node in self._objects.list(NODE)}
        self._bound, self._load, self._pending = {}, Counter(), {}
        for pod in self._objects.list(POD):
            self._note_pod(pod)
        self._schedule()

    def handle(self, events: Sequence[Event]) -> None:
        changed = False
        for event in events:
            if event.key.kind == NODE.resource:
                changed |= self._note_node(event)
            elif event.type == "DELETED":
                changed |= self._drop((event.key.namespace, event.key.name))
            else:
                changed |= self._note_pod(event.object)
        if changed:
            self._schedule()

    def due(self) -> float | None:
        return None

    def tick(self) -> None:
        return None

    def _note_node(self, event: Event) -> bool:
        name = event.key.name
        before = self._nodes.pop(name, None)
        if event.type == "DELETED":
            return True
        self._nodes[name] = event.object
        return before is None or _fitness(before) != _fitness(event.object)

    def _note_pod(self, pod: Object) -> bool:
        """Take up a pod's state; whether that could let a pod be scheduled."""
        name = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        spec = pod["spec"]
        node = spec.get("nodeName")
        finished = (pod.get("status") or {}).get("phase") in FINISHED
        if node and not finished:
            if self._bound.get(name) != node:
                self._drop(name)
                self._bound[name] = node
                self._load[node] += 1
            self._pending.pop(name, None)
            return False
        freed = self._drop(name)
        if node or finished or "deletionTimestamp" in pod["metadata"]:
            return freed
        if spec.get("schedulerName", NAME) != NAME or spec.get("schedulingGates"):
            return freed
        new = name not in self._pending
        self._pending[name] = None
        return new or freed

    def _drop(self, name: _PodName) -> bool:
        self._pending.pop(name, None)
        node = self._bound.pop(name, None)
        if node is None:
            return False
        self._load[node] -= 1
        return True

    def _schedule(self) -> None:
        with self._objects.transaction():
            for name in list(self._pending):
                pod = self._objects.find(POD, *name)
                if pod is None or pod["spec"].get("nodeName"):
                    # Changed since; its event is on the way.
                    continue
                self._place(name, pod)

    def _place(self, name: _PodName, pod: Object) -> None:
        obstacles = {
            node: _obstacle(pod, found, self._load[node]) for node, found in self._nodes.items()
        }
        fit = [node for node, obstacle in obstacles.items() if obstacle is None]
        if not fit:
            self._refuse(pod, obstacles)
            return
        node = min(fit, key=lambda candidate: (self._load[candidate], candidate))
        try:
            bound = bind(self._objects, *name, {"target": {"kind": "Node", "name": node}})
        except ApiError as error:
            log.warning("cannot bind pod=%s/%s node=%s error=%r", *name, node, error.message)
            return
        self._pending.pop(name, None)
        self._bound[name] = node
        self._load[node] += 1
        message = f"Successfully assigned {'/'.join(name)} to {node}"
        record(self._objects, bound, "Normal", "Scheduled", message, NAME)

    def _refuse(self, pod: Object, obstacles: dict[str, str | None]) -> None:
        counted = Counter(obstacle for obstacle in obstacles.values() if obstacle)
        reasons = ", ".join(f"{count} node(s) {why}" for why, count in sorted(counted.items()))
        message = f"0/{len(obstacles)} nodes are available"
        message += f": {reasons}." if reasons else "."
        if condition(pod, "PodScheduled").get("message") == message:
            return
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        set_condition(
            self._objects, namespace, name, "PodScheduled", "False", "Unschedulable", message
        )
        record(self._objects, pod, "Warning", "FailedScheduling", message, NAME)


def _fitness(node: Object) -> Any:
    """All of a node that `_obstacle` looks at."""
    ready = condition(node, "Ready").get("status")
    allocatable = (node.get("status") or {}).get("allocatable")
    metadata = node["metadata"]
    labels = metadata.get("labels")
    return ready, allocatable, labels, node.get("spec"), "deletionTimestamp" in metadata


def _obstacle(pod: Object, node: Object, load: int) -> str | None:
    """Why a node is not fit for a pod (as in "2 node(s) WHY"), None if it is."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    if spec.get("unschedulable"):
        return "were unschedulable"
    if condition(node, "Ready").get("status") != "True" or "deletionTimestamp" in node["metadata"]:
        return "were not ready"
    labels = node["metadata"].get("labels") or {}
    for key, value in (pod["spec"].get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            return "didn't match Pod's node affinity/selector"
    for taint in spec.get("taints") or []:
        if taint["effect"] != "PreferNoSchedule" and not _tolerates(pod, taint):
            return f"had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    capacity = str((status.get("allocatable") or {}).get("pods", _DEFAULT_CAPACITY))
    if capacity.isdigit() and load >= int(capacity):
        return "had too many pods"
    return None


def _tolerates(pod: Object, taint: dict[str, Any]) -> bool:
    for toleration in pod["spec"].get("tolerations") or []:
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        if toleration.get("key") not in (None, "", taint["key"]):
            continue
        if toleration.get("operator") == "Exists":
            return True
        if toleration.get("value", "") == taint.get("value", ""):
            return True
    return False
