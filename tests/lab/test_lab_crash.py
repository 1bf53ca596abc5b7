"""A lab through crashes of its parts: what survives, what comes back, and that `down` finds all."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from podwire.cluster.kube import PODS
from podwire.errors import LabError
from podwire.lab import Lab, lifecycle, nodes, processes, teardown, underlay
from podwire.lab.places import is_ready
from podwire.lab.registry import NETNS_DIR

pytestmark = [pytest.mark.root, pytest.mark.slow]


#: include/uapi/linux/nsfs.h: a descriptor of the namespace that this one is in.
NS_GET_PARENT = 0xB702


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)


@pytest.fixture(scope="module")
def standing() -> Iterator[Lab]:
    with Lab(nodes=2) as lab:
        yield lab


@pytest.fixture
def lab(standing: Lab) -> Iterator[Lab]:
    """A whole lab without pods, which the tests that leave it whole use one after the other."""
    yield standing
    lifecycle.up(standing.name)
    for pod in standing.call(lambda client: client.list(PODS, "default")).items:
        standing.pod(pod["metadata"]["name"]).delete(grace_s=0)


def traces(lab: Lab, lab_id: str) -> list[str]:
    """What is left of a lab on this machine."""
    left = [f"process {process}: {name}" for process, name in processes.marked(lab_id).items()]
    left += [f"netns {name}" for name in teardown.leftover_netns(lab.info)]
    left += [f"directory {lab.info.dir}"] if lab.info.dir.exists() else []
    mounts = Path("/proc/self/mountinfo").read_text()
    return left + [line for line in mounts.splitlines() if lab.name in line]


def lab_id(lab: Lab) -> str:
    record = lab.info.record()
    assert record is not None
    return record.id


def restarts(pod: dict[str, Any]) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def restarted(pod: dict[str, Any]) -> bool:
    return is_ready(pod) and restarts(pod) == 1


def started(lab: Lab, process: str, after: float) -> bool:
    status = lab.process(process)
    return status.state == "ready" and status.since > after


def test_killed_kubelet_adopts_what_runs(lab: Lab) -> None:
    a, b = lab.run("a", node="node1"), lab.run("b", node="node2")
    before, pause = a.wait_ready(), a.pause
    pid = lab.node("node1").process("kubelet").pid
    assert pid is not None
    now = time.time()
    os.kill(pid, signal.SIGKILL)
    until(lambda: started(lab, "node1/kubelet", now), "kubelet is back")
    assert b.ping(a).lost == 0
    assert (a.ip, a.pause, restarts(a.object)) == (before["status"]["podIP"], pause, 0)
    later = lab.run("later", node="node1")
    assert later.ping(a).lost == 0


def test_container_that_ended_while_the_kubelet_was_away_is_restarted(lab: Lab) -> None:
    pod = lab.run("a", node="node1")
    pod.wait_ready()
    ip = pod.ip
    kubelet = lab.node("node1").process("kubelet").pid
    assert kubelet is not None
    argv = pod.command(["pkill", "-9", "-x", "sleep"])
    os.kill(kubelet, signal.SIGKILL)
    subprocess.run(argv, check=False)
    pod.wait(restarted, "restarted")
    assert pod.ip == ip
    last = pod.object["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert last["reason"] == "ContainerStatusUnknown"


def test_kubelet_killed_at_any_moment_leaks_nothing(lab: Lab) -> None:
    """Killed 12 times while pods come and go: what is there in the end is what should be."""
    node, moments = lab.node("node1"), random.Random(1)
    killed: set[int | None] = {None}
    for turn in range(12):
        lab.run(f"p{turn}", node="node1")
        if turn >= 3:
            lab.call(
                lambda client, name=f"p{turn - 3}": client.delete(PODS, name, "default", 1)  # type: ignore[misc]
            )
        until(lambda: node.process("kubelet").pid not in killed, "kubelet runs")
        pid = node.process("kubelet").pid
        assert pid is not None
        # The moment is what is varied: while it starts, makes the sandbox, ADDs, or later.
        time.sleep(moments.uniform(0.2, 0.5))
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    pods = [lab.pod(f"p{turn}") for turn in (9, 10, 11)]
    for turn in range(9):
        lab.pod(f"p{turn}").delete(grace_s=0)
    assert len({pod.ip for pod in pods}) == 3
    for pod in pods:
        assert lab.node("node2").ping(pod).lost == 0

    def sandboxes() -> bool:
        return node.exec(["sh", "-c", "ls /run/netns | wc -l"]).stdout == "3\n"

    until(sandboxes, "one network namespace for each pod")
    environments = [processes.environment(process.pid) for process in all_in(lab, "node1")]
    assert sum("PODWIRE_SANDBOX" in environment for environment in environments) == 3
    links = node.exec(["ip", "-o", "link", "show", "master", "cni0"]).stdout.splitlines()
    assert len(links) == 3


def all_in(lab: Lab, node: str) -> list[processes.Process]:
    """Every process of a node, its pods' included, which have namespaces of their own."""
    inside, found = f"pid:[{Path(f'/proc/{lab.node(node).pid}/ns/pid').stat().st_ino}]", []
    for process in processes.all_processes():
        with suppress(OSError):
            fd = os.open(f"/proc/{process.pid}/ns/pid", os.O_RDONLY)
            try:
                parent = fcntl.ioctl(fd, NS_GET_PARENT)
                if os.readlink(f"/proc/self/fd/{parent}") == inside:  # noqa: PTH115
                    found.append(process)
                os.close(parent)
            finally:
                os.close(fd)
    return found


