"""Namespaces as nodes: each node's namespaces and file system, and their removal.

What lives here: everything of a node that is there before its first process of ours runs, made
so that each function may be run again after a crash and completes what is missing. What does
not: its link (`underlay`), the processes (`supervisor`), pods (`sandbox`).

A node is a named network namespace and a *holder*: a process that is PID 1 of the node's PID
namespace and keeps its mount, UTS and IPC namespaces open. Ending the holder ends, by the kernel's
hand, every process of the node, pods included. Nothing is made in the host's network namespace or
mount table but the names in /run/netns.

In a node the host's files are there to see, with these put over them:

    /etc            overlay: own hostname, hosts, resolv.conf; /etc/podwire/kubeconfig
    /etc/cni/net.d  own, empty at first
    /opt            overlay: /opt/cni/bin, with the host's reference plugins
    /run            own, empty at first; the API's socket, the node's own directory
    /var/lib        own, empty at first; outlives the node's processes
    /proc, /sys     of the node's PID and network namespace
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from podwire.errors import KernelError, LabError
from podwire.files import write_atomically
from podwire.kernel.netns import open_netns
from podwire.lab import namespaces as ns
from podwire.lab.processes import LAB_ID, LAB_PROCESS, Process
from podwire.lab.registry import (
    NETNS_DIR,
    LabInfo,
    LabRecord,
    NodeRecord,
)
from podwire.lab.underlay import unplug

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOLDER_NAMESPACES = ns.NEW_NET | ns.NEW_MOUNT | ns.NEW_UTS | ns.NEW_IPC | ns.NEW_PID

#: Where the node finds what the lab keeps for it, and where its kubelet listens.
NODE_DIR = Path("/run/podwire-node")
API_DIR = Path("/run/podwire-api")
KUBECONFIG = Path("/etc/podwire/kubeconfig")

_HOST_PLUGINS = Path("/usr/lib/cni")  # Debian's containernetworking-plugins

_KUBECONFIG = f"""\
apiVersion: v1
kind: Config
clusters: [{{name: lab, cluster: {{server: "unix://{API_DIR}/api.sock"}}}}]
users: [{{name: node, user: {{}}}}]
contexts: [{{name: lab, context: {{cluster: lab, user: node}}}}]
current-context: lab
"""


def holder(lab: LabInfo, node: str) -> Process | None:
    """The node's holder, when it runs."""
    try:
        found = Process.parse((lab.node_dir(node) / "holder.pid").read_text())
    except OSError:
        return None
    return found if found and found.alive else None


def start_holder(lab: LabInfo, record: LabRecord, node: NodeRecord) -> Process:
    """Start the holder of a node whose network namespace is there; its file system is then made.

    Raises KernelError, naming the mount that the kernel refused.
    """
    disk = lab.node_dir(node.name)
    shutil.rmtree(disk / "run", ignore_errors=True)
    for name in ("net.d", "run", "var-lib"):
        (disk / name).mkdir(parents=True, exist_ok=True, mode=0o755)
    netns = open_netns(NETNS_DIR / lab.netns(node.name))
    try:
        pid = ns.spawn(
            ["sleep", "infinity"],
            env={"PATH": PATH, LAB_ID: record.id, LAB_PROCESS: f"{node.name}/holder"},
            inside=netns,
            inside_namespaces=ns.NEW_NET,
            new_namespaces=HOLDER_NAMESPACES & ~ns.NEW_NET,
            setup=partial(_furnish, lab, node.name, record.ips(node)),
            ignore_children=True,
        )
    finally:
        os.close(netns)
    process = Process.of(pid)
    if process is None:
        raise LabError(f"{node.name}: its holder ended as soon as it was started")
    write_atomically(disk / "holder.pid", str(process).encode(), 0o600)
    return process


def _furnish(lab: LabInfo, node: str, ips: Sequence[str]) -> None:
    """Make the node's file system; runs as PID 1 of the node, in its namespaces.

    What comes from the lab's directory is mounted before /var/lib is covered, which hides it.
    """
    disk = lab.node_dir(node)
    kept = _needed_below(("/run", "/var/lib"))
    ns.stop_propagation()
    # /run/netns above all: a copy of a namespace's mount would keep that namespace alive.
    ns.detach_below("/run")
    ns.bind(disk / "run", "/run")
    for directory in ("/run/netns", "/run/lock", str(API_DIR), str(NODE_DIR)):
        Path(directory).mkdir()
    # As `ip netns add` would do at its first use, over the pods' names that are there already:
    # these would be mounted twice then, and could not be removed any more.
    ns.bind("/run/netns", "/run/netns")
    ns.bind(lab.api_dir, API_DIR)
    ns.bind(disk, NODE_DIR)
    _overlay_on_disk("/etc", disk)
    _overlay_on_disk("/opt", disk)
    Path("/etc/cni/net.d").mkdir(parents=True, exist_ok=True)
    ns.bind(disk / "net.d", "/etc/cni/net.d")
    ns.bind(disk / "var-lib", "/var/lib")
    for path, fd in kept.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        ns.bind(f"/proc/self/fd/{fd}", path, recursive=True)
    ns.mount("sysfs", "/sys", "sysfs", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    ns.mount("proc", "/proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    _write_etc(node, ips)
    _offer_plugins(Path("/opt/cni/bin"))
    socket.sethostname(node)


def _needed_below(covered: Iterable[str]) -> dict[str, int]:
    """What our own programs need and is about to be covered: its path, and a way to it."""
    package = Path(__file__).resolve().parents[2]
    needed = {str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, package)}
    return {
        path: os.open(path, os.O_PATH | os.O_CLOEXEC)
        for path in sorted(needed)
        if any(path.startswith(f"{directory}/") for directory in covered)
    }


def overlay(directory: str, upper: Path) -> None:
    """Changes to `directory` from here on go to `upper` (made where it is not there yet).

    Raises KernelError; EINVAL where the kernel cannot stack one on these file systems.
    """
    work = upper.with_name(f"{upper.name}.work")
    for part in (upper, work):
        part.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={directory},upperdir={upper},workdir={work}"
    ns.mount("overlay", directory, "overlay", 0, options)


def _overlay_on_disk(directory: str, disk: Path) -> None:
    """An overlay whose changes are kept in the node's directory on disk.

    A file system that cannot hold them (the overlay that is a container's root) is answered with
    one in memory.
    """
    name = directory.strip("/")
    try:
        overlay(directory, disk / name)
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        memory = Path("/run/podwire-overlay") / name
        memory.mkdir(parents=True)
        ns.mount("tmpfs", memory, "tmpfs")
        overlay(directory, memory / "upper")


def _write_etc(node: str, ips: Sequence[str]) -> None:
    own = "".join(f"{ip} {node}\n" for ip in ips)
    files = {
        "/etc/hostname": f"{node}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{own}",
        "/etc/resolv.conf": "# No name server is reachable from a lab's node.\n",
        str(KUBECONFIG): _KUBECONFIG,
    }
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The host's may be a symbolic link to what is now covered.
        path.unlink(missing_ok=True)
        path.write_text(content)


def _offer_plugins(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if not _HOST_PLUGINS.is_dir():
        return
    for plugin in _HOST_PLUGINS.iterdir():
        if not (directory / plugin.name).exists():
            (directory / plugin.name).symlink_to(plugin)


def remove(lab: LabInfo, node: str) -> None:
    """End a node for good: its holder and so all of its processes, its link, and its disk."""
    found = holder(lab, node)
    if found is not None:
        found.end()
    unplug(lab, node)
    shutil.rmtree(lab.node_dir(node), ignore_errors=True)
