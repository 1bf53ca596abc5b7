"""Agents outside of any lab: a plain namespace each, and an API server in front."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from podwire.cluster.kube import NODES, KubeClient
from podwire.errors import NotFoundError

from ..cluster.api_process import ApiProcess
from ..conftest import Namespace
from ..e2e.waiting import DEADLINE_S, until
from .agent_http import AgentHttp

T = TypeVar("T")

PODWIRE = Path(sys.executable).with_name("podwire")
UNDERLAY = "ip link add eth0 type veth peer name wire; ip link set wire up; ip link set eth0 up"


class Cluster:
    """An API server, and Node objects in it."""

    def __init__(self, api: ApiProcess) -> None:
        self.api = api

    def call(self, work: Callable[[KubeClient], Awaitable[T]]) -> T:
        async def connected() -> T:
            async with KubeClient(self.api.config) as client:
                return await work(client)

        return asyncio.run(connected())

    def add_node(self, name: str, annotations: dict[str, str] | None = None) -> dict[str, Any]:
        """Register a node, which has 172.18.0.(10+N), and wait until it has a podCIDR."""
        metadata = {"name": name, "annotations": annotations or {}}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        ip = {"type": "InternalIP", "address": f"172.18.0.{10 + int(name[-1])}"}
        status = {"status": {"addresses": [ip]}}
        self.call(lambda client: client.create(NODES, node))
        self.call(lambda client: client.merge_patch(NODES, name, status, subresource="status"))
        until(lambda: self.node(name)["spec"].get("podCIDR"), f"{name} has a podCIDR")
        return self.node(name)

    def node(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call(lambda client: client.get(NODES, name))
        return found

    def patch(self, name: str, patch: dict[str, Any]) -> None:
        self.call(lambda client: client.merge_patch(NODES, name, patch))

    def remove_node(self, name: str) -> None:
        self.call(lambda client: client.delete(NODES, name))

    def has(self, name: str) -> bool:
        try:
            self.node(name)
        except NotFoundError:
            return False
        return True


class AgentProcess:
    """`podwire agent` in a namespace, with all of its files below `home`."""

    def __init__(self, namespace: Namespace, home: Path, kubeconfig: Path, name: str) -> None:
        self.namespace = namespace
        self.home = home
        self.name = name
        self.http = AgentHttp(home / "run" / "agent.sock")
        self.conflist = home / "net.d" / "10-podwire.conflist"
        self.executable = home / "bin" / "podwire"
        self.subnet_env = home / "flannel" / "subnet.env"
        self._log = home / "agent.log"
        self._command = [
            *("ip", "netns", "exec", namespace.name, str(PODWIRE), "agent"),
            *("--kubeconfig", str(kubeconfig)),
            *("--node-name", name),
            *("--run-dir", str(home / "run")),
            *("--state-dir", str(home / "state")),
            *("--cni-conf-dir", str(home / "net.d")),
            *("--cni-bin-dir", str(home / "bin")),
            *("--subnet-file", str(self.subnet_env)),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> AgentProcess:
        """Start it, anew where it has been stopped."""
        self.home.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            command = [*self._command, *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_ready(self) -> AgentProcess:
        self.wait_not_ready(None)
        return self

    def wait_not_ready(self, reason: str | None) -> None:
        """Wait until what /readyz says has `reason` in it; None: until it is ready."""

        deadline = time.monotonic() + DEADLINE_S
        while (now := self.http.not_ready) != reason and (reason is None or reason not in str(now)):
            assert self.process is None or self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"{reason or 'ready'}: {now}\n{self.log}"
            time.sleep(0.01)

    def json(self, line: str) -> Any:
        return json.loads(self.namespace.run(line) or "[]")


def write_kubeconfig(path: Path, socket: Path) -> Path:
    """A kubeconfig of the server at `socket`, as a person would write it."""
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": f"unix://{socket}"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
                "current-context": "c",
            }
        )
    )
    return path


@contextmanager
def agents(
    make_namespace: Callable[[], Namespace], directory: Path, kubeconfig: Path
) -> Iterator[Callable[[str], AgentProcess]]:
    """Makes agents by their nodes' names, not started; node N is 172.18.0.(10+N)."""
    made: list[AgentProcess] = []

    def make(name: str) -> AgentProcess:
        namespace = make_namespace()
        namespace.run(f"{UNDERLAY}; ip address add 172.18.0.{10 + int(name[-1])}/16 dev eth0")
        made.append(AgentProcess(namespace, directory / name, kubeconfig, name))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            if one.process is not None and one.process.poll() is None:
                one.process.kill()
                one.process.wait()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiProcess]:
    """An API server that the test may stop and start; it runs from the beginning."""
    with ApiProcess(tmp_path / "api") as process:
        yield process


@pytest.fixture
def cluster(api: ApiProcess) -> Cluster:
    return Cluster(api)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    return write_kubeconfig(tmp_path / "kubeconfig", tmp_path / "api" / "api.sock")


@pytest.fixture
def make_agent(
    make_namespace: Callable[[], Namespace], tmp_path: Path, kubeconfig: Path
) -> Iterator[Callable[[str], AgentProcess]]:
    """Makes agents by their nodes' names, not started; they end with the test."""
    with agents(make_namespace, tmp_path, kubeconfig) as make:
        yield make


@pytest.fixture
def agent(make_agent: Callable[[str], AgentProcess]) -> AgentProcess:
    """The agent of node1, not started yet."""
    return make_agent("node1")
