"""Container runtimes, each made to use the CNI configuration that the agent wrote.

What they have in common is what the tests do with them: start a container, find its IP as the
runtime tells it, ping from it, take it away.
"""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from . import busybox_image
from .cri import Cri, CriError
from .runtime_node import RuntimeNode
from .waiting import until


class RunFailedError(Exception):
    """A container was not started; what the runtime said."""


class Runtime(Protocol):
    """A runtime on one node."""

    #: Where Debian's configuration of it looks for CNI executables.
    bin_dir: ClassVar[str]
    #: The namespace that it names to the plugin.
    pod_namespace: ClassVar[str]

    @property
    def node(self) -> RuntimeNode: ...

    def start(self, image: Path) -> None:
        """Get ready to run containers of `image`, an archive."""

    def sees_network(self) -> bool:
        """Whether the runtime has found the network's configuration."""

    def run(self, name: str) -> str:
        """Start a container that sleeps; its ID. Raises RunFailedError."""

    def ip(self, container: str) -> str:
        """The IP that the runtime tells of it."""

    def exec(self, container: str, *command: str) -> str:
        """Run a command in it; what that printed."""

    def remove(self, container: str) -> bool:
        """End it, take its network away, delete it; False where that is to be tried again."""


_PODMAN_CONF = """
[network]
network_backend = "cni"
[containers]
# A node without a cgroup controller is good enough here.
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


@dataclass(frozen=True)
class Podman:
    """Podman with its CNI back end.

    The network is named with every container: as `default_network`, Podman would make up a bridge
    of that name for as long as there is no configuration of it.
    """

    node: RuntimeNode
    bin_dir: ClassVar[str] = "/opt/cni/bin"
    pod_namespace: ClassVar[str] = ""

    def start(self, image: Path) -> None:
        _require("podman", "runc")
        self.node.path("/etc/containers/containers.conf").write_text(_PODMAN_CONF)
        self.command("load", "--input", str(image))

    def sees_network(self) -> bool:
        return "podwire" in self.command("network", "ls", "--format", "{{.Name}}").split()

    def run(self, name: str, *options: str) -> str:
        arguments = ["run", "--detach", "--network", "podwire", "--cap-add", "NET_RAW"]
        arguments += ["--name", name, *options]
        done = self.node.run("podman", *arguments, busybox_image.NAME, check=False)
        if done.returncode != 0:
            self.node.run("podman", "rm", "--force", name)
            raise RunFailedError(done.stderr)
        return done.stdout.strip()

    def ip(self, container: str) -> str:
        return str(self._network_settings(container)["IPAddress"])

    def mac(self, container: str) -> str:
        return str(self._network_settings(container)["MacAddress"])

    def exec(self, container: str, *command: str) -> str:
        return self.command("exec", container, *command)

    def remove(self, container: str) -> bool:
        self.command("stop", "--time", "0", container)
        self.command("rm", container)
        return True

    def command(self, *arguments: str) -> str:
        return self.node.run("podman", *arguments).stdout

    def _network_settings(self, container: str) -> dict[str, Any]:
        (found,) = json.loads(self.command("inspect", container))
        network: dict[str, Any] = found["NetworkSettings"]["Networks"]["podwire"]
        return network


#: As Debian's /etc/containerd/config.toml has it, and what a machine needs that has no registry,
#: no cgroup controllers (v2) and no CAP_SYS_RESOURCE.
_CONTAINERD_CONF = f"""
version = 2
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "{busybox_image.NAME}"
    disable_cgroup = true
    restrict_oom_score_adj = true
    [plugins."io.containerd.grpc.v1.cri".cni]
        bin_dir = "/usr/lib/cni"
        conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""


@dataclass(frozen=True)
class Containerd:
    """containerd, used by the interface that kubelets use: a container is a pod's sandbox."""

    node: RuntimeNode
    bin_dir: ClassVar[str] = "/usr/lib/cni"
    pod_namespace: ClassVar[str] = "default"

    @property
    def cri(self) -> Cri:
        return Cri(self.node.path("/run/containerd/containerd.sock"))

    def start(self, image: Path) -> None:
        _require("containerd", "ctr", "runc", "curl")
        self.node.path("/etc/containerd/config.toml").write_text(_CONTAINERD_CONF)
        self.serve()
        self.node.run("ctr", "--namespace", "k8s.io", "images", "import", str(image))

    def serve(self) -> None:
        """Start the daemon."""
        self.node.spawn("containerd", "containerd")
        until(self._serves, "containerd serves")

    def sees_network(self) -> bool:
        return self.cri.network_ready()

    def run(self, name: str) -> str:
        try:
            return self.cri.run_pod(self.pod_namespace, name, str(uuid.uuid4()))
        except CriError as error:
            raise RunFailedError(str(error)) from error

    def ip(self, container: str) -> str:
        return self.cri.pod_ip(container)

    def exec(self, container: str, *command: str) -> str:
        ctr = ("ctr", "--namespace", "k8s.io", "tasks", "exec", "--exec-id", uuid.uuid4().hex)
        return self.node.run(*ctr, container, *command).stdout

    def remove(self, container: str) -> bool:
        try:
            self.cri.stop_pod(container)
            self.cri.remove_pod(container)
        except CriError:
            return False
        return True

    def run_once(self, name: str, *command: str) -> str:
        """Run a command in a container that goes with it, as `ctr run --cni` does; its output.

        ctr calls DEL when it has deleted the network namespace already.
        """
        ctr = ("ctr", "--namespace", "k8s.io", "run", "--rm", "--cni", "--cpu-shares", "0")
        return self.node.run(*ctr, busybox_image.NAME, name, *command).stdout

    def _serves(self) -> bool:
        try:
            self.cri.network_ready()
        except CriError:
            return False
        return True


def _require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    assert not missing, f"missing: {', '.join(missing)}; script/setup --dev installs them"
