"""Several processes of tests at once (pytest-xdist): which tests begin, and how Ctrl-C ends them.

What lives here: the plugins that `conftest` registers. What does not: how many processes there
are, which `script/test` says. A module's tests all run in one process (`--dist loadscope`), so that
its fixtures, labs above all, are made once; but for those that share none, and take longest.

Ctrl-C: every process takes down what its tests have made, and the first one waits for that. By
itself pytest-xdist gives them 10 s and then kills them, and their labs stay behind.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

#: Packages whose modules take longest, a minute at most: begun last, one would be waited for.
_LONG = ("tests/e2e", "tests/lab", "tests/agent", "tests/cli")
#: A module of five minutes, each of whose tests makes a lab of its own.
_APART = "tests/e2e/test_e2e_fabrics.py"
#: So long a process may take to remove its labs on a machine that has much else to do.
_CLEAN_UP_S = 60.0


def dearest_first(items: list[pytest.Item], root: Path) -> None:
    """Order modules by what they take; tests of one module stay together, and in their order.

    Last come those of a second or two, so that all processes end at about the same time.
    """

    def rank(path: Path) -> tuple[bool, bool, int]:
        of = next((n for n, one in enumerate(_LONG) if path.is_relative_to(root / one)), len(_LONG))
        return path not in slow, path not in real, of

    slow = {item.path for item in items if item.get_closest_marker("slow")}
    real = {item.path for item in items if item.get_closest_marker("root")}
    items.sort(key=lambda item: rank(item.path))


def shorten_basetemp(config: pytest.Config) -> None:
    """`…/gw0` in place of `…/popen-gw0`: the path of a Unix socket may have 107 bytes (unix(7))."""
    base = Path(config.option.basetemp)
    config.option.basetemp = str(base.with_name(base.name.removeprefix("popen-")))


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """A module's tests in one process; of `_APART`, each where there is time for it."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(_APART) else super()._split_scope(nodeid)


class Controller:
    """In the process that a person started."""

    def __init__(self) -> None:
        self._workers: list[Any] = []

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        return _Scheduling(config, log) if config.getoption("dist") == "loadscope" else None

    def pytest_testnodeready(self, node: Any) -> None:
        self._workers.append(node)

    def pytest_keyboard_interrupt(self) -> None:
        for worker in self._workers:
            if not worker.channel.isclosed():
                # Only those of a terminal have got it already.
                os.kill(worker.gateway._io.popen.pid, signal.SIGINT)
        for worker in self._workers:
            worker.channel.waitclose(_CLEAN_UP_S)


class Worker:
    """In each of the processes that run tests."""

    def pytest_sessionstart(self) -> None:
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        # Once: the terminal, the controller and execnet each send one, and a second one would
        # interrupt the cleaning up. A function and not SIG_IGN, which programs would inherit.
        signal.signal(signal.SIGINT, lambda *_: None)
        raise KeyboardInterrupt
