"""Agents of two nodes on real underlays: pods of both reach each other.

In the fabrics, families and underlays that no lab of `test_e2e_fabrics` has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ..cluster.api_process import ApiProcess
from ..conftest import Namespace
from .conftest import Cluster, write_kubeconfig
from .joined import Joined, answers, etcd_in, joined, settled

pytestmark = pytest.mark.root

SUBNET, ROUTED = ("--ipam", "node-subnet"), ("--wiring", "routed")
NETWORKS = {4: "10.244.0.0/16", 6: "fd00:10:244::/48"}


def cidrs(name: str, versions: Sequence[int]) -> list[str]:
    number = name[-1]
    both = {4: f"10.244.{number}.0/24", 6: f"fd00:10:244:{number}::/64"}
    return [both[version] for version in versions]


@pytest.fixture(scope="module")
def shared_api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("api")
    with ApiProcess(directory / "api") as process:
        write_kubeconfig(directory / "kubeconfig", directory / "api" / "api.sock")
        yield process, directory / "kubeconfig"


class Pair:
    """Two nodes with an agent each, ready, and a pod on either."""

    def __init__(self, nodes: Joined) -> None:
        self.nodes = nodes
        self.first, self.second = nodes.agents.values()
        self.pods = [nodes.pod(agent) for agent in (self.first, self.second)]

    def reach_each_other(self) -> None:
        (here, our_ips), (there, their_ips) = self.pods
        assert len(our_ips) == len(their_ips)
        for pod, ips in ((here, their_ips), (there, our_ips)):
            for ip in ips:
                answers(pod, ip)


@pytest.fixture
def pair(
    shared_api: tuple[ApiProcess, Path], make_namespace: Callable[[], Namespace], tmp_path: Path
) -> Any:
    """Makes a pair with these options, its leases in the Kubernetes API."""
    api, kubeconfig = shared_api
    cluster = Cluster(api)
    names: list[str] = []
    with ExitStack() as stack:

        def make(
            *options: str,
            pods: Sequence[int] = (4,),
            underlay: Sequence[int] = (4,),
            routed: bool = False,
        ) -> Pair:
            nodes = stack.enter_context(
                joined(make_namespace, tmp_path, versions=underlay, routed=routed)
            )
            for name in ("node1", "node2"):
                agent = nodes.add(name, kubeconfig)
                nodes.register(cluster, name, cidrs(name, pods))
                names.append(name)
                network = ",".join(NETWORKS[version] for version in pods)
                agent.start("--network", network, *options)
            for agent in nodes.agents.values():
                agent.wait_ready()
            return Pair(nodes)

        try:
            yield make
        finally:
            for name in names:
                cluster.remove_node(name)


@pytest.mark.parametrize(
    ("options", "pods", "underlay", "routed"),
    [
        (["--profile", "flannel-vxlan", "--cross-subnet"], (4, 6), (6,), False),
        (["--profile", "flannel-udp"], (4, 6), (4,), True),
        (["--profile", "flannel-udp", "--encrypt"], (4,), (6,), True),
        ([*SUBNET, *ROUTED, "--transport", "vxlan"], (4, 6), (4, 6), True),
        ([*SUBNET, *ROUTED, "--transport", "udp"], (6,), (6,), True),
    ],
)
def test_pods_of_two_nodes_reach_each_other(
    pair: Callable[..., Pair],
    options: list[str],
    pods: tuple[int, ...],
    underlay: tuple[int, ...],
    routed: bool,
) -> None:
    made = pair(*options, pods=pods, underlay=underlay, routed=routed)
    made.reach_each_other()
    for agent in (made.first, made.second):
        settled(agent)
        assert "refused by the kernel" not in agent.log


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_hosts_without_kubernetes_share_flannels_network_in_etcd(
    make_namespace: Callable[[], Namespace], tmp_path: Path, backend: str
) -> None:
    with joined(make_namespace, tmp_path) as nodes:
        config = {"Network": "10.5.0.0/16", "Backend": {"Type": backend}}
        with etcd_in(nodes.hub, tmp_path / "etcd", config) as etcd:
            for name in ("node1", "node2"):
                nodes.add(name, None).start("--store", "etcd://172.18.0.1:2379")
            for agent in nodes.agents.values():
                agent.wait_ready()
            pair = Pair(nodes)
            pair.reach_each_other()
            leases = etcd.leases()
            assert {one["PublicIP"] for one in leases.values()} == {"172.18.0.11", "172.18.0.12"}
            own = pair.first.subnet_env.read_text()
            assert "FLANNEL_NETWORK=10.5.0.0/16" in own
            # Kept over restarts, also where the store has forgotten it.
            before = set(leases)
            assert pair.first.stop() == 0
            etcd.call("del --prefix /coreos.com/network/subnets/")
            pair.first.start("--store", "etcd://172.18.0.1:2379").wait_ready()
            assert pair.first.subnet_env.read_text() == own
            pair.reach_each_other()
            assert set(etcd.leases()) == before


def test_another_fabric_takes_over_with_pods_and_leaves_nothing_of_the_last_one(
    pair: Callable[..., Pair],
) -> None:
    made = pair(*SUBNET, "--transport", "direct")
    made.reach_each_other()
    agents = (made.first, made.second)

    def become(*options: str) -> None:
        for agent in agents:
            assert agent.stop() == 0
            agent.start("--network", NETWORKS[4], *options)
        for agent in agents:
            agent.wait_ready()
        made.reach_each_other()
        for agent in agents:
            settled(agent)
            assert "not wired anew" not in agent.log

    before = made.first.namespace.run("ip -br link")
    become(*SUBNET, *ROUTED, "--transport", "udp")
    links = made.first.namespace.run("ip -br link")
    assert "cni0" not in links
    assert "flannel0" in links
    assert "do not reach each other" in made.first.log
    assert "169.254.1.1" in made.pods[0][0].run("ip route show default")
    become(*SUBNET, "--transport", "direct")
    after = made.first.namespace.run("ip -br link")
    assert {line.split()[0].partition("@")[0] for line in before.splitlines()} == {
        line.split()[0].partition("@")[0] for line in after.splitlines()
    }
    # To another IPAM, which claims what pods have, and back: routes of its protocol go, too.
    become("--profile", "calico")
    assert "can claim them" in made.first.log
    assert "proto 80" in made.first.namespace.run("ip route")
    become("--profile", "flannel-vxlan")
    assert made.first.namespace.run("ip route show proto 80") == ""
    # Of another network, pods keep their addresses, and that is told.
    assert made.first.stop() == 0
    made.first.start("--network", "10.32.0.0/12", "--profile", "weave").wait_ready()
    settled(made.first)
    assert "all of them must be recreated" in made.first.log
    assert "pods have addresses outside of the lease" in made.first.log
    assert "cni0" not in made.first.namespace.run("ip -br link")
