"""Mount, PID, UTS and IPC namespaces: start a process in them, and mount things there.

What lives here: the few system calls that Python 3.11 does not have, and `spawn`, which starts a
program in namespaces that are new or another process's. What does not: what a node or a sandbox
consists of (`nodes`, `sandbox`), and network namespaces on their own (`podwire.kernel.netns`).

How it works: a PID namespace is never entered by the caller, only by its next child. So `spawn`
sets the calling thread's "PID namespace for children", forks, and sets it back; the child enters
the others, runs `setup`, and executes the program. The program is thus a direct child of the
caller (who gets its exit status) even where it is PID 1 of a namespace of its own. What fails in
the child before the program runs comes back through a pipe as the exception it was.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from podwire.errors import KernelError

# include/uapi/linux/sched.h
NEW_MOUNT = 0x00020000
NEW_UTS = 0x04000000
NEW_IPC = 0x08000000
NEW_PID = 0x20000000
NEW_NET = 0x40000000

# include/uapi/linux/mount.h
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MNT_DETACH = 0x2

_PR_SET_PDEATHSIG = 1
_SYS_MOUNT_SETATTR = 442  # one number on every architecture (include/uapi/asm-generic/unistd.h)
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise KernelError(f"{what}: {os.strerror(errno)}", errno=errno)


def unshare(namespaces: int) -> None:
    """Put this process in new namespaces; for NEW_PID, only its next children."""
    _check(_libc.unshare(namespaces), f"unshare {namespaces:#x}")


def enter(fd: int, namespaces: int) -> None:
    """Enter the named namespaces of `fd`: a namespace file's, or (Linux 5.8) a process's pidfd."""
    _check(_libc.setns(fd, namespaces), f"enter namespaces {namespaces:#x}")


def mount(
    source: str, target: str | Path, fstype: str = "", flags: int = 0, options: str = ""
) -> None:
    """mount(2). Raises KernelError naming source, target and options."""
    result = _libc.mount(
        source.encode(),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, f"mount {fstype or 'bind'} {source} on {target} ({options or hex(flags)})")


def bind(source: str | Path, target: str | Path, *, recursive: bool = False) -> None:
    """Make what is at `source` appear at `target` too (which must exist)."""
    mount(str(source), target, flags=MS_BIND | (MS_REC if recursive else 0))


def detach(target: str | Path) -> None:
    """Unmount `target` at once, also while in use. Raises KernelError when nothing is there."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmount {target}")


def stop_propagation() -> None:
    """Mounts made here stay here; what the host unmounts is let go of here too.

    Slave and not private: a private copy of a mount (of a USB stick, of another namespace) would
    keep it alive after the host has unmounted it.
    """
    mount("none", "/", flags=MS_REC | MS_SLAVE)


def make_read_only(target: str | Path) -> None:
    """Everything mounted at and under `target` becomes read-only (mount_setattr, Linux 5.12)."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_long(_AT_RECURSIVE),
        ctypes.c_char_p(attributes),
        ctypes.c_size_t(len(attributes)),
    )
    _check(result, f"make {target} read-only")


def mount_points(under: str) -> list[str]:
    """Mount points strictly below the directory `under`, deepest first."""
    prefix = under.rstrip("/") + "/"
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    # Octal escapes in the fifth field: space, tab, newline, backslash (proc(5)).
    points = [
        re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4])
        for line in table.splitlines()
    ]
    return sorted((point for point in points if point.startswith(prefix)), key=len, reverse=True)


def detach_below(directory: str) -> None:
    """Unmount all that is mounted below a directory. Raises KernelError."""
    for point in mount_points(directory):
        try:
            detach(point)
        except KernelError as error:
            # Another lab that is taken down meanwhile takes its names with it, here too.
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """The kernel sends this process `signal_number` when the thread that forked it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "set parent-death signal")


