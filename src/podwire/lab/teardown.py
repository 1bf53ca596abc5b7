"""Taking a lab down, whatever is left of it.

What lives here: finding everything that belongs to a lab and ending it. Nothing of it relies on
the lab being whole: processes are found by the lab's id in their environment and by the
namespaces they are in, namespaces by their names.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from podwire.errors import LabError
from podwire.lab import nodes, processes, underlay
from podwire.lab.processes import Process
from podwire.lab.registry import LABS, NETNS_DIR, LabInfo

_SHELL_GRACE_S = 0.5


def clear(lab: LabInfo) -> None:
    """End everything of a lab and empty its directory; needs nothing to be as it should."""
    with _held_namespaces(lab) as wanted:
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
            # At once, and so its children: nothing that they could still put in order will last.
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


@contextlib.contextmanager
def _held_namespaces(lab: LabInfo) -> Iterator[frozenset[tuple[str, int]]]:
    """The namespaces of a lab: those with a name, and those of its holders; never the host's.

    They are kept while the block lasts, whoever ends: the kernel gives the inode of one that is
    gone to the next that somebody makes, whose processes are none of ours.
    """
    with contextlib.ExitStack() as held:
        found: set[tuple[str, int]] = set()

        def hold(path: Path, kind: str) -> None:
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                held.callback(os.close, fd)
                found.add((kind, os.fstat(fd).st_ino))

        for name in leftover_netns(lab):
            if underlay.is_up(name):
                hold(NETNS_DIR / name, "net")
        for directory in lab.nodes_dir.iterdir() if lab.nodes_dir.exists() else ():
            holder = nodes.holder(lab, directory.name)
            if holder is None:
                continue
            before = set(found)
            for kind in processes.NAMESPACES:
                hold(Path(f"/proc/{holder.pid}/ns/{kind}"), kind)
            if not holder.alive:
                # Whose namespaces these are can't be known.
                found = before
        yield frozenset(found - processes.namespaces(1))


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
