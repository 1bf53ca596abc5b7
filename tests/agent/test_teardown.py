"""Teardown: everything of ours goes, nothing of others, and not from under running pods."""

from __future__ import annotations

import json
import socket
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from podwire.agent.config import AgentConfig
from podwire.agent.memory import FabricMemory
from podwire.agent.teardown import teardown
from podwire.cni import install
from podwire.errors import IpamError, PodwireError
from podwire.ipam.store import Store
from podwire.kernel.reconcile import Reconciler
from podwire.model.cluster import ClusterView, Lease, NetworkConfig, Node, Underlay
from podwire.model.state import LINK_GROUP
from podwire.plan.node import plan
from podwire.tunnel.client import command
from tests.conftest import Namespace
from tests.e2e.waiting import DEADLINE_S, until
from tests.plan import fabrics

pytestmark = pytest.mark.root


def lease(number: int) -> Lease:
    return Lease(
        subnets=(ip_network(f"10.244.{number}.0/24"),),
        backend="vxlan",
        public_ip=ip_address(f"172.18.0.{10 + number}"),
        vni=1,
        vtep_mac=b"\x02\0\0\0\0" + bytes([number]),
    )


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig(
        node_name="node1",
        network=(ip_network("10.244.0.0/16"),),
        run_dir=tmp_path / "run",
        state_dir=tmp_path / "state",
        cni_conf_dir=tmp_path / "conf",
        cni_bin_dir=tmp_path / "bin",
        subnet_file=tmp_path / "flannel" / "subnet.env",
    )


@pytest.fixture
def node(inside: Namespace, config: AgentConfig) -> Namespace:
    """A namespace that holds what an agent leaves behind, and things of others."""
    inside.run(
        "ip link add eth0 type veth peer name wire && ip link set eth0 up && ip link set wire up"
        " && ip address add 172.18.0.11/16 dev eth0"
        " && ip route add 10.99.0.0/24 via 172.18.0.1 proto static && nft add table inet other"
    )
    network = NetworkConfig(
        node="node1",
        network=config.network,
        lease=lease(1),
        underlay=Underlay("eth0", ip_address("172.18.0.11"), 1500),
        mtu=1450,
    )
    reconciler = Reconciler()
    reconciler.replace(plan(ClusterView(network, {"node2": Node("node2", lease=lease(2))})))
    assert not reconciler.reconcile().failures
    reconciler.close()
    Store(config.state_dir / "ipam.db").close()
    (config.state_dir / "labs").mkdir()
    install.install(config.cni_bin_dir, config.cni_conf_dir)
    return inside


def test_what_podwire_made_goes_and_the_rest_stays(node: Namespace, config: AgentConfig) -> None:
    done = list(teardown(config, force=False))
    assert "ip link del flannel.1" in done
    assert {one["ifname"] for one in json.loads(node.run("ip -j link"))} == {"lo", "eth0", "wire"}
    assert node.run("ip route show proto 112") == ""
    assert "10.99.0.0/24" in node.run("ip route show proto static")
    assert node.run("nft list tables") == "table inet other\n"
    assert list(config.cni_conf_dir.iterdir()) == list(config.cni_bin_dir.iterdir()) == []
    assert [path.name for path in config.state_dir.iterdir()] == ["labs"]
    assert list(teardown(config, force=False)) == []


def test_the_routes_of_another_fabrics_protocol_go(inside: Namespace, config: AgentConfig) -> None:
    inside.run("ip link add eth0 type veth peer name wire && ip link set eth0 up")
    inside.run("ip address add 172.18.0.11/16 dev eth0 && ip link set wire up")
    calico = fabrics.config("calico")
    reconciler = Reconciler()
    reconciler.replace(plan(ClusterView(calico, {"node2": fabrics.peer(calico)})))
    assert not reconciler.reconcile().failures
    reconciler.close()
    FabricMemory(config.fabric_file).done(calico)
    assert len(inside.run("ip route show proto 80").splitlines()) == 2
    inside.run("ip route add 10.99.0.0/24 via 172.18.0.1 proto static")
    list(teardown(config, force=False))
    assert inside.run("ip route show proto 80") == ""
    assert "10.99.0.0/24" in inside.run("ip route show proto static")


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_the_tunnel_that_outlives_agents_is_ended(node: Namespace, config: AgentConfig) -> None:
    config.run_dir.mkdir()
    with subprocess.Popen(command(config.tunnel_socket)) as tunnel:
        try:
            until(lambda: listens(config.tunnel_socket), "it listens")
            assert "the UDP tunnel's process is stopped" in list(teardown(config, force=False))
            assert tunnel.wait(DEADLINE_S) == 0
        finally:
            tunnel.kill()
    assert not config.run_dir.exists()


def test_pods_that_are_attached_are_in_the_way(node: Namespace, config: AgentConfig) -> None:
    node.run(f"ip link add vethpod group {LINK_GROUP} type veth peer name inside0")
    with pytest.raises(PodwireError, match="1 pods are attached"):
        list(teardown(config, force=False))
    assert "flannel.1" in node.run("ip link")
    assert "ip link del vethpod" in list(teardown(config, force=True))


def test_a_running_agent_is_in_the_way(node: Namespace, config: AgentConfig) -> None:
    running = Store(config.state_dir / "ipam.db")
    try:
        with pytest.raises(IpamError):
            list(teardown(config, force=True))
    finally:
        running.close()
    assert "flannel.1" in node.run("ip link")
