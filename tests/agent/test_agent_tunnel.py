"""The UDP tunnel's process and its agent: nothing is promised before it forwards."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from podwire.agent.tunnel_process import stop_tunnel
from podwire.trace.status import NodeStatus
from podwire.trace.wire import Status

from ..conftest import Namespace
from ..e2e.waiting import DEADLINE_S, until
from .conftest import AgentProcess, Cluster
from .joined import Joined, answers, call_cni, joined, tunnel_pids
from .operating import connected

pytestmark = pytest.mark.root

FORWARDS = "flannel.alpha.coreos.com/backend-type"


@pytest.fixture
def nodes(make_namespace: Callable[[], Namespace], tmp_path: Path) -> Iterator[Joined]:
    with joined(make_namespace, tmp_path) as made:
        yield made


@contextmanager
def in_the_way(agent: AgentProcess, end: int | None = None) -> Iterator[None]:
    """No tunnel can start in the block; one that runs is killed as it begins."""
    path = agent.home / "run" / "tunnel.sock.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # Whoever waits for the lock has it before a new process asks.
        waiting = threading.Thread(target=fcntl.flock, args=(fd, fcntl.LOCK_EX))
        waiting.start()
        if end is not None:
            os.kill(end, signal.SIGKILL)
        waiting.join(DEADLINE_S)
        assert not waiting.is_alive()
        yield
    finally:
        os.close(fd)


def status(agent: AgentProcess) -> NodeStatus:
    async def ask() -> NodeStatus:
        async with connected(agent) as operator:
            return (await operator.call(Status(id=0))).status

    return asyncio.run(ask())


def refused(agent: AgentProcess, pod: Namespace) -> tuple[int, str]:
    """Code and message of an ADD that fails."""
    code, error = call_cni(agent, "ADD", "refused", pod)
    assert code == 1
    return error["code"], error["msg"]


def test_nothing_is_promised_before_the_tunnel_forwards(
    cluster: Cluster,
    kubeconfig: Path,
    nodes: Joined,
    make_namespace: Callable[[], Namespace],
) -> None:
    agents = [nodes.add(name, kubeconfig) for name in ("node1", "node2")]
    for agent in agents:
        nodes.register(cluster, agent.name, [f"10.244.{agent.name[-1]}.0/24"])
    first, second = agents
    with in_the_way(first):
        first.start("--profile", "flannel-udp")
        first.wait_not_ready("the UDP tunnel does not forward")
        assert not first.conflist.exists()
        assert FORWARDS not in cluster.node("node1")["metadata"].get("annotations", {})
    for agent in (first, second.start("--profile", "flannel-udp")):
        agent.wait_ready()
    (here, _), (_, (target,)) = map(nodes.pod, agents)
    answers(here, target)
    tunnel = status(first).tunnel
    assert tunnel is not None
    assert tunnel.restarts == 0
    with in_the_way(first, end=tunnel.pid):
        first.wait_not_ready("the UDP tunnel does not forward")
        code, message = refused(first, make_namespace())
        assert code == 11
        assert message.startswith("podwire is not ready: the UDP tunnel does not forward")
    first.wait_ready()
    answers(here, target)
    after = status(first)
    assert after.tunnel is not None
    assert after.tunnel.restarts > 0
    assert after.problems == ()


def test_another_ones_device_is_left_alone(
    cluster: Cluster,
    kubeconfig: Path,
    nodes: Joined,
) -> None:
    agent = nodes.add("node1", kubeconfig)
    nodes.register(cluster, "node1", ["10.244.1.0/24"])
    agent.namespace.run("ip tuntap add flannel0 mode tun; ip link set flannel0 up")
    agent.start("--profile", "flannel-udp")
    agent.wait_not_ready("flannel0 exists and was not made by Podwire")
    assert not agent.conflist.exists()
    assert "NO-CARRIER" in agent.namespace.run("ip link show flannel0"), "nobody has it open"
    agent.namespace.run("ip link del flannel0")
    agent.wait_ready()
    assert agent.log.count("tunnel forwards") == 1
    # What the kernel made with its address, and does not make anew.
    route = agent.namespace.run("ip route show 10.244.0.0/16")
    assert "dev flannel0 proto kernel" in route
    agent.namespace.run("ip route del 10.244.0.0/16")
    until(lambda: agent.namespace.run("ip route show 10.244.0.0/16") == route, "it is back")


@pytest.mark.slow
def test_a_tunnel_that_does_not_answer_is_ended(
    cluster: Cluster,
    kubeconfig: Path,
    nodes: Joined,
) -> None:
    agent = nodes.add("node1", kubeconfig)
    nodes.register(cluster, "node1", ["10.244.1.0/24"])
    agent.start("--profile", "flannel-udp").wait_ready()
    before = status(agent).tunnel
    assert before is not None

    def is_killed() -> bool:
        if "and is killed" in agent.log:
            return True
        # Again and again: whoever has stopped a machine's processes lets them go on, too.
        with suppress(ProcessLookupError):
            os.kill(before.pid, signal.SIGSTOP)
        return False

    until(is_killed, "it is killed")
    until(lambda: agent.log.count("tunnel forwards") == 2, "another one forwards")
    after = status(agent).tunnel
    assert after is not None
    assert after.pid != before.pid
    assert (after.restarts, after.lost) == (
        1,
        "its process did not answer for 10 s, and was killed",
    )
    assert agent.http.metric('podwire_tunnel_restarts_total{reason="silent"}') == 1
    assert tunnel_pids(agent) == [after.pid]
    # Nor does one keep from being ended what is not wanted any more.
    assert agent.stop() == 0
    os.kill(after.pid, signal.SIGSTOP)
    assert asyncio.run(stop_tunnel(agent.home / "run" / "tunnel.sock", waits=1))
    until(lambda: tunnel_pids(agent) == [], "it is gone")
