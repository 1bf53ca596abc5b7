"""A lab of both families behind a router, and what goes wrong in it on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from podwire.errors import InputError, LabError
from podwire.lab import Lab, LabPod, lifecycle
from podwire.lab.faults import Faults
from podwire.lab.places import is_ready
from podwire.lab.shape import shape

from ..agent.agent_http import AgentHttp
from .commands import Command
from .steady_ping import SteadyPing
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Seconds; nodes renew their Leases four times as often.
GRACE_S = 4.0


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(3, family="dual", underlay="routed", node_grace_s=GRACE_S)


@pytest.fixture(autouse=True)
def healed(lab: Lab, pods: list[LabPod]) -> Iterator[None]:
    """After each test: nothing is wrong, and all pods reach each other."""
    yield
    lab.heal()
    lab.wait_ready()
    for source, target in zip(pods, [*pods[1:], pods[0]], strict=True):
        until(lambda s=source, t=target: reach(s, t), f"{source} reaches {target}")  # type: ignore[misc]


def reach(source: LabPod, target: LabPod) -> bool:
    """Whether a pod answers another at all of its addresses."""
    return all(source.ping(ip, count=1).received == 1 for ip in target.ips)


def no_answer(*ways: tuple[LabPod, Sequence[str]]) -> bool:
    """Whether none of these pods gets an answer of any of these addresses within a second."""
    pings = [
        source.popen(["ping", "-n", "-c", "1", "-W", "1", ip]) for source, ips in ways for ip in ips
    ]
    outputs = [ping.communicate(timeout=30)[0] for ping in pings]
    return all(" 0 received" in output for output in outputs)


def restarts(pod: dict[str, Any]) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def test_pods_and_nodes_have_both_families(lab: Lab, pods: list[LabPod], command: Command) -> None:
    assert [node.ips for node in lab.nodes] == [
        ["172.18.1.11", "fd00:172:18:1::11"],
        ["172.18.2.12", "fd00:172:18:2::12"],
        ["172.18.1.13", "fd00:172:18:1::13"],
    ]
    status = pods[1].object["status"]
    assert [one["ip"] for one in status["hostIPs"]] == lab.node("node2").ips
    assert [one["ip"] for one in status["podIPs"]] == pods[1].ips
    first, second = pods[1].ips
    assert first.startswith("10.244.2.")
    assert second.startswith("fd00:10:244:2::")
    hosts = pods[1].exec(["cat", "/etc/hosts"]).stdout
    assert f"{first}\tpod2\n{second}\tpod2\n" in hosts
    assert lab.node_object("node2")["spec"]["podCIDRs"] == ["10.244.2.0/24", "fd00:10:244:2::/64"]
    assert f"{first},{second}" in command.ok("get", "pods", "-o", "wide")
    assert "172.18.2.12,fd00:172:18:2::12" in command.ok("get", "nodes", "-o", "wide")
    assert f"{first}, {second}" in command.ok("describe", "pod", "pod2")
    status = command.ok("lab", "status")
    assert "172.18.1.0/24, fd00:172:18:1::/64, 172.18.2.0/24, fd00:172:18:2::/64, with a" in status
    told = json.loads(command.ok("lab", "status", "-o", "json"))
    assert told["nodes"][1] == {"name": "node2", "ips": lab.node("node2").ips}
    assert (told["well"], told["network"]["profile"]) == (True, "flannel-vxlan")


def test_nodes_reach_each_other_across_the_router(lab: Lab) -> None:
    one = lab.node("node1")
    for node, ttl in ((lab.node("node3"), 64), (lab.node("node2"), 63)):
        for ip in node.ips:
            answer = one.ping(ip)
            assert (answer.lost, set(answer.ttls)) == (0, {ttl})


@pytest.mark.parametrize("other", ["node2", "node3"])
def test_a_partition_is_between_two_nodes_only(
    lab: Lab, pods: list[LabPod], command: Command, other: str
) -> None:
    """node3 is on node1's own link, node2 behind the router."""
    cut, rest = (pods[1], pods[2]) if other == "node2" else (pods[2], pods[1])
    with SteadyPing(pods[0], rest) as unaffected:
        said = command.ok("lab", "partition", "node1", other)
        assert said == f"partition: node1 from {other}\n"
        assert no_answer((pods[0], [*cut.ips, *lab.node(other).ips]), (cut, pods[0].ips))
        assert reach(cut, rest)
        status = command.run("lab", "status")
        assert (status.returncode, f"partition: node1 from {other}" in status.stdout) == (1, True)
        assert "Nothing is dead" in command.ok("lab", "heal", "node1")
        until(lambda: reach(pods[0], cut), "healed")
    assert unaffected.lost == []


def test_a_node_alone_reaches_the_router_and_no_node(lab: Lab, pods: list[LabPod]) -> None:
    lab.partition("node3")
    alone, others = pods[2], pods[:2]
    assert no_answer(
        *((alone, other.ips) for other in others), *((other, alone.ips) for other in others)
    )
    assert reach(pods[0], pods[1])
    assert lab.node("node3").ping("172.18.1.1").lost == 0


def test_one_port_may_be_cut_alone(lab: Lab, pods: list[LabPod], command: Command) -> None:
    command.ok("lab", "partition", "node1", "node2", "--udp", "8472")
    assert no_answer((pods[0], pods[1].ips))
    assert lab.node("node1").ping(lab.node("node2")).lost == 0
    assert reach(pods[0], pods[2])


