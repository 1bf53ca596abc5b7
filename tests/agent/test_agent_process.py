"""`podwire agent` as an operator runs it: a kubeconfig, a node's name, and no lab anywhere."""

from __future__ import annotations

import json
import os
import subprocess
from http.client import HTTPConnection
from typing import Any

import pytest

from podwire.cni.install import install_executable
from podwire.kernel import netns

from ..cluster.api_process import ApiProcess
from ..conftest import Namespace
from ..e2e.waiting import until
from .conftest import PODWIRE, AgentProcess, Cluster

pytestmark = pytest.mark.root

PREFIX = "flannel.alpha.coreos.com/"
#: The lease of a flanneld on another node.
FLANNELS = {
    PREFIX + "backend-data": '{"VNI":1,"VtepMAC":"d6:2f:4b:4e:5a:11"}',
    PREFIX + "backend-type": "vxlan",
    PREFIX + "kube-subnet-manager": "true",
    PREFIX + "public-ip": "172.18.0.12",
}


def vtep_mac(agent: AgentProcess) -> str:
    (link,) = agent.json("ip -j link show flannel.1")
    mac: str = link["address"]
    return mac


def get(namespace: Namespace, path: str) -> tuple[int, str, str]:
    """Ask over TCP, from inside the namespace: status, content type, body."""
    fd = netns.open_netns(namespace.path)
    try:
        with netns.entered(fd):
            connection = HTTPConnection("127.0.0.1", 9910, timeout=60)
            connection.request("GET", path)
    finally:
        os.close(fd)
    answer = connection.getresponse()
    found = answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    connection.close()
    return found


