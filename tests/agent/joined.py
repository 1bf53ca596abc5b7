"""Agents whose underlay joins them: nodes as plain namespaces on a switch, or behind a router."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from podwire.cluster.kube import NODES

from ..conftest import Namespace
from ..e2e.waiting import DEADLINE_S, until
from .conftest import AgentProcess, Cluster

ETCD_PORT = 2379
_CONF = '{"cniVersion":"1.1.0","name":"podwire","type":"podwire"}'


def call_cni(
    agent: AgentProcess, command: str, container: str, pod: Namespace
) -> tuple[int, dict[str, Any]]:
    """One call of the CNI executable for `pod`: its exit code, and what it answered."""
    done = subprocess.run(
        [agent.executable],
        input=_CONF,
        env={
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(agent.executable.parent),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


def cni(agent: AgentProcess, command: str, container: str, pod: Namespace) -> dict[str, Any]:
    """The answer to a call of the CNI executable, which succeeds."""
    code, found = call_cni(agent, command, container, pod)
    assert code == 0, found
    return found


class Joined:
    """An underlay with nodes on it. Node N of a switch is 172.18.0.(10+N) and fd00:172:18::(1N);
    of a router 172.18.S.(10+N) and fd00:172:18:S::(1N), S being 1 for odd N and 2 for even N."""

    def __init__(
        self,
        make_namespace: Callable[[], Namespace],
        directory: Path,
        *,
        versions: Sequence[int] = (4,),
        routed: bool = False,
    ) -> None:
        self._make_namespace = make_namespace
        self._directory = directory
        self.versions = tuple(versions)
        self.routed = routed
        self.agents: dict[str, AgentProcess] = {}
        self.hub = make_namespace()
        for segment in (1, 2) if routed else (0,):
            lines = [f"ip link add br{segment} type bridge; ip link set br{segment} up"]
            lines += [f"ip address add {ip} dev br{segment}" for ip in self._ips(segment, 1, "1")]
            self.hub.run("; ".join(lines))
        self.hub.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")

    def _ips(self, segment: int, host: int, host6: str) -> list[str]:
        nodad = " nodad"
        if self.routed:
            both = {4: f"172.18.{segment}.{host}/24", 6: f"fd00:172:18:{segment}::{host6}/64"}
        else:
            both = {4: f"172.18.0.{host}/16", 6: f"fd00:172:18::{host6}/64"}
        return [both[version] + (nodad if version == 6 else "") for version in self.versions]

    def add(self, name: str, kubeconfig: Path | None) -> AgentProcess:
        """A node, whose agent is not started yet; without Kubernetes where there is no
        kubeconfig."""
        number = int(name[-1])
        segment = 2 - number % 2 if self.routed else 0
        namespace = self._make_namespace()
        self.hub.run(
            f"ip link add {name} type veth peer name eth0 netns {namespace.name};"
            f"ip link set {name} master br{segment} up"
        )
        lines = ["ip link set eth0 up"]
        lines += [
            f"ip address add {ip} dev eth0" for ip in self._ips(segment, 10 + number, f"1{number}")
        ]
        routers = [ip_interface(ip.split()[0]).ip for ip in self._ips(segment, 1, "1")]
        lines += [f"ip route add default via {ip}" for ip in routers]
        namespace.run("; ".join(lines))
        agent = AgentProcess(namespace, self._directory / name, kubeconfig or Path("/none"), name)
        self.agents[name] = agent
        return agent

    def addresses(self, name: str) -> list[str]:
        """Of a node's underlay."""
        number = int(name[-1])
        segment = 2 - number % 2
        return [ip.split("/")[0] for ip in self._ips(segment, 10 + number, f"1{number}")]

    def register(self, cluster: Cluster, name: str, cidrs: Sequence[str]) -> None:
        """Create a node's object."""
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)},
        }
        ips = [{"type": "InternalIP", "address": ip} for ip in self.addresses(name)]
        status = {"status": {"addresses": ips}}
        cluster.call(lambda client: client.create(NODES, node))
        cluster.call(lambda client: client.merge_patch(NODES, name, status, subresource="status"))

    def pod(self, agent: AgentProcess, container: str = "c1") -> tuple[Namespace, list[str]]:
        """A pod on a node: its namespace and its addresses."""
        namespace = self._make_namespace()
        found = cni(agent, "ADD", container, namespace)
        return namespace, [one["address"].partition("/")[0] for one in found["ips"]]

    def close(self) -> None:
        for agent in self.agents.values():
            process = agent.process
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            # What outlives an agent, in its namespace.
            pids = subprocess.run(
                ["ip", "netns", "pids", agent.namespace.name], capture_output=True, text=True
            ).stdout.split()
            if pids:
                subprocess.run(["kill", "-9", *pids], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def joined(
    make_namespace: Callable[[], Namespace], directory: Path, **options: Any
) -> Iterator[Joined]:
    """An underlay; its agents and their tunnels end with the block."""
    one = Joined(make_namespace, directory, **options)
    try:
        yield one
    finally:
        one.close()


@contextmanager
def etcd_in(namespace: Namespace, directory: Path, config: dict[str, Any]) -> Iterator[Etcd]:
    """An etcd in a namespace, with a network's configuration where flanneld looks for it."""
    directory.mkdir()
    server = Etcd(namespace, directory)
    server.start()
    try:
        server.put("/coreos.com/network/config", json.dumps(config))
        yield server
    finally:
        server.stop()


class Etcd:
    """A real etcd; it may be stopped and started again."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self._namespace = namespace
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self._namespace.name, "etcd"),
                    *("--data-dir", str(self._directory / "data")),
                    *("--listen-client-urls", f"http://[::]:{ETCD_PORT}"),
                    *("--advertise-client-urls", f"http://127.0.0.1:{ETCD_PORT}"),
                    *("--listen-peer-urls", "http://127.0.0.1:2380"),
                ],
                stdout=log,
                stderr=log,
            )
        until(lambda: self.call("endpoint health", check=False), "etcd is healthy")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE_S)
            self._process = None

    def call(self, line: str, *, check: bool = True) -> str:
        """Run etcdctl."""
        endpoint = f"--endpoints=http://127.0.0.1:{ETCD_PORT}"
        done = subprocess.run(
            ["ip", "netns", "exec", self._namespace.name, "etcdctl", endpoint, *line.split()],
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + (done.stderr if done.returncode == 0 else "")

    def put(self, key: str, value: str) -> None:
        endpoint = f"--endpoints=http://127.0.0.1:{ETCD_PORT}"
        subprocess.run(
            ["ip", "netns", "exec", self._namespace.name, "etcdctl", endpoint, "put", key, value],
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
            check=True,
            capture_output=True,
        )

    def leases(self) -> dict[str, Any]:
        """The leases, by the last part of their keys."""
        lines = self.call("get --prefix /coreos.com/network/subnets/").splitlines()
        pairs = zip(lines[::2], lines[1::2], strict=True)
        return {key.rpartition("/")[2]: json.loads(value) for key, value in pairs}


def tunnel_pids(agent: AgentProcess) -> list[int]:
    """The processes of UDP tunnels in an agent's namespace."""
    pids = agent.namespace.run(f"ip netns pids {agent.namespace.name}").split()
    found = []
    for pid in pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "podwire.tunnel" in command:
            found.append(int(pid))
    return found


def answers(pod: Namespace, target: str) -> None:
    """Wait until a pod's ping is answered."""
    until(lambda: not pod.run(f"ping -c1 -W1 {target} >&2 || echo no"), f"{target} answers")


def settled(agent: AgentProcess) -> None:
    """Wait until nothing is left to do."""
    deadline = time.monotonic() + DEADLINE_S
    while changes := agent.http.plan()["changes"]:
        assert time.monotonic() < deadline, changes
        time.sleep(0.01)