def test_a_node_without_the_api_goes_on_and_catches_up(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    agent = AgentHttp(lab.node("node2").directory / "run/podwire/agent.sock")
    command.ok("lab", "partition", "--api", "node2")
    assert agent.metric("podwire_api_connected") == 0
    until(lambda: not is_ready(lab.node_object("node2")), "the node is not ready")
    assert reach(pods[0], pods[1])
    late = lab.run("late", node="node2")
    assert late.object["status"]["phase"] == "Pending"
    lab.heal("node2")
    assert agent.metric("podwire_api_connected") == 1
    assert is_ready(lab.node_object("node2"))
    late.wait_ready()
    late.delete(grace_s=0)


def test_a_dead_node_is_missed_and_boots_again(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    victim, marker = lab.node("node2"), "/var/lib/marker"
    victim.exec(["touch", marker], check=True)
    ips, before = pods[1].ips, restarts(pods[1].object)
    with SteadyPing(pods[0], pods[2]) as unaffected:
        assert command.ok("lab", "kill", "node2") == "node2 is dead\n"
        assert no_answer((pods[0], [*ips, *victim.ips]))
        with pytest.raises(LabError, match="does not run"):
            _ = victim.pid
        until(lambda: not is_ready(lab.node_object("node2")), "the node is not ready")
        assert "NotReady" in command.ok("get", "node", "node2")
        assert "node2 is dead" in command.run("lab", "status").stdout
        lifecycle.up(lab.name)
        assert "node2 is dead" in command.run("lab", "status").stdout
        command.ok("lab", "heal", "node2")
    assert unaffected.lost == []
    pods[1].wait(lambda pod: is_ready(pod) and restarts(pod) == before + 1, "started anew")
    assert victim.exec(["test", "-e", marker]).returncode == 0
    until(lambda: reach(pods[0], pods[1]), "its pod is reached")


def test_a_node_comes_back_with_another_address(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    refused = command.run("lab", "heal", "node3", "--address", "172.18.1.99")
    assert (refused.returncode, "podwire lab kill node3" in refused.stderr) == (1, True)
    lab.kill("node3")
    with pytest.raises(InputError, match="is node1's"):
        lab.heal("node3", addresses=("172.18.1.11",))
    command.ok("lab", "heal", "node3", "--address", "172.18.1.99")
    assert lab.node("node3").ips == ["172.18.1.99", "fd00:172:18:1::13"]
    addresses = [
        one["address"]
        for one in lab.node_object("node3")["status"]["addresses"]
        if one["type"] == "InternalIP"
    ]
    assert addresses == ["172.18.1.99", "fd00:172:18:1::13"]
    until(lambda: reach(pods[0], pods[2]), "its pod is reached at the new address")
    fdb = lab.node("node1").exec(["bridge", "-j", "fdb", "show", "dev", "flannel.1"]).stdout
    assert "172.18.1.99" in {one.get("dst") for one in json.loads(fdb)}


def test_of_two_nodes_with_one_subnet_the_older_has_it(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    theirs = lab.node_object("node2")
    impostor = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "impostor",
            "annotations": {
                **theirs["metadata"]["annotations"],
                "flannel.alpha.coreos.com/public-ip": "172.18.2.77",
                "flannel.alpha.coreos.com/public-ipv6": "fd00:172:18:2::77",
            },
        },
        "spec": {"podCIDR": theirs["spec"]["podCIDR"], "podCIDRs": theirs["spec"]["podCIDRs"]},
    }
    objection = "impostor leases 10.244.2.0/24, as the older node node2 does"

    def told() -> bool:
        status = json.loads(command.here("status", "--node", "node1", "-o", "json").stdout)
        return objection in json.dumps(status)

    with SteadyPing(pods[0], pods[1]) as unaffected:
        lab.apply(impostor)
        until(told, "node1 tells of it")
        assert reach(pods[2], pods[1])
        command.ok("delete", "node", "impostor")
        until(lambda: not told(), "nothing is left of it")
    assert unaffected.lost == []


def test_pods_talk_on_without_the_api(lab: Lab, pods: list[LabPod], command: Command) -> None:
    with SteadyPing(pods[0], pods[1]) as ping:
        command.ok("lab", "kill", "api")
        assert command.run("get", "nodes").returncode == 1
        command.ok("lab", "heal", "api")
        command.ok("get", "nodes")
    assert ping.lost == []


def test_faults_outlive_the_supervisor(lab: Lab, pods: list[LabPod]) -> None:
    from podwire.lab import processes, teardown

    lab.partition("node1", "node2")
    lab.kill("node3")
    supervisor = teardown.supervisor(lab.info)
    assert supervisor is not None
    processes.end([supervisor])
    lifecycle.up(lab.name)
    assert no_answer((pods[0], pods[1].ips))
    record = lab.info.record()
    assert record is not None
    assert record.faults != Faults()
    with pytest.raises(LabError, match="does not run"):
        _ = lab.node("node3").pid


def test_a_lab_that_exists_otherwise_is_not_made(lab: Lab) -> None:
    with pytest.raises(LabError, match="family dual, not ipv4") as refused:
        lifecycle.up(lab.name, shape=shape(underlay="routed", node_grace_s=GRACE_S))
    assert "podwire lab set-profile" in (refused.value.remedy or "")
    lifecycle.up(lab.name, 3, shape=shape(family="dual", underlay="routed", node_grace_s=GRACE_S))
