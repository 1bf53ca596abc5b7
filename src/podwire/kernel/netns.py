"""Network namespaces: open one by its path, or make one, and do something inside it.

A thread is in one namespace at a time, and a socket stays in the namespace it was made in. So the
way into a pod is to enter for as long as it takes to make a socket.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from podwire.errors import KernelError

T = TypeVar("T")

CLONE_NEWNET = 0x40000000

#: Which kind of namespace a file is of, as its CLONE_ flag (ioctl_ns(2)).
_NS_GET_NSTYPE = 0xB703
#: Nothing tells when an abstract address becomes free.
_CLAIM_AGAIN_S = 0.05
_libc = ctypes.CDLL(None, use_errno=True)


def open_netns(path: str | Path) -> int:
    """A file descriptor of the network namespace at `path`; the caller closes it.

    Raises KernelError where there is none, also for a file that a namespace was once mounted on.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(
            f"network namespace {path}: {os.strerror(error.errno or 0)}", errno=error.errno or 0
        ) from error
    if not is_netns(fd):
        os.close(fd)
        raise KernelError(f"{path} is not a network namespace", errno=22)
    return fd


def is_netns(fd: int) -> bool:
    """Whether `fd` is of a network namespace (and not of the empty file under a gone mount, nor of
    another kind of namespace)."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return False
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def netns_inode(fd: int) -> int:
    """The number that the kernel knows the namespace at `fd` by (`net:[4026531840]`): the same
    through every path and descriptor, and not given to another while one of them is open."""
    return os.fstat(fd).st_ino


def claim(name: str, patience_s: float) -> socket.socket | None:
    """Be the only holder of `name` in this network namespace, until the socket is closed.

    None where somebody else is and stays so for `patience_s`. Abstract Unix addresses belong to a
    network namespace and go with the process (unix(7)): a crash leaves no stale lock.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            lock.bind(f"\0{name}")
        except OSError:
            if time.monotonic() > deadline:
                lock.close()
                return None
            time.sleep(_CLAIM_AGAIN_S)
        else:
            return lock


def in_new_namespace(work: Callable[[], T]) -> T:
    """What `work` returns or raises, in a thread in a network namespace that has nothing but `lo`.

    Raises KernelError where there can be none.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if _libc.unshare(CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise KernelError(f"new network namespace: {os.strerror(number)}", errno=number)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="new-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def entered(fd: int) -> Iterator[None]:
    """The calling thread is inside the namespace for the duration of the block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(fd)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        errno = ctypes.get_errno()
        raise KernelError(f"enter network namespace: {os.strerror(errno)}", errno=errno)
