"""Agents in pods, asked through the Kubernetes API: as on a cluster, where nobody is root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest
import yaml

import podwire
from podwire.cluster.kube import NAMESPACES, PODS
from podwire.lab import Lab, LabPod
from podwire.trace.model import Outcome

from .tracing import PODWIRE, Tracer, left, nothing_left
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

SPACE = "kube-system"


@pytest.fixture(scope="module")
def sockets(lab: Lab) -> Iterator[Path]:
    """The agents' sockets, where pods can see them: a lab has no volumes, and hides /run."""
    directory = Path(tempfile.mkdtemp(prefix="podwire-test-", dir="/mnt"))
    try:
        directory.chmod(0o755)
        for node in lab.nodes:
            os.link(node.directory / "run/podwire/operator.sock", directory / f"{node.name}.sock")
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def image(sockets: Path) -> Path:
    """A directory with `podwire`, as an agent's image has it: pods see no checkout below /tmp."""
    library = sockets / "lib"
    for package in (podwire, click, msgspec, yaml):
        source = Path(str(package.__file__)).parent
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, library / source.name, ignore=ignored)
    command = sockets / "podwire"
    python = Path(sys.executable).resolve()
    call = "from podwire.cli.main import main; main()"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={library} exec {python} -c "{call}" "$@"\n')
    command.chmod(0o755)
    return sockets


@pytest.fixture(scope="module")
def agent_pods(lab: Lab, sockets: Path, image: Path) -> dict[str, LabPod]:
    """What a DaemonSet would make, by node; nothing on node3."""
    spaces = lab.call(lambda client: client.list(NAMESPACES)).items
    if SPACE not in {one["metadata"]["name"] for one in spaces}:
        lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    found = {}
    for node in ("node1", "node2"):
        container = {
            "name": "agent",
            "image": "none",
            "command": ["sleep", "infinity"],
            "env": [
                {"name": "PATH", "value": f"{image}:/usr/bin:/bin"},
                {"name": "PODWIRE_OPERATOR_SOCKET", "value": str(sockets / f"{node}.sock")},
            ],
        }
        metadata = {"name": f"podwire-{node}", "namespace": SPACE, "labels": {"app": "podwire"}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"nodeName": node, "containers": [container]},
        }
        lab.apply(pod)
        found[node] = lab.pod(f"podwire-{node}", SPACE)
    for one in found.values():
        one.wait_ready()
    return found


@pytest.fixture(scope="module")
def pods(lab: Lab) -> dict[str, LabPod]:
    found = {f"pod{n}": lab.run(f"pod{n}", node=f"node{n}") for n in (1, 2, 3)}
    for pod in found.values():
        pod.wait_ready()
    return found


@pytest.fixture(scope="module")
def tracer(lab: Lab, agent_pods: dict[str, LabPod], pods: dict[str, LabPod]) -> Tracer:
    return Tracer(lab, kubeconfig=lab.kubeconfig)


def test_the_same_trace_through_exec(lab: Lab, tracer: Tracer, pods: dict[str, LabPod]) -> None:
    trace = tracer.trace("pod1", "pod2")
    (one,) = trace.rounds
    assert one.reply is not None
    assert (len(one.request.hops), len(one.reply.hops)) == (10, 10)
    places = [lab.node("node1"), lab.node("node2"), pods["pod1"], pods["pod2"]]
    nothing_left(*places)


def test_a_killed_command_leaves_nothing(lab: Lab, tracer: Tracer, pods: dict[str, LabPod]) -> None:
    base = lab.node_object("node2")["spec"]["podCIDR"].rpartition(".")[0]
    places = [lab.node("node1"), lab.node("node2"), pods["pod1"]]
    with tracer.start("pod1", f"{base}.200", "--timeout", "60s") as process:
        try:
            until(lambda: len(left(*places)) >= 4, "it watches")
            process.kill()
            process.wait(60)
            nothing_left(*places)
        finally:
            process.kill()


def test_a_node_without_an_agent_pod_makes_the_trace_poorer(
    tracer: Tracer, pods: dict[str, LabPod]
) -> None:
    trace = tracer.trace("pod1", "pod3")
    (one,) = trace.rounds
    assert one.outcome is Outcome.REPLIED
    assert {place.name for place in trace.places} == {"node1", "pod:default/pod1"}
    assert any("node3" in note and "no agent" in note for note in trace.notes)


def test_a_source_without_an_agent_pod_is_an_error(tracer: Tracer, pods: dict[str, LabPod]) -> None:
    done = tracer.run("pod3", "pod1")
    assert done.code == 1
    assert "there is no agent on node node3: no pod with label app=podwire runs there" in done.err


def test_an_agent_pod_whose_agent_is_away_says_so(
    lab: Lab, tracer: Tracer, sockets: Path, pods: dict[str, LabPod]
) -> None:
    away = sockets / "node1.sock"
    away.rename(sockets / "away")
    try:
        done = tracer.run("pod1", "pod2")
    finally:
        (sockets / "away").rename(away)
    assert done.code == 1
    assert "the agent of node1 (pod kube-system/podwire-node1)" in done.err
    assert "no agent listens" in done.err


def test_holding_through_exec(lab: Lab, tracer: Tracer) -> None:
    target = ["--kubeconfig", str(lab.kubeconfig), "--node", "node2"]
    for verb, held in (("hold", True), ("resume", False)):
        subprocess.run([str(PODWIRE), "agent", verb, *target], check=True, capture_output=True)
        shown = subprocess.run(
            [str(PODWIRE), "--lab", lab.name, "plan", "--node", "node2", "--diff"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert ("is held" in shown.stdout) is held


def test_agents_are_looked_for_elsewhere_only_if_a_daemon_set_made_them(
    lab: Lab, tracer: Tracer
) -> None:
    """Whoever may create pods somewhere must not be taken for an agent."""
    container = {"name": "agent", "image": "none", "command": ["sleep", "infinity"]}
    metadata = {"name": "impostor", "namespace": "default", "labels": {"app": "podwire"}}
    lab.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"nodeName": "node3", "containers": [container]},
        }
    )
    lab.pod("impostor").wait_ready()
    try:
        done = tracer.run("node3", "pod1")
    finally:
        lab.call(lambda client: client.delete(PODS, "impostor", "default", 0))
    assert "there is no agent on node node3" in done.err
