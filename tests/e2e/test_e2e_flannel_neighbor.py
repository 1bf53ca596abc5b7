"""A node of Podwire and one of Flannel share a network: each of Flannel's backends, both stores.

Flannel's node is made by hand (`flannel_node`), from nothing but what Podwire's published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

import pytest

from ..agent.conftest import AgentProcess, Cluster, running_api, write_kubeconfig
from ..agent.joined import Etcd, Joined, answers, etcd_in, joined
from ..cluster.api_process import ApiProcess
from ..conftest import Namespace
from .flannel_node import FlannelNode, Seen, read_key, read_node, started
from .transfer import transfer
from .waiting import until

pytestmark = pytest.mark.root

BACKENDS = ("vxlan", "host-gw", "udp")
OURS, THEIRS = "172.18.0.11", "172.18.0.12"


class Store(Protocol):
    """Where the leases are, as flanneld uses it."""

    network: str
    subnet: str

    def join(self, nodes: Joined) -> tuple[AgentProcess, list[str]]:
        """Podwire's node, and the options of its agent."""

    def publish(self, flannel: FlannelNode) -> None:
        """Flannel's lease."""

    def withdraw(self, flannel: FlannelNode) -> None: ...

    def podwires(self) -> Seen | None:
        """Podwire's lease, as soon as there is one."""


class InEtcd:
    network, subnet = "10.5.0.0/16", "10.5.34.0/24"

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd

    def join(self, nodes: Joined) -> tuple[AgentProcess, list[str]]:
        return nodes.add("node1", None), ["--store", "etcd://172.18.0.1:2379"]

    def publish(self, flannel: FlannelNode) -> None:
        granted = self._etcd.call("lease grant 86400").split()[1]
        self._etcd.call(f"put {flannel.key} {flannel.value} --lease={granted}")

    def withdraw(self, flannel: FlannelNode) -> None:
        self._etcd.call(f"del {flannel.key}")

    def podwires(self) -> Seen | None:
        lines = self._etcd.call("get --prefix /coreos.com/network/subnets/").splitlines()
        found = [read_key(*pair) for pair in zip(lines[::2], lines[1::2], strict=True)]
        return next((one for one in found if str(one.public_ip) == OURS), None)

    def time_to_live(self, seen: Seen) -> int:
        """For how many seconds a lease was granted."""
        name = f"{seen.subnet.network_address}-{seen.subnet.prefixlen}"
        fields = self._etcd.call(f"get -w fields /coreos.com/network/subnets/{name}")
        lease = int(re.findall(r'"Lease" : (\d+)', fields)[0])
        told = self._etcd.call(f"lease timetolive {lease:x}")
        return int(re.findall(r"granted with TTL\((\d+)s\)", told)[0])


class InKubernetes:
    network, subnet = "10.244.0.0/16", "10.244.2.0/24"

    def __init__(self, backend: str, cluster: Cluster, kubeconfig: Path) -> None:
        self._backend = backend
        self._cluster = cluster
        self._kubeconfig = kubeconfig

    def join(self, nodes: Joined) -> tuple[AgentProcess, list[str]]:
        nodes.register(self._cluster, "node1", ["10.244.1.0/24"])
        nodes.register(self._cluster, "node2", ["10.244.2.0/24"])
        options = ["--network", self.network, "--profile", f"flannel-{self._backend}"]
        return nodes.add("node1", self._kubeconfig), options

    def publish(self, flannel: FlannelNode) -> None:
        self._cluster.patch("node2", {"metadata": {"annotations": flannel.annotations}})

    def withdraw(self, flannel: FlannelNode) -> None:
        self._cluster.remove_node("node2")

    def podwires(self) -> Seen | None:
        return read_node(self._cluster.node("node1"))

    def clean(self) -> None:
        for name in ("node1", "node2"):
            if self._cluster.has(name):
                self._cluster.remove_node(name)


class Pair:
    """Both nodes, each knowing the other, with a pod each."""

    def __init__(self, store: Store, nodes: Joined, flannel: FlannelNode) -> None:
        self.store = store
        self.nodes = nodes
        self.flannel = flannel
        self.agent, self.options = store.join(nodes)
        store.publish(flannel)
        self.agent.start(*self.options).wait_ready()
        self.pod, (self.pod_ip,) = nodes.pod(self.agent)
        found = until(store.podwires, "Podwire's lease is published")
        assert found is not None
        self.seen = found
        flannel.follow(self.seen)

    def ways(self) -> list[tuple[Namespace, str]]:
        """Who pings whom: pods and nodes, both directions."""
        return [
            (self.pod, self.flannel.pod_ip),
            (self.flannel.pod, self.pod_ip),
            (self.agent.namespace, self.flannel.pod_ip),
            (self.flannel.namespace, self.pod_ip),
        ]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiProcess, Path]]:
    directory = tmp_path_factory.mktemp("api")
    with running_api(directory / "api") as process:
        yield process, write_kubeconfig(directory / "kubeconfig", directory / "api" / "api.sock")


