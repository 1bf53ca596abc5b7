"""Reading a container's log: from which place on, and following it while it grows.

What lives here: bytes of one file. What does not: HTTP (`server`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from podwire.kernel.inotify import CONTENT, Watch

_CHUNK = 64 * 1024


def tail_offset(fd: int, lines: int) -> int:
    """Where the last `lines` lines of a file begin."""
    end = os.fstat(fd).st_size
    # A line feed at the very end ends the last line, and begins none.
    wanted = lines + 1 if end and os.pread(fd, 1, end - 1) == b"\n" else lines
    while end > 0 and lines > 0:
        start = max(0, end - _CHUNK)
        block = os.pread(fd, end - start, start)
        found = block.count(b"\n")
        if found >= wanted:
            position = len(block)
            for _ in range(wanted):
                position = block.rindex(b"\n", 0, position)
            return start + position + 1
        wanted -= found
        end = start
    return end


async def read_log(
    path: Path, *, tail_lines: int | None, follow: asyncio.Event | None
) -> AsyncIterator[bytes]:
    """The content of a log, from the last `tail_lines` lines on.

    With `follow`, also what is added, until that event says that no more will be.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    watch = Watch(path, CONTENT) if follow is not None else None
    try:
        if tail_lines is not None:
            os.lseek(fd, tail_offset(fd, tail_lines), os.SEEK_SET)
        while True:
            # Asked before reading: what was written before the end is read after it.
            complete = follow is None or follow.is_set()
            if watch is not None:
                watch.changed.clear()
            while chunk := os.read(fd, _CHUNK):
                yield chunk
            if complete or watch is None or follow is None:
                return
            await _either(watch.changed, follow)
    finally:
        if watch is not None:
            watch.close()
        os.close(fd)


async def _either(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
