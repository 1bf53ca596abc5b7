"""Things that go wrong on purpose in a running lab: partitions and deaths, and their healing.

What lives here: the orders that a person gives. What they come to is written down in the lab's
record (`faults`) and carried out by the supervisor, which also keeps it so over its own restart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from podwire.errors import InputError
from podwire.lab import checks
from podwire.lab.addressing import readdressed
from podwire.lab.faults import API, ETCD, Protocol, check_names
from podwire.lab.readiness import (
    Progress,
    Silent,
    existing,
    wait_at_work,
    wait_ready,
    wait_until_away,
)
from podwire.lab.registry import LabInfo, LabRecord, NodeRecord
from podwire.lab.rollout import apply, locked


def partition(
    lab: LabInfo,
    node: str,
    others: Sequence[str] = (),
    *,
    protocol: Protocol | None = None,
    port: int = 0,
    api: bool = False,
    progress: Progress | None = None,
) -> None:
    """Have no packet pass between a node and others, none named for all other nodes.

    With `protocol` and `port` only packets to that port are dropped. With `api` the node is cut off
    from the API, and from etcd where the lab has one, and from no node.

    Raises InputError, LabError.
    """
    progress = progress or Silent()
    checks.check_root()
    with locked(lab, progress):
        record = existing(lab)
        check_names([node, *others], [one.name for one in record.nodes])
        if node in others:
            raise InputError(f"{node} can't be cut off from itself", field="node")
        if api:
            if others or protocol:
                raise InputError(
                    "--api is about a node and the API alone",
                    field="api",
                    remedy="partition it from other nodes with another command",
                )
            faults = record.faults.without_api([node])
        else:
            faults = record.faults.cut(node, others, protocol, port)
        apply(lab, msgspec.structs.replace(record, faults=faults))
        if api and record.shape.store == "kube" and API not in faults.dead:
            wait_until_away(lab, node, progress)


def kill(lab: LabInfo, names: Sequence[str], *, progress: Progress | None = None) -> None:
    """Have nodes, or the processes `api` and `etcd`, die at once and stay dead.

    Raises InputError, LabError.
    """
    progress = progress or Silent()
    checks.check_root()
    with locked(lab, progress):
        record = existing(lab)
        check_names(names, _mortals(record))
        apply(lab, msgspec.structs.replace(record, faults=record.faults.killed(names)))


def heal(
    lab: LabInfo,
    names: Sequence[str] = (),
    *,
    addresses: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> None:
    """Undo what is wrong with nodes, `api` or `etcd`, none named for everything, and wait until
    what was dead is ready, and what was away has come back: agents follow their store again.

    A dead node may come back with other `addresses` on the underlay, at most one a family. Raises
    InputError, LabError, and NotReadyError where it is healed but waiting was in vain.
    """
    progress = progress or Silent()
    checks.check_root()
    with locked(lab, progress):
        record = existing(lab)
        check_names(names, _mortals(record))
        if addresses:
            record = _readdress(record, names, addresses)
        healed = record.faults.healed(names or _mortals(record))
        apply(lab, msgspec.structs.replace(record, faults=healed))
        wait_ready(lab, progress, only_news=True)
        wait_at_work(lab, progress)


def _mortals(record: LabRecord) -> list[str]:
    stores = [ETCD] if record.shape.store == "etcd" else []
    return [*(node.name for node in record.nodes), API, *stores]


def _readdress(record: LabRecord, names: Collection[str], addresses: tuple[str, ...]) -> LabRecord:
    node = record.node(next(iter(names))) if len(names) == 1 else None
    if node is None:
        raise InputError("give the one node that is to have it", field="address")
    if node.name not in record.faults.dead:
        raise InputError(
            f"{node.name} is running",
            field="address",
            remedy=f"run `podwire lab kill {node.name}` first: addresses change at a boot",
        )
    shape = record.shape
    readdressed(shape.underlay, shape.underlay_versions, node.index, addresses)
    moved = NodeRecord(node.name, node.index, addresses)
    others = [one for one in record.nodes if one is not node]
    taken = {ip: one.name for one in others for ip in record.ips(one)}
    for ip in record.ips(moved):
        if ip in taken:
            raise InputError(f"{ip} is {taken[ip]}'s", field="address")
    nodes = tuple(moved if one is node else one for one in record.nodes)
    return msgspec.structs.replace(record, nodes=nodes)
