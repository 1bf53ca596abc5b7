"""Plain hosts without Kubernetes: their network is in etcd, as Flannel's is, and stands what comes.

Three hosts, an etcd of three members with TLS, client certificates and users, and containers that
are attached as a container engine does it: by the configuration that the agent wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

import pytest

from podwire.lab.cni_network import Attachment, CniError, load_network
from podwire.lab.runtime_cni import CniRuntime

from ..agent.conftest import AgentProcess
from ..agent.joined import Joined, answers, joined, settled
from ..conftest import Namespace, namespaces
from .etcd_cluster import EtcdCluster, running
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

NETWORK = "10.5.0.0/16"
CONFIG = {"Network": NETWORK, "Backend": {"Type": "vxlan"}}
HUB = "172.18.0.1"
#: Of a node that nobody runs: what it has is in the store alone.
GHOST = {
    "PublicIP": "172.18.0.99",
    "PublicIPv6": None,
    "BackendType": "vxlan",
    "BackendData": {"VNI": 1, "VtepMAC": "86:f5:2a:00:00:99"},
}


@dataclass
class Container:
    """A container on `host`: a network namespace, which an engine attached."""

    host: AgentProcess
    namespace: Namespace
    id: str
    ip: str

    def reaches(self, other: Container) -> None:
        answers(self.namespace, other.ip)


class Hosts:
    """The hosts, each with an agent, and a container on each."""

    def __init__(
        self, make_namespace: Callable[[], Namespace], nodes: Joined, etcd: EtcdCluster
    ) -> None:
        self._make_namespace = make_namespace
        self._count = 0
        self.etcd = etcd
        self.agents = [nodes.add(f"node{number}", None) for number in (1, 2, 3)]
        for agent in self.agents:
            agent.start("--store", etcd.store)
        for agent in self.agents:
            agent.wait_ready()
        self.containers = [self.run(agent) for agent in self.agents]

    def run(self, host: AgentProcess, **asked: Any) -> Container:
        """A container, attached as libcni does it for an engine, with what that asks for."""
        self._count += 1
        network = load_network(host.conflist.parent)
        assert network is not None
        namespace = self._make_namespace()
        name = f"c{self._count}"
        attachment = Attachment(name, namespace.path, **asked)
        result = asyncio.run(self._engine(host).add(network, attachment))
        (ip,) = result["ips"]
        return Container(host, namespace, name, ip["address"].partition("/")[0])

    def remove(self, container: Container) -> None:
        network = load_network(container.host.conflist.parent)
        assert network is not None
        attachment = Attachment(container.id, container.namespace.path)
        asyncio.run(self._engine(container.host).delete(network, attachment))

    def all_reach_each_other(self) -> None:
        for one in self.containers:
            for other in self.containers:
                if other is not one:
                    one.reaches(other)

    def subnet(self, agent: AgentProcess) -> IPv4Network:
        """What an agent told other programs of its lease."""
        found = re.search(r"FLANNEL_SUBNET=(\S+)", agent.subnet_env.read_text())
        assert found is not None
        return IPv4Network(found[1], strict=False)

    def name(self, agent: AgentProcess) -> str:
        """The last part of the key of its lease."""
        return str(self.subnet(agent)).replace("/", "-")

    def _engine(self, host: AgentProcess) -> CniRuntime:
        return CniRuntime([host.executable.parent], host.home / "cni")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    directory = tmp_path_factory.mktemp("hosts")
    with (
        namespaces() as make,
        joined(make, directory) as nodes,
        running(nodes.hub, directory / "etcd", HUB, "/prod/net", CONFIG) as etcd,
    ):
        yield Hosts(make, nodes, etcd)


@contextlib.contextmanager
def pinging(source: Container, target: Container) -> Iterator[None]:
    """A ping each 20 ms while the block lasts; none is lost but those still under way then."""
    process = subprocess.Popen(
        ["ip", "netns", "exec", source.namespace.name, "ping", "-n", "-w120", "-i0.02", target.ip],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        while "bytes from" not in (line := process.stdout.readline()):
            assert line, "no ping was answered"
        yield
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", line + said)}
    assert set(range(min(answered), max(answered))) - answered == set(), said


@contextlib.contextmanager
def paused(agent: AgentProcess) -> Iterator[None]:
    """An agent that does nothing while the block lasts."""
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        agent.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def without_store(agent: AgentProcess) -> Iterator[None]:
    """A host whose connections to etcd are reset while the block lasts."""
    agent.namespace.run(
        "nft add table ip cut;"
        "nft add chain ip cut out '{ type filter hook output priority 0; }';"
        f"nft add rule ip cut out ip daddr {HUB} tcp dport 2379-2399 reject with tcp reset"
    )
    try:
        yield
    finally:
        agent.namespace.run("nft delete table ip cut")


def is_connected(agent: AgentProcess) -> bool:
    """Whether it watches etcd."""
    return agent.http.metric("podwire_api_connected") == 1


def route(agent: AgentProcess, subnet: IPv4Network | str) -> str:
    return agent.namespace.run(f"ip route show {subnet}")


def knows(agents: list[AgentProcess], subnet: IPv4Network | str) -> None:
    for agent in agents:
        until(lambda: route(agent, subnet), f"{agent.name} has a route to {subnet}")  # noqa: B023


def forgets(agents: list[AgentProcess], subnet: IPv4Network | str) -> None:
    for agent in agents:
        until(lambda: not route(agent, subnet), f"{agent.name} has no route to {subnet}")  # noqa: B023


def test_containers_of_all_hosts_reach_each_other(hosts: Hosts) -> None:
    hosts.all_reach_each_other()
    for agent, container in zip(hosts.agents, hosts.containers, strict=True):
        subnet = hosts.subnet(agent)
        assert agent.subnet_env.read_text() == (
            f"FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET={subnet[1]}/24\n"
            "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        )
        value = hosts.etcd.leases()[hosts.name(agent)]
        mac = agent.json("ip -j link show flannel.1")[0]["address"]
        assert value == {
            "PublicIP": f"172.18.0.1{agent.name[-1]}",
            "PublicIPv6": None,
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": mac},
            "PodwireNode": agent.name,
        }
        # And what is no container: masqueraded.
        answers(container.namespace, HUB)


def test_a_container_that_goes_leaves_its_address_and_no_link(hosts: Hosts) -> None:
    agent = hosts.agents[0]
    links = agent.namespace.run("ip -br link")
    container = hosts.run(agent)
    hosts.containers[1].reaches(container)
    for _ in range(2):
        hosts.remove(container)
    assert agent.namespace.run("ip -br link") == links


def test_a_container_has_the_address_that_is_asked_for_or_none(hosts: Hosts) -> None:
    """As `podman run --ip` and `nerdctl run --ip` do, and by CNI's capability."""
    agent, peer = hosts.agents[0], hosts.containers[1]
    by_args, by_capability = (str(hosts.subnet(agent)[number]) for number in (77, 78))
    args = (("IgnoreUnknown", "1"), ("K8S_POD_NAME", "web"), ("IP", by_args))
    containers = [hosts.run(agent, args=args)]
    containers.append(hosts.run(agent, capabilities={"ips": [f"{by_capability}/24"]}))
    assert [one.ip for one in containers] == [by_args, by_capability]
    for one in containers:
        peer.reaches(one)
    taken = hosts.subnet(peer.host)[2]
    for ip, said in (
        (by_args, "is held by pod web"),
        (hosts.subnet(agent)[1], "is the gateway"),
        (taken, "is outside of this node's subnet"),
        ("fd00::9", "is outside of this node's subnet"),
        ("10.5.0.300", "CNI_ARGS IP: '10.5.0.300' is not an IP address"),
    ):
        with pytest.raises(CniError, match=said):
            hosts.run(agent, args=(("IgnoreUnknown", "1"), ("IP", str(ip))))
    # A kubelet's pods: what their annotations ask for, nobody here can know.
    pod = (("K8S_POD_NAMESPACE", "default"), ("K8S_POD_NAME", "web"))
    containers += [hosts.run(agent, args=pod) for _ in range(2)]
    assert agent.log.count("annotations of pods are not read") == 1
    for one in containers:
        hosts.remove(one)