@pytest.fixture
def make_pair(
    api: tuple[ApiProcess, Path], make_namespace: Callable[[], Namespace], tmp_path: Path
) -> Iterator[Callable[[str, str], Pair]]:
    with ExitStack() as stack:

        def make(kind: str, backend: str) -> Pair:
            nodes = stack.enter_context(joined(make_namespace, tmp_path))
            store: Any
            if kind == "etcd":
                config = {"Network": InEtcd.network, "Backend": {"Type": backend}}
                etcd = stack.enter_context(etcd_in(nodes.hub, tmp_path / "etcd", config))
                store = InEtcd(etcd)
            else:
                store = InKubernetes(backend, Cluster(api[0]), api[1])
                stack.callback(store.clean)
            # For its namespace and its address: no agent is started there at first.
            place = nodes.add("node2", None).namespace
            flannel = FlannelNode(
                place, make_namespace(), THEIRS, store.network, store.subnet, backend
            )
            stack.enter_context(started(flannel))
            return Pair(store, nodes, flannel)

        yield make


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["etcd", "kube"])
def test_podwire_and_flannel_share_a_network(
    make_pair: Callable[[str, str], Pair], kind: str, backend: str
) -> None:
    pair = make_pair(kind, backend)
    flannel, seen = pair.flannel, pair.seen
    assert (str(seen.public_ip), seen.subnet.prefixlen) == (OURS, 24)
    if isinstance(pair.store, InEtcd):
        assert pair.store.time_to_live(seen) == 24 * 3600
    for source, target in pair.ways():
        answers(source, target)

    # Each node routes; with udp, its daemon at either end is a hop as well.
    hops = 4 if backend == "udp" else 2
    size = flannel.mtu - 28
    for source, target in pair.ways()[:2]:
        said = source.run(f"ping -c1 -W5 -M do -s {size} {target}")
        assert f"ttl={64 - hops}" in said, said
        assert "0% packet loss" in said
    transfer(pair.pod, flannel.pod, flannel.pod_ip)
    transfer(flannel.pod, pair.pod, pair.pod_ip)
    assert "not believed" not in pair.agent.log
    assert "not understood" not in pair.agent.log

    if backend == "vxlan":
        # flanneld makes its device anew when it starts, and with it another MAC.
        flannel.mac = "86:f5:2a:00:00:03"
        flannel.make_vtep()
        flannel.follow(seen)
        pair.store.publish(flannel)
        for source, target in pair.ways()[:2]:
            answers(source, target)

    # Gone from the store, gone from the kernel.
    pair.store.withdraw(flannel)
    subnet = str(flannel.subnet)
    until(lambda: pair.agent.http.plan()["changes"] == [] and not _knows(pair, subnet), "it left")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_node_of_flannel_becomes_one_of_podwire(
    make_pair: Callable[[str, str], Pair], backend: str
) -> None:
    """As the guide has it; the subnet stays."""
    pair = make_pair("etcd", backend)
    flannel, agent = pair.flannel, pair.nodes.agents["node2"]
    answers(flannel.pod, pair.pod_ip)
    flannel.close()
    for line in ("ip link del flannel.1", "ip link del cni0", "ip route flush root 10.5.0.0/16"):
        flannel.namespace.run(line, check="flannel.1" not in line or backend == "vxlan")
    agent.start(*pair.options).wait_ready()
    pod, (ip,) = pair.nodes.pod(agent)
    assert ip_address(ip) in flannel.subnet
    answers(pod, pair.pod_ip)
    answers(pair.pod, ip)
    assert "refused by the kernel" not in agent.log


def _knows(pair: Pair, subnet: str) -> bool:
    """Whether anything in Podwire's node's kernel is for Flannel's pods."""
    routes = pair.agent.namespace.run(f"ip route show {subnet}")
    fdb = pair.agent.namespace.run("bridge fdb show")
    return bool(routes) or pair.flannel.mac in fdb
