"""Can this machine hold a lab? Asked before anything is made, and answered with what to do.

The kernel's features are probed by using them, in namespaces that end with the probe: lists of
modules say nothing about what is built in, blocked or loaded on demand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from podwire.errors import InputError, KernelError, UnsupportedError
from podwire.lab import namespaces as ns
from podwire.lab.nodes import PATH
from podwire.lab.registry import MAX_NODES
from podwire.lab.shape import Shape

_PROGRAMS = {
    "ip": "iproute2",
    "nft": "nftables",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "sleep": "coreutils",
}
"""Program → Debian package."""

_ETCD = {"etcd": "etcd-server"}

_LINKS = {
    "bridge": "type bridge",
    "veth": "type veth peer name probe-peer",
}
_VXLAN = {"vxlan": "type vxlan id 1 dstport 8472 nolearning"}
_TUN = Path("/dev/net/tun")


def check_machine(shape: Shape) -> None:
    """Raises UnsupportedError, naming what is missing and where to get it."""
    check_root()
    programs = _PROGRAMS | (_ETCD if shape.store == "etcd" else {})
    missing = {program: package for program, package in programs.items() if not _find(program)}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise UnsupportedError(
            f"not installed: {', '.join(missing)}", remedy=f"run `apt-get install {packages}`"
        )
    fabric = shape.resolved
    if fabric.uses_udp and not _TUN.exists():
        raise UnsupportedError(
            f"{_TUN} is missing, which the udp transport needs",
            remedy="load the module with `modprobe tun`",
        )
    _check_kernel(_LINKS | (_VXLAN if fabric.uses_vxlan else {}))


def check_root() -> None:
    """Raises UnsupportedError unless this is root on Linux."""
    if sys.platform != "linux":
        raise UnsupportedError(
            f"a lab is made of Linux namespaces, and this is {sys.platform}",
            remedy="run it in a Linux virtual machine",
        )
    if os.geteuid() != 0:
        raise UnsupportedError("a lab needs root", remedy="run the command with sudo")


def check_node_count(nodes: int) -> None:
    """Raises InputError unless a lab may have so many nodes."""
    if not 1 <= nodes <= MAX_NODES:
        raise InputError(f"{nodes} is not between 1 and {MAX_NODES}", field="nodes")


def _find(program: str) -> str | None:
    return shutil.which(program, path=PATH)


def _check_kernel(links: Mapping[str, str]) -> None:
    try:
        pid = ns.spawn(
            ["true"],
            env={"PATH": PATH},
            new_namespaces=ns.NEW_NET | ns.NEW_MOUNT | ns.NEW_UTS | ns.NEW_IPC | ns.NEW_PID,
            setup=partial(_probe, links),
        )
    except KernelError as error:
        raise UnsupportedError(
            f"the kernel refused: {error.message}",
            remedy="a lab needs Linux 5.12 or later with namespaces, overlayfs, bridge, veth, vxlan"
            " and nf_tables, and (in a container) the right to use them",
        ) from error
    os.waitpid(pid, 0)


def _probe(links: Mapping[str, str]) -> None:
    """Use each feature once. Raises KernelError; runs in namespaces of its own."""
    ns.stop_propagation()
    scratch = Path("/run")
    ns.mount("tmpfs", scratch, "tmpfs")
    for name in ("lower", "upper", "work", "merged"):
        (scratch / name).mkdir()
    layers = ",".join(f"{name}dir={scratch}/{name}" for name in ("lower", "upper", "work"))
    ns.mount("overlay", scratch / "merged", "overlay", 0, layers)
    ns.make_read_only(scratch)
    for kind, how in links.items():
        _run(f"make a {kind} link", "ip", "link", "add", f"probe-{kind}", *how.split())
    _run("make an nftables table", "nft", "add", "table", "inet", "probe")


def _run(what: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": PATH})
    if done.returncode != 0:
        raise KernelError(f"{what}: {done.stderr.strip()}", errno=95)