def test_a_ready_agent_has_published_written_and_announced(
    cluster: Cluster, agent: AgentProcess
) -> None:
    subnet = cluster.add_node("node1", {"example.com/kept": "yes"})["spec"]["podCIDR"]
    agent.start().wait_ready()
    node = cluster.node("node1")
    assert node["metadata"]["annotations"] == {
        PREFIX + "backend-data": f'{{"VNI":1,"VtepMAC":"{vtep_mac(agent)}"}}',
        PREFIX + "backend-type": "vxlan",
        PREFIX + "kube-subnet-manager": "true",
        PREFIX + "public-ip": "172.18.0.11",
        "example.com/kept": "yes",
    }
    (condition,) = [
        one for one in node["status"]["conditions"] if one["type"] == "NetworkUnavailable"
    ]
    assert condition["status"] == "False"
    gateway = subnet.replace(".0/24", ".1/24")
    assert agent.subnet_env.read_text() == (
        f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    conflist = json.loads(agent.conflist.read_text())
    assert [plugin["type"] for plugin in conflist["plugins"]] == ["podwire"]
    assert os.access(agent.executable, os.X_OK)
    (bridge,) = agent.json("ip -j -4 address show cni0")
    assert [f"{one['local']}/{one['prefixlen']}" for one in bridge["addr_info"]] == [gateway]
    assert agent.http.metric("podwire_ready") == 1
    assert agent.http.metric("podwire_api_connected") == 1


def test_health_readiness_and_metrics_are_on_the_loopback_and_the_plan_is_not(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    agent.start().wait_ready()
    assert get(agent.namespace, "/healthz")[::2] == (200, "ok\n")
    assert get(agent.namespace, "/readyz")[::2] == (200, "ok\n")
    status, content_type, metrics = get(agent.namespace, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    names = {line.split()[2] for line in metrics.splitlines() if line.startswith("# TYPE")}
    assert names >= {
        "podwire_api_connected",
        "podwire_cni_seconds",
        "podwire_ipam_addresses",
        "podwire_kernel_changes_total",
        "podwire_kernel_failures_total",
        "podwire_peers",
        "podwire_ready",
        "podwire_reconcile_seconds",
    }
    assert get(agent.namespace, "/plan")[0] == 404
    socket = agent.home / "run" / "agent.sock"
    assert socket.stat().st_mode & 0o777 == 0o600
    assert agent.http.plan()["node"] == "node1"


def test_an_agent_without_an_api_waits_for_it(
    api: ApiProcess, cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    api.stop()
    agent.start().wait_not_ready("waiting for the Kubernetes API")
    assert agent.http.get("/healthz")[0] == 200
    assert agent.http.metric("podwire_ready") == 0
    assert not agent.conflist.exists()
    assert "flannel.1" not in agent.namespace.run("ip link")
    api.start()
    agent.wait_ready()
    assert agent.conflist.exists()


def test_the_kernel_stays_while_the_api_is_away_and_the_agent_finds_back(
    api: ApiProcess, cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    subnet = cluster.add_node("node2", FLANNELS)["spec"]["podCIDR"]
    agent.start().wait_ready()
    routes = agent.namespace.run("ip route")
    assert subnet in routes
    changes = agent.http.metric("podwire_kernel_changes_total")
    api.stop()
    until(lambda: agent.http.metric("podwire_api_connected") == 0, "the agent has noticed")
    assert agent.http.not_ready is None
    agent.namespace.run(f"ip route del {subnet}")
    until(lambda: agent.namespace.run("ip route") == routes, "repaired without the API")
    api.start()
    until(lambda: agent.http.metric("podwire_api_connected") == 1, "the agent is back")
    assert agent.http.metric("podwire_kernel_changes_total") == changes + 1
    other = {"backend-data": '{"VNI":1,"VtepMAC":"d6:2f:4b:4e:5a:13"}', "public-ip": "172.18.0.13"}
    lease = FLANNELS | {PREFIX + key: value for key, value in other.items()}
    another = cluster.add_node("node3", lease)
    until(lambda: another["spec"]["podCIDR"] in agent.namespace.run("ip route"), "node3 is known")


def test_an_agent_whose_node_does_not_exist_says_so_and_waits(
    cluster: Cluster, agent: AgentProcess
) -> None:
    agent.start().wait_not_ready("node node1 does not exist in the cluster")
    cluster.add_node("node1")
    agent.wait_ready()
    cluster.remove_node("node1")
    agent.wait_not_ready("node node1 does not exist in the cluster")
    assert agent.http.metric("podwire_ready") == 0
    assert "flannel.1" in agent.namespace.run("ip link"), "what is there stays"
    cluster.add_node("node1")
    agent.wait_ready()


def test_a_cidr_outside_of_the_network_is_told_with_the_remedy(
    cluster: Cluster, agent: AgentProcess
) -> None:
    subnet = cluster.add_node("node1")["spec"]["podCIDR"]
    agent.start("--network", "10.77.0.0/16").wait_not_ready("--network")
    reason = agent.http.not_ready or ""
    assert subnet in reason
    assert "10.77.0.0/16" in reason
    assert not agent.conflist.exists()
    assert PREFIX + "backend-type" not in cluster.node("node1")["metadata"].get("annotations", {})
    assert cni_status(agent)["code"] == 50
    assert "--network" in json.dumps(cni_status(agent))


def cni_status(agent: AgentProcess) -> dict[str, Any]:
    """What a runtime is told when it asks whether pods can be wired; empty when they can."""
    install_executable(agent.home / "bin", agent.home / "run" / "cni.sock")
    done = subprocess.run(
        [agent.executable],
        input='{"cniVersion":"1.1.0","name":"podwire","type":"podwire"}',
        env={"CNI_COMMAND": "STATUS", "CNI_PATH": str(agent.home / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    assert done.returncode == (1 if found else 0)
    return found


def test_a_node_that_gets_another_cidr_moves_there(cluster: Cluster, agent: AgentProcess) -> None:
    first = cluster.add_node("node1")["spec"]["podCIDR"]
    agent.start().wait_ready()
    mac = vtep_mac(agent)
    cluster.add_node("node2", FLANNELS)
    cluster.remove_node("node1")
    agent.wait_not_ready("does not exist")
    # A node gets the block of the number that it ends in, where that is free.
    cluster.add_node("taker1")
    second = cluster.add_node("node1")["spec"]["podCIDR"]
    assert second != first
    agent.wait_ready()
    addresses = agent.namespace.run("ip -4 address show dev cni0; ip -4 address show flannel.1")
    assert first.removesuffix("0/24") not in addresses
    assert second.replace(".0/24", ".1/24") in addresses
    assert second.replace(".0/24", ".0/32") in addresses
    assert second.replace(".0/24", ".1/24") in agent.subnet_env.read_text()
    assert vtep_mac(agent) == mac
    assert agent.http.plan()["changes"] == []


def test_a_flannel_node_is_a_peer_and_a_broken_one_is_none(
    cluster: Cluster, agent: AgentProcess
) -> None:
    own = cluster.add_node("node1")["spec"]["podCIDR"]
    subnet = cluster.add_node("node2", FLANNELS)["spec"]["podCIDR"]
    cluster.add_node("node3", FLANNELS | {PREFIX + "backend-data": "{"})
    cluster.add_node("node4", FLANNELS | {PREFIX + "public-ip": "172.18.0.11"})
    agent.start().wait_ready()
    (route,) = agent.json("ip -j route show proto 112")
    base = subnet.partition("/")[0]
    assert (route["dst"], route["gateway"], route["flags"]) == (subnet, base, ["onlink"])
    (neighbor,) = agent.json("ip -j neigh show dev flannel.1")
    assert (neighbor["dst"], neighbor["lladdr"]) == (base, "d6:2f:4b:4e:5a:11")
    (entry,) = agent.json("bridge -j fdb show dev flannel.1")
    assert (entry["mac"], entry["dst"]) == ("d6:2f:4b:4e:5a:11", "172.18.0.12")
    assert "node is not understood" in agent.log
    cluster.patch("node2", {"spec": {}, "metadata": {"annotations": {PREFIX + "public-ip": None}}})
    until(lambda: agent.namespace.run("ip route show proto 112") == "", "the lease is gone")
    assert own.replace(".0/24", ".1/24") in agent.namespace.run("ip address show cni0")


def test_stopping_leaves_everything_as_it_is_and_starting_again_too(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    cluster.add_node("node2", FLANNELS)
    agent.start().wait_ready()
    look = "ip link; ip -4 address; ip route; ip neigh; bridge fdb show dev flannel.1"
    look += "; nft list ruleset"
    before, conflist = agent.namespace.run(look), agent.conflist.stat().st_mtime_ns
    assert agent.stop() == 0
    assert agent.namespace.run(look) == before
    assert agent.conflist.stat().st_mtime_ns == conflist
    # Also where the store has forgotten what peers know: its MAC is the device's.
    said = cluster.node("node1")["metadata"]["annotations"]
    cluster.patch("node1", {"metadata": {"annotations": dict.fromkeys(said)}})
    agent.start().wait_ready()
    assert cluster.node("node1")["metadata"]["annotations"] == said
    assert agent.namespace.run(look) == before
    assert agent.conflist.stat().st_mtime_ns == conflist
    assert agent.http.metric("podwire_kernel_changes_total") == 0


def test_a_foreign_link_in_the_way_is_told_and_left_alone_until_it_is_gone(
    cluster: Cluster, agent: AgentProcess
) -> None:
    cluster.add_node("node1")
    agent.namespace.run("ip link add cni0 type bridge; ip address add 192.0.2.1/24 dev cni0")
    agent.start().wait_not_ready("cni0 exists and was not made by Podwire")
    assert "192.0.2.1/24" in agent.namespace.run("ip address show cni0")
    assert not agent.conflist.exists()
    assert not agent.subnet_env.exists()
    assert not cluster.node("node1")["metadata"].get("annotations")
    agent.namespace.run("ip link del cni0")
    agent.wait_ready()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--kubeconfig", "/nowhere/kubeconfig"], "/nowhere/kubeconfig"),
        (["--network", "10.244.0.0/33"], "--network"),
        (["--health-address", "nowhere"], "--health-address"),
        (["--store", "etcd://127.0.0.1:1?ca=/nowhere"], "ca=/nowhere can't be used"),
        (["--vni", "16777215"], "the device would be flannel.16777215"),
        (["--transport", "udp", "--vni", "7"], "vni: 7 changes nothing"),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(
    namespace: Namespace, options: list[str], says: str, tmp_path: Any
) -> None:
    here = ["--run-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "state")]
    if "--kubeconfig" not in options:
        here += ["--kubeconfig", str(kubeconfig_of_nowhere(tmp_path))]
    done = subprocess.run(
        ["ip", "netns", "exec", namespace.name, str(PODWIRE), "agent", *here, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def kubeconfig_of_nowhere(directory: Any) -> Any:
    path = directory / "kubeconfig"
    path.write_text(
        '{"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],'
        '"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],'
        '"users":[{"name":"u","user":{}}],"current-context":"c"}'
    )
    return path


def test_a_health_port_that_is_taken_is_told(cluster: Cluster, agent: AgentProcess) -> None:
    taken = subprocess.Popen(
        ["ip", "netns", "exec", agent.namespace.name, "busybox", "nc", "-l", "-p", "9910"]
    )
    try:
        until(lambda: ":9910" in agent.namespace.run("ss -ltn"), "the port is taken")
        agent.start()
        assert agent.process is not None
        assert agent.process.wait(60) == 1
        assert "cannot listen on 127.0.0.1:9910" in agent.log
        assert "--health-address" in agent.log
    finally:
        taken.kill()
        taken.wait()
