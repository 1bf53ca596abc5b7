"""The tour that the README promises, through the installed command, from nothing to nothing."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from podwire.lab import Lab, LabNode
from podwire.lab.registry import LABS, NETNS_DIR

from .commands import Command
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

TWO_PODS = Path(__file__).parents[2] / "examples" / "two-pods.yaml"


@pytest.fixture(scope="module")
def podwire() -> Iterator[Command]:
    """A lab of three nodes that the command has made and, in the end, removes."""
    command = Command(f"e2e-{secrets.token_hex(4)}")
    try:
        command.ok("lab", "up", "--nodes", "3", "--name", command.lab)
        yield command
    finally:
        command.ok("lab", "down", command.lab)
    assert not (LABS / command.lab).exists()
    assert [path.name for path in NETNS_DIR.glob(f"{command.lab}-*")] == []
    assert command.lab not in Path("/proc/self/mounts").read_text()
    assert processes_that_know(command.lab) == []


def processes_that_know(lab: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if lab in line:
            found.append(line)
    return found


@pytest.fixture(scope="module")
def two_pods(podwire: Command) -> tuple[str, str]:
    """The example, applied; the IPs of pod1 and pod2."""
    assert podwire.ok("apply", "-f", str(TWO_PODS)) == "pod/pod1 created\npod/pod2 created\n"
    podwire.ok("wait", "--for=condition=Ready", "pod/pod1", "pod/pod2", "--timeout=60s")
    return podwire.field("pod1", ".status.podIP"), podwire.field("pod2", ".status.podIP")


def test_the_example_pings_across_the_overlay(podwire: Command, two_pods: tuple[str, str]) -> None:
    output = podwire.ok("exec", "pod1", "--", "ping", "-c", "3", "-l", "3", two_pods[1])
    assert "3 packets transmitted, 3 received, 0% packet loss" in output
    assert output.count("ttl=62") == 3


def test_applied_again_it_is_unchanged(podwire: Command, two_pods: tuple[str, str]) -> None:
    output = podwire.ok("apply", "-f", str(TWO_PODS))
    assert output == "pod/pod1 unchanged\npod/pod2 unchanged\n"
    assert podwire.ok("apply", "-f", "-", stdin=TWO_PODS.read_text()) == output


def test_get_shows_where_pods_are(podwire: Command, two_pods: tuple[str, str]) -> None:
    header, *rows = podwire.ok("get", "pods", "-o", "wide").splitlines()
    assert header.split()[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    fields = [row.split() for row in rows]
    assert [(*row[:4], row[5], row[6]) for row in fields] == [
        ("pod1", "1/1", "Running", "0", two_pods[0], "node1"),
        ("pod2", "1/1", "Running", "0", two_pods[1], "node2"),
    ]
    assert podwire.ok("get", "pods", "-o", "name") == "pod/pod1\npod/pod2\n"
    nodes = podwire.ok("get", "nodes").splitlines()[1:]
    assert [row.split()[:2] for row in nodes] == [[f"node{n}", "Ready"] for n in (1, 2, 3)]


def test_the_status_of_a_pod_is_whole(podwire: Command, two_pods: tuple[str, str]) -> None:
    status = json.loads(podwire.ok("get", "pod", "pod2", "-o", "json"))["status"]
    assert status["phase"] == "Running"
    assert status["podIP"] == two_pods[1]
    assert status["podIPs"] == [{"ip": two_pods[1]}]
    assert status["hostIP"] == "172.18.0.12"
    assert {one["type"] for one in status["conditions"] if one["status"] == "True"} >= {
        "PodScheduled",
        "Initialized",
        "ContainersReady",
        "Ready",
    }
    (container,) = status["containerStatuses"]
    assert (container["name"], container["ready"], container["restartCount"]) == ("main", True, 0)
    assert "startedAt" in container["state"]["running"]


def test_describe_tells_the_same_to_people(podwire: Command, two_pods: tuple[str, str]) -> None:
    described = podwire.ok("describe", "pod", "pod2")
    assert re.search(rf"^IP: +{re.escape(two_pods[1])}$", described, re.MULTILINE)
    assert re.search(r"^Node: +node2/172\.18\.0\.12$", described, re.MULTILINE)
    assert "Events:" in described


def test_exec_hands_on_output_input_and_exit_code(
    podwire: Command, two_pods: tuple[str, str]
) -> None:
    done = podwire.run("exec", "pod1", "--", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")
    assert podwire.ok("exec", "-i", "pod1", "--", "cat", stdin="through\n") == "through\n"
    assert podwire.ok("exec", "pod1", "--", "hostname") == "pod1\n"
    address = podwire.ok("exec", "pod1", "--", "ip", "-4", "-o", "address", "show", "eth0")
    assert f" {two_pods[0]}/24 " in address


def test_a_container_that_ends_is_restarted_on_the_same_ip_and_logs(
    podwire: Command,
) -> None:
    command = ["sh", "-c", "hostname -i; sleep infinity"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "again"},
        "spec": {
            "restartPolicy": "OnFailure",
            "containers": [{"name": "main", "image": "busybox", "command": command}],
        },
    }
    podwire.ok("apply", "-f", "-", stdin=json.dumps(pod))
    podwire.ok("wait", "--for=condition=Ready", "pod/again", "--timeout=60s")
    ip = podwire.field("again", ".status.podIP")
    podwire.run("exec", "again", "--", "pkill", "-9", "-x", "sleep")
    count = ".status.containerStatuses[0].restartCount"
    until(lambda: podwire.field("again", count) == "1", "it is restarted")
    podwire.ok("wait", "--for=condition=Ready", "pod/again", "--timeout=60s")
    assert podwire.field("again", ".status.podIP") == ip
    until(lambda: podwire.ok("logs", "again") == f"{ip}\n", "the second one has logged")
    podwire.ok("delete", "pod", "again", "--grace-period=0")


def test_the_plan_says_what_is_and_why(podwire: Command, two_pods: tuple[str, str]) -> None:
    text = podwire.ok("plan", "--node", "node1")
    assert "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink" in text
    assert "Node/node2" in text
    assert f"Pod/default/pod1 has {two_pods[0]}" in text
    assert "the kernel is as desired" in text
    document = json.loads(podwire.ok("plan", "--node", "node1", "-o", "json"))
    assert document["changes"] == []
    assert {entry["kind"] for entry in document["desired"]} == {
        "link",
        "address",
        "neigh",
        "fdb",
        "route",
        "sysctl",
        "nft",
        "tc",
    }


def test_the_plan_tells_a_difference_by_its_exit_code_and_as_a_line_to_type(
    podwire: Command, two_pods: tuple[str, str]
) -> None:
    """Somebody else's route in the place of ours is not touched: the difference stays."""
    node = Lab.existing(podwire.lab).node("node3")
    foreign = ["route", "replace", "10.244.1.0/24", "via", "172.18.0.1", "proto", "static"]
    node.exec(["ip", *foreign], check=True)
    line = until(lambda: difference(podwire, node), "the plan tells the difference")
    assert line == ("ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink proto 112")
    refused = node.exec(line.split())
    assert "File exists" in refused.stderr
    node.exec(["ip", "route", "del", "10.244.1.0/24"], check=True)
    until(lambda: podwire.run("plan", "--node", "node3").returncode == 0, "it is as desired")
    assert podwire.ok("plan", "--node", "node3", "--diff").count("\n") == 1


