"""Changing a lab that runs: its record first, then its processes, node by node.

What lives here: having the supervisor follow a changed record, and giving agents new options one
after the other, so that all but one node's agent is at work at any time. What does not: what a
change means for pods (`consequences`), the change of nodes' number (`lifecycle`).

The record is written before anything else happens. So whatever is interrupted here is completed by
the next `podwire lab up`: it finds the processes that run with other options than recorded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import msgspec

from podwire.lab import agents, consequences, lock, running
from podwire.lab.control import Control
from podwire.lab.polling import poll
from podwire.lab.readiness import NotReadyError, Progress, enumerated, existing, wait_ready
from podwire.lab.registry import LabInfo, LabRecord
from podwire.lab.shape import Shape, check_room

_READY_S = 30.0
_TIMEOUT_S = 60.0
_PODS_READY_S = 60.0


def locked(lab: LabInfo, progress: Progress) -> AbstractContextManager[None]:
    """Be the only command that works on the lab, for the duration of the block."""
    return lock.locked(
        lab, lambda: progress.waiting(f'another command that works on lab "{lab.name}"')
    )


def apply(lab: LabInfo, record: LabRecord) -> None:
    """Write the record down and have the supervisor follow it. Raises LabError."""
    with Control(lab, timeout_s=_TIMEOUT_S) as control:
        lab.write(record)
        control.request("reload")


def set_shape(lab: LabInfo, shape: Shape, progress: Progress) -> None:
    """Have a running lab use another fabric, and wait until the pods that it makes anew run.

    Raises LabError.
    """
    with locked(lab, progress):
        record = existing(lab)
        consequences.check_reachable(record)
        check_room(shape, max(node.index for node in record.nodes))
        anew = consequences.remade(record.shape, shape)
        # Those of the dead are made anew when their nodes boot.
        awaited = [
            pod
            for pod in (running.pods(lab) if anew else ())
            if pod.ready and pod.node not in record.faults.dead
        ]
        apply(lab, msgspec.structs.replace(record, shape=shape))
        complete(lab, progress)
        wait_ready(lab, progress, only_news=True)
        if awaited:
            running.wait_until_back(
                lab,
                awaited,
                shape.network,
                timeout_s=_PODS_READY_S,
                tell=lambda names: progress.waiting(f"pods: {enumerated(names)}"),
            )
            progress.done(f"pods run again: {len(awaited)}")


def complete(lab: LabInfo, progress: Progress) -> None:
    """Start again, one after the other, the processes that run with other options than recorded.

    Raises NotReadyError for one that does not become ready; those after it are left alone.
    """
    for name in _stale(lab):
        progress.waiting(f"{name} starts again")
        with Control(lab, timeout_s=_TIMEOUT_S) as control:
            control.request("restart", name)
        node, _, process = name.partition("/")
        if process == "agent":
            _wait_for_agent(lab, node, progress)
        else:
            _wait_for(lab, name)
        progress.done(f"{name} has its new options")


def _stale(lab: LabInfo) -> list[str]:
    """The API and the store come first, and each node's agent before its kubelet, which may have
    pods to make anew."""
    with Control(lab, timeout_s=_TIMEOUT_S) as control:
        snapshot = control.request("status")
    stale = [process.name for process in snapshot.processes if process.stale]
    nodes = list(dict.fromkeys(name.partition("/")[0] for name in stale if "/" in name))
    first = [name for name in stale if "/" not in name]
    ordered = [f"{node}/{process}" for node in nodes for process in ("agent", "kubelet")]
    return [*first, *(name for name in ordered if name in stale)]


def _wait_for(lab: LabInfo, name: str) -> None:
    """Wait until a process says that it is ready."""
    with Control(lab) as control:
        try:
            for snapshot in control.watch(timeout_s=_READY_S):
                process = snapshot.process(name)
                if process is None or process.state == "ready":
                    return
        except TimeoutError:
            raise _late(lab, name, process.message if process else "") from None


def _wait_for_agent(lab: LabInfo, node: str, progress: Progress) -> None:
    """Wait until a node's agent says that pods can be wired."""
    problem: str | None = None
    try:
        for problem in poll(lambda: agents.not_ready(lab, node), _READY_S):
            progress.waiting(f"{node}: its agent: {problem}")
    except TimeoutError:
        raise _late(lab, f"{node}/agent", problem or "") from None


def _late(lab: LabInfo, process: str, why: str) -> NotReadyError:
    return NotReadyError(
        f"{process} is not ready after {_READY_S:g} s: {why}",
        remedy=f"see `podwire --lab {lab.name} lab logs {process}`; "
        f"`podwire lab up --name {lab.name}` goes on from here",
    )
