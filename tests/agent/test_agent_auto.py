"""The auto transport: traffic moves to UDP where VXLAN does not get through, and back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from podwire.trace.wire import Status

from ..conftest import Namespace
from ..e2e.waiting import DEADLINE_S, until
from .conftest import AgentProcess, Cluster
from .joined import Joined, answers, joined, tunnel_pids
from .operating import connected

pytestmark = pytest.mark.root

NETWORK = ("--network", "10.244.0.0/16,fd00:10:244::/48")
AUTO = (*NETWORK, "--transport", "auto", "--probe-interval", "0.5")
NO_VXLAN = (
    "nft add table inet cut;"
    "nft add chain inet cut lost '{ type filter hook forward priority 0; }';"
    "nft add rule inet cut lost udp dport 8472 drop"
)


@pytest.fixture
def nodes(
    cluster: Cluster, kubeconfig: Path, make_namespace: Callable[[], Namespace], tmp_path: Path
) -> Iterator[Joined]:
    """Two nodes behind a router, with agents that are ready."""
    with joined(make_namespace, tmp_path, versions=(4, 6), routed=True) as made:
        for name in ("node1", "node2"):
            agent = made.add(name, kubeconfig)
            # As some distributions have it.
            agent.namespace.run("sysctl -qw net.ipv4.conf.all.rp_filter=1")
            made.register(
                cluster, name, [f"10.244.{name[-1]}.0/24", f"fd00:10:244:{name[-1]}::/64"]
            )
            agent.start(*AUTO)
        for agent in made.agents.values():
            agent.wait_ready()
        yield made


@contextmanager
def pinging(pod: Namespace, target: str, log: Path) -> Iterator[Callable[[], list[int]]]:
    """Pings that go on in the background, 20 a second; the numbers that were answered."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["ip", "netns", "exec", pod.name, "ping", "-i", "0.05", "-n", target], stdout=file
        )

    def answered() -> list[int]:
        return [
            int(line.partition("icmp_seq=")[2].split()[0])
            for line in log.read_text().splitlines()
            if "time=" in line and line.endswith("ms")
        ]

    try:
        yield answered
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


async def path(agent: AgentProcess) -> Any:
    async with connected(agent) as operator:
        (peer,) = (await operator.call(Status(id=0))).status.peers
    return peer.paths[0]


async def kind(agent: AgentProcess) -> str:
    found: str = (await path(agent)).kind
    return found


async def becomes(agent: AgentProcess, wanted: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (now := await kind(agent)) != wanted:
        assert time.monotonic() < deadline, f"{now}, not {wanted}\n{agent.log}"


async def test_traffic_moves_to_udp_and_back(nodes: Joined, tmp_path: Path) -> None:
    first, second = nodes.agents.values()
    (here, _), (_, (target, target6)) = nodes.pod(first), nodes.pod(second)
    answers(here, target)
    until(lambda: "tunnel forwards" in first.log and "tunnel forwards" in second.log, "tunnels")
    route, route6 = "ip route show 10.244.2.0/24", "ip -6 route show fd00:10:244:2::/64"
    assert "dev flannel.1" in first.namespace.run(route)
    found = await path(first)
    assert (found.kind, found.blocked) == ("vxlan", False)
    with pinging(here, target, tmp_path / "ping") as answered:
        until(lambda: len(answered()) > 10, "pings")
        nodes.hub.run(NO_VXLAN)
        before = answered()[-1]
        for agent in (first, second):
            await becomes(agent, "udp")
        until(lambda: answered()[-1] > before + 20, "pings again")
        assert "dev flannel0" in first.namespace.run(route)
        # A node's own packets, also of connections that have its VTEP's address from before.
        answers(first.namespace, target)
        answers(first.namespace, f"-I 10.244.1.0 {target}")
        answers(first.namespace, target6)
        assert "dev flannel0" in first.namespace.run(route6)
        # The longest gap is about the probe interval, of 10 pings; CI machines stall.
        numbers = answered()
        gaps = [b - a for a, b in pairwise(numbers)]
        assert max(gaps) < 40
        found = await path(first)
        assert "VXLAN to node2 not answered since" in found.reason
        assert found.blocked
        # An agent that is started anew leaves it as it is.
        assert first.stop() == 0
        first.start(*AUTO).wait_ready()
        assert "dev flannel0" in first.namespace.run(route)
        moved = answered()[-1]
        nodes.hub.run("nft delete table inet cut")
        for agent in (first, second):
            await becomes(agent, "vxlan")
        assert "dev flannel.1" in first.namespace.run(route)
        until(lambda: "dev flannel-v6.1" in first.namespace.run(route6), "IPv6 goes back, too")
        answers(first.namespace, target6)
        until(lambda: answered()[-1] > moved + 20, "pings all the time")
        numbers = [one for one in answered() if one > moved]
        assert max(b - a for a, b in pairwise(numbers)) < 20


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "gone"


def test_the_tunnel_is_started_anew_and_outlives_its_agent(nodes: Joined) -> None:
    first, second = nodes.agents.values()
    until(lambda: first.log.count("tunnel forwards") == 1, "the tunnel forwards")
    (pid,) = tunnel_pids(first)
    subprocess.run(["kill", "-9", str(pid)], check=True)
    until(lambda: first.log.count("tunnel forwards") == 2, "another one forwards")
    until(lambda: state(pid) == "gone", "no zombie is left")
    (pid,) = tunnel_pids(first)
    assert first.process is not None
    first.process.kill()
    first.process.wait()
    assert tunnel_pids(first) == [pid]
    first.start(*AUTO).wait_ready()
    until(lambda: first.log.count("tunnel forwards") == 3, "it is taken over")
    assert tunnel_pids(first) == [pid]
    # Another fabric has none.
    assert first.stop() == 0
    first.start(*NETWORK, "--transport", "vxlan").wait_ready()
    until(lambda: tunnel_pids(first) == [], "it is ended")
    until(lambda: "flannel0" not in first.namespace.run("ip -br link"), "and its device")
    assert tunnel_pids(second)


async def test_status_and_metrics_tell_of_ways_and_drops(nodes: Joined) -> None:
    first, second = nodes.agents.values()
    async with connected(first) as operator:
        status = (await operator.call(Status(id=0))).status
    assert status.problems == (), "a node that is ready has its tunnel, too"
    assert status.tunnel is not None
    assert (status.transport, status.profile, status.mtu) == ("auto", "custom", 1430)
    assert {one.reason for one in status.drops} >= {"vxlan_stranger", "spoofed_ip", "not_a_peer"}
    # A VXLAN packet from an address that is no node's, here the router's.
    before = strangers(first)
    nodes.hub.run("bash -c 'echo 12345678901234567890 > /dev/udp/172.18.1.11/8472'")
    until(lambda: strangers(first) > before, "it is dropped, and counted")
    assert second.http.not_ready is None


def strangers(agent: AgentProcess) -> float:
    name = 'podwire_dropped_packets_total{reason="vxlan_stranger"}'
    return agent.http.metric(name)
