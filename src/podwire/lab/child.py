"""One supervised process: started, heard, reaped, and how long to wait before it is restarted.

What lives here: the state of a child of the supervisor. What does not: the loop that drives it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from podwire.lab import namespaces as ns
from podwire.lab.control import ProcessStatus, State
from podwire.lab.processes import Process
from podwire.lab.programs import Program

#: Wait before the first restart; doubles with each that follows closely, up to the second.
_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 3.0
#: A process that lived this long was fine, and is restarted without much waiting; so is one that
#: has said that it is ready.
_FINE_AFTER_S = 1.0


class Child:
    """A process of the lab, over its restarts."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.process: Process | None = None
        self.pidfd = -1
        self.report: int | None = None
        self._log = log
        self._restarts = -1
        self._failures = 0
        self._started = 0.0
        self._was_ready = False
        self._state: State = "starting"
        self._message = ""
        self._since = time.time()

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def start(self, env: Mapping[str, str], *, inside: int | None, namespaces: int) -> None:
        """Start the program. Raises OSError or KernelError."""
        self._restarts += 1
        self._started = time.monotonic()
        self._was_ready = False
        self._enter("starting")
        argv = list(self.program.argv)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._log.parent.mkdir(exist_ok=True)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        report_r = report_w = None
        if self.program.reports:
            report_r, report_w = os.pipe2(os.O_CLOEXEC)
            os.set_inheritable(report_w, True)
            argv += ["--ready-fd", str(report_w)]
        try:
            pid = ns.spawn(
                argv,
                env=env,
                inside=inside,
                inside_namespaces=namespaces,
                stdio=(null, log, log),
                death_signal=9,
            )
        except BaseException:
            if report_r is not None:
                os.close(report_r)
            raise
        finally:
            os.close(null)
            os.close(log)
            if report_w is not None:
                os.close(report_w)
        self.process = Process.of(pid) or Process(pid, 0)
        self.pidfd = os.pidfd_open(pid)
        self.report = report_r
        if not self.program.reports:
            self._enter("ready")

    def read_report(self) -> bool:
        """Take in what the process says about itself; False when there is no more to come."""
        if self.report is None:
            return False
        said = os.read(self.report, 65536).decode(errors="replace").splitlines()
        if not said:
            return False
        word, _, message = said[-1].partition(" ")
        if word == "waiting":
            self._enter("waiting", message)
        else:
            self._was_ready = True
            self._enter("ready")
        return True

    def reap(self) -> str:
        """Let go of the process, which has ended; returns how, in words."""
        if self.process is None:
            return "not started"
        _, status = os.waitpid(self.process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        ending = f"exit status {code}" if code >= 0 else f"signal {-code}"
        os.close(self.pidfd)
        if self.report is not None:
            os.close(self.report)
        self.process = self.report = None
        self.pidfd = -1
        self._enter("backoff", ending)
        return ending

    def back_off(self) -> float:
        """Seconds to wait before the next start."""
        lived_s = time.monotonic() - self._started
        self._failures = 0 if self._was_ready or lived_s >= _FINE_AFTER_S else self._failures + 1
        if self._state != "backoff":
            self._enter("backoff", "could not be started")
        return min(_MAX_BACKOFF_S, _BACKOFF_S * 2.0 ** max(0, self._failures - 1))

    def status(self) -> ProcessStatus:
        return ProcessStatus(
            name=self.program.name,
            state=self._state,
            pid=self.pid,
            restarts=max(0, self._restarts),
            since=self._since,
            message=self._message,
        )

    def _enter(self, state: State, message: str = "") -> None:
        if state != self._state:
            self._since = time.time()
        self._state, self._message = state, message