def test_the_leader_dies(hosts: Hosts) -> None:
    """Nobody's traffic minds, and what changes is learned of from the others."""
    first, second, _ = hosts.containers
    leader = hosts.etcd.leader()
    with pinging(first, second):
        hosts.etcd.kill(leader)
        hosts.etcd.put("subnets/10.5.250.0-24", GHOST)
        knows(hosts.agents, "10.5.250.0/24")
        hosts.etcd.start(leader)
        hosts.etcd.delete("subnets/10.5.250.0-24")
        forgets(hosts.agents, "10.5.250.0/24")


def test_all_of_etcd_is_away(hosts: Hosts) -> None:
    """Traffic goes on, containers are run and removed; even an agent may start anew."""
    first, second, third = hosts.containers
    before, restarted = hosts.etcd.leases(), hosts.agents[2]
    with pinging(first, second), pinging(second, third):
        hosts.etcd.kill()
        container = hosts.run(first.host)
        second.reaches(container)
        hosts.remove(container)
        assert restarted.stop() == 0
        restarted.start("--store", hosts.etcd.store)
        restarted.wait_not_ready("etcd")
        third.reaches(first)
        hosts.etcd.start()
        restarted.wait_ready()
    assert hosts.etcd.leases() == before
    hosts.all_reach_each_other()
    for agent in hosts.agents:
        until(lambda: is_connected(agent), f"{agent.name} is connected")  # noqa: B023
        settled(agent)


