"""inotify(7): be told when a directory's entries, or a file's content, change.

What lives here: the three system calls, and an asyncio face on them.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

# include/uapi/linux/inotify.h
IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_DELETE = 0x200
ENTRIES = IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE
CONTENT = IN_MODIFY

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Tells when something has changed at `path` since the last time it was asked."""

    def __init__(self, path: Path, mask: int) -> None:
        """Raises OSError, also when the machine's inotify instances are used up."""
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if _libc.inotify_add_watch(self._fd, os.fsencode(path), mask) < 0:
            errno = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(errno, os.strerror(errno), str(path))
        self.changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        os.read(self._fd, 65536)
        self.changed.set()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
