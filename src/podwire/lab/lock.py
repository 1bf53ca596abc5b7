"""One command at a time works on a lab.

The lock is flock(2) on the lab's directory: no file of its own to leave behind, and the kernel
gives it back however the command ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from podwire.lab.registry import LabInfo


@contextmanager
def locked(lab: LabInfo, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lab for the duration of the block; makes its directory where there is none.

    `on_wait` is called before waiting for another command.
    """
    fd = None
    while fd is None:
        fd = _acquire(lab, on_wait)
    try:
        yield
    finally:
        os.close(fd)


def _acquire(lab: LabInfo, on_wait: Callable[[], None]) -> int | None:
    """The locked directory, or None where it was removed while we were at it."""
    fd = None
    try:
        lab.dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(lab.dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        lab.dir.chmod(0o700)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_ino == lab.dir.stat().st_ino:
            held, fd = fd, None
            return held
    except FileNotFoundError:
        pass
    finally:
        if fd is not None:
            os.close(fd)
    return None