@contextmanager
def _children_in(pidfd: int | None, *, fresh: bool) -> Iterator[None]:
    """Children forked in the block are in the PID namespace of `pidfd`, or in a new one."""
    if pidfd is None and not fresh:
        yield
        return
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if pidfd is not None:
            enter(pidfd, NEW_PID)
        if fresh:
            unshare(NEW_PID)
        yield
    finally:
        # Back to the process's own, or it could start no thread any more.
        enter(home, NEW_PID)
        os.close(home)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    inside: int | None = None,
    inside_namespaces: int = 0,
    new_namespaces: int = 0,
    setup: Callable[[], None] | None = None,
    stdio: tuple[int, int, int] | None = None,
    cwd: str = "/",
    death_signal: int | None = None,
    ignore_children: bool = False,
    terminal: bool = False,
) -> int:
    """Start a program as a child of this process and return its PID, once it has been executed.

    `inside` is a pidfd whose `inside_namespaces` are entered first, then `new_namespaces` are
    made; `setup` runs in the child after that. `stdio` are the descriptors to become 0, 1 and 2
    (default: /dev/null); with `terminal`, standard input is a terminal to become the controlling
    one. `ignore_children` makes the kernel reap the program's children, adopted ones included:
    the disposition outlives exec, which turns any program into a fit PID 1. The program leads a
    session of its own.

    Raises the OSError or KernelError that kept it from starting.
    """
    report_r, report_w = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        pid_from = inside if inside_namespaces & NEW_PID else None
        with _children_in(pid_from, fresh=bool(new_namespaces & NEW_PID)):
            pid = os.fork()
            if pid == 0:
                _run_child(
                    lambda: _become(
                        argv,
                        env=env,
                        inside=inside,
                        inside_namespaces=inside_namespaces & ~NEW_PID,
                        new_namespaces=new_namespaces & ~NEW_PID,
                        setup=setup,
                        stdio=stdio or (null, null, null),
                        cwd=cwd,
                        death_signal=death_signal,
                        ignore_children=ignore_children,
                        terminal=terminal,
                    ),
                    report_w,
                )
        os.close(report_w)
        report_w = -1
        with open(report_r, "rb", closefd=False) as report:
            failure = report.read()
    finally:
        os.close(null)
        os.close(report_r)
        if report_w >= 0:
            os.close(report_w)
    if failure:
        os.waitpid(pid, 0)
        raise _decode_failure(failure)
    return pid


def _become(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    inside: int | None,
    inside_namespaces: int,
    new_namespaces: int,
    setup: Callable[[], None] | None,
    stdio: tuple[int, int, int],
    cwd: str,
    death_signal: int | None,
    ignore_children: bool,
    terminal: bool,
) -> None:
    os.setsid()
    if death_signal is not None:
        die_with_parent(death_signal)
    # Python ignores SIGPIPE, and handlers of ours must not run here; masks outlive exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN if ignore_children else signal.SIG_DFL)
    if inside is not None and inside_namespaces:
        enter(inside, inside_namespaces)
    if new_namespaces:
        unshare(new_namespaces)
    if setup is not None:
        setup()
    for target, source in enumerate(stdio):
        os.dup2(source, target, inheritable=True)
    if terminal:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(cwd)
    os.umask(0o022)
    os.execvpe(argv[0], list(argv), dict(env))


def _run_child(work: Callable[[], None], report: int) -> None:
    try:
        work()
    except BaseException as error:
        errno = getattr(error, "errno", None) or 0
        kind = "os" if isinstance(error, OSError) else "kernel"
        message = error.strerror if isinstance(error, OSError) else str(error)
        # A child of fork has its parent's stack above it: nothing may be raised into that.
        os.write(report, f"{kind}\0{errno}\0{message}".encode(errors="replace"))
    finally:
        os._exit(127)


def _decode_failure(report: bytes) -> Exception:
    kind, errno, message = report.decode(errors="replace").split("\0", 2)
    if kind == "os":
        # The two-argument form picks the subclass: FileNotFoundError, PermissionError, ...
        return OSError(int(errno), message)
    return KernelError(message, errno=int(errno))
