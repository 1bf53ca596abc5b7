"""Waiting until a lab is as it should be, and saying how far it is.

What lives here: what counts as ready, and who is told. What does not: making anything so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from podwire.errors import LabError, PodwireError
from podwire.lab import agents
from podwire.lab.asking import ask
from podwire.lab.control import Control, Snapshot
from podwire.lab.faults import API, ETCD
from podwire.lab.polling import poll
from podwire.lab.registry import LabInfo, LabRecord

#: So many failed starts in a row of one process, and nobody waits for it any longer.
_HOPELESS_RESTARTS = 5
#: Clients that could not connect for a while wait 10 s at most before they try again.
_AT_WORK_S = 60.0
#: So many nodes are asked what they wait for.
_NAMED_NODES = 3
#: A command that fails ends with its error and a hint.
_LAST_LINES = 2


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


def wait_at_work(lab: LabInfo, progress: Progress) -> None:
    """Wait until the agent of each node that can follows its store, and the Node is Ready.

    Kubelets say that they are ready once and for all: this is for when the API, or a node, was
    away. Raises NotReadyError, naming who is not at work and why.
    """
    record = existing(lab)
    dead = record.faults.dead
    store = ETCD if record.shape.store == "etcd" else API
    if {API, store} & {*dead}:
        return
    asked = {one.name for one in record.living if one.name not in record.faults.no_api}

    def look() -> Mapping[str, str]:
        found = _not_at_work(lab, asked)
        # Who has been found at work is not asked again.
        asked.intersection_update(found)
        return found

    waiting: Mapping[str, str] = {}
    try:
        for waiting in poll(look, _AT_WORK_S):
            why = ", ".join(sorted(set(waiting.values())))
            progress.waiting(f"{enumerated(waiting)}: {why}")
    except TimeoutError:
        first = min(waiting)
        raise NotReadyError(
            f"not at work again after {_AT_WORK_S:g} s: "
            + "; ".join(f"{name}: {why}" for name, why in sorted(waiting.items())),
            remedy=f"see `podwire --lab {lab.name} lab logs {first}/agent` and"
            f" `podwire --lab {lab.name} describe node {first}`",
        ) from None
    if waiting:
        progress.done("agents follow their store, and nodes are Ready")


def wait_until_away(lab: LabInfo, node: str, progress: Progress) -> None:
    """Wait until a node's agent has lost the API, or is not there at all. Raises NotReadyError."""
    try:
        for _ in poll(lambda: agents.is_connected(lab, node), _AT_WORK_S):
            progress.waiting(f"{node}: its agent is still connected to the API")
    except TimeoutError:
        raise NotReadyError(
            f"the agent of {node} is still connected to the API after {_AT_WORK_S:g} s",
            remedy=f"see `podwire --lab {lab.name} lab logs api`",
        ) from None


def _not_at_work(lab: LabInfo, nodes: Collection[str]) -> Mapping[str, str]:
    """Those of the nodes that are not, and why."""
    found = {name: agents.not_following(lab, name) for name in nodes}
    problems = {name: f"its agent: {why}" for name, why in found.items() if why is not None}
    ready = _ready_nodes(lab) if nodes else set()
    return {name: "its Node is not Ready" for name in nodes if name not in ready} | problems


def _ready_nodes(lab: LabInfo) -> set[str]:
    from podwire.cluster.kube import NODES, KubeClient
    from podwire.lab.places import is_ready

    async def names(client: KubeClient) -> set[str]:
        nodes = (await client.list(NODES)).items
        return {node["metadata"]["name"] for node in nodes if is_ready(node)}

    try:
        return ask(lab, names)
    except PodwireError:
        return set()


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
            said = _last_words(lab, process.name) or process.message
            raise _not_ready(lab, snapshot, f"{process.name} ends at once: {said}")


def _last_words(lab: LabInfo, process: str) -> str:
    """What a process wrote to its log last: its error, where it ended with one."""
    try:
        lines = lab.log(process).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    last = lines[-_LAST_LINES:]
    return next((line for line in reversed(last) if line.startswith("error: ")), "".join(last[-1:]))


def _not_ready(lab: LabInfo, snapshot: Snapshot, why: str) -> NotReadyError:
    problems = {
        process.name: process.message for process in snapshot.processes if process.state != "ready"
    }
    ended = [process.name for process in snapshot.processes if process.state == "backoff"]
    waiting = _waiting_agents(lab, snapshot)
    problems |= waiting
    look_at = next(iter((*ended, *waiting, *problems)), "supervisor")
    named = [name + (f" ({problem})" if problem else "") for name, problem in problems.items()]
    return NotReadyError(
        f'lab "{lab.name}" is not ready ({", ".join(named[:6]) or "no node"}): {why}',
        remedy=f"see `podwire --lab {lab.name} lab logs {look_at}`; "
        f"remove the lab with `podwire lab down {lab.name}`",
    )


def _waiting_agents(lab: LabInfo, snapshot: Snapshot) -> Mapping[str, str]:
    """Agents that run, which is all that a supervisor knows of them, and why pods wait for them."""
    names = [node for node in snapshot.nodes if not snapshot.node_ready(node)][:_NAMED_NODES]
    running = {process.name for process in snapshot.processes if process.state == "ready"}
    asked = {
        f"{node}/agent": agents.not_ready(lab, node) for node in names if f"{node}/agent" in running
    }
    return {name: why for name, why in asked.items() if why is not None}
