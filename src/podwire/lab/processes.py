"""Processes as /proc shows them: is it still the same one, which belong to a lab, end them.

What lives here: identity of a process (a PID alone is reused), the marker by which a lab's own
processes are known, and ending them for certain. What does not: starting any.

Every process that a lab starts outside its nodes' PID namespaces carries `PODWIRE_LAB_ID` in its
environment, as it was at exec, which /proc shows. Whatever else holds on to a lab (a shell that
somebody opened in a node) is found by the namespaces that it is in.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LAB_ID = "PODWIRE_LAB_ID"
"""Environment variable that holds the lab's id, a UUID, in each of its processes."""
LAB_PROCESS = "PODWIRE_LAB_PROCESS"
"""Environment variable that holds the process's name in the lab: `api`, `node1/agent`."""

#: Of pidfd_open(2): there is nothing of that number, or it is a thread's (EINVAL in older kernels).
_NO_PROCESS = (errno.ESRCH, errno.ENOENT, errno.EINVAL)

NAMESPACES = ("net", "mnt", "pid", "uts")
"""Kinds of namespaces that nodes have of their own."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process for its whole life: the PID, and when it started (clock ticks since boot)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this PID now, or None (a zombie counts as gone)."""
        fields = _stat(pid)
        if not fields or fields[0] in (b"Z", b"X"):
            return None
        return cls(pid, int(fields[19]))

    @classmethod
    def unreaped(cls, pid: int) -> Process:
        """A child of this process, ended or not."""
        return cls(pid, int(_stat(pid)[19]))

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """From `str()`; None where the text is not one (a file that a crash left half written)."""
        pid, _, started = text.strip().partition(" ")
        return cls(int(pid), int(started)) if pid.isdigit() and started.isdigit() else None

    def __str__(self) -> str:
        return f"{self.pid} {self.started}"

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self

    def end(self) -> None:
        """Kill it, and return when it has ended (5 s at most)."""
        end([self])

    def open_even_ended(self) -> int | None:
        """A pidfd of it, also of a zombie; None when it has been reaped."""
        fd = _pidfd(self.pid)
        if fd is None:
            return None
        fields = _stat(self.pid)
        if not fields or int(fields[19]) != self.started:
            os.close(fd)
            return None
        return fd

    def open(self) -> int | None:
        """A pidfd of it, or None when it has ended."""
        fd = _pidfd(self.pid)
        if fd is None:
            return None
        if not self.alive:
            os.close(fd)
            return None
        return fd


def environment(pid: int) -> dict[str, str]:
    """A process's environment as it was at exec; empty when it is gone or not ours to read."""
    data = _read(f"/proc/{pid}/environ") or b""
    pairs = (entry.partition(b"=") for entry in data.split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def all_processes() -> Iterator[Process]:
    """Every process that this one can see, but itself."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            process = Process.of(int(entry.name))
            if process is not None:
                yield process


def marked(lab_id: str) -> dict[Process, str]:
    """The processes that the lab started, each with its name in the lab (`node1/agent`).

    A tunnel, which has its agent's environment and outlives it, is told by its command
    (`node1/tunnel`). Not those that merely inherited the environment inside a node's PID namespace:
    containers get a fresh one.
    """
    found = {}
    needle = f"{LAB_ID}={lab_id}".encode()
    for process in all_processes():
        if needle in (_read(f"/proc/{process.pid}/environ") or b"").split(b"\0"):
            name = environment(process.pid).get(LAB_PROCESS, "")
            if b"podwire.tunnel" in (_read(f"/proc/{process.pid}/cmdline") or b"").split(b"\0"):
                name = name.replace("/agent", "/tunnel")
            found[process] = name
    return found


def namespaces(pid: int) -> frozenset[tuple[str, int]]:
    """(kind, inode) of the namespaces that a process is in; empty when it is gone."""
    found = set()
    for kind in NAMESPACES:
        with suppress(OSError):
            found.add((kind, Path(f"/proc/{pid}/ns/{kind}").stat().st_ino))
    return frozenset(found)


def inhabitants(of: Iterable[tuple[str, int]]) -> list[Process]:
    """The processes in any of these namespaces."""
    wanted = frozenset(of)
    return [process for process in all_processes() if wanted & namespaces(process.pid)]


def end(processes: Iterable[Process], *, grace_s: float = 0.0) -> list[Process]:
    """End processes: SIGTERM, `grace_s` later SIGKILL. Returns those still there after 5 s more."""
    pidfds = {fd: process for process in processes if (fd := process.open()) is not None}
    try:
        if grace_s > 0:
            _signal(pidfds, signal.SIGTERM)
            waiting = _wait(dict(pidfds), grace_s)
        else:
            waiting = dict(pidfds)
        _signal(waiting, signal.SIGKILL)
        return list(_wait(waiting, 5.0).values())
    finally:
        for fd in pidfds:
            os.close(fd)


def _pidfd(pid: int) -> int | None:
    """None where no process has that PID: a thread of one may have it by now, as its own."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise


def _signal(pidfds: Iterable[int], number: signal.Signals) -> None:
    for fd in pidfds:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)


def _wait(pidfds: dict[int, Process], timeout_s: float) -> dict[int, Process]:
    """Those that have not ended after `timeout_s`."""
    poller = select.poll()
    for fd in pidfds:
        poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while pidfds and (left_s := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(left_s * 1000):
            poller.unregister(fd)
            del pidfds[fd]
    return pidfds


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on (`state`); empty when there is none."""
    # The command's name, in parentheses, may itself hold spaces and parentheses.
    return (_read(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None
