"""A node for a container runtime: namespaces in which it may do as it does on a machine of its own.

Network, PID and mount namespaces and a cgroup, held by one process. `/run`, `/var/lib` and
`/dev/shm` are empty; `/etc`, `/opt` and the directories of CNI are the host's, with what is written
going elsewhere; `/sys/fs/cgroup` is the node's own cgroup (v2, whatever the host has). So the
runtime and the agent run with the paths that they have on a real node, two nodes do not see each
other, and when the holder is killed, nothing is left: every process in a PID namespace dies with
its first one, and the mounts with the last.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .waiting import until

PODWIRE = Path(sys.executable).with_name("podwire")

_TIMEOUT_S = 60.0

#: Run by the holder's first process; the arguments are the cgroup's name and the overlaid
#: directories. SIGCHLD ignored has the kernel reap the orphans that a runtime leaves to it.
_SET_UP = """
set -e
cgroup=$1; shift
mount -t tmpfs run /run
mount -t tmpfs lib /var/lib
mount -t tmpfs tmp /var/tmp
mount -t tmpfs shm /dev/shm
for dir; do
    mkdir -p "/run/.node$dir/upper" "/run/.node$dir/work"
    mount -t overlay -o "lowerdir=$dir,upperdir=/run/.node$dir/upper,workdir=/run/.node$dir/work" \
        node "$dir"
done
rm -rf /etc/cni /etc/resolv.conf
echo 'nameserver 192.0.2.53' > /etc/resolv.conf
mkdir -p /run/node
mount -t cgroup2 cgroup2 /mnt
mkdir "/mnt/$cgroup"
echo 0 > "/mnt/$cgroup/cgroup.procs"
mount --bind "/mnt/$cgroup" /sys/fs/cgroup
umount /mnt
exec unshare --cgroup sh -ec '
    mkdir /sys/fs/cgroup/init
    echo 0 > /sys/fs/cgroup/init/cgroup.procs
    touch /run/node/up
    exec env --ignore-signal=CHLD sleep infinity'
"""
_OVERLAID = ("/etc", "/opt", "/usr/lib/cni")

#: Run before each command: into the node's cgroup, then into its cgroup namespace, from where one
#: can't get there. Below its root, as only a cgroup without processes hands controllers on.
_ENTER = """
echo 0 > /sys/fs/cgroup/init/cgroup.procs && exec nsenter --cgroup=/proc/1/ns/cgroup -- "$@"
"""
#: And before one that goes on: by its own ID, as the node sees it, it is stopped.
_RECORD = 'echo $$ > "/run/node/$1.pid"; shift; exec "$@"'

#: Empties and removes the cgroup named by the argument.
_REMOVE_CGROUP = """
mount -t cgroup2 cgroup2 /mnt
[ ! -e "/mnt/$1" ] || find "/mnt/$1" -depth -type d -exec rmdir {} +
"""


@dataclass(frozen=True)
class Attached:
    """A row of the agent's database: whose attachment it is, and what it holds."""

    pod_namespace: str
    pod_name: str
    state: str
    ips: list[str]


@dataclass
class RuntimeNode:
    """A node in the network namespace `netns`; `name` is that of its Node object."""

    name: str
    netns: str
    logs: Path
    _holder: subprocess.Popen[bytes] | None = None
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        overlaid = [path for path in _OVERLAID if Path(path).is_dir()]
        with self.log("holder").open("wb") as log:
            self._holder = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("nsenter", f"--net=/run/netns/{self.netns}", "unshare"),
                    *("--mount", "--pid", "--mount-proc", "--fork", "--kill-child"),
                    *("sh", "-c", _SET_UP, "sh", self._cgroup, *overlaid),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        up = self.path("/run/node/up")
        until(lambda: up.exists() or self._ended(), f"{self.name} is up")
        assert not self._ended(), self.log("holder").read_text()

    def stop(self) -> None:
        """Kill all that runs in the node, and remove its cgroup."""
        if self._holder is None:
            return
        self._holder.kill()
        self._holder.wait()
        for process in self._running.values():
            process.wait(_TIMEOUT_S)
        command = ["unshare", "--mount", "sh", "-c", _REMOVE_CGROUP, "sh", self._cgroup]
        # A cgroup is busy until the kernel is through with the last of its processes.
        until(lambda: subprocess.run(command, check=False).returncode == 0, "no cgroup is left")

    def path(self, path: str) -> Path:
        """Where the test finds a file of the node."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def log(self, name: str) -> Path:
        return self.logs / f"{self.name}-{name}.log"

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the node."""
        done = subprocess.run(
            self._enter(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{self.name}: {command}\n{done.stderr}"
        return done

    def spawn(self, name: str, *command: str) -> None:
        """Start a command that goes on until `end`."""
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._enter("sh", "-c", _RECORD, "sh", name, *command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to what `spawn` started, and wait for its end."""
        pid = self.path(f"/run/node/{name}.pid").read_text().strip()
        self.run("sh", "-c", f"kill -{number.value} {pid}")
        self._running.pop(name).wait(_TIMEOUT_S)

    # The agent.

    def start_agent(self, kubeconfig: Path, bin_dir: str) -> None:
        """Start an agent, which gets its Node object's lease and installs the plugin."""
        command = [str(PODWIRE), "agent", "--kubeconfig", str(kubeconfig), "--node-name", self.name]
        self.spawn("agent", *command, "--cni-bin-dir", bin_dir)
        until(lambda: self.cni_status() == "ready", f"{self.name}'s agent is ready")

    def cni_status(self) -> str:
        done = self.run(str(PODWIRE), "cni", "status", check=False)
        return (done.stdout + done.stderr).strip()

    def attachments(self) -> dict[str, Attached]:
        """The agent's database by container ID.

        The agent has it locked, so a copy is read: of a moment when nothing is going on.
        """
        with tempfile.TemporaryDirectory(dir=self.logs) as directory:
            for name in ("ipam.db", "ipam.db-wal"):
                source = self.path(f"/var/lib/podwire/{name}")
                if source.exists():
                    Path(directory, name).write_bytes(source.read_bytes())
            db = sqlite3.connect(Path(directory, "ipam.db"))
            try:
                rows = db.execute(
                    "SELECT container_id, pod_namespace, pod_name, state, addresses FROM attachment"
                ).fetchall()
            finally:
                db.close()
        return {
            container: Attached(
                namespace,
                pod,
                state,
                [ip.partition("/")[0] for ip, _gateway in json.loads(addresses)],
            )
            for container, namespace, pod, state, addresses in rows
        }

    def pod_links(self) -> list[str]:
        """The host ends of pods' veth pairs."""
        links: list[dict[str, Any]] = json.loads(self.run("ip", "-j", "link").stdout)
        return [link["ifname"] for link in links if link["ifname"].startswith("veth")]

    # Inside.

    @property
    def _cgroup(self) -> str:
        return self.netns

    def _ended(self) -> bool:
        assert self._holder is not None
        return self._holder.poll() is not None

    def _enter(self, *command: str) -> list[str]:
        assert self._holder is not None
        ns = f"/proc/{self._holder.pid}/ns"
        return [
            *("nsenter", f"--net={ns}/net", f"--mount={ns}/mnt", f"--pid={ns}/pid_for_children"),
            *("--wd=/", "sh", "-c", _ENTER, "sh", *command),
        ]


def require_root() -> None:
    """Fails the test where it is not run as root."""
    assert os.geteuid() == 0, "this test makes namespaces: run it as root (sudo script/test)"
