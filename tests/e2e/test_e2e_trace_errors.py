"""What `podwire trace` says where it can't trace, or only in part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from podwire.lab import Lab, LabPod
from podwire.trace.model import Outcome

from .tracing import Tracer
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def pods(lab: Lab) -> dict[str, LabPod]:
    found = {
        "pod1": lab.run("pod1", node="node1"),
        "pod2": lab.run("pod2", node="node2"),
        "host": lab.run("host", node="node2", hostNetwork=True),
    }
    for pod in found.values():
        pod.wait_ready()
    return found


@pytest.fixture(scope="module")
def tracer(lab: Lab, pods: dict[str, LabPod]) -> Tracer:
    return Tracer(lab)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["pod1", "pod3"], 1, "there is no pod pod3 in namespace default, and no such node"),
        (["pod1", "pod3"], 1, "did you mean pod"),
        (["pod/node1", "pod2"], 1, "SRC: there is no pod node1 in namespace default"),
        (["pod1", "other/pod2"], 1, "DST: there is no pod pod2 in namespace other"),
        (["pod1", "pod1"], 1, "DST: pod default/pod1 is the source itself"),
        (["node1", "node1"], 1, "DST: node node1 is the source itself"),
        (["10.0.0.1", "pod1"], 1, "SRC: a source is a pod or a node"),
        (["pod1", "--", "-pod2"], 1, "DST: '-pod2' names no pod, node or address"),
        (["pod1", "-pod2"], 2, "No such option"),
        (["pod1"], 2, "Missing argument 'DST'"),
        (["pod1", "pod2", "--family", "6"], 1, "pod default/pod1 has no IPv6 address"),
        (["pod1", "pod2", "--proto", "udp"], 2, "--proto udp needs --port"),
        (["pod1", "pod2", "--port", "80"], 2, "ICMP has no ports"),
        (["pod1", "pod2", "--proto", "tcp", "--port", "0"], 2, "'--port'"),
        (["pod1", "pod2", "--proto", "tcp", "--port", "65536"], 2, "'--port'"),
        (["pod1", "pod2", "--proto", "tcp", "--port", "80", "--size", "99"], 2, "--size"),
        (["pod1", "pod2", "--size", "65536"], 2, "'--size'"),
        (["pod1", "pod2", "--count", "0"], 2, "'--count'"),
        (["pod1", "pod2", "--timeout", "0"], 2, "--timeout"),
        (["pod1", "pod2", "--timeout", "soon"], 2, "no duration"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_traced_is_said_clearly(
    tracer: Tracer, arguments: list[str], code: int, text: str
) -> None:
    done = tracer.run(*arguments)
    assert done.code == code
    assert text in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_pod_that_does_not_run_yet(lab: Lab, tracer: Tracer) -> None:
    pod = lab.run("later", nodeSelector={"no": "such"})
    pod.wait(lambda one: bool((one.get("status") or {}).get("conditions")), "judged")
    done = tracer.run("pod1", "later")
    assert done.code == 1
    assert "DST: pod default/later is Pending: no node runs it" in done.err
    assert "podwire describe pod later" in done.err


def test_a_pod_that_has_ended(lab: Lab, tracer: Tracer) -> None:
    pod = lab.run("ended", ["true"], node="node1", restartPolicy="Never")
    pod.wait(lambda one: one["status"].get("phase") == "Succeeded", "ended")
    done = tracer.run("ended", "pod1")
    assert done.code == 1
    assert "SRC: pod default/ended is Completed on node1: it has ended" in done.err


def test_a_pod_on_its_nodes_network_is_traced_as_the_node(lab: Lab, tracer: Tracer) -> None:
    trace = tracer.trace("pod1", "host")
    assert (trace.target.kind, trace.target.name) == ("node", "node2")
    assert "pod default/host uses the network of its node node2" in trace.notes
    assert trace.rounds[0].outcome is Outcome.REPLIED
    back = tracer.trace("host", "pod1")
    assert back.source.name == "node2"
    assert back.ok


@contextmanager
def stopped(lab: Lab, node: str) -> Iterator[None]:
    """The node's agent does nothing, as if it hung."""
    pid = lab.process(f"{node}/agent").pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_source_whose_agent_hangs(lab: Lab, tracer: Tracer) -> None:
    with stopped(lab, "node1"):
        done = tracer.run("pod1", "pod2")
    assert done.code == 1
    assert "the agent of node1 does not answer" in done.err


def test_a_target_whose_agent_hangs_is_traced_as_far_as_it_is_seen(
    lab: Lab, tracer: Tracer
) -> None:
    with stopped(lab, "node2"):
        trace = tracer.trace("pod1", "pod2")
    assert trace.rounds[0].outcome is Outcome.REPLIED
    assert {place.node for place in trace.places} == {"node1"}
    assert any("the agent of node2 does not answer" in note for note in trace.notes)
    until(lambda: len(tracer.trace("pod1", "pod2").places) == 4, "it answers again")


def test_who_is_not_root_is_told(lab: Lab) -> None:
    """Everything is imported first: this user can't even read where we are installed."""
    script = f"""
import importlib, os, pkgutil, sys
import podwire
for one in pkgutil.walk_packages(podwire.__path__, "podwire."):
    if not one.name.endswith("__main__"):
        importlib.import_module(one.name)
from podwire.cli.main import run
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(run(["--lab", {lab.name!r}, "trace", "pod1", "pod2"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"error: lab {lab.name} belongs to root\nhint: use sudo\n"


def test_a_lab_that_is_not_there(tracer: Tracer) -> None:
    done = subprocess.run(
        [*tracer.command("pod1", "pod2"), "--lab", "nolab"], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b'no lab is named "nolab"' in done.stderr
