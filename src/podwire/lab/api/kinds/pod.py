"""Pod: rules, defaults and columns. The shape of its spec is in `pod_spec`.

A lab's pods run the machine's own programs: a container needs a `command`, an `image`, or both, and
what `image` says is kept and shown but never pulled.
"""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any

from podwire.lab.api.kinds.meta import (
    AGE,
    CONDITIONS,
    NAME,
    TIME,
    age,
    condition,
    metadata_schema,
)
from podwire.lab.api.kinds.pod_spec import POD_SPEC
from podwire.lab.api.names import dns_subdomain, ip_address
from podwire.lab.api.registry import Column, Object, ResourceKind
from podwire.lab.api.schema import (
    Boolean,
    Causes,
    Integer,
    Listing,
    Record,
    Text,
    optional,
    required,
)

PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
FINISHED = ("Succeeded", "Failed")
_DEFAULT_GRACE_S = 30


def _prepare(pod: Object) -> None:
    pod["status"] = {"phase": "Pending"}


def _grace_s(pod: Object, asked: int | None) -> int:
    """How long the node has to stop the pod; 0 when there is nothing to stop."""
    spec = pod.get("spec") or {}
    if not spec.get("nodeName") or (pod.get("status") or {}).get("phase") in FINISHED:
        return 0
    if asked is None:
        asked = int(spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S))
    return max(asked, 0) if asked >= 0 else 1


def _check_update(new: Object, old: Object, causes: Causes) -> None:
    """A pod's spec is fixed, but for what kube-apiserver lets through too."""
    before, after = copy.deepcopy(old.get("spec") or {}), copy.deepcopy(new.get("spec") or {})
    for lists in ("containers", "initContainers"):
        pairs = zip(before.get(lists) or [], after.get(lists) or [], strict=False)
        for index, (was, is_now) in enumerate(pairs):
            if was.get("image") and not is_now.get("image"):
                causes.required(f"spec.{lists}[{index}].image")
            was["image"] = is_now["image"] = ""
    before["activeDeadlineSeconds"] = after["activeDeadlineSeconds"] = None
    grace = "terminationGracePeriodSeconds"
    if (before.get(grace) or 0) < 0 and after.get(grace) == 1:
        before[grace] = 1
    kept = before.get("tolerations") or []
    if all(toleration in (after.get("tolerations") or []) for toleration in kept):
        before["tolerations"] = after["tolerations"] = None
    if before != after:
        changed = sorted(
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        )
        causes.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, "
            "`spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` "
            f"(only additions); changed: {', '.join(changed)}",
        )


def _statuses(pod: Object, name: str = "containerStatuses") -> list[dict[str, Any]]:
    return list((pod.get("status") or {}).get(name) or [])


def _is_sidecar(pod: Object, name: str) -> bool:
    for container in (pod.get("spec") or {}).get("initContainers") or []:
        if container.get("name") == name:
            return bool(container.get("restartPolicy") == "Always")
    return False


def _ready(pod: Object) -> str:
    spec = pod.get("spec") or {}
    sidecars = [s for s in _statuses(pod, "initContainerStatuses") if _is_sidecar(pod, s["name"])]
    ready = sum(bool(entry.get("ready")) for entry in _statuses(pod) + sidecars)
    wanted = len(spec.get("containers") or []) + sum(
        container.get("restartPolicy") == "Always" for container in spec.get("initContainers") or []
    )
    return f"{ready}/{wanted}"


def _status(pod: Object) -> str:
    """The word that `kubectl get pods` shows (kubernetes/pkg/printers/internalversion)."""
    status = pod.get("status") or {}
    word = str(status.get("reason") or status.get("phase") or "Unknown")
    if condition(pod, "PodScheduled").get("reason") == "SchedulingGated":
        word = "SchedulingGated"
    word, initializing = _init_status(pod, word)
    if not initializing:
        word = _container_status(pod, word)
    if pod["metadata"].get("deletionTimestamp"):
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return word


def _init_status(pod: Object, word: str) -> tuple[str, bool]:
    wanted = len((pod.get("spec") or {}).get("initContainers") or [])
    for index, entry in enumerate(_statuses(pod, "initContainerStatuses")):
        state = entry.get("state") or {}
        terminated, waiting = state.get("terminated"), state.get("waiting") or {}
        if terminated and terminated.get("exitCode") == 0:
            continue
        if _is_sidecar(pod, entry["name"]) and entry.get("started"):
            continue
        if terminated:
            return f"Init:{terminated.get('reason') or _exit(terminated)}", True
        if waiting.get("reason") not in (None, "", "PodInitializing"):
            return f"Init:{waiting['reason']}", True
        return f"Init:{index}/{wanted}", True
    return word, False


