"""A Pod's status from what the kubelet knows.

Pure: pod and record in, the object's `status` out. Source: pkg/kubelet/status/generate.go and
kubelet_pods.go of Kubernetes for conditions, reasons and messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from podwire.lab.kubelet.records import ContainerRecord, PodRecord, Termination, now
from podwire.lab.kubelet.spec import Container, Pod

Json = dict[str, Any]

_OURS = (
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
)


def build(pod: Pod, record: PodRecord, previous: Sequence[Json], host_ips: Sequence[str]) -> Json:
    """The `status` of a pod. `previous` are the conditions it has now: those of others are kept,
    and the time of the last transition of ours.
    """
    inits = [_init_status(pod, container, record) for container in pod.spec.init_containers]
    containers = [_container_status(container, record) for container in pod.spec.containers]
    status: Json = {
        "phase": record.phase,
        "hostIP": host_ips[0],
        "hostIPs": [{"ip": ip} for ip in host_ips],
        "startTime": record.start_time,
        "qosClass": "BestEffort",
        "conditions": _conditions(pod, record, containers, previous),
        "containerStatuses": containers,
        "podIP": record.ips[0] if record.ips else None,
        "podIPs": [{"ip": ip} for ip in record.ips] or None,
        "reason": record.reason or None,
        "message": record.message or None,
    }
    if inits:
        status["initContainerStatuses"] = inits
    return status


def _container_status(container: Container, record: PodRecord) -> Json:
    known = record.known(container.name)
    if known.state == "waiting" and not known.ran and _initializing(record):
        known = ContainerRecord(container.name, reason="PodInitializing")
    running = known.state == "running"
    status: Json = {
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "state": _state(known),
        "lastState": {"terminated": _terminated(known.last)} if known.last else {},
        "ready": running,
        "started": running,
        "restartCount": known.restarts,
    }
    if known.id:
        status["containerID"] = f"podwire://{known.id}"
    return status


def _init_status(pod: Pod, container: Container, record: PodRecord) -> Json:
    status = _container_status(container, record)
    known = record.containers.get(container.name)
    status["ready"] = bool(known and known.ended and known.ended.exit_code == 0)
    return status


def _initializing(record: PodRecord) -> bool:
    return any(
        known.ended is None or known.ended.exit_code != 0
        for name, known in record.containers.items()
        if name in {entry["name"] for entry in record.pod["spec"].get("initContainers") or ()}
    )


def _state(known: ContainerRecord) -> Json:
    if known.state == "running":
        return {"running": {"startedAt": known.started_at}}
    if known.state == "terminated" and known.ended is not None:
        return {"terminated": _terminated(known.ended)}
    waiting = {"reason": known.reason}
    if known.message:
        waiting["message"] = known.message
    return {"waiting": waiting}


def _terminated(ended: Termination) -> Json:
    result: Json = {
        "exitCode": ended.exit_code,
        "reason": ended.reason,
        "startedAt": ended.started_at,
        "finishedAt": ended.finished_at,
        "containerID": f"podwire://{ended.container_id}",
    }
    if ended.message:
        result["message"] = ended.message
    return {key: value for key, value in result.items() if value is not None}


def _conditions(
    pod: Pod, record: PodRecord, containers: Iterable[Json], previous: Sequence[Json]
) -> list[Json]:
    containers = list(containers)
    unready = [status["name"] for status in containers if not status["ready"]]
    uninitialized = [
        container.name
        for container in pod.spec.init_containers
        if not (
            (known := record.containers.get(container.name))
            and known.ended
            and known.ended.exit_code == 0
        )
    ]
    if record.finished:
        why = ("PodCompleted" if record.phase == "Succeeded" else "PodFailed", "")
    else:
        why = ("ContainersNotReady", f"containers with unready status: {_names(unready)}")
    ready = (not unready and not record.finished, *why)
    initialized = (
        not uninitialized or record.phase == "Succeeded",
        "ContainersNotInitialized",
        f"containers with incomplete status: {_names(uninitialized)}",
    )
    truths = {
        "PodReadyToStartContainers": (record.attached and not record.finished, "", ""),
        "Initialized": initialized,
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": (True, "", ""),
    }
    before = {condition.get("type"): condition for condition in previous}
    ours = [_condition(name, *truths[name], before.get(name)) for name in _OURS]
    return ours + [condition for name, condition in before.items() if name not in _OURS]


def _names(names: Iterable[str]) -> str:
    return f"[{' '.join(names)}]"


def _condition(
    name: str, true: bool, reason: str, message: str, before: Mapping[str, Any] | None
) -> Json:
    value = "True" if true else "False"
    condition: Json = {"type": name, "status": value}
    same = before is not None and before.get("status") == value
    condition["lastTransitionTime"] = (
        before["lastTransitionTime"]
        if same and before and before.get("lastTransitionTime")
        else now()
    )
    if not true and reason:
        condition["reason"] = reason
        if message:
            condition["message"] = message
    return condition
