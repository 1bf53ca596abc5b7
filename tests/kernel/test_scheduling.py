"""What a process asks of the scheduler, as the kernel has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ASK = """
import os, sys
from podwire.kernel.scheduling import ask_for_slice
worked = ask_for_slice(0.0002)
print(worked, os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), flush=True)
sys.stdin.read()
"""


def test_a_slice_is_asked_for_and_nothing_else_changed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ASK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        worked, policy, nice = process.stdout.readline().split()
        assert worked == str(os.sched_getscheduler(0) == os.SCHED_OTHER)
        assert int(policy) == os.sched_getscheduler(0)
        assert int(nice) == os.getpriority(os.PRIO_PROCESS, 0)
        told = Path(f"/proc/{process.pid}/sched")
        if worked == "True" and told.exists():
            found = re.search(r"^se\.slice\s*:\s*(\d+)", told.read_text(), re.MULTILINE)
            if found is None:
                pytest.skip("this kernel does not tell slices")
            assert int(found[1]) == 200_000


_BEFORE_OTHERS = """
import os
from podwire.kernel.scheduling import go_before_others
print(go_before_others(%d), os.getpriority(os.PRIO_PROCESS, 0))
"""


def _asked(nice: int, *prefix: str) -> tuple[int, int]:
    """What it was told, and what it had, of a process that asked for a nice value."""
    line = [*prefix, sys.executable, "-c", _BEFORE_OTHERS % nice]
    told, had = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    return int(told), int(had)


@pytest.mark.root
def test_a_process_goes_before_others() -> None:
    assert _asked(-10) == (-10, -10)
    # Who was put further to the front by somebody else stays there.
    assert _asked(-10, "nice", "-n", "-15") == (-15, -15)


@pytest.mark.root
def test_who_may_not_stays_as_it_is() -> None:
    assert _asked(-10, "setpriv", "--bounding-set", "-sys_nice", "nice", "-n", "3") == (3, 3)
