"""Progress of what takes a while, for a person at a terminal or a log."""

from __future__ import annotations

import os
import sys
import time

import click

_CLEAR_LINE = "\r\x1b[K"


class TerminalProgress:
    """Steps as lines; on a terminal also what is being waited for, on a line that is replaced."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self._live and not os.environ.get("NO_COLOR")
        self._started = time.monotonic()

    def done(self, text: str) -> None:
        mark = click.style("✓", fg="green") if self._coloured else "✓"
        clear = _CLEAR_LINE if self._live else ""
        seconds = f"{time.monotonic() - self._started:5.1f} s"
        print(f"{clear}{seconds}  {mark} {text}", file=sys.stderr, flush=True)

    def waiting(self, text: str) -> None:
        if self._live:
            seconds = f"{time.monotonic() - self._started:5.1f} s"
            print(f"{_CLEAR_LINE}{seconds}  … {text}", end="", file=sys.stderr, flush=True)
