"""Waiting until a lab is as it should be, and saying how far it is.

What lives here: what counts as ready, and who is told. What does not: making anything so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from podwire.errors import LabError
from podwire.lab.control import Control, Snapshot
from podwire.lab.faults import API
from podwire.lab.registry import LabInfo, LabRecord

#: So many failed starts in a row of one process, and nobody waits for it any longer.
_HOPELESS_RESTARTS = 5


class Progress(Protocol):
    """Who wants to know how far it is."""

    def done(self, text: str) -> None:
        """A step has been completed."""

    def waiting(self, text: str) -> None:
        """This is being waited for now."""


class Silent:
    """Progress that nobody watches."""

    def done(self, text: str) -> None: ...

    def waiting(self, text: str) -> None: ...


class NotReadyError(LabError):
    """The lab was made and runs, but not all of it became ready. It is left for inspection."""


def existing(lab: LabInfo) -> LabRecord:
    """What is written down about a lab. Raises LabError."""
    record = lab.record()
    if record is None:
        raise LabError(
            f'lab "{lab.name}" was made only in part',
            remedy=f"make it again with `podwire lab up --name {lab.name}`",
        )
    return record


def wait_ready(
    lab: LabInfo,
    progress: Progress | None = None,
    *,
    timeout_s: float | None = None,
    only_news: bool = False,
) -> None:
    """Wait until every node is ready that can be. Raises NotReadyError, naming what is not and its
    log.

    With `only_news` what is ready already is not told.
    """
    progress = progress or Silent()
    count = len(existing(lab).nodes)
    timeout_s = 30.0 + count if timeout_s is None else timeout_s
    reported: set[str] = set()
    snapshot = Snapshot()
    try:
        with Control(lab) as control:
            for snapshot in control.watch(timeout_s=timeout_s):
                _raise_if_hopeless(lab, snapshot)
                if only_news:
                    only_news = False
                    reported |= set(_news(snapshot))
                for text in _news(snapshot):
                    if text not in reported:
                        reported.add(text)
                        progress.done(text)
                if snapshot.ready:
                    return
                waiting = [node for node in snapshot.nodes if not snapshot.node_ready(node)]
                progress.waiting(enumerated(waiting))
    except TimeoutError:
        raise _not_ready(lab, snapshot, f"after {timeout_s:.0f} s") from None


def _news(snapshot: Snapshot) -> Iterator[str]:
    api = snapshot.process(API)
    if api is not None:
        yield "underlay and nodes are there"
        if api.state == "ready":
            yield "Kubernetes API answers"
    for node in snapshot.nodes:
        if snapshot.node_ready(node):
            yield f"{node} is ready"


def enumerated(names: Collection[str]) -> str:
    """A few names, or the first of many."""
    first = sorted(names)[:4]
    return ", ".join(first) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _raise_if_hopeless(lab: LabInfo, snapshot: Snapshot) -> None:
    if snapshot.error is not None:
        raise LabError(snapshot.error, remedy=snapshot.remedy)
    for process in snapshot.processes:
        if process.state == "backoff" and process.restarts >= _HOPELESS_RESTARTS:
            said = _last_line(lab, process.name) or process.message
            raise _not_ready(lab, snapshot, f"{process.name} ends at once: {said}")


def _last_line(lab: LabInfo, process: str) -> str:
    """The last line that a process wrote to its log."""
    try:
        lines = lab.log(process).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""


def _not_ready(lab: LabInfo, snapshot: Snapshot, why: str) -> NotReadyError:
    unready = [
        process.name + (f" ({process.message})" if process.message else "")
        for process in snapshot.processes
        if process.state != "ready"
    ]
    suspects = [process for process in snapshot.processes if process.state == "backoff"]
    suspects += [process for process in snapshot.processes if process.state != "ready"]
    look_at = suspects[0].name if suspects else "supervisor"
    return NotReadyError(
        f'lab "{lab.name}" is not ready ({", ".join(unready[:6]) or "no node"}): {why}',
        remedy=f"see `podwire --lab {lab.name} lab logs {look_at}`; "
        f"remove the lab with `podwire lab down {lab.name}`",
    )
