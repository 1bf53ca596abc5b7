"""The agent when the world around it misbehaves: links, leases, files, and its own Node object."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podwire.cluster.kube import NODES, KubeClient

from ..conftest import Namespace
from ..e2e.waiting import until
from .conftest import AgentProcess, Cluster
from .joined import cni

pytestmark = pytest.mark.root

PREFIX = "flannel.alpha.coreos.com/"


def lease(number: int, mac: int | None = None, vni: int = 1) -> dict[str, str]:
    """The annotations of a peer."""
    data = {"VNI": vni, "VtepMAC": f"02:00:00:00:00:{mac or number:02x}"}
    return {
        PREFIX + "backend-data": json.dumps(data),
        PREFIX + "backend-type": "vxlan",
        PREFIX + "kube-subnet-manager": "true",
        PREFIX + "public-ip": f"172.18.0.{10 + number}",
    }


def full_reconciles(agent: AgentProcess) -> float:
    text = agent.http.get("/metrics")[1]
    (line,) = (one for one in text.splitlines() if one.startswith(FULL))
    return float(line.split()[1])


FULL = 'podwire_reconcile_seconds_count{scope="full"}'


def test_an_underlay_address_that_comes_back_makes_it_ready_again(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    agent.namespace.run("ip route add default via 172.18.0.1")
    agent.start().wait_ready()
    agent.namespace.run("ip address del 172.18.0.11/16 dev eth0")
    agent.wait_not_ready("no default route")
    agent.namespace.run("ip address add 172.18.0.11/16 dev eth0")
    agent.namespace.run("ip route add default via 172.18.0.1")
    agent.wait_ready()


def test_it_waits_for_an_underlay_and_starts_when_its_route_comes_last(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    agent.namespace.run("ip link set eth0 down; ip address flush dev eth0")
    agent.start().wait_not_ready("no default route")
    agent.namespace.run("ip link set eth0 up; ip address add 172.18.0.11/16 dev eth0")
    agent.wait_not_ready("no default route")
    agent.namespace.run("ip route add default via 172.18.0.1")
    agent.wait_ready()


def test_an_underlay_that_is_made_anew_is_used_again(cluster: Cluster, agent: AgentProcess) -> None:
    cluster.add_node("node1")
    subnet = cluster.add_node("node2", lease(2))["spec"]["podCIDR"]
    agent.namespace.run("ip route add default via 172.18.0.1")
    agent.start().wait_ready()
    agent.namespace.run("ip link del eth0")
    until(lambda: agent.http.not_ready, "not ready")
    agent.namespace.run(
        "ip link add eth0 type veth peer name wire; ip link set wire up; ip link set eth0 up;"
        "ip address add 172.18.0.11/16 dev eth0; ip route add default via 172.18.0.1"
    )
    agent.wait_ready()
    until(lambda: agent.http.plan()["changes"] == [], "all is there again")
    assert subnet in agent.namespace.run("ip route show proto 112")


def test_a_new_underlay_mtu_becomes_the_pods(cluster: Cluster, agent: AgentProcess) -> None:
    cluster.add_node("node1")
    agent.start().wait_ready()
    agent.namespace.run("ip link set eth0 mtu 1400")
    until(lambda: "FLANNEL_MTU=1350" in agent.subnet_env.read_text(), "the new MTU")
    for name in ("cni0", "flannel.1"):
        (link,) = agent.json(f"ip -j link show {name}")
        assert link["mtu"] == 1350
    agent.namespace.run("ip link set eth0 mtu 1500")
    until(lambda: "FLANNEL_MTU=1450" in agent.subnet_env.read_text(), "the old MTU")
    assert agent.http.plan()["changes"] == []


def test_pods_that_come_and_go_cost_no_full_comparison(
    cluster: Cluster, agent: AgentProcess, make_namespace: Callable[[], Namespace]
) -> None:
    cluster.add_node("node1")
    agent.start().wait_ready()
    pods = [make_namespace() for _ in range(3)]
    before = full_reconciles(agent)
    for _ in range(2):
        for number, pod in enumerate(pods):
            cni(agent, "ADD", f"c{number}", pod)
        for number, pod in enumerate(pods):
            cni(agent, "DEL", f"c{number}", pod)
        until(lambda: not agent.namespace.run("ip link show master cni0"), "all are gone")
    agent.namespace.run("ip link set cni0 mtu 1300")
    until(lambda: full_reconciles(agent) > before, "a real disturbance is answered")
    until(lambda: agent.http.plan()["changes"] == [], "and mended")
    assert full_reconciles(agent) <= before + 2


def test_of_two_nodes_with_one_mac_the_older_is_reached_whatever_order_they_come_in(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    older = cluster.add_node("node3")["spec"]["podCIDR"]
    time.sleep(1.1)  # The age of an object is told in seconds.
    younger = cluster.add_node("node2", lease(2, mac=7))["spec"]["podCIDR"]
    agent.start().wait_ready()
    routes = "ip route show proto 112"
    assert younger in agent.namespace.run(routes)
    cluster.patch("node3", {"metadata": {"annotations": lease(3, mac=7)}})
    until(lambda: older in agent.namespace.run(routes), "the older one is reached")
    until(lambda: younger not in agent.namespace.run(routes), "the younger one is left out")
    assert "node node2 has VTEP MAC 02:00:00:00:00:07, as the older node node3 does" in agent.log
    look = "ip route show proto 112; ip neigh show dev flannel.1; bridge fdb show dev flannel.1"
    before = agent.namespace.run(look)
    assert agent.http.plan()["changes"] == []
    assert agent.stop() == 0
    agent.start().wait_ready()
    assert agent.namespace.run(look) == before
    assert agent.http.metric("podwire_kernel_changes_total") == 0
    cluster.remove_node("node3")
    until(lambda: younger in agent.namespace.run(routes), "the younger one's turn")
    assert older not in agent.namespace.run(routes)


def test_a_node_takes_no_subnet_of_another_one_by_annotation(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    taker = cluster.add_node("node2", lease(2))["spec"]["podCIDR"]
    subnet = cluster.add_node("node3", lease(3))["spec"]["podCIDR"]
    more = {"podwire.io/subnets": f"{taker},{subnet}"}
    cluster.patch("node2", {"metadata": {"annotations": more}})
    agent.start().wait_ready()
    routes = agent.namespace.run("ip route show proto 112")
    for one in (taker, subnet):
        assert f"{one} via {one.partition('/')[0]} dev flannel.1" in routes


def test_leases_that_are_not_used_are_told_at_the_start_once(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    for number in range(2, 16):
        cluster.add_node(f"node{number}", lease(number, vni=9))
    agent.start().wait_ready()
    assert agent.log.count("lease not believed") == 10
    assert "more leases not believed count=4" in agent.log
    assert "is in VNI 9, this node in 1" in agent.log


def test_a_node_that_is_not_understood_is_told_once(cluster: Cluster, agent: AgentProcess) -> None:
    cluster.add_node("node1")
    cluster.add_node("node2", lease(2) | {PREFIX + "public-ip": "?"})
    agent.start().wait_ready()
    for number in range(5):
        cluster.patch("node2", {"metadata": {"labels": {"beat": str(number)}}})
    subnet = cluster.add_node("node3", lease(3))["spec"]["podCIDR"]
    until(lambda: subnet in agent.namespace.run("ip route show proto 112"), "node3 is reached")
    assert agent.log.count("node is not understood") == 1


def test_a_node_object_that_lost_everything_is_published_and_made_schedulable_again(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    agent.start().wait_ready()
    gone = dict.fromkeys(cluster.node("node1")["metadata"]["annotations"])

    async def forget(client: Any) -> None:
        status: dict[str, Any] = {"status": {"conditions": []}}
        await client.merge_patch(NODES, "node1", status, subresource="status")
        await client.merge_patch(NODES, "node1", {"metadata": {"annotations": gone}})

    cluster.call(forget)

    def whole() -> bool:
        node = cluster.node("node1")
        conditions = node["status"].get("conditions", [])
        available = any(
            one["type"] == "NetworkUnavailable" and one["status"] == "False" for one in conditions
        )
        return available and PREFIX + "backend-data" in node["metadata"].get("annotations", {})

    until(whole, "the lease and the condition are there again")
    assert agent.http.not_ready is None


def test_two_agents_of_one_node_name_do_not_storm_the_api(
    cluster: Cluster, make_agent: Callable[[str], AgentProcess]
) -> None:
    cluster.add_node("node1")
    first, there = make_agent("node1"), make_agent("node1").namespace
    there.run(
        "ip address flush dev eth0; ip address add 172.18.0.12/16 dev eth0;"
        "ip route add default via 172.18.0.1"
    )
    home = first.home.with_name("second")
    second = AgentProcess(there, home, home.with_name("kubeconfig"), "node1")
    first.start().wait_ready()
    second.start()
    try:
        until(lambda: "keeps changing the lease" in first.log + second.log, "the fight is told")
        before = int(cluster.node("node1")["metadata"]["resourceVersion"])
        time.sleep(1.5)
        assert int(cluster.node("node1")["metadata"]["resourceVersion"]) - before < 10
        assert "elsewhere" in first.log + second.log
    finally:
        assert second.stop() == 0


def test_a_directory_for_the_executable_that_is_read_only_is_told(
    cluster: Cluster, agent: AgentProcess, tmp_path: Path
) -> None:
    cluster.add_node("node1")
    agent.home.mkdir()
    (agent.home / "bin").touch()
    agent.start().wait_not_ready(f"cannot write {agent.executable}")
    assert not agent.conflist.exists()
    (agent.home / "bin").unlink()
    agent.wait_ready()
    assert agent.conflist.exists()


def test_a_subnet_file_that_cannot_be_written_does_not_end_the_agent(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    agent.home.mkdir()
    (agent.home / "flannel").touch()
    agent.start().wait_not_ready("subnet.env")
    assert "flannel.1" in agent.namespace.run("ip -br link")
    (agent.home / "flannel").unlink()
    agent.wait_ready()


def test_pods_of_another_lease_are_named(
    cluster: Cluster, agent: AgentProcess, make_namespace: Callable[[], Namespace]
) -> None:
    cluster.add_node("node1")
    agent.start().wait_ready()
    pod = make_namespace()
    cni(agent, "ADD", "c1", pod)
    cluster.remove_node("node1")
    agent.wait_not_ready("does not exist")
    cluster.add_node("taker1")
    cluster.add_node("node1")
    agent.wait_ready()
    assert "pods have addresses outside of the lease" in agent.log
    cni(agent, "DEL", "c1", pod)
    (ip,) = cni(agent, "ADD", "c2", pod)["ips"]
    assert ip["gateway"] in agent.namespace.run("ip address show cni0")


@pytest.mark.parametrize("phase", ["start", "no API", "no node", "no underlay", "ready"])
def test_stopping_is_clean_at_any_time(cluster: Cluster, agent: AgentProcess, phase: str) -> None:
    if phase == "no API":
        cluster.api.stop()
    elif phase != "no node":
        cluster.add_node("node1")
    if phase == "no underlay":
        agent.namespace.run("ip link del eth0")
    agent.start()
    if phase == "start":
        until(lambda: (agent.home / "run" / "cni.sock").exists(), "it listens")
    elif phase == "ready":
        agent.wait_ready()
    else:
        agent.wait_not_ready(
            {"no API": "waiting for", "no node": "does not", "no underlay": "no def"}[phase]
        )
    assert agent.stop() == 0
    assert "Traceback" not in agent.log
    if phase == "no API":
        cluster.api.start()


@pytest.mark.parametrize("families", [(4, 6), (6,)])
def test_pods_reach_each_other_in_both_families(
    cluster: Cluster,
    make_agent: Callable[[str], AgentProcess],
    make_namespace: Callable[[], Namespace],
    families: tuple[int, ...],
) -> None:
    first, second = agents = make_agent("node1"), make_agent("node2")
    for one in agents:
        one.namespace.run("ip link del eth0")
    first.namespace.run(f"ip link add eth0 type veth peer name eth0 netns {second.namespace.name}")
    pods = []
    for number, one in enumerate(agents, 1):
        address = {4: f"172.18.0.1{number}/16", 6: f"fd01::{number}/64 nodad"}[families[0]]
        one.namespace.run(f"ip link set eth0 up; ip address add {address} dev eth0")
        blocks = {4: f"10.244.{number}.0/24", 6: f"fd00:244:0:{number}::/64"}
        cidrs = [blocks[family] for family in families]
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": one.name},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        }
        cluster.call(functools.partial(KubeClient.create, resource=NODES, obj=node))
        networks = {4: "10.244.0.0/16", 6: "fd00:244::/48"}
        network = ",".join(networks[family] for family in families)
        one.start("--network", network, "--iface", "eth0").wait_ready()
        pod = make_namespace()
        pods.append((pod, cni(one, "ADD", f"c{number}", pod)["ips"]))
    (here, _), (_, there) = pods
    assert len(there) == len(families)
    for ip in there:
        target = ip["address"].partition("/")[0]
        until(lambda: not here.run(f"ping -c1 -W1 {target} >&2 || echo no"), f"{target} answers")  # noqa: B023
    for one in agents:
        until(lambda: one.http.plan()["changes"] == [], "nothing is left to do")  # noqa: B023
        assert "refused by the kernel" not in one.log


def test_a_pod_that_cannot_be_attached_again_is_told_once_and_left_to_the_runtime(
    cluster: Cluster, agent: AgentProcess, make_namespace: Callable[[], Namespace]
) -> None:
    cluster.add_node("node1")
    agent.start().wait_ready()
    pods = [make_namespace() for _ in range(3)]
    for number, pod in enumerate(pods):
        cni(agent, "ADD", f"c{number}", pod)
    assert agent.stop() == 0
    veths = [one["ifname"] for one in agent.json("ip -j link show master cni0")]
    agent.namespace.run("; ".join(f"ip link del {name}" for name in veths))
    pods[0].run(
        "ip link add other type bridge; ip link set other up; ip route add default dev other"
    )
    pods[1].run("ip link add eth0 type bridge")
    agent.start().wait_ready()
    until(lambda: "attached again pod" in agent.log, "the third is attached again")
    until(lambda: agent.log.count("not attached again") == 2, "the others are not")
    for number in range(5):
        agent.namespace.run(f"ip link set cni0 mtu {1300 + number}")
        until(lambda: "mtu 1450" in agent.namespace.run("ip link show cni0"), "mended")
    assert agent.log.count("not attached again") == 2
    cni(agent, "DEL", "c0", pods[0])
    pods[0].run("ip link del other")
    assert cni(agent, "ADD", "c0", pods[0])["ips"]
    assert agent.json("ip -j link show master cni0")
