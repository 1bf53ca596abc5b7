"""A node of Podwire and one of Flannel share a network: each of Flannel's backends, both stores.

Flannel's node is made by hand (`flannel_node`), from nothing but what Podwire's published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from ..agent.conftest import AgentProcess, Cluster, write_kubeconfig
from ..agent.joined import Etcd, Joined, answers, etcd_in, joined
from ..cluster.api_process import ApiProcess
from ..conftest import Namespace
from .flannel_node import FlannelNode, Seen, read_key, read_node, started
from .transfer import transfer
from .waiting import until

pytestmark = pytest.mark.root

BACKENDS = ("vxlan", "host-gw", "udp")
#: vxlan with DirectRouting, in which all nodes here are neighbours.
DIRECT = "vxlan, direct"
#: Who shares what: the store, the backend, and the IP versions of underlay and pods. In etcd,
#: flanneld can't run a network without IPv4.
SHARED = [
    *((kind, backend, (4,)) for kind in ("etcd", "kube") for backend in BACKENDS),
    ("etcd", "vxlan", (4, 6)),
    ("kube", "host-gw", (4, 6)),
    ("etcd", DIRECT, (4, 6)),
    ("kube", "vxlan", (6,)),
    ("kube", "host-gw", (6,)),
]


class Store(Protocol):
    """Where the leases are, as flanneld uses it. By IP version: the network, Flannel's subnet."""

    networks: ClassVar[dict[int, str]]
    subnets: ClassVar[dict[int, str]]

    def join(self, nodes: Joined) -> tuple[AgentProcess, list[str]]:
        """Podwire's node, and the options of its agent."""

    def publish(self, flannel: FlannelNode) -> None:
        """Flannel's lease."""

    def withdraw(self, flannel: FlannelNode) -> None: ...

    def podwires(self) -> Seen | None:
        """Podwire's lease, as soon as there is one."""


class InEtcd:
    networks: ClassVar = {4: "10.5.0.0/16", 6: "fd00:5::/48"}
    subnets: ClassVar = {4: "10.5.34.0/24", 6: "fd00:5:0:34::/64"}

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd

    @classmethod
    def config(cls, backend: str, versions: Sequence[int]) -> dict[str, Any]:
        chosen = {"Type": backend.partition(",")[0], "DirectRouting": backend == DIRECT}
        found: dict[str, Any] = {"Network": cls.networks[4], "Backend": chosen}
        return found | (
            {"EnableIPv6": True, "IPv6Network": cls.networks[6]} if 6 in versions else {}
        )

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
        return next((one for one in found if str(one.ways[0].public_ip) == "172.18.0.11"), None)

    def time_to_live(self, seen: Seen) -> int:
        """For how many seconds a lease was granted."""
        name = str(seen.ways[0].subnet).replace("/", "-")
        fields = self._etcd.call(f"get -w fields --prefix /coreos.com/network/subnets/{name}")
        lease = int(re.findall(r'"Lease" : (\d+)', fields)[0])
        told = self._etcd.call(f"lease timetolive {lease:x}")
        return int(re.findall(r"granted with TTL\((\d+)s\)", told)[0])


class InKubernetes:
    networks: ClassVar = {4: "10.244.0.0/16", 6: "fd00:244::/48"}
    subnets: ClassVar = {4: "10.244.2.0/24", 6: "fd00:244:0:2::/64"}
    _OURS: ClassVar = {4: "10.244.1.0/24", 6: "fd00:244:0:1::/64"}

    def __init__(self, backend: str, cluster: Cluster, kubeconfig: Path) -> None:
        self._backend = backend
        self._cluster = cluster
        self._kubeconfig = kubeconfig

    def join(self, nodes: Joined) -> tuple[AgentProcess, list[str]]:
        for name, subnets in (("node1", self._OURS), ("node2", self.subnets)):
            nodes.register(self._cluster, name, [subnets[version] for version in nodes.versions])
        networks = ",".join(self.networks[version] for version in nodes.versions)
        options = ["--network", networks, "--profile", f"flannel-{self._backend}"]
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
        self.pod, self.pod_ips = nodes.pod(self.agent)
        found = until(store.podwires, "Podwire's lease is published")
        assert found is not None
        self.seen = found
        flannel.follow(self.seen)

    @property
    def between_pods(self) -> list[tuple[Namespace, Namespace, str]]:
        """From whom to whom, and by which address: both directions, each family."""
        return [
            *((self.pod, self.flannel.pod, ip) for ip in self.flannel.pod_ips),
            *((self.flannel.pod, self.pod, ip) for ip in self.pod_ips),
        ]

    def reach_each_other(self) -> None:
        """Pods and nodes."""
        for source, _, ip in self.between_pods:
            answers(source, ip)
        for ip in self.flannel.pod_ips:
            answers(self.agent.namespace, ip)
        for ip in self.pod_ips:
            answers(self.flannel.namespace, ip)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiProcess, Path]]:
    directory = tmp_path_factory.mktemp("api")
    with ApiProcess(directory / "api") as process:
        yield process, write_kubeconfig(directory / "kubeconfig", directory / "api" / "api.sock")


