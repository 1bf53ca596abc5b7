"""A node in a network namespace with the CNI part of an agent, and pods to attach to it.

Calls are made as a runtime makes them: the installed executable, environment, stdin.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from podwire.cni import install

VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
AGENT = Path(__file__).with_name("agent_process.py")


class Answer(NamedTuple):
    """What the executable did: exit status, what it printed, and that decoded."""

    status: int
    stdout: str

    @property
    def json(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.stdout)
        return decoded

    @property
    def error(self) -> tuple[int, str]:
        """Code and message of an error object that is well-formed."""
        assert self.status == 1, self
        body = self.json
        assert body["cniVersion"] in VERSIONS
        assert set(body) <= {"cniVersion", "code", "msg", "details"}
        return body["code"], body["msg"]


def call_executable(
    executable: Path, stdin: str | bytes, environment: dict[str, str], socket: Path | None = None
) -> Answer:
    """Run a CNI executable with nothing else in its environment."""
    env = dict(environment)
    if socket is not None:
        env["PODWIRE_CNI_SOCKET"] = str(socket)
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run([executable], input=data, env=env, capture_output=True, timeout=60)
    assert not done.stderr, done.stderr
    return Answer(done.returncode, done.stdout.decode())


def conf(version: str = "1.1.0", **more: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "podwire", "type": "podwire", **more}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Node:
    """A node's network namespace and the agent process in it."""

    def __init__(self, directory: Path, executable: Path, subnets: str) -> None:
        self.directory = directory
        self.executable = executable
        self.subnets = subnets
        self.netns = f"pwcni-{secrets.token_hex(4)}"
        self.socket = directory / "cni.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> None:
        enter = ["nsenter", f"--net=/run/netns/{self.netns}"]
        arguments = [AGENT, self.directory, self.socket, self.subnets, *flags]
        with (self.directory / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*enter, sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == b"ready\n", (self.directory / "agent.log").read_text()

    def end(self, *, kill: bool = False) -> None:
        if self.process is None:
            return
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait(timeout=60)
        self.process = None

    def restart(self, *flags: str, kill: bool = False) -> None:
        self.end(kill=kill)
        self.start(*flags)

    def cni(
        self,
        command: str,
        container: str = "",
        netns: str = "",
        *,
        ifname: str = "eth0",
        args: str = "",
        config: dict[str, Any] | None = None,
    ) -> Answer:
        environment = {"CNI_COMMAND": command, "CNI_PATH": str(self.executable.parent)}
        if container:
            environment |= {"CNI_CONTAINERID": container, "CNI_IFNAME": ifname}
        if netns:
            environment["CNI_NETNS"] = netns
        if args:
            environment["CNI_ARGS"] = args
        stdin = json.dumps(conf() if config is None else config)
        return call_executable(self.executable, stdin, environment, self.socket)

    def add(self, container: str, netns: str, **more: Any) -> dict[str, Any]:
        answer = self.cni("ADD", container, netns, **more)
        assert answer.status == 0, answer
        return answer.json

    def delete(self, container: str, netns: str = "", **more: Any) -> None:
        answer = self.cni("DEL", container, netns, **more)
        assert (answer.status, answer.stdout) == (0, "")

    def links(self, kind: str = "veth") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            run("ip", "-n", self.netns, "-d", "-j", "link", "show", "type", kind)
        )
        return [link for link in found if link]

    @property
    def log(self) -> str:
        return (self.directory / "agent.log").read_text()


@pytest.fixture(scope="session")
def c_executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executable as `podwire cni install` writes it on a machine with a C compiler."""
    directory = tmp_path_factory.mktemp("bin-c")
    install.install_executable(directory)
    executable = directory / "podwire"
    assert executable.read_bytes()[:4] == b"\x7fELF", "this machine has no C compiler"
    return executable


@pytest.fixture(scope="session")
def python_executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executable as it is written on a machine without a C compiler."""
    directory = tmp_path_factory.mktemp("bin-python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(install, "_compiled", lambda: None)
        install.install_executable(directory)
    executable = directory / "podwire"
    assert executable.read_bytes()[:2] == b"#!"
    return executable


@pytest.fixture(params=["c", "python"])
def executable(request: pytest.FixtureRequest) -> Path:
    """Both executables, one after the other."""
    found: Path = request.getfixturevalue(f"{request.param}_executable")
    return found


@pytest.fixture
def call(executable: Path, tmp_path: Path) -> Callable[..., Answer]:
    """Runs each of the executables against the socket in `tmp_path`, or another one."""

    def run(stdin: bytes = b"{}", socket: Path | None = None, **environment: str) -> Answer:
        return call_executable(executable, stdin, environment, socket or tmp_path / "cni.sock")

    return run


@pytest.fixture
def make_node(tmp_path: Path, c_executable: Path) -> Iterator[Callable[..., Node]]:
    with contextlib.ExitStack() as stack:

        def make(subnets: str = "10.244.1.0/24", *flags: str) -> Node:
            if os.geteuid() != 0:
                pytest.fail("needs root: it makes network namespaces")
            node = Node(tmp_path, c_executable, subnets)
            run("ip", "netns", "add", node.netns)
            stack.callback(run, "ip", "netns", "del", node.netns)
            run("ip", "-n", node.netns, "link", "set", "lo", "up")
            stack.callback(node.end, kill=True)
            node.start(*flags)
            return node

        yield make


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """A node with one IPv4 subnet."""
    return make_node()


@pytest.fixture
def make_pod() -> Iterator[Callable[[], str]]:
    """Makes the paths of new, empty network namespaces."""
    names: list[str] = []

    def make() -> str:
        name = f"pwpod-{secrets.token_hex(4)}"
        run("ip", "netns", "add", name)
        names.append(name)
        return f"/run/netns/{name}"

    yield make
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def pod(make_pod: Callable[[], str]) -> str:
    return make_pod()
