"""Any process of a lab may die at any time: pods go on, `up` mends, `down` leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from podwire.lab import Lab, LabPod, processes
from podwire.lab.registry import NETNS_DIR

from .steady_ping import SteadyPing
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

PODWIRE = Path(sys.executable).with_name("podwire")
VICTIMS = ("supervisor", "api", "node1/agent", "node1/kubelet")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Two nodes, whose pods' packets pass a process."""
    return make_lab(2, profile="flannel-udp")


@pytest.fixture(scope="module")
def pods(lab: Lab) -> tuple[LabPod, LabPod]:
    a, b = lab.run("a", node="node1"), lab.run("b", node="node2")
    lab.wait_ready()
    return a, b


def identity(lab: Lab) -> str:
    """The id that marks the lab's processes."""
    record = lab.info.record()
    assert record is not None
    return record.id


def kill(lab: Lab, *victims: str) -> None:
    """kill -9 these of the lab's processes, and wait until they have ended."""
    doomed = [one for one, name in processes.marked(identity(lab)).items() if name in victims]
    assert len(doomed) == len(victims)
    for process in doomed:
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not any(process.alive for process in doomed), f"{victims} have ended")


def podwire(*arguments: str) -> None:
    done = subprocess.run(
        [str(PODWIRE), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"


def no_process_twice(lab: Lab) -> bool:
    names = list(processes.marked(identity(lab)).values())
    return len(names) == len(set(names))


@pytest.mark.parametrize("victims", [*((one,) for one in VICTIMS), VICTIMS], ids="+".join)
def test_up_mends_a_lab_whose_pods_have_not_noticed(
    lab: Lab, pods: tuple[LabPod, LabPod], victims: tuple[str, ...]
) -> None:
    a, b = pods
    before = a.ip, b.ip, a.pause, b.pause
    with SteadyPing(a, b) as ping:
        kill(lab, *victims)
        podwire("lab", "up", "--name", lab.name)
        new = lab.run("new", node="node1")
        assert new.ping(b).lost == 0
        assert b.ping(new).lost == 0
    assert ping.lost == []
    assert (a.ip, b.ip, a.pause, b.pause) == before
    for pod in pods:
        assert pod.object["status"]["containerStatuses"][0]["restartCount"] == 0
    new.delete(grace_s=0)
    # Not at once: what a kubelet is about to execute still has the kubelet's environment.
    until(lambda: no_process_twice(lab), "each process is there once")


@pytest.fixture
def doomed_lab() -> Iterator[Lab]:
    lab = Lab(nodes=2).up()
    yield lab
    if lab.info.dir.exists():
        lab.down()


def test_down_after_everything_has_crashed_leaves_nothing(doomed_lab: Lab) -> None:
    links = host_links()
    doomed_lab.run("a", node="node1").wait_ready()
    mark = identity(doomed_lab)
    kill(doomed_lab, *VICTIMS, "node2/agent", "node2/kubelet")
    podwire("lab", "down", doomed_lab.name)
    assert processes.marked(mark) == {}
    assert not doomed_lab.info.dir.exists()
    assert [path.name for path in NETNS_DIR.glob(f"{doomed_lab.name}-*")] == []
    assert doomed_lab.name not in Path("/proc/self/mounts").read_text()
    assert host_links() == links


def host_links() -> list[str]:
    """Links of the machine's own network namespace; a lab has none there."""
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


def test_labs_come_while_others_go() -> None:
    """What one takes away of the machine's mounts while another copies them is no error."""

    def come_and_go(_: int) -> bool:
        with Lab(nodes=2) as lab:
            a, b = lab.run("a", node="node1"), lab.run("b", node="node2")
            return a.ping(b).lost == 0

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(come_and_go, range(3)))
