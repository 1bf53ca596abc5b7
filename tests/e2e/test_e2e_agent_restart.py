"""An agent comes and goes, and the kernel does not notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from podwire.lab import Lab, LabPod

from ..agent.agent_http import AgentHttp
from .commands import Command
from .notifications import Notifications
from .steady_ping import SteadyPing
from .stream import Stream
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def pods(lab: Lab) -> Mapping[str, LabPod]:
    made = {name: lab.run(name, node=f"node{name[-1]}") for name in ("a1", "b1", "a2", "a3")}
    lab.wait_ready()
    return made


def agent(lab: Lab, node: str) -> AgentHttp:
    return AgentHttp(lab.info.node_dir(node) / "run/podwire/agent.sock")


def restart(lab: Lab, node: str, number: signal.Signals) -> None:
    """End a node's agent and wait until the supervisor's next one is ready."""
    before = lab.node(node).process("agent")
    assert before.pid is not None
    os.kill(before.pid, number)
    until(lambda: lab.node(node).process("agent").pid not in (None, before.pid), "a new agent runs")
    until(lambda: agent(lab, node).not_ready is None, "the new agent is ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_changes_nothing_and_loses_no_packet(
    lab: Lab, pods: Mapping[str, LabPod], number: signal.Signals
) -> None:
    with (
        Notifications(lab.node("node1").netns) as notifications,
        SteadyPing(pods["a2"], pods["a1"]) as across,
        SteadyPing(pods["b1"], pods["a1"]) as within,
        SteadyPing(lab.node("node3"), pods["b1"]) as from_node,
    ):
        restart(lab, "node1", number)
        assert notifications.changes() == []
        seen = len(across.answered)
        until(lambda: len(across.answered) >= seen + 10, "pings go on")
    assert agent(lab, "node1").metric("podwire_kernel_changes_total") == 0
    assert agent(lab, "node1").plan()["changes"] == []
    assert (across.lost, within.lost, from_node.lost) == ([], [], [])
    last = lab.info.log("node1/agent").read_text().rpartition(" lease node=node1")[2]
    assert "reconciled reason=start changes=0" in last


def test_all_agents_at_once_restart_and_wire_new_pods(lab: Lab, pods: Mapping[str, LabPod]) -> None:
    with SteadyPing(pods["a2"], pods["a1"]) as across:
        for node in lab.nodes:
            pid = node.process("agent").pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        new = lab.run("new", node="node3")
        assert new.ping(pods["a1"]).lost == 0
    assert across.lost == []
    for node in lab.nodes:
        until(lambda name=node.name: agent(lab, name).not_ready is None, "ready")  # type: ignore[misc]
        assert agent(lab, node.name).plan()["changes"] == []


def test_pods_talk_while_there_is_no_agent_and_no_api(lab: Lab, pods: Mapping[str, LabPod]) -> None:
    """Stopped ones are as good as none, and no supervisor starts others."""
    processes = [lab.process("api"), *(node.process("agent") for node in lab.nodes)]
    pids = [process.pid for process in processes if process.pid is not None]
    source, target = pods["a3"], pods["a1"].ip
    argv = source.command(["ping", "-n", "-c", "10", "-i", "0.01", "-W", "1", target])
    assert len(pids) == 4
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        subprocess.run(argv, check=True, capture_output=True)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def tunnel(lab: Lab, node: str) -> Any:
    """The process of a node's UDP tunnel, as its status has it."""
    told = json.loads(Command(lab.name).here("status", "--node", node, "-o", "json").stdout)
    return told["nodes"][0]["tunnel"]


@pytest.mark.parametrize("profile", ["flannel-udp", "calico", "weave"])
def test_other_fabrics_stay_too_and_a_tunnel_that_dies_is_started_anew(profile: str) -> None:
    with Lab(nodes=2, profile=profile) as lab:
        here, there = lab.run("here", node="node1"), lab.run("there", node="node2")
        lab.wait_ready()
        before = tunnel(lab, "node1")
        with (
            Notifications(lab.node("node1").netns) as notifications,
            SteadyPing(there, here) as ping,
        ):
            restart(lab, "node1", signal.SIGKILL)
            assert notifications.changes() == []
            seen = len(ping.answered)
            until(lambda: len(ping.answered) >= seen + 10, "pings go on")
        assert ping.lost == []
        assert agent(lab, "node1").metric("podwire_kernel_changes_total") == 0
        assert agent(lab, "node1").plan()["changes"] == []
        after = tunnel(lab, "node1")
        if profile != "flannel-udp":
            assert (before, after) == (None, None)
            return
        assert after["pid"] == before["pid"]
        with Stream(here, there) as stream:
            lab.node("node1").exec(["kill", "-9", str(after["pid"])], check=True)
            until(lambda: (tunnel(lab, "node1") or after)["pid"] != after["pid"], "another one")
            flowed = stream.intervals
            until(lambda: stream.intervals > flowed + 2, "the same flow goes on")
        assert tunnel(lab, "node1")["restarts"] == 1
        until(lambda: Command(lab.name).here("status").exit_code == 0, "all are well")
