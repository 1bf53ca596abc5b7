"""The one word that sums up a pod, its ready containers and its restarts, as kubectl tells them.

Source: `printPod` in k8s.io/kubernetes pkg/printers/internalversion/printers.go. The rules look
arbitrary and are kept to the letter, since people read these words every day: the phase, unless
the pod has a reason of its own, unless a container is stuck or dead, unless it is being deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from podwire.cli.printing import Object, age


def ready_containers(pod: Object) -> str:
    """Ready over all containers: `1/2`."""
    ready = sum(1 for status in _statuses(pod, "containerStatuses") if _is_ready(status))
    return f"{ready}/{len(pod.get('spec', {}).get('containers') or ())}"


def restarts(pod: Object) -> str:
    """How often containers were restarted, and how long ago the last time."""
    statuses = _statuses(pod, "containerStatuses") or _statuses(pod, "initContainerStatuses")
    count = sum(status.get("restartCount", 0) for status in statuses)
    ends = [
        end
        for status in statuses
        if (end := (status.get("lastState", {}).get("terminated") or {}).get("finishedAt"))
    ]
    return f"{count} ({age(max(ends))} ago)" if count and ends else str(count)


def status_word(pod: Object) -> str:
    """`Running`, `Completed`, `CrashLoopBackOff`, `Init:0/1`, `Terminating`, …"""
    status = pod.get("status") or {}
    word = status.get("reason") or status.get("phase") or "Unknown"
    init_word = _init_word(pod)
    if init_word is not None:
        word = init_word
    else:
        word = _container_word(pod, word)
    if pod.get("metadata", {}).get("deletionTimestamp"):
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return str(word)


def _init_word(pod: Object) -> str | None:
    """What the first unfinished init container is at; None when all are done."""
    statuses = _statuses(pod, "initContainerStatuses")
    total = len(pod.get("spec", {}).get("initContainers") or ())
    for index, status in enumerate(statuses):
        state = status.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting") or {}
        if ended is not None and not ended.get("exitCode"):
            continue
        if ended is not None:
            return f"Init:{_end_word(ended)}"
        if waiting.get("reason") not in (None, "", "PodInitializing"):
            return f"Init:{waiting['reason']}"
        return f"Init:{index}/{total}"
    return None


def _container_word(pod: Object, word: str) -> str:
    running = False
    for status in reversed(_statuses(pod, "containerStatuses")):
        state = status.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated")
        if waiting.get("reason"):
            word = waiting["reason"]
        elif ended is not None:
            word = _end_word(ended)
        elif _is_ready(status):
            running = True
    if word == "Completed" and running:
        return "Running" if _condition(pod, "Ready") else "NotReady"
    return word


def _end_word(ended: Mapping[str, Any]) -> str:
    if ended.get("reason"):
        return str(ended["reason"])
    if ended.get("signal"):
        return f"Signal:{ended['signal']}"
    return f"ExitCode:{ended.get('exitCode', 0)}"


def _is_ready(status: Mapping[str, Any]) -> bool:
    return bool(status.get("ready")) and "running" in (status.get("state") or {})


def _condition(pod: Object, kind: str) -> bool:
    conditions: Iterable[Mapping[str, Any]] = (pod.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == kind and c.get("status") == "True" for c in conditions)


def _statuses(pod: Object, name: str) -> list[Mapping[str, Any]]:
    return list((pod.get("status") or {}).get(name) or ())
