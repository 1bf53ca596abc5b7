"""Each trouble that stops a packet is found by a trace: the place, the cause and a remedy.

`PODWIRE_TRACE_ROUNDS=20 script/test -k trace_drops` breaks and traces each 20 times.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import pytest

from podwire.lab import Lab, LabPod

from .breaks import BREAKS, Break
from .commands import Command
from .test_e2e_repair import base, port_of
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("PODWIRE_TRACE_ROUNDS", "1"))


@dataclass(frozen=True)
class Site:
    """A lab with pods `a` and `b` on two nodes, and words to speak of them."""

    lab: Lab
    podwire: Command
    pods: Mapping[str, LabPod]
    words: Mapping[str, str]

    def run(self, where: str, line: str) -> None:
        line = self.say(line)
        if where in self.pods:
            done = self.pods[where].exec(["sh", "-ec", line])
        elif where == "underlay":
            inside = ["ip", "netns", "exec", self.lab.info.underlay, "sh", "-ec", line]
            done = subprocess.run(inside, capture_output=True, text=True, check=False)
        else:
            done = self.lab.node(where).exec(["sh", "-ec", line])
        assert done.returncode == 0, f"{where}: {line}\n{done.stdout}{done.stderr}"

    def say(self, text: str) -> str:
        """Put the words into a text, whose other braces are left alone."""
        for word, value in self.words.items():
            text = text.replace("{" + word + "}", value)
        return text

    def hold(self, on: bool) -> None:
        for node in ("node1", "node2"):
            done = self.podwire.here("agent", "hold" if on else "resume", "--node", node)
            assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def site(lab: Lab) -> Site:
    pods = {"a": lab.run("a", node="node1"), "b": lab.run("b", node="node2")}
    lab.wait_ready()
    lab.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node9"}})
    unleased = until(lambda: lab.node_object("node9")["spec"].get("podCIDR"), "a CIDR for node9")
    near, far = (lab.node_object(name)["spec"]["podCIDR"] for name in ("node1", "node2"))
    annotations = lab.node_object("node2")["metadata"]["annotations"]
    words = {
        "near": near,
        "far": far,
        "gateway": str(ip_network(near)[1]),
        "base": base(far),
        "mac": json.loads(annotations["flannel.alpha.coreos.com/backend-data"])["VtepMAC"],
        "port": port_of(lab.node("node2"), pods["b"]),
        "vtep3": lab.node("node3").ip,
        "unused": str(ip_network(far)[99]),
        "unused_near": str(ip_network(near)[99]),
        "unleased": str(ip_network(unleased)[7]),
    }
    return Site(lab, Command(lab.name), pods, words)


@pytest.mark.parametrize("trouble", BREAKS, ids=str)
def test_a_drop_is_explained(site: Site, trouble: Break) -> None:
    for _ in range(ROUNDS):
        assert site.pods["a"].ping(site.pods["b"], count=1).lost == 0
        site.hold(on=True)
        try:
            for where, line in trouble.lines.items():
                site.run(where, line)
            trace = traced(site, trouble)
        finally:
            for where, line in trouble.undo.items():
                site.run(where, line)
            site.hold(on=False)
        judge(site, trouble, trace)
        until(lambda: site.pods["a"].ping(site.pods["b"], count=1).lost == 0, "all is well again")


def traced(site: Site, trouble: Break) -> dict[str, Any]:
    target = site.say(trouble.target)
    done = site.podwire.run("trace", "a", target, *trouble.options, "-o", "json")
    assert done.stdout, done.stderr
    trace: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 1, trace["verdict"]
    return trace


def judge(site: Site, trouble: Break, trace: dict[str, Any]) -> None:
    (only,) = trace["rounds"]
    found = only["finding"]
    told = f"{trace['verdict']}\n{json.dumps(found, indent=2)}\n{trace['notes']}"
    assert found["cause"] in trouble.causes, told
    assert only["outcome"] == trouble.outcome, told
    for word in trouble.where:
        assert site.say(word) in found["where"], told
    everything = json.dumps(found, ensure_ascii=False)
    for word in trouble.says:
        assert site.say(word) in everything, told
    if trouble.reason is not None:
        assert found["kernel_reason"] == trouble.reason, told
    assert found["remedy"], told
    assert "\n" not in trace["verdict"]
