"""Ctrl-C in the middle of tests in several processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.waiting import DEADLINE_S, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

HANGING = """
import time
from pathlib import Path

def test_that_hangs(namespace):
    name = Path(__file__).with_suffix(".name")
    name.with_suffix(".writing").write_text(namespace.name)
    name.with_suffix(".writing").rename(name)
    time.sleep(1000)
"""


@pytest.mark.parametrize("from_terminal", [False, True])
def test_ctrl_c_leaves_no_namespace(tmp_path: Path, from_terminal: bool) -> None:
    files = [tmp_path / f"test_hanging_{number}.py" for number in range(2)]
    for one in files:
        one.write_text(HANGING)
    command = [
        *(sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadscope", "-p", "tests.conftest"),
        *("-c", "pyproject.toml", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)),
        *("--basetemp", str(tmp_path / "base"), *map(str, files)),
    ]
    log = tmp_path / "log"
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, process_group=0)
    try:
        names = [one.with_suffix(".name") for one in files]
        until(lambda: all(one.exists() for one in names), "both tests run")
        if from_terminal:
            subprocess.run(["kill", "-INT", "--", f"-{running.pid}"], check=True)
        else:
            running.send_signal(signal.SIGINT)
        assert running.wait(DEADLINE_S) == pytest.ExitCode.INTERRUPTED, log.read_text()
    finally:
        running.kill()
        running.wait()
    assert [one for one in names if Path("/run/netns", one.read_text()).exists()] == []
