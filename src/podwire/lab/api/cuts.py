"""Connections that are refused: those of nodes that a person has cut off from the API.

What lives here: which connections those are, and ending them. A connection over the Unix socket is
known by the network namespace that the process which opened it is in (SO_PEERCRED, unix(7)); the
host's own, and those over TCP, are never cut.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from pathlib import Path
from weakref import WeakKeyDictionary

log = logging.getLogger("podwire.lab.api")

_UCRED = struct.Struct("3i")


class Cuts:
    """Whose connections are refused. `file` names network namespaces, a path a line."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._cut: frozenset[int] = frozenset()
        self._known: WeakKeyDictionary[asyncio.Transport, int] = WeakKeyDictionary()
        self.read()

    def read(self) -> None:
        """Read the file again, and end the connections that are now refused."""
        try:
            paths = self._file.read_text().split() if self._file else []
        except FileNotFoundError:
            paths = []
        self._cut = frozenset(filter(None, map(_inode, paths)))
        ended = [one for one, inode in self._known.items() if inode in self._cut]
        for transport in ended:
            transport.abort()
        if self._file:
            log.info("cuts read namespaces=%d connections_ended=%d", len(self._cut), len(ended))

    def refuses(self, transport: asyncio.Transport | None) -> bool:
        """Whether to end the connection of a request; if so, it has been ended."""
        if transport is None or self._file is None:
            return False
        inode = self._known.get(transport)
        if inode is None:
            inode = self._known[transport] = _netns_of_peer(transport)
        if inode not in self._cut:
            return False
        transport.abort()
        return True


def _netns_of_peer(transport: asyncio.Transport) -> int:
    """Inode of the network namespace at the other end; 0 where that is not to be known."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return 0
    pid, _, _ = _UCRED.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return _inode(f"/proc/{pid}/ns/net")


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino  # noqa: PTH116
    except OSError:
        return 0
