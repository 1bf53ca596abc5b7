"""A pod's sandbox: the namespaces that its containers share, held open by a pause process.

What lives here: making a sandbox, running programs in it, ending it; all synchronous, a few
milliseconds each. What does not: CNI (`runtime_cni`), when to do what (`kubelet`).

The pause process is PID 1 of the pod's PID namespace; it does nothing, and the kernel reaps what
it adopts. A pod on the host's network shares the node's network and UTS namespaces.

A container is a program of the machine, not of an image, so a sandbox shows the node's files and
keeps them from harm: all is read-only, but for directories where changes are the pod's own and
end with it. It is a tool for people who run their own commands, and no boundary against hostile
ones.

    /etc /root /home /var/lib /var/log /var/cache /opt /srv   changes kept in memory
    /tmp /run /dev/shm /var/tmp                               empty, in memory
    /etc/hosts, /etc/hostname, /etc/resolv.conf               the pod's
    /proc, /sys                                               of the pod's namespaces
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import signal
import socket
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from podwire.errors import KernelError, LabError
from podwire.kernel.boot import boot_id
from podwire.lab import namespaces as ns
from podwire.lab.nodes import PATH, overlay
from podwire.lab.processes import Process, all_processes, end, environment

NETNS_DIR = Path("/run/netns")
POD_FILES = ("hosts", "hostname", "resolv.conf")
NAMESPACES = ns.NEW_NET | ns.NEW_MOUNT | ns.NEW_UTS | ns.NEW_IPC | ns.NEW_PID

#: Environment variable by which a pause process is known.
_MARK = "PODWIRE_SANDBOX"
_OVERLAID = ("/etc", "/root", "/home", "/var/lib", "/var/log", "/var/cache", "/opt", "/srv")
_EMPTY = {"/tmp": "mode=1777", "/var/tmp": "mode=1777", "/dev/shm": "mode=1777"}

# include/uapi/linux/sockios.h, include/uapi/linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


class SandboxEndedError(LabError):
    """The sandbox has ended, or is about to: its pause process has been killed."""


class Sandbox(msgspec.Struct, frozen=True):
    """A sandbox that was made. `netns` is empty for a pod on the host's network.

    `life` says in which life of the node it was made: PIDs mean nothing in another one.
    """

    id: str
    pid: int
    started: int
    netns: str
    life: str

    @property
    def pause(self) -> Process:
        return Process(self.pid, self.started)

    @property
    def alive(self) -> bool:
        return self.life == node_life() and self.pause.alive

    def open(self) -> int | None:
        """A pidfd of the pause process, or None when it has ended."""
        return self.pause.open() if self.life == node_life() else None


def node_life() -> str:
    """Names this life of the node: this boot of the machine and this PID namespace."""
    return f"{boot_id()}/{Path('/proc/self/ns/pid').stat().st_ino}"


def create(files: Path, hostname: str, *, host_network: bool = False) -> Sandbox:
    """Make a sandbox. `files` holds the POD_FILES, which may be written again in place later.

    Raises KernelError or OSError, having left nothing behind.
    """
    shared = ns.NEW_NET | ns.NEW_UTS if host_network else 0
    pid = ns.spawn(
        ["sleep", "infinity"],
        env={"PATH": PATH, _MARK: "pause"},
        new_namespaces=NAMESPACES & ~shared,
        setup=partial(_furnish, files, hostname, host_network=host_network),
        ignore_children=True,
    )
    pause = Process.of(pid)
    if pause is None:
        raise LabError("the pause process ended as soon as it was started")
    netns = "" if host_network else str(NETNS_DIR / f"cni-{uuid.uuid4()}")
    if netns:
        try:
            _name_netns(pid, Path(netns))
        except OSError:
            pause.end()
            raise
    return Sandbox(
        id=secrets.token_hex(32), pid=pid, started=pause.started, netns=netns, life=node_life()
    )


def destroy(sandbox: Sandbox) -> None:
    """End a sandbox with every process in it. Done again, it succeeds again.

    Does not wait for the processes' end: PID 1 of a namespace ends after all others in it have
    been reaped, and that is for their parent to do, as is reaping it.
    """
    pidfd = sandbox.open()
    if pidfd is not None:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    if sandbox.netns:
        _remove_name(Path(sandbox.netns))


def run(
    sandbox: Sandbox,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str = "/",
    stdio: tuple[int, int, int] | None = None,
    setup: Callable[[], None] | None = None,
    terminal: bool = False,
) -> int:
    """Start a program in a sandbox and return its PID; it is a child of this process.

    Raises SandboxEndedError, and the OSError that kept the program from starting
    (FileNotFoundError: no such program).
    """
    pidfd = sandbox.open()
    if pidfd is None:
        raise SandboxEndedError("the sandbox has ended")
    try:
        return ns.spawn(
            argv,
            env=env,
            inside=pidfd,
            inside_namespaces=NAMESPACES,
            setup=setup,
            stdio=stdio,
            cwd=cwd,
            terminal=terminal,
        )
    except (KernelError, OSError) as error:
        # A killed PID 1 takes a while to end, having nothing left to enter or to fork into
        # (setns(2): ESRCH; fork(2): ENOMEM).
        if error.errno in (errno.ESRCH, errno.ENOMEM):
            raise SandboxEndedError("the sandbox is about to end") from error
        raise
    finally:
        os.close(pidfd)


def _name_netns(pid: int, path: Path) -> None:
    path.touch(mode=0o444)
    try:
        ns.bind(f"/proc/{pid}/ns/net", path)
    except KernelError:
        path.unlink()
        raise


def _furnish(files: Path, hostname: str, *, host_network: bool) -> None:
    """Make the pod's file system; runs as PID 1 of the pod, in its namespaces."""
    ns.stop_propagation()
    ns.detach_below("/run")
    ns.make_read_only("/")
    flags = ns.MS_NOSUID | ns.MS_NODEV
    ns.mount("tmpfs", "/run", "tmpfs", flags, "mode=755")
    layers = Path("/run/podwire-overlay")
    layers.mkdir(mode=0o700)
    opened = {name: os.open(files / name, os.O_PATH | os.O_CLOEXEC) for name in POD_FILES}
    for directory in _OVERLAID:
        _make_own(directory, layers)
    for directory, options in _EMPTY.items():
        if Path(directory).is_dir():
            ns.mount("tmpfs", directory, "tmpfs", flags, options)
    for name, fd in opened.items():
        target = Path("/etc") / name
        if target.exists():
            ns.bind(f"/proc/self/fd/{fd}", target)
    ns.mount("proc", "/proc", "proc", flags | ns.MS_NOEXEC)
    if not host_network:
        ns.mount("sysfs", "/sys", "sysfs", flags | ns.MS_NOEXEC)
        _bring_up_loopback()
        socket.sethostname(hostname)


def _make_own(directory: str, layers: Path) -> None:
    """Put a layer in memory over a directory; what cannot have one stays read-only.

    The kernel stacks two overlays and not more; a machine whose root is one (a container) has
    used them up with the node's.
    """
    if not Path(directory).is_dir():
        return
    with suppress(KernelError):
        overlay(directory, layers / directory.strip("/").replace("/", "-"))


def _bring_up_loopback() -> None:
    """As the `loopback` plugin does, which container runtimes call for every sandbox."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        up = struct.unpack("16sH14x", answer)[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", up))


def destroy_unknown(known: Sequence[Sandbox]) -> None:
    """End the sandboxes of this node that are none of `known`; call it in the node."""
    kept = {sandbox.pause for sandbox in known}
    names = {sandbox.netns for sandbox in known}
    end(
        process
        for process in all_processes()
        if process not in kept and environment(process.pid).get(_MARK) == "pause"
    )
    for path in NETNS_DIR.glob("cni-*"):
        if str(path) not in names:
            _remove_name(path)


def _remove_name(path: Path) -> None:
    with suppress(KernelError):
        ns.detach(path)
    path.unlink(missing_ok=True)
