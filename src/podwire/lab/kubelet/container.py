"""One container of a pod, from its start to its end, again and again.

What lives here: starting, signalling, noticing the end, and when it may be started again. What
does not: whether it should be (`worker`).

The back-off is a kubelet's, in shorter steps that suit a lab: the first restart comes at once, then
after 1, 2, 4 … 30 s (a kubelet: 10 s … 5 min); a run of a minute (10 min) is forgiven.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path

from podwire.errors import PodwireError
from podwire.lab import sandbox as sandboxes
from podwire.lab.kubelet.process_end import ProcessEnd
from podwire.lab.kubelet.records import ContainerRecord, Termination, new_id, now
from podwire.lab.nodes import PATH
from podwire.lab.processes import Process
from podwire.lab.sandbox import Sandbox, SandboxEndedError

MAX_BACKOFF_S = 30.0
_FORGIVEN_AFTER_S = 60.0
_START_ERROR = 128  # what containerd reports for a program that could not be executed


class ContainerRun:
    """Runs one container; keeps its record up to date and calls `on_change` after each change."""

    def __init__(self, record: ContainerRecord, on_change: Callable[[], None]) -> None:
        self.record = record
        self._on_change = on_change
        self._end: ProcessEnd | None = None
        self.ended = asyncio.Event()
        """Set while it does not run; each run has an event of its own."""
        self.ended.set()

    def succeed(self, earlier: ContainerRun) -> None:
        """Take over who waits for the end of the run that `earlier`, which failed, has watched."""
        self.ended = earlier.ended

    def adopt(self) -> None:
        """Watch a container that an earlier kubelet or worker started."""
        process = self.record.process
        if process is not None:
            if self.ended.is_set():
                self.ended = asyncio.Event()
            self._end = ProcessEnd(process, self._ended)

    def start(
        self, sandbox: Sandbox, argv: Sequence[str], env: Mapping[str, str], cwd: str, log: Path
    ) -> bool:
        """Start it; False when it ended at that, which is recorded as its end.

        Raises SandboxEndedError, having recorded nothing.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pid = sandboxes.run(sandbox, with_busybox(argv), env=env, cwd=cwd, stdio=(null, fd, fd))
        except SandboxEndedError:
            raise
        except (OSError, PodwireError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.message
            self._begin()
            self._record_end(_START_ERROR, "StartError", f"cannot execute {argv[0]!r}: {reason}")
            return False
        finally:
            os.close(fd)
            os.close(null)
        self._begin()
        self.ended = asyncio.Event()
        process = Process.unreaped(pid)
        self.record.state, self.record.reason, self.record.message = "running", "", ""
        self.record.pid, self.record.started = process.pid, process.started
        self._end = ProcessEnd(process, self._ended)
        return True

    def _begin(self) -> None:
        """Record that a new run begins."""
        record = self.record
        if record.ran:
            record.restarts += 1
        record.last = record.ended or record.last
        record.id, record.ended = new_id(), None
        record.started_at = now()

    def wait_with(self, reason: str, message: str, retry_s: float) -> None:
        """Record why it does not run, and that it may be tried again in `retry_s`."""
        record = self.record
        record.state, record.reason, record.message = "waiting", reason, message
        record.retry_at = time.time() + retry_s

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its first process."""
        if self._end is not None and self.record.state == "running":
            self._end.signal(number)

    def lost(self) -> None:
        """Record that it ended with its sandbox, nobody knows how."""
        if self._end is not None:
            self._end.close()
            self._end = None
        if self.record.state == "running":
            self._record_end(
                137,
                "ContainerStatusUnknown",
                "The container could not be located when the pod was terminated",
            )

    def close(self) -> None:
        """Stop watching; the container goes on running."""
        if self._end is not None:
            self._end.close()

    def _ended(self, code: int | None) -> None:
        self._end = None
        if code is None:
            self.lost()
        else:
            with suppress(ProcessLookupError):
                # What it started and left in its process group does not outlive it.
                os.killpg(self.record.pid, signal.SIGKILL)
            exit_code = code if code >= 0 else 128 - code
            self._record_end(exit_code, "Completed" if exit_code == 0 else "Error", "")
        self._on_change()

    def _record_end(self, exit_code: int, reason: str, message: str) -> None:
        record = self.record
        record.ended = Termination(
            exit_code=exit_code,
            reason=reason,
            message=message,
            started_at=record.started_at,
            finished_at=now(),
            container_id=record.id,
        )
        record.state = "terminated"
        self.ended.set()
        ran_s = time.time() - _seconds(record.started_at)
        record.failures = 1 if ran_s >= _FORGIVEN_AFTER_S else record.failures + 1
        record.retry_at = time.time() + back_off_s(record.failures)


def back_off_s(failures: int) -> float:
    """Seconds to wait after that many ends in a row."""
    return 0.0 if failures <= 1 else min(MAX_BACKOFF_S, 2.0 ** (failures - 2))


def _seconds(timestamp: str | None) -> float:
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def with_busybox(argv: Sequence[str]) -> list[str]:
    """The command line, run by busybox where only busybox has the program."""
    program = argv[0]
    if "/" in program or shutil.which(program, path=PATH) or program not in _applets():
        return list(argv)
    return ["busybox", *argv]


@cache
def _applets() -> frozenset[str]:
    import subprocess

    busybox = shutil.which("busybox", path=PATH)
    if busybox is None:
        return frozenset()
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=False)
    return frozenset(listed.stdout.split())