def test_a_lease_that_expires_is_forgotten_and_acquired_anew(hosts: Hosts) -> None:
    first, second, third = hosts.containers
    subnet, others = hosts.subnet(third.host), hosts.agents[:2]
    with pinging(first, second):
        with paused(third.host):
            hosts.etcd.expire(hosts.name(third.host))
            forgets(others, subnet)
        knows(others, subnet)
    assert hosts.subnet(third.host) == subnet
    hosts.all_reach_each_other()


def test_a_subnet_that_another_node_took_is_left_to_it(hosts: Hosts) -> None:
    """The node gets another one; of the others, nobody notices."""
    first, second, third = hosts.containers
    host, subnet, name = third.host, hosts.subnet(third.host), hosts.name(third.host)
    with pinging(first, second):
        with paused(host):
            hosts.etcd.expire(name)
            hosts.etcd.put(f"subnets/{name}", GHOST)
        until(lambda: hosts.subnet(host) != subnet, "it has another subnet")
        host.wait_ready()
    assert "pods have addresses outside of the lease" in host.log
    anew = hosts.run(host)
    anew.reaches(first)
    second.reaches(anew)
    knows(hosts.agents, subnet)
    assert "172.18.0.99" in first.host.namespace.run("bridge fdb show dev flannel.1")
    # The other one goes; the container of before is replaced.
    hosts.etcd.delete(f"subnets/{name}")
    hosts.remove(third)
    hosts.containers[2] = anew
    forgets(hosts.agents, subnet)
    hosts.all_reach_each_other()


def test_a_restart_keeps_the_subnet_even_if_the_store_forgot_it(hosts: Hosts) -> None:
    agent, name = hosts.agents[1], hosts.name(hosts.agents[1])
    assert agent.stop() == 0
    hosts.etcd.delete(f"subnets/{name}")
    agent.start("--store", hosts.etcd.store).wait_ready()
    assert hosts.name(agent) == name
    assert hosts.etcd.leases()[name]["PodwireNode"] == agent.name
    hosts.all_reach_each_other()


def test_a_host_that_was_cut_off_catches_up_past_a_compaction(hosts: Hosts) -> None:
    first, second, _ = hosts.containers
    agent, etcd = first.host, hosts.etcd
    etcd.put("subnets/10.5.251.0-24", GHOST)
    knows(hosts.agents, "10.5.251.0/24")
    with pinging(first, second), without_store(agent):
        # Its watch is told of this one, and ends with the answer to that.
        etcd.put("subnets/10.5.253.0-24", GHOST)
        until(lambda: not is_connected(agent), "it is cut off")
        etcd.delete("subnets/10.5.253.0-24")
        etcd.delete("subnets/10.5.251.0-24")
        etcd.put("subnets/10.5.252.0-24", GHOST)
        etcd.compact()
        forgets(hosts.agents[1:], "10.5.251.0/24")
        assert route(agent, "10.5.251.0/24")
    forgets([agent], "10.5.251.0/24")
    knows([agent], "10.5.252.0/24")
    etcd.delete("subnets/10.5.252.0-24")
    forgets(hosts.agents, "10.5.252.0/24")


