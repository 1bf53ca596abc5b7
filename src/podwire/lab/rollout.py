"""Changing a lab that runs: its record first, then its processes, node by node.

What lives here: having the supervisor follow a changed record, and giving agents new options one
after the other, so that all but one node's agent is at work at any time. What does not: what a
change means for pods (`plan`), the change of nodes' number (`lifecycle`).

The record is written before anything else happens. So whatever is interrupted here is completed by
the next `podwire lab up`: it finds the processes that run with other options than recorded.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from podwire.lab import lock
from podwire.lab.control import Control
from podwire.lab.readiness import NotReadyError, Progress, existing, wait_ready
from podwire.lab.registry import LabInfo, LabRecord
from podwire.lab.shape import Shape

_READY_S = 30.0
_LOOK_AGAIN_S = 0.05
_TIMEOUT_S = 60.0


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


def consequences(before: Shape, after: Shape) -> list[str]:
    """What a change means for the pods that run, one sentence each."""
    old, new = before.resolved, after.resolved
    if _keeps_pods(before, after):
        return ["Pods keep running, with their addresses; traffic between nodes stops for moments."]
    return [
        f"Pods are made anew, with addresses of {new.ipam} instead of {old.ipam}"
        if old.ipam != new.ipam
        else "Pods are made anew, as their wiring changes"
    ]


def _keeps_pods(before: Shape, after: Shape) -> bool:
    old, new = before.resolved, after.resolved
    return (old.ipam, old.wiring, before.network) == (new.ipam, new.wiring, after.network)


def set_shape(lab: LabInfo, shape: Shape, progress: Progress) -> None:
    """Have a running lab use another fabric. Raises LabError."""
    with locked(lab, progress):
        record = existing(lab)
        apply(lab, msgspec.structs.replace(record, shape=shape))
        complete(lab, progress)
        wait_ready(lab, progress)


def complete(lab: LabInfo, progress: Progress) -> None:
    """Start again, one after the other, the processes that run with other options than recorded.

    Raises NotReadyError for an agent that does not become ready; those after it are left alone.
    """
    for name in _stale(lab):
        progress.waiting(f"{name} starts again")
        with Control(lab, timeout_s=_TIMEOUT_S) as control:
            control.request("restart", name)
        node, _, process = name.partition("/")
        if process == "agent":
            _wait_for_agent(lab, node)
        progress.done(f"{name} has its new options")


def _stale(lab: LabInfo) -> Sequence[str]:
    with Control(lab, timeout_s=_TIMEOUT_S) as control:
        snapshot = control.request("status")
    return [process.name for process in snapshot.processes if process.stale]


def _wait_for_agent(lab: LabInfo, node: str) -> None:
    """Wait until a node's agent says that pods can be wired."""
    path = lab.node_dir(node) / "run/podwire/agent.sock"
    deadline = time.monotonic() + _READY_S
    while (problem := _not_ready(path)) is not None:
        if time.monotonic() > deadline:
            raise NotReadyError(
                f"{node}'s agent is not ready after {_READY_S:g} s: {problem}",
                remedy=f"see `podwire --lab {lab.name} lab logs {node}/agent`; "
                f"`podwire lab up --name {lab.name}` goes on",
            )
        # Nothing tells when a socket begins to answer.
        time.sleep(_LOOK_AGAIN_S)


def _not_ready(path: Path) -> str | None:
    connection = _Connection(path)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"it does not answer ({error})"
    finally:
        connection.close()
    return None if answer.status == 200 else text


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5.0)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
