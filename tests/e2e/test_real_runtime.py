"""Podwire under real container runtimes: Debian's podman, and containerd as a kubelet uses it.

Two nodes, each with an agent and a runtime that knows of Podwire only what the agent wrote to
`/etc/cni/net.d` and to the directory of CNI executables. Both runtimes call ADD and DEL and none of
the later commands.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from podwire.cluster.kube import NODES, ClientConfig, KubeClient

from ..agent.conftest import write_kubeconfig
from ..cluster.api_process import ApiProcess
from . import busybox_image
from .runtime_node import RuntimeNode, require_root
from .runtimes import Containerd, Podman, RunFailedError, Runtime
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFLIST = "/etc/cni/net.d/10-podwire.conflist"


@dataclass(frozen=True)
class Cluster:
    """Two nodes. `seen_early`: whether a runtime took itself for ready before its agent was."""

    runtimes: tuple[Runtime, Runtime]
    kubeconfig: Path
    seen_early: bool

    def start_agent(self, runtime: Runtime) -> None:
        runtime.node.start_agent(self.kubeconfig, runtime.bin_dir)

    @contextmanager
    def agent_down(self, runtime: Runtime, number: signal.Signals) -> Iterator[None]:
        """A node without its agent, which was ended by this signal."""
        runtime.node.end("agent", number)
        try:
            yield
        finally:
            self.start_agent(runtime)


@dataclass
class Container:
    """A running container."""

    runtime: Runtime
    id: str
    gone: bool = False

    @property
    def ip(self) -> str:
        return self.runtime.ip(self.id)

    def exec(self, *command: str) -> str:
        return self.runtime.exec(self.id, *command)

    def ttl(self, ip: str) -> int:
        """Ping; the TTL that every answer came with."""
        said = self.exec("ping", "-c", "3", "-i", "0.2", "-W", "5", ip)
        ttls = set(re.findall(r"ttl=(\d+)", said))
        assert " 0% packet loss" in said and len(ttls) == 1, said
        return int(ttls.pop())

    def remove(self) -> None:
        if not self.gone:
            self.gone = True
            assert self.runtime.remove(self.id), f"{self.id} is not removed"


@contextmanager
def running(runtime: Runtime, name: str = "") -> Iterator[Container]:
    """A container, by a name of its own unless one is given."""
    container = Container(runtime, runtime.run(name or f"c{secrets.token_hex(3)}"))
    try:
        yield container
    finally:
        container.remove()


@pytest.fixture(scope="module", params=[Podman, Containerd])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield make_cluster(request.param, stack)


@pytest.fixture
def runtime(cluster: Cluster) -> Runtime:
    """That of node1, with nothing running."""
    runtime = cluster.runtimes[0]
    until(lambda: not runtime.node.attachments(), "no address is held")
    until(lambda: not runtime.node.pod_links(), "no veth pair is left")
    return runtime


def make_cluster(kind: type[Podman] | type[Containerd], stack: ExitStack) -> Cluster:
    require_root()
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podwire-rt-")))
    image = directory / "busybox.tar"
    busybox_image.write_image(image)
    api = stack.enter_context(ApiProcess(directory))
    kubeconfig = write_kubeconfig(directory / "kubeconfig", api.socket)

    first, second = _underlay(stack, 2)
    runtimes = []
    for number, netns in enumerate((first, second), 1):
        node = RuntimeNode(f"node{number}", netns, directory)
        stack.callback(node.stop)
        node.start()
        runtimes.append(kind(node))
        runtimes[-1].start(image)
    seen_early = any(runtime.sees_network() for runtime in runtimes)
    cluster = Cluster((runtimes[0], runtimes[1]), kubeconfig, seen_early)
    asyncio.run(_create_nodes(api.config, ["172.18.0.11", "172.18.0.12"]))
    for runtime in cluster.runtimes:
        cluster.start_agent(runtime)
        until(runtime.sees_network, f"the runtime of {runtime.node.name} sees the network")
    return cluster


def _underlay(stack: ExitStack, count: int) -> list[str]:
    """Network namespaces of nodes with eth0 on one bridge: 172.18.0.11, 172.18.0.12, …"""
    tag = f"pwt-{secrets.token_hex(4)}"
    hub, nodes = f"{tag}-hub", [f"{tag}-{number}" for number in range(1, count + 1)]
    for name in (hub, *nodes):
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)
        _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", hub, "link", "add", "br0", "up", "type", "bridge")
    for number, name in enumerate(nodes, 1):
        peer = f"p{number}"
        _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", peer, "netns", hub)
        _ip("-n", hub, "link", "set", peer, "master", "br0", "up")
        _ip("-n", name, "address", "add", f"172.18.0.{10 + number}/16", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
    return nodes


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


async def _create_nodes(config: ClientConfig, addresses: list[str]) -> None:
    async with KubeClient(config) as client:
        for number, address in enumerate(addresses, 1):
            node = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": f"node{number}"},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            }
            await client.create(NODES, node)


def test_the_network_is_found_as_soon_as_the_agent_is_ready_and_not_before(
    cluster: Cluster,
) -> None:
    assert not cluster.seen_early
    conflist = json.loads(cluster.runtimes[0].node.path(CONFLIST).read_text())
    # The versions of libcni in Debian 12 take the first and overlook the second.
    assert conflist["cniVersion"] == "1.0.0"
    assert conflist["cniVersions"] == ["1.0.0", "1.1.0"]


def test_containers_reach_each_other_across_nodes_and_on_one(cluster: Cluster) -> None:
    first, second = cluster.runtimes
    with running(first) as a, running(first) as b, running(second) as c:
        assert ip_address(a.ip) in ip_network("10.244.1.0/24")
        assert ip_address(b.ip) in ip_network("10.244.1.0/24")
        assert ip_address(c.ip) in ip_network("10.244.2.0/24")
        assert (a.ttl(c.ip), c.ttl(a.ip)) == (62, 62)
        assert (a.ttl(b.ip), b.ttl(a.ip)) == (64, 64)


def test_the_ip_that_the_runtime_tells_is_the_one_inside(runtime: Runtime) -> None:
    with running(runtime, "web") as web:
        said = web.exec("ip", "address", "show", "eth0")
        assert f"inet {web.ip}/24 " in said and "mtu 1450" in said
        attached = runtime.node.attachments()[web.id]
        assert (attached.state, attached.ips) == ("ready", [web.ip])
        assert (attached.pod_namespace, attached.pod_name) == (runtime.pod_namespace, "web")
        assert len(runtime.node.pod_links()) == 1


def test_a_container_that_is_removed_leaves_nothing(runtime: Runtime) -> None:
    with running(runtime) as one, running(runtime) as other:
        before = one.ip
        one.remove()
        until(lambda: list(runtime.node.attachments()) == [other.id], "the address is free")
        until(lambda: len(runtime.node.pod_links()) == 1, "the veth pair is gone")
        with running(runtime) as next_one:
            assert next_one.ip not in (before, other.ip)
    until(lambda: not runtime.node.attachments(), "no address is held")
    until(lambda: not runtime.node.pod_links(), "no veth pair is left")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGTERM, "No such file or directory"), (signal.SIGKILL, "Connection refused")],
)
def test_without_the_agent_no_container_starts_and_the_reason_is_told(
    cluster: Cluster, runtime: Runtime, number: signal.Signals, reason: str
) -> None:
    with cluster.agent_down(runtime, number):
        with pytest.raises(RunFailedError) as failure:
            runtime.run("early")
        assert f"podwire agent at /run/podwire/cni.sock: {reason}" in str(failure.value)
        assert runtime.node.pod_links() == []
    assert runtime.node.attachments() == {}
    with running(runtime, "early") as container:
        assert container.ttl("10.244.1.1") == 64


def test_a_container_removed_without_the_agent_holds_nothing_later(
    cluster: Cluster, runtime: Runtime
) -> None:
    with running(runtime) as container:
        with cluster.agent_down(runtime, signal.SIGTERM):
            # Podman says that DEL failed, and goes on; the agent sees by itself what is gone. A
            # kubelet tries again.
            container.gone = runtime.remove(container.id)
        container.remove()
    until(lambda: not runtime.node.attachments(), "no address is held")
    until(lambda: not runtime.node.pod_links(), "no veth pair is left")


def test_containers_outlive_the_agent(cluster: Cluster) -> None:
    first, second = cluster.runtimes
    with running(first) as a, running(second) as b:
        with cluster.agent_down(first, signal.SIGKILL):
            assert a.ttl(b.ip) == 62
        assert a.ttl(b.ip) == 62
        assert first.node.attachments()[a.id].ips == [a.ip]


@pytest.mark.parametrize("cluster", [Podman], indirect=True)
def test_podman_asks_for_an_address(cluster: Cluster) -> None:
    podman = cluster.runtimes[0]
    assert isinstance(podman, Podman)
    mac = "02:00:00:00:00:99"
    fixed = podman.run("fixed", "--ip", "10.244.1.99", "--mac-address", mac)
    try:
        assert (podman.ip(fixed), podman.mac(fixed)) == ("10.244.1.99", mac)
        assert f"link/ether {mac}" in podman.exec(fixed, "ip", "link", "show", "eth0")
        with pytest.raises(RunFailedError, match=r"10\.244\.1\.99 is held by pod fixed"):
            podman.run("second", "--ip", "10.244.1.99")
        with pytest.raises(RunFailedError, match=r"10\.9\.0\.9 is outside of this node's subnet"):
            podman.run("outside", "--ip", "10.9.0.9")
    finally:
        podman.remove(fixed)


@pytest.mark.parametrize("cluster", [Podman], indirect=True)
def test_podman_gives_a_restarted_container_an_address_again(cluster: Cluster) -> None:
    podman, other = cluster.runtimes
    assert isinstance(podman, Podman)
    with running(podman) as container, running(other) as peer:
        before = container.ip
        podman.command("restart", "--time", "0", container.id)
        assert container.ip != before and peer.ttl(container.ip) == 62
        assert podman.node.attachments()[container.id].ips == [container.ip]


@pytest.mark.parametrize("cluster", [Containerd], indirect=True)
def test_ctr_runs_a_container_once(cluster: Cluster, runtime: Runtime) -> None:
    assert isinstance(runtime, Containerd)
    assert "inet 10.244.1." in runtime.run_once("once", "ip", "address", "show", "eth0")
    until(lambda: not runtime.node.attachments(), "no address is held")


@pytest.mark.parametrize("cluster", [Containerd], indirect=True)
def test_a_containerd_that_dies_finds_its_pods_again(cluster: Cluster) -> None:
    containerd, other = cluster.runtimes
    assert isinstance(containerd, Containerd)
    with running(containerd) as pod, running(other) as peer:
        before = pod.ip
        containerd.node.end("containerd", signal.SIGKILL)
        assert peer.ttl(before) == 62
        containerd.serve()
        assert pod.ip == before
    until(lambda: not containerd.node.attachments(), "no address is held")
