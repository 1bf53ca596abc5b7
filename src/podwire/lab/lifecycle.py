"""Labs come and go: `up`, `down`, nodes added and removed.

What lives here: the order of things, and what happens when they go wrong. What does not: the
namespaces (`nodes`), the processes (`supervisor`), words on a terminal (`cli.lab`).

`up` writes the record first, so that whatever fails later, `down` knows what to look for; then it
starts the supervisor, which makes everything, and watches it do so. On a lab whose supervisor has
died, or after a reboot, that is recovery: the supervisor completes what is missing.

Each holds the lab's `lock` while it works.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from typing import Protocol

import msgspec

from podwire.errors import InputError, LabError
from podwire.lab import checks, programs
from podwire.lab.control import Control, Snapshot
from podwire.lab.lock import locked
from podwire.lab.registry import (
    MAX_NODES,
    LabInfo,
    LabRecord,
    NodeRecord,
    check_name,
    write_atomically,
)
from podwire.lab.teardown import clear, leftover_netns, remove_directory, supervisor

DEFAULT_NODES = 3
#: So many failed starts in a row of one process, and `up` stops waiting for it.
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


def up(
    name: str = "lab", node_count: int | None = None, progress: Progress | None = None
) -> LabInfo:
    """Have a lab of this name that runs with all its nodes ready.

    `node_count` None means: as it is, or DEFAULT_NODES for a new one. Raises InputError,
    UnsupportedError (this machine), LabError. What a failed or interrupted call began to make, it
    removes again, but for NotReadyError.
    """
    progress = progress or Silent()
    lab = LabInfo(check_name(name))
    if node_count is not None:
        checks.check_node_count(node_count)
    checks.check_machine()
    progress.done("this machine can hold a lab")
    with _locked(lab, progress):
        record = lab.record()
        if record is not None:
            _check_shape(lab, record, node_count)
            if supervisor(lab) is not None:
                progress.done(f'lab "{name}" is already up')
                wait_ready(lab, progress)
                return lab
            progress.done(f'lab "{name}" had stopped; it starts again')
            _start_supervisor(lab, record)
            wait_ready(lab, progress)
            return lab
        try:
            clear(lab)
            _start_supervisor(lab, _create(lab, node_count or DEFAULT_NODES))
            wait_ready(lab, progress)
        except NotReadyError:
            raise
        except BaseException:
            progress.waiting("cleaning up")
            clear(lab)
            remove_directory(lab)
            raise
    return lab


def down(name: str, progress: Progress | None = None) -> None:
    """Remove a lab with everything that is in it, in whatever state it is.

    Raises LabError when there is none, or when the caller itself is inside it.
    """
    progress = progress or Silent()
    checks.check_root()
    lab = LabInfo(check_name(name))
    if not lab.dir.exists() and not leftover_netns(lab):
        raise LabError(f'no lab is named "{name}"', remedy="see `podwire lab list`")
    with _locked(lab, progress):
        clear(lab)
        remove_directory(lab)
    progress.done(f'lab "{name}" is gone')


def add_node(lab: LabInfo, progress: Progress | None = None) -> NodeRecord:
    """Add one node to a running lab and wait until it is ready."""
    progress = progress or Silent()
    checks.check_root()
    with _locked(lab, progress):
        record = _record(lab)
        if len(record.nodes) >= MAX_NODES:
            raise LabError(f'lab "{lab.name}" has {MAX_NODES} nodes, the most a lab can have')
        index = max(node.index for node in record.nodes) + 1
        if index > MAX_NODES:
            index = min(set(range(1, MAX_NODES + 1)) - {node.index for node in record.nodes})
        node = NodeRecord(f"node{index}", index)
        _change_nodes(lab, record, (*record.nodes, node))
        wait_ready(lab, progress)
    return node


def remove_node(lab: LabInfo, name: str, progress: Progress | None = None) -> None:
    """End a node of a running lab and delete its Node object; its pods go with it."""
    progress = progress or Silent()
    checks.check_root()
    with _locked(lab, progress):
        record = _record(lab)
        left = tuple(node for node in record.nodes if node.name != name)
        if len(left) == len(record.nodes):
            names = ", ".join(node.name for node in record.nodes)
            raise InputError(f"{name!r} is not one of {names}", field="node")
        if not left:
            raise LabError(
                f"{name} is the lab's last node",
                remedy=f"remove the lab with `podwire lab down {lab.name}`",
            )
        _change_nodes(lab, record, left)
        _delete_node_object(lab, name)
        progress.done(f"{name} is gone")


def wait_ready(
    lab: LabInfo, progress: Progress | None = None, *, timeout_s: float | None = None
) -> None:
    """Wait until every node is ready. Raises NotReadyError, naming what is not and its log."""
    progress = progress or Silent()
    count = len(_record(lab).nodes)
    timeout_s = 30.0 + count if timeout_s is None else timeout_s
    reported: set[str] = set()
    snapshot = Snapshot()
    try:
        with Control(lab) as control:
            for snapshot in control.watch(timeout_s=timeout_s):
                _raise_if_hopeless(lab, snapshot)
                for text in _news(snapshot):
                    if text not in reported:
                        reported.add(text)
                        progress.done(text)
                if snapshot.ready:
                    return
                waiting = [node for node in snapshot.nodes if not snapshot.node_ready(node)]
                progress.waiting(_enumerate(waiting))
    except TimeoutError:
        raise _not_ready(lab, snapshot, f"after {timeout_s:.0f} s") from None


def _locked(lab: LabInfo, progress: Progress) -> AbstractContextManager[None]:
    return locked(lab, lambda: progress.waiting(f'another command that works on lab "{lab.name}"'))


def _news(snapshot: Snapshot) -> Iterator[str]:
    api = snapshot.process("api")
    if api is not None:
        yield "underlay and nodes are there"
        if api.state == "ready":
            yield "Kubernetes API answers"
    for node in snapshot.nodes:
        if snapshot.node_ready(node):
            yield f"{node} is ready"


def _enumerate(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} nodes"


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


def _record(lab: LabInfo) -> LabRecord:
    record = lab.record()
    if record is None:
        raise LabError(
            f'lab "{lab.name}" was made only in part',
            remedy=f"make it again with `podwire lab up --name {lab.name}`",
        )
    return record


def _check_shape(lab: LabInfo, record: LabRecord, node_count: int | None) -> None:
    if node_count is not None and node_count != len(record.nodes):
        raise LabError(
            f'lab "{lab.name}" exists with {len(record.nodes)} nodes, not {node_count}',
            remedy="use `podwire lab node add` and `podwire lab node remove`, "
            f"or `podwire lab down {lab.name}` first",
        )


def _create(lab: LabInfo, node_count: int) -> LabRecord:
    """Write down a new lab."""
    record = LabRecord(
        id=str(uuid.uuid4()),
        name=lab.name,
        created=time.time(),
        nodes=tuple(NodeRecord(f"node{index}", index) for index in range(1, node_count + 1)),
    )
    lab.write(record)
    write_atomically(lab.dir / "token", secrets.token_urlsafe(32).encode())
    return record


def _start_supervisor(lab: LabInfo, record: LabRecord) -> None:
    """Start the lab's supervisor, detached, with the socket on which to watch it."""
    record = _with_port(lab, record)
    for directory in (lab.api_dir, lab.nodes_dir, lab.certificate.parent, lab.dir / "log"):
        directory.mkdir(exist_ok=True)
    lab.supervisor_socket.unlink(missing_ok=True)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
        lab.log("supervisor").open("ab") as log,
    ):
        listener.bind(str(lab.supervisor_socket))
        listener.listen()
        subprocess.run(
            [
                *("setsid", "--fork", sys.executable, "-m", "podwire.lab.supervisor"),
                *(lab.name, "--listen-fd", str(listener.fileno())),
            ],
            pass_fds=[listener.fileno()],
            env=programs.environment(record.id, "supervisor"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            check=True,
        )


def _with_port(lab: LabInfo, record: LabRecord) -> LabRecord:
    """The record with a port for the API that is free: the one it had, where possible."""
    with socket.socket() as probe:
        # As a server does; a connection of the last API may linger in TIME_WAIT.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", record.api_port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    record = msgspec.structs.replace(record, api_port=port)
    lab.write(record)
    token = (lab.dir / "token").read_text().strip()
    write_atomically(lab.kubeconfig, _kubeconfig(lab, port, token).encode())
    return record


def _kubeconfig(lab: LabInfo, port: int, token: str) -> str:
    """For the loopback port. It is TLS because kubectl sends no token without."""
    name = f"podwire-{lab.name}"
    return (
        "apiVersion: v1\nkind: Config\n"
        f'clusters: [{{name: {name}, cluster: {{server: "https://127.0.0.1:{port}",'
        f' certificate-authority: "{lab.certificate}"}}}}]\n'
        f'users: [{{name: {name}, user: {{token: "{token}"}}}}]\n'
        f"contexts: [{{name: {name}, context: {{cluster: {name}, user: {name}}}}}]\n"
        f"current-context: {name}\n"
    )


def _change_nodes(lab: LabInfo, record: LabRecord, members: tuple[NodeRecord, ...]) -> None:
    """Have the supervisor make the lab consist of these nodes."""
    with Control(lab, timeout_s=60.0) as control:
        lab.write(msgspec.structs.replace(record, nodes=members))
        control.request("reload")


def _delete_node_object(lab: LabInfo, node: str) -> None:
    import asyncio

    from podwire.cluster.kube import NODES, ClientConfig, KubeClient
    from podwire.errors import NotFoundError

    async def delete() -> None:
        async with KubeClient(ClientConfig(server=f"unix://{lab.api_socket}")) as client:
            with suppress(NotFoundError):
                await client.delete(NODES, node)

    asyncio.run(delete())
