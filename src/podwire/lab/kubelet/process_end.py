"""Noticing that a process has ended, child or not, without a thread and without SIGCHLD."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from podwire.lab.processes import Process


class ProcessEnd:
    """Calls `on_end` once, when `process` has ended.

    It is given the exit code (negative: the signal), or None for a process that was not this
    process's child and whose exit status nobody kept.
    """

    def __init__(self, process: Process, on_end: Callable[[int | None], None]) -> None:
        self._process = process
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._pidfd = process.open_even_ended()
        if self._pidfd is None:
            self._loop.call_soon(on_end, None)
        else:
            self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self.close()
        code: int | None = None
        with suppress(ChildProcessError):
            code = os.waitstatus_to_exitcode(os.waitpid(self._process.pid, 0)[1])
        self._on_end(code)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still there."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Stop watching."""
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
