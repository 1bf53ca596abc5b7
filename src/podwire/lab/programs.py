"""Which processes make up a lab: names, command lines, environments.

What lives here: pure functions from a lab's record to `Program`s. What does not: running them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podwire.lab.nodes import KUBECONFIG, NODE_DIR, PATH
from podwire.lab.processes import LAB_ID, LAB_PROCESS
from podwire.lab.registry import LabInfo, LabRecord, NodeRecord

_KEPT_PREFIXES = ("LANG", "LC_", "PYTHON", "COVERAGE_", "PODWIRE_")
#: Options of the person's own commands, which mean nothing or something else to the lab's.
_DROPPED = frozenset({"PODWIRE_LAB"})


@dataclass(frozen=True, slots=True)
class Program:
    """One process of a lab. `node` is None for what runs on the host.

    With `reports`, the program is given `--ready-fd N` and writes a line there whenever it becomes
    ready (`ready`) or stops being so (`waiting REASON`); without, it counts as ready once started.
    """

    name: str
    argv: tuple[str, ...]
    node: str | None = None
    reports: bool = False


def api(lab: LabInfo, record: LabRecord) -> Program:
    return Program(
        "api",
        (
            *(sys.executable, "-m", "podwire.lab.api"),
            *("--db", str(lab.dir / "api.db")),
            *("--unix", str(lab.api_socket)),
            *("--port", str(record.api_port)),
            *("--token-file", str(lab.dir / "token")),
            *("--tls-dir", str(lab.certificate.parent)),
            *("--node-socket-dir", str(lab.nodes_dir)),
            *("--cluster-cidr", record.cluster_cidr),
        ),
        reports=True,
    )


def of_node(node: NodeRecord) -> tuple[Program, ...]:
    kubelet = Program(
        f"{node.name}/kubelet",
        (
            *(sys.executable, "-m", "podwire.lab.kubelet"),
            *("--kubeconfig", str(KUBECONFIG)),
            *("--node-name", node.name),
            *("--node-ip", node.address),
            *("--socket", str(NODE_DIR / "kubelet.sock")),
        ),
        node=node.name,
        reports=True,
    )
    agent = Program(
        f"{node.name}/agent",
        (*podwire(), "agent", "--kubeconfig", str(KUBECONFIG), "--node-name", node.name),
        node=node.name,
    )
    return kubelet, agent


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
    return kept | {"PATH": PATH, "HOME": "/root", LAB_ID: lab_id, LAB_PROCESS: name}
