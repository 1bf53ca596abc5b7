"""`podwire explain` in a lab: whose an address is, which node is asked, and what is not there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest
from click.testing import CliRunner, Result

from podwire.cli.main import podwire
from podwire.errors import AgentAwayError, InputError
from podwire.lab import Lab, LabPod

from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

Explain = Callable[..., Result]


@pytest.fixture(scope="module")
def pods(lab: Lab) -> dict[str, LabPod]:
    found = {"a": lab.run("a", node="node1"), "b": lab.run("b", node="node2")}
    lab.wait_ready()
    return found


@pytest.fixture(scope="module")
def explain(lab: Lab) -> Explain:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(podwire, ["explain", "--lab", lab.name, *arguments])

    return run


def document(result: Result) -> dict[str, Any]:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_an_address_is_a_pods_wherever_it_runs(explain: Explain, pods: dict[str, LabPod]) -> None:
    for name, node in (("a", "node1"), ("b", "node2")):
        for asked in ([], ["--node", "node1"], ["--node", "node2"], ["--node", "node3"]):
            told = document(explain("ip", pods[name].ip, *asked, "-o", "json"))
            assert told["text"].startswith(f"pod default/{name} on {node} (Running, "), told
            assert told["pods"][0]["name"] == f"default/{name}"
            assert {"label": "node", "text": node} in told["details"]


def test_an_address_that_no_pod_has_is_said_to_be_that(
    explain: Explain, lab: Lab, pods: dict[str, LabPod]
) -> None:
    for node in ("node1", "node2"):
        subnet = lab.node_object(node)["spec"]["podCIDR"]
        told = document(explain("ip", str(ip_network(subnet)[99]), "-o", "json"))
        assert told["text"] == f"an address of {node}'s subnet {subnet}: no pod has it"
        assert told["pods"] == []


def test_text_is_for_reading(explain: Explain, lab: Lab) -> None:
    subnet = lab.node_object("node2")["spec"]["podCIDR"]
    result = explain("route", subnet, "--node", "node1")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == f"route {subnet} on node1"
    assert lines[1] == "  the way from node1 to node2's pods, through the tunnel flannel.1"
    assert lines[2] == f"  because   Node/node2 leases {subnet}"
    assert any(line.startswith(f"  entry     {subnet} via ") for line in lines)


def test_what_is_not_there_ends_with_1(explain: Explain) -> None:
    result = explain("link", "wlan0", "--node", "node1")
    assert result.exit_code == 1
    assert result.output.startswith("link wlan0 on node1: not found\n")


def test_a_thing_without_its_kind_is_what_it_looks_like(
    explain: Explain, lab: Lab, pods: dict[str, LabPod]
) -> None:
    node = lab.node("node1")
    tunnel = node.exec(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout.split()[0]
    underlay = node.exec(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
    for thing, kind in (
        (pods["b"].ip, "ip"),
        (lab.node_object("node2")["spec"]["podCIDR"], "route"),
        (tunnel, "fdb"),
        (underlay, "link"),
        ("flannel.1", "link"),
    ):
        told = document(explain(thing, "--node", "node1", "-o", "json"))
        assert (told["kind"], told["found"]) == (kind, True), told
    result = explain("wlan0", "--node", "node1")
    assert result.exit_code == 1
    assert "name its kind first: route, neigh, fdb, link, rule or ip" in result.output


def test_most_kinds_want_a_node(explain: Explain) -> None:
    error = explain("route", "default").exception
    assert isinstance(error, InputError)
    assert "which node's route?" in error.message
    assert error.remedy == "name one of node1, node2, node3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ip", "pod1"), "'pod1' is not an IP address"),
        (("ip", "--", "-x"), "'-x' is not an IP address"),
        (("route", "10.0.0.0/40", "--node", "node1"), "a prefix such as 10.244.2.0/24"),
    ],
)
def test_bad_input_says_what_was_expected(
    explain: Explain, arguments: tuple[str, ...], message: str
) -> None:
    error = explain(*arguments).exception
    assert error is not None
    assert message in str(error)


def test_an_address_is_explained_by_another_node_when_the_first_hangs(
    explain: Explain, lab: Lab, pods: dict[str, LabPod]
) -> None:
    pid = lab.node("node1").process("agent").pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        told = document(explain("ip", pods["b"].ip, "-o", "json"))
        assert told["node"] == "node2"
        assert isinstance(explain("link", "lo", "--node", "node1").exception, AgentAwayError)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: explain("link", "lo", "--node", "node1").exit_code == 0, "node1's agent answers")
