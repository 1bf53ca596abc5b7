"""The disk of the agent's state: does it take writes, and will it?

It is tried, since what is free is not all there is to it: quotas, blocks that only root may have,
inodes, a disk that the kernel has made read-only after an error.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from podwire.agent.doctor.subject import Findings
from podwire.trace.wire import Checked

_find = Findings("agent")

#: About what a handful of transactions takes, and thousands.
_TRIED_BYTES, _FEW_BYTES = 64 * 1024, 8 * 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


def look(directory: Path) -> Checked | None:
    """What is wrong with the disk that `directory` is on. Blocks."""
    try:
        with tempfile.TemporaryFile(dir=directory, prefix=".podwire-doctor.", buffering=0) as file:
            _write(file.fileno(), bytes(_TRIED_BYTES))
        disk = os.statvfs(directory)
    except OSError as error:
        why = f"{directory} can't be written to: {error.strerror or error}"
        told = f"{why}. New pods get no address, and which are free again is not on record"
        if error.errno in _FULL:
            lines = (f"df -h {directory}", f"df -i {directory}")
            return _find.fail(told, "make room on its disk", *lines)
        return _find.fail(told, "have it writable for root again", f"findmnt -T {directory}")
    free = disk.f_bfree * disk.f_frsize
    if free < _FEW_BYTES:
        return _find.warn(
            f"the disk of {directory} has only {free // 1024} KiB left: once it is full, new pods"
            " get no address",
            "make room there",
            f"df -h {directory}",
        )
    return None


def _write(fd: int, data: bytes) -> None:
    """All of it: on a disk that is nearly full, less may be written at first."""
    while data:
        data = data[os.write(fd, data) :]
