"""Command lines that run a program inside a node or a pod of a lab, from the host.

What lives here: finding the process whose namespaces to enter. Entering is nsenter(1)'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from podwire.errors import LabError
from podwire.lab import nodes
from podwire.lab.registry import LabInfo

_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")


def node_command(lab: LabInfo, node: str, command: Sequence[str]) -> list[str]:
    """The argv that runs `command` inside a node. Raises LabError when the node does not run."""
    holder = nodes.holder(lab, node)
    if holder is None:
        raise LabError(
            f'lab "{lab.name}" has no running node "{node}"',
            remedy=f"see `podwire --lab {lab.name} lab status`",
        )
    return _nsenter(holder.pid, command)


def pod_command(lab: LabInfo, node: str, pause: int, command: Sequence[str]) -> list[str]:
    """The argv that runs `command` in the sandbox whose pause process is `pause` on the node.

    In two steps, because that PID is the node's and means nothing on the host.
    """
    return node_command(lab, node, _nsenter(pause, command))


def _nsenter(pid: int, command: Sequence[str]) -> list[str]:
    return ["nsenter", "--target", str(pid), *_NAMESPACES, "--", *command]
