"""Which processes make up a lab: names, command lines, environments.

What lives here: pure functions from a lab's record to `Program`s. What does not: running them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podwire.lab.etcd import flannel_config
from podwire.lab.faults import API, ETCD, ETCD_PORT
from podwire.lab.nodes import KUBECONFIG, NODE_DIR, PATH
from podwire.lab.processes import LAB_ID, LAB_PROCESS
from podwire.lab.registry import NETNS_DIR, LabInfo, LabRecord, NodeRecord

_KEPT_PREFIXES = ("LANG", "LC_", "PYTHON", "COVERAGE_", "PODWIRE_")
#: aiohttp reads the certificates of all the system's authorities when it is imported, which is a
#: fifth of the time that a process of a lab takes to start; the lab has an authority of its own.
NO_AUTHORITIES = os.devnull
#: Options of the person's own commands, which mean nothing or something else to the lab's.
_DROPPED = frozenset({"PODWIRE_LAB"})


@dataclass(frozen=True, slots=True)
class Program:
    """One process of a lab. `node` is None for what runs on the host, `netns` the path of another
    network namespace for what runs there.

    With `reports`, the program is given `--ready-fd N` and writes a line there whenever it becomes
    ready (`ready`) or stops being so (`waiting REASON`); without, it counts as ready once started.
    """

    name: str
    argv: tuple[str, ...]
    node: str | None = None
    reports: bool = False
    netns: Path | None = None


def of_lab(lab: LabInfo, record: LabRecord) -> dict[str, Program]:
    """All that should run, by name: the dead have no processes."""
    programs = [_api(lab, record)]
    if record.shape.store == "etcd":
        programs.append(_etcd(lab, record))
    for node in record.living:
        programs += [_kubelet(record, node), _agent(record, node)]
    return {one.name: one for one in programs if one.name not in record.faults.dead}


def _api(lab: LabInfo, record: LabRecord) -> Program:
    subnets = ",".join(map(str, record.shape.subnets_of))
    return Program(
        API,
        (
            *(sys.executable, "-m", "podwire.lab.api"),
            *("--db", str(lab.dir / "api.db")),
            *("--unix", str(lab.api_socket)),
            *("--port", str(record.api_port)),
            *("--token-file", str(lab.dir / "token")),
            *("--tls-dir", str(lab.certificate.parent)),
            *("--node-socket-dir", str(lab.nodes_dir)),
            *("--cut-file", str(lab.api_cut)),
            *("--node-grace", str(record.shape.node_grace_s)),
            *("--cluster-cidr", subnets),
        ),
        reports=True,
    )


def _etcd(lab: LabInfo, record: LabRecord) -> Program:
    return Program(
        ETCD,
        (
            *(sys.executable, "-m", "podwire.lab.etcd"),
            *("--data-dir", str(lab.dir / "etcd")),
            *("--config", flannel_config(record.shape)),
        ),
        reports=True,
        netns=NETNS_DIR / lab.underlay,
    )


def _kubelet(record: LabRecord, node: NodeRecord) -> Program:
    return Program(
        f"{node.name}/kubelet",
        (
            *(sys.executable, "-m", "podwire.lab.kubelet"),
            *("--kubeconfig", str(KUBECONFIG)),
            *("--node-name", node.name),
            *("--node-ip", ",".join(record.ips(node))),
            *("--socket", str(NODE_DIR / "kubelet.sock")),
            *("--grace", str(record.shape.node_grace_s)),
            *("--pod-network", record.shape.pod_network),
        ),
        node=node.name,
        reports=True,
    )


def _agent(record: LabRecord, node: NodeRecord) -> Program:
    store: tuple[str, ...] = ()
    if record.shape.store == "etcd":
        router = record.segment(node).routers[0].ip
        host = f"[{router}]" if router.version == 6 else str(router)
        store = ("--store", f"etcd://{host}:{ETCD_PORT}")
    return Program(
        f"{node.name}/agent",
        (
            *(*podwire(), "agent"),
            *("--kubeconfig", str(KUBECONFIG)),
            *("--node-name", node.name),
            *store,
            *record.shape.agent_arguments(),
        ),
        node=node.name,
    )


def podwire() -> tuple[str, ...]:
    """The installed command, of the environment that this process runs in."""
    command = Path(sys.executable).parent / "podwire"
    return (str(command),) if command.exists() else (sys.executable, "-m", "podwire.cli.main")


def environment(lab_id: str, name: str, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a lab's process: its marker, and of our own what is not about a person."""
    kept = {
        key: value
        for key, value in base.items()
        if key.startswith(_KEPT_PREFIXES) and key not in _DROPPED
    }
    own = {"PATH": PATH, "HOME": "/root", LAB_ID: lab_id, LAB_PROCESS: name}
    return kept | {"SSL_CERT_FILE": NO_AUTHORITIES} | own