@pytest.fixture
def make_pair(
    api: tuple[ApiProcess, Path], make_namespace: Callable[[], Namespace], tmp_path: Path
) -> Iterator[Callable[[str, str, Sequence[int]], Pair]]:
    with ExitStack() as stack:

        def make(kind: str, backend: str, versions: Sequence[int]) -> Pair:
            nodes = stack.enter_context(joined(make_namespace, tmp_path, versions=versions))
            store: Any
            if kind == "etcd":
                config = InEtcd.config(backend, versions)
                etcd = stack.enter_context(etcd_in(nodes.hub, tmp_path / "etcd", config))
                store = InEtcd(etcd)
            else:
                store = InKubernetes(backend, Cluster(api[0]), api[1])
                stack.callback(store.clean)
            flannel = FlannelNode(
                # For its namespace and its addresses: no agent is started there at first.
                nodes.add("node2", None).namespace,
                make_namespace(),
                backend.partition(",")[0],
                store.networks[versions[0]],
                nodes.addresses("node2"),
                [store.subnets[version] for version in versions],
                direct=backend == DIRECT,
            )
            stack.enter_context(started(flannel))
            return Pair(store, nodes, flannel)

        yield make


@pytest.mark.parametrize(("kind", "backend", "versions"), SHARED)
def test_podwire_and_flannel_share_a_network(
    make_pair: Callable[[str, str, Sequence[int]], Pair],
    kind: str,
    backend: str,
    versions: Sequence[int],
) -> None:
    pair = make_pair(kind, backend, versions)
    flannel, seen = pair.flannel, pair.seen
    assert [str(way.public_ip) for way in seen.ways] == pair.nodes.addresses("node1")
    if isinstance(pair.store, InEtcd):
        assert pair.store.time_to_live(seen) == 24 * 3600
    pair.reach_each_other()
    if backend == DIRECT:
        for subnet, address in zip(flannel.subnets, flannel.addresses, strict=True):
            assert f"via {address} dev eth0" in _route(pair.agent.namespace, subnet)

    # Each node routes; with udp, its daemon at either end is a hop as well.
    hops = 4 if backend == "udp" else 2
    for source, target, ip in pair.between_pods:
        size = flannel.mtu - (48 if ":" in ip else 28)
        said = source.run(f"ping -c1 -W5 -M do -s {size} {ip}")
        assert f"ttl={64 - hops}" in said, said
        transfer(source, target, ip)
    assert "not believed" not in pair.agent.log
    assert "not understood" not in pair.agent.log

    if backend == "vxlan":
        # flanneld makes its devices anew when it starts, and with them other MACs.
        flannel.macs = {4: "86:f5:2a:00:01:04", 6: "86:f5:2a:00:01:06"}
        flannel.make_vteps()
        flannel.follow(seen)
        pair.store.publish(flannel)
        pair.reach_each_other()

    # Gone from the store, gone from the kernel.
    pair.store.withdraw(flannel)
    until(lambda: pair.agent.http.plan()["changes"] == [] and not _knows(pair), "it left")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_node_of_flannel_becomes_one_of_podwire(
    make_pair: Callable[[str, str, Sequence[int]], Pair], backend: str
) -> None:
    """As the guide has it; the subnet stays."""
    pair = make_pair("etcd", backend, (4,))
    flannel, agent = pair.flannel, pair.nodes.agents["node2"]
    answers(flannel.pod, pair.pod_ips[0])
    flannel.close()
    for line in ("ip link del flannel.1", "ip link del cni0", "ip route flush root 10.5.0.0/16"):
        flannel.namespace.run(line, check="flannel.1" not in line or backend == "vxlan")
    agent.start(*pair.options).wait_ready()
    pod, (ip,) = pair.nodes.pod(agent)
    assert ip_address(ip) in flannel.subnets[0]
    answers(pod, pair.pod_ips[0])
    answers(pair.pod, ip)
    assert "refused by the kernel" not in agent.log


def _route(node: Namespace, subnet: IPv4Network | IPv6Network) -> str:
    return node.run(f"ip -{subnet.version} route show {subnet}")


def _knows(pair: Pair) -> bool:
    """Whether anything in Podwire's node's kernel is for Flannel's pods."""
    node, flannel = pair.agent.namespace, pair.flannel
    routes = [_route(node, subnet) for subnet in flannel.subnets]
    fdb = node.run("bridge fdb show")
    return any(routes) or any(mac in fdb for mac in flannel.macs.values())