def test_killed_pause_gives_a_new_sandbox(lab: Lab) -> None:
    pod = lab.run("a", node="node1")
    old = pod.pause
    lab.node("node1").exec(["kill", "-9", str(old)], check=True)
    pod.wait(restarted, "restarted")
    assert pod.pause != old
    assert lab.node("node2").ping(pod).lost == 0
    veths = lab.node("node1").exec(["ip", "-o", "link", "show", "type", "veth"]).stdout
    assert veths.count("veth") == 1, "the old sandbox's interface is gone"


def test_node_whose_holder_was_killed_starts_again(lab: Lab) -> None:
    a, b = lab.run("a", node="node1"), lab.run("b", node="node2")
    assert a.ping(b).lost == 0
    holder = nodes.holder(lab.info, "node1")
    assert holder is not None
    os.kill(holder.pid, signal.SIGKILL)
    a.wait(restarted, "restarted")
    assert a.ping(b).lost == 0


def test_up_recovers_as_after_a_reboot(lab: Lab) -> None:
    """Processes, namespaces and mounts are gone; files, and the names' empty files, are there."""
    pod = lab.run("a", node="node1")
    pod.wait_ready()
    teardown_all_but_files(lab)
    for name in (lab.info.underlay, lab.info.netns("node1")):
        (NETNS_DIR / name).touch()
    lifecycle.up(lab.name)
    pod.wait(restarted, "restarted")
    assert lab.node("node2").ping(pod).lost == 0


def teardown_all_but_files(lab: Lab) -> None:
    for _ in range(2):
        processes.end(processes.marked(lab_id(lab)))
    for name in teardown.leftover_netns(lab.info):
        underlay.remove_netns(name)


def test_up_with_another_number_of_nodes_is_refused(lab: Lab) -> None:
    with pytest.raises(LabError, match="exists with 2 nodes, not 3"):
        lifecycle.up(lab.name, 3)


def test_up_on_a_running_lab_changes_nothing(lab: Lab) -> None:
    before = processes.marked(lab_id(lab))
    lifecycle.up(lab.name, 2)
    assert processes.marked(lab_id(lab)) == before


@pytest.mark.parametrize("victim", ["supervisor", "node1/holder"])
def test_down_after_a_crash_leaves_nothing(victim: str) -> None:
    lab = Lab(nodes=2).up()
    pod = lab.run("a", node="node1")
    pod.wait_ready()
    identity = lab_id(lab)
    by_name = {name: process for process, name in processes.marked(identity).items()}
    os.kill(by_name[victim].pid, signal.SIGKILL)
    lifecycle.down(lab.name)
    assert traces(lab, identity) == []


def test_down_ends_a_shell_in_a_node_and_nothing_else() -> None:
    lab = Lab(nodes=1).up()
    inside = lab.node("node1").popen(["sleep", "1000"])
    by_netns = subprocess.Popen(["ip", "netns", "exec", lab.info.netns("node1"), "sleep", "1000"])
    other = subprocess.Popen(["sleep", "1000"], env={**os.environ, "PODWIRE_LAB": lab.name})
    identity = lab_id(lab)
    try:
        lifecycle.down(lab.name)
        assert inside.wait(60) != 0
        assert by_netns.wait(60) != 0
        assert other.poll() is None
        assert traces(lab, identity) == []
    finally:
        other.kill()
        other.wait()


def test_down_without_the_lab_directory_ends_the_namespaces() -> None:
    lab = Lab(nodes=1).up()
    identity = lab_id(lab)
    supervisor = teardown.supervisor(lab.info)
    assert supervisor is not None
    shutil.rmtree(lab.info.dir)
    lifecycle.down(lab.name)
    assert traces(lab, identity) == []
    assert not supervisor.alive


def test_down_of_a_lab_made_in_part() -> None:
    lab = Lab(nodes=1)
    lab.info.dir.mkdir(parents=True)
    underlay.make_netns([lab.info.underlay])
    lifecycle.down(lab.name)
    assert traces(lab, "no such id") == []


def test_supervisor_asked_to_stop_leaves_pods_running(lab: Lab) -> None:
    a, b = lab.run("a", node="node1"), lab.run("b", node="node2")
    command, ip = a.command(["ping", "-c", "1", "-W", "1", b.ip]), a.ip
    supervisor = teardown.supervisor(lab.info)
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGTERM)
    until(lambda: not supervisor.alive, "supervisor has stopped")
    assert sorted(processes.marked(lab_id(lab)).values()) == ["node1/holder", "node2/holder"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    lifecycle.up(lab.name)
    assert a.ip == ip
