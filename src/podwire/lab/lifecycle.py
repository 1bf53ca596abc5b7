"""Labs come and go: `up`, `down`, nodes added and removed.

What lives here: the order of things, and what happens when they go wrong. What does not: the
namespaces (`nodes`), the processes (`supervisor`), a lab that is changed (`rollout`) or broken on
purpose (`disruption`), words on a terminal (`cli.lab`).

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
from contextlib import suppress

import msgspec

from podwire.errors import InputError, LabError
from podwire.files import write_atomically
from podwire.lab import checks, etcd_forget, programs, rollout
from podwire.lab.asking import ask
from podwire.lab.faults import ETCD
from podwire.lab.readiness import NotReadyError, Progress, Silent, existing, wait_ready
from podwire.lab.registry import (
    MAX_NODES,
    LabInfo,
    LabRecord,
    NodeRecord,
    check_name,
)
from podwire.lab.rollout import apply, locked
from podwire.lab.shape import Shape, check_room
from podwire.lab.shape_change import differences
from podwire.lab.teardown import clear, leftover_netns, remove_directory, supervisor

DEFAULT_NODES = 3


def up(
    name: str = "lab",
    node_count: int | None = None,
    progress: Progress | None = None,
    shape: Shape | None = None,
) -> LabInfo:
    """Have a lab of this name that runs with all its nodes ready.

    `node_count` and `shape` None mean: as it is, or for a new one DEFAULT_NODES and the default
    profile. Raises InputError, UnsupportedError (this machine), LabError. What a failed or
    interrupted call began to make, it removes again, but for NotReadyError.
    """
    progress = progress or Silent()
    lab = LabInfo(check_name(name))
    if node_count is not None:
        checks.check_node_count(node_count)
    before = lab.record()
    checks.check_machine(shape or (before.shape if before else Shape()))
    progress.done("this machine can hold a lab")
    try:
        with locked(lab, progress):
            record = lab.record()
            if record is not None:
                _check_same(lab, record, node_count, shape)
                if supervisor(lab) is not None:
                    progress.done(f'lab "{name}" is already up')
                else:
                    progress.done(f'lab "{name}" had stopped; it starts again')
                    _start_supervisor(lab, record)
                rollout.complete(lab, progress)
                wait_ready(lab, progress)
                for sentence in record.faults.sentences():
                    progress.done(f"still so: {sentence}")
                return lab
            try:
                clear(lab)
                _start_supervisor(lab, _create(lab, node_count or DEFAULT_NODES, shape or Shape()))
                wait_ready(lab, progress)
            except NotReadyError:
                raise
            except BaseException:
                progress.waiting("cleaning up")
                clear(lab)
                remove_directory(lab)
                raise
    except BaseException:
        # What was made to be locked, should nothing have come into it yet: no other is removed so.
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
    with locked(lab, progress):
        clear(lab)
        remove_directory(lab)
    progress.done(f'lab "{name}" is gone')


def add_node(lab: LabInfo, progress: Progress | None = None) -> NodeRecord:
    """Add one node to a running lab and wait until it is ready."""
    progress = progress or Silent()
    checks.check_root()
    with locked(lab, progress):
        record = existing(lab)
        if len(record.nodes) >= MAX_NODES:
            raise LabError(f'lab "{lab.name}" has {MAX_NODES} nodes, the most a lab can have')
        index = max(node.index for node in record.nodes) + 1
        if index > MAX_NODES:
            index = min(set(range(1, MAX_NODES + 1)) - {node.index for node in record.nodes})
        node = NodeRecord(f"node{index}", index)
        check_room(record.shape, index)
        apply(lab, msgspec.structs.replace(record, nodes=(*record.nodes, node)))
        wait_ready(lab, progress, only_news=True)
    return node


def remove_node(lab: LabInfo, name: str, progress: Progress | None = None) -> None:
    """End a node of a running lab and delete its Node object; its pods go with it."""
    progress = progress or Silent()
    checks.check_root()
    with locked(lab, progress):
        record = existing(lab)
        left = tuple(node for node in record.nodes if node.name != name)
        if len(left) == len(record.nodes):
            names = ", ".join(node.name for node in record.nodes)
            raise InputError(f"{name!r} is not one of {names}", field="node")
        if not left:
            raise LabError(
                f"{name} is the lab's last node",
                remedy=f"remove the lab with `podwire lab down {lab.name}`",
            )
        apply(
            lab,
            msgspec.structs.replace(record, nodes=left, faults=record.faults.healed({name})),
        )
        _delete_node_object(lab, name)
        if record.shape.store == "etcd" and ETCD not in record.faults.dead:
            etcd_forget.forget(lab, name)
        progress.done(f"{name} is gone")


def _check_same(
    lab: LabInfo, record: LabRecord, node_count: int | None, shape: Shape | None
) -> None:
    """Raises LabError for a lab that exists otherwise than it is wanted."""
    if node_count is not None and node_count != len(record.nodes):
        raise LabError(
            f'lab "{lab.name}" exists with {len(record.nodes)} nodes, not {node_count}',
            remedy="use `podwire lab node add` and `podwire lab node remove`, "
            f"or `podwire lab down {lab.name}` first",
        )
    if shape is not None and (found := differences(shape, record.shape)):
        raise LabError(
            f'lab "{lab.name}" exists with {"; ".join(found)}',
            remedy="change its network with `podwire lab set-profile`, "
            f"or `podwire lab down {lab.name}` first",
        )


def _create(lab: LabInfo, node_count: int, shape: Shape) -> LabRecord:
    """Write down a new lab."""
    check_room(shape, node_count)
    record = LabRecord(
        id=str(uuid.uuid4()),
        name=lab.name,
        created=time.time(),
        nodes=tuple(NodeRecord(f"node{index}", index) for index in range(1, node_count + 1)),
        shape=shape,
    )
    lab.write(record)
    write_atomically(lab.dir / "token", secrets.token_urlsafe(32).encode(), 0o600)
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
    write_atomically(lab.kubeconfig, _kubeconfig(lab, port, token).encode(), 0o600)
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


def _delete_node_object(lab: LabInfo, node: str) -> None:
    from podwire.cluster.kube import NODES, KubeClient
    from podwire.errors import NotFoundError

    async def delete(client: KubeClient) -> None:
        with suppress(NotFoundError):
            await client.delete(NODES, node)

    ask(lab, delete)
