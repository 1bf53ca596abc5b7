"""Taking a lab down, whatever is left of it.

What lives here: finding everything that belongs to a lab and ending it. Nothing of it relies on
the lab being whole: processes are found by the lab's id in their environment and by the
namespaces they are in, namespaces by their names.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress

from podwire.errors import LabError
from podwire.lab import nodes, processes, underlay
from podwire.lab.processes import Process
from podwire.lab.registry import LABS, NETNS_DIR, LabInfo

_SHELL_GRACE_S = 0.5


def clear(lab: LabInfo) -> None:
    """End everything of a lab and empty its directory; needs nothing to be as it should."""
    wanted = _namespaces(lab)
    found = supervisor(lab)
    ids = {record.id} if (record := lab.record()) else set()
    if found is not None:
        ids.add(processes.environment(found.pid).get(processes.LAB_ID, ""))
    if wanted & processes.namespaces(os.getpid()):
        raise LabError(
            f'this command runs inside lab "{lab.name}"', remedy="leave the node's shell first"
        )
    inside = processes.inhabitants(wanted)
    ids |= {processes.environment(process.pid).get(processes.LAB_ID, "") for process in inside}
    ids.discard("")
    if found is not None:
        # At once, and so its children too: nothing that they could still put in order will last.
        processes.end([found])
    for lab_id in ids:
        # Again until there are none: one may have started another while we looked.
        while left := processes.marked(lab_id):
            if processes.end(left):
                break
    stubborn = processes.end(processes.inhabitants(wanted), grace_s=_SHELL_GRACE_S)
    if stubborn:
        pids = ", ".join(str(process.pid) for process in stubborn)
        raise LabError(
            f"cannot end process {pids}, which holds on to the lab",
            remedy="end it and run the command again",
        )
    for name in leftover_netns(lab):
        underlay.remove_netns(name)
    for entry in lab.dir.iterdir() if lab.dir.exists() else ():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def leftover_netns(lab: LabInfo) -> list[str]:
    """Names in /run/netns that are this lab's, going by the name alone."""
    ours = re.compile(rf"{re.escape(lab.name)}-(underlay|node\d+)")
    try:
        return [path.name for path in NETNS_DIR.iterdir() if ours.fullmatch(path.name)]
    except FileNotFoundError:
        return []


def _namespaces(lab: LabInfo) -> frozenset[tuple[str, int]]:
    """The namespaces of a lab: those with a name, and those of its holders; never the host's."""
    found: set[tuple[str, int]] = set()
    for name in leftover_netns(lab):
        if underlay.is_up(name):
            found.add(("net", (NETNS_DIR / name).stat().st_ino))
    for directory in lab.nodes_dir.iterdir() if lab.nodes_dir.exists() else ():
        holder = nodes.holder(lab, directory.name)
        if holder is not None:
            found |= processes.namespaces(holder.pid)
    return frozenset(found - processes.namespaces(1))


def remove_directory(lab: LabInfo) -> None:
    for directory in (lab.dir, LABS, LABS.parent):
        with suppress(OSError):
            directory.rmdir()


def supervisor(lab: LabInfo) -> Process | None:
    """The lab's supervisor, when it runs."""
    try:
        found = Process.parse(lab.supervisor_pid.read_text())
    except OSError:
        return None
    return found if found and found.alive else None