def _container_status(pod: Object, word: str) -> str:
    running_and_ready = False
    for entry in reversed(_statuses(pod)):
        state = entry.get("state") or {}
        waiting, terminated = state.get("waiting") or {}, state.get("terminated")
        if waiting.get("reason"):
            word = waiting["reason"]
        elif terminated:
            word = terminated.get("reason") or _exit(terminated)
        elif entry.get("ready") and "running" in state:
            running_and_ready = True
    if word == "Completed" and running_and_ready:
        ready = condition(pod, "Ready").get("status") == "True"
        return "Running" if ready else "NotReady"
    return word


def _exit(terminated: dict[str, Any]) -> str:
    if terminated.get("signal"):
        return f"Signal:{terminated['signal']}"
    return f"ExitCode:{terminated.get('exitCode')}"


def _restarts(pod: Object) -> str:
    statuses = _statuses(pod)
    count = sum(entry.get("restartCount") or 0 for entry in statuses)
    ends = [
        ((entry.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
        for entry in statuses
    ]
    last = max((end for end in ends if end), key=datetime.fromisoformat, default=None)
    return f"{count} ({age(last)} ago)" if count and last else str(count)


def _ip(pod: Object) -> str:
    """All of them: kubectl would print the first one only, were it not for the server's columns."""
    status = pod.get("status") or {}
    ips = [entry["ip"] for entry in status.get("podIPs") or ()]
    return ",".join(ips) or status.get("podIP") or "<none>"


def _gates(pod: Object) -> str:
    gates = (pod.get("spec") or {}).get("readinessGates") or []
    passed = sum(condition(pod, g.get("conditionType", "")).get("status") == "True" for g in gates)
    return f"{passed}/{len(gates)}" if gates else "<none>"


_IP_LIST = Listing(Record({"ip": required(Text(ip_address))}), merge_key="ip", unique=("ip",))

_CONTAINER_STATE = Record(
    {
        "waiting": optional(Record({"reason": optional(Text()), "message": optional(Text())})),
        "running": optional(Record({"startedAt": optional(TIME)})),
        "terminated": optional(
            Record(
                {
                    "exitCode": optional(Integer()),
                    "signal": optional(Integer()),
                    "reason": optional(Text()),
                    "message": optional(Text()),
                    "startedAt": optional(TIME),
                    "finishedAt": optional(TIME),
                }
            )
        ),
    }
)

_CONTAINER_STATUS = Record(
    {
        "name": required(Text()),
        "ready": optional(Boolean()),
        "restartCount": optional(Integer(0)),
        "image": optional(Text()),
        "imageID": optional(Text()),
        "containerID": optional(Text()),
        "started": optional(Boolean()),
        "state": optional(_CONTAINER_STATE),
        "lastState": optional(_CONTAINER_STATE),
    }
)

_STATUS = Record(
    {
        "phase": optional(Text(allowed=PHASES)),
        "conditions": optional(CONDITIONS),
        "podIP": optional(Text(ip_address)),
        "podIPs": optional(_IP_LIST),
        "hostIP": optional(Text(ip_address)),
        "hostIPs": optional(Listing(Record({"ip": required(Text(ip_address))}))),
        "startTime": optional(TIME),
        "reason": optional(Text()),
        "message": optional(Text()),
        "containerStatuses": optional(Listing(_CONTAINER_STATUS, unique=("name",))),
        "initContainerStatuses": optional(Listing(_CONTAINER_STATUS, unique=("name",))),
    }
)

POD = ResourceKind(
    group="",
    version="v1",
    kind="Pod",
    plural="pods",
    singular="pod",
    namespaced=True,
    short_names=("po",),
    categories=("all",),
    subresources={
        "status": ("get", "patch", "update"),
        "binding": ("create",),
        "log": ("get",),
        "exec": ("create", "get"),
    },
    fields=(
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    status_of_new="reset",
    prepare=_prepare,
    check_update=_check_update,
    grace_s=_grace_s,
    schema=Record(
        {
            "metadata": required(metadata_schema(dns_subdomain, namespaced=True)),
            "spec": required(POD_SPEC),
            "status": optional(_STATUS),
        }
    ),
    columns=(
        NAME,
        Column("Ready", _ready, description="Containers that are ready, of all."),
        Column("Status", _status),
        Column("Restarts", _restarts),
        AGE,
        Column("IP", _ip, wide=True),
        Column("Node", lambda p: (p.get("spec") or {}).get("nodeName") or "<none>", wide=True),
        Column(
            "Nominated Node",
            lambda p: (p.get("status") or {}).get("nominatedNodeName") or "<none>",
            wide=True,
        ),
        Column("Readiness Gates", _gates, wide=True),
    ),
)