def difference(podwire: Command, node: LabNode) -> str:
    """The last line of a plan that exits with 1."""
    done = podwire.run("plan", "--node", node.name, "--diff")
    assert done.returncode in (0, 1), done.stderr
    assert done.returncode == 0 or "Node/node1 leases 10.244.1.0/24" in done.stdout
    return done.stdout.splitlines()[-1] if done.returncode == 1 else ""


def test_a_node_that_is_none_is_named(podwire: Command) -> None:
    done = podwire.run("plan", "--node", "node9")
    assert done.returncode == 1
    assert "node9" in done.stderr
    assert "hint:" in done.stderr


def test_deleted_pods_are_gone_with_their_interfaces(
    podwire: Command, two_pods: tuple[str, str]
) -> None:
    node = Lab.existing(podwire.lab).node("node1")
    assert "podwire pod default/pod1" in node.exec(["ip", "link"]).stdout
    output = podwire.ok("delete", "-f", str(TWO_PODS), "--grace-period=0")
    assert [line.split()[:2] for line in output.splitlines()] == [
        ["pod", '"pod1"'],
        ["pod", '"pod2"'],
    ]
    gone = podwire.run("get", "pod", "pod1")
    assert (gone.returncode, "not found" in gone.stderr) == (1, True)
    until(lambda: "default/pod1" not in node.exec(["ip", "link"]).stdout, "its interface is gone")
    assert podwire.ok("plan", "--node", "node1").count("Pod/") == 0