def test_a_host_with_another_address_keeps_its_subnet(hosts: Hosts) -> None:
    """Its peers find it at the new one, and go back with it."""
    first, second, third = hosts.containers
    host, name = third.host, hosts.name(third.host)
    with pinging(first, second):
        for old, new in (("172.18.0.13", "172.18.0.33"), ("172.18.0.33", "172.18.0.13")):
            host.namespace.run(
                f"ip address del {old}/16 dev eth0; ip address add {new}/16 dev eth0;"
                f"ip route replace default via {HUB}"
            )
            until(lambda: hosts.etcd.leases()[name]["PublicIP"] == new, "it is told")  # noqa: B023
            host.wait_ready()
            hosts.all_reach_each_other()
    assert hosts.name(host) == name


def test_another_backend_is_taken_in_by_all_hosts(hosts: Hosts) -> None:
    """The containers keep their addresses, and nothing is left of the other one."""
    before = set(hosts.etcd.leases())
    for backend, device in (("host-gw", "eth0"), ("vxlan", "flannel.1")):
        hosts.etcd.put("config", {**CONFIG, "Backend": {"Type": backend}})
        for agent in hosts.agents:
            others = [hosts.subnet(other) for other in hosts.agents if other is not agent]
            until(
                lambda: all(f"dev {device}" in route(agent, one) for one in others),  # noqa: B023
                f"{agent.name} routes by {device}",
            )
        hosts.all_reach_each_other()
        for agent in hosts.agents:
            agent.wait_ready()
            settled(agent)
            has_vtep = "flannel.1" in agent.namespace.run("ip -br link")
            assert has_vtep == (backend == "vxlan")
        leases = hosts.etcd.leases()
        assert {one["BackendType"] for one in leases.values()} == {backend}
        assert set(leases) == before


#: What a neighbour wrote wrongly, and what is said of it.
WRONG: dict[str, tuple[Any, str]] = {
    "10.5.240.0-24": ("{", "10.5.240.0-24: "),
    "10.5.241.0-24": ({"PublicIP": 5}, "10.5.241.0-24: "),
    "10.5.242.0-24": ({**GHOST, "BackendData": {"VNI": "1"}}, "10.5.242.0-24: "),
    "10.5.243.0/24": (GHOST, "10.5.243.0/24: "),
    "10.5.244.0-24": ({"PublicIP": "172.18.0.98", "BackendType": "wireguard"}, "wireguard"),
    "10.5.0.0-17": ({**GHOST, "PublicIP": "172.18.0.97"}, "10.5.0.0/17"),
    "192.0.2.0-24": ({**GHOST, "PublicIP": "172.18.0.96"}, "outside of the cluster network"),
    "10.5.245.0-24": ({**GHOST, "PublicIP": "172.18.0.11"}, "claims this node's address"),
}


def test_what_a_neighbour_wrote_wrongly_is_named_and_harms_nobody(hosts: Hosts) -> None:
    agent = hosts.agents[0]
    before = agent.namespace.run("ip route; bridge fdb show dev flannel.1; ip neighbor")
    with pinging(*hosts.containers[:2]):
        for key, (value, _) in WRONG.items():
            hosts.etcd.put(f"subnets/{key}", value)
        for _, said in WRONG.values():
            until(lambda: said in agent.log, f"it is said: {said}")  # noqa: B023
        hosts.all_reach_each_other()
        settled(agent)
        now = agent.namespace.run("ip route; bridge fdb show dev flannel.1; ip neighbor")
        assert _entries(now) == _entries(before)
    for key in WRONG:
        hosts.etcd.delete(f"subnets/{key}")


def _entries(listing: str) -> set[str]:
    """What was listed, less what the kernel learns by itself."""
    return {line for line in listing.splitlines() if "PERMANENT" in line or "via" in line}
