"""Where batches of datagrams lie, several at once, each in its slot: as received, or opened.

What lives here: the slots' geometry, and writing a run of packets to the TUN device from where it
lies. What does not: finding runs (`batches`, `coalesce`), and who may send what (`inbound`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from podwire.kernel.tun import VNET_HEADER
from podwire.tunnel.batches import Batches
from podwire.tunnel.checksum import U8
from podwire.tunnel.session import BatchBuffer
from podwire.tunnel.sockets import ROOM, START, writev

#: Packets that a run may have: the kernel puts no more than 64 datagrams together (GRO), and
#: writev takes 1024 places (UIO_MAXIOV).
MAX_RUN = 512
_KNOWN = 256


class Area:
    """Batches in `buffer`, in slots of `ROOM` bytes, each `START` bytes from its slot's begin."""

    def __init__(self, buffer: U8) -> None:
        self.view = buffer.data
        #: Where batches begin.
        self.starts: Sequence[int] = range(START, len(buffer), ROOM)
        self.batches = Batches(buffer, START, ROOM)
        self.whole = [BatchBuffer(self.view[at : at + ROOM - START]) for at in self.starts]
        self._address: int = buffer.ctypes.data
        self._iovecs: dict[tuple[int, int, int], tuple[NDArray[np.uint64], int]] = {}

    def write_run(self, fd: int, at: int, count: int, stride: int, last: int, head: int) -> bool:
        """Write `count` packets, one every `stride` bytes from `at` on, the last of `last` bytes,
        as one: with the header of the first and the `virtio_net_hdr` in front of it. Whether the
        device took it."""
        places = self._iovecs.get((at, stride, head))
        if places is None:
            places = self._lay_out(at, stride, head)
        iovecs, iovecs_at = places
        iovecs[count - 1, 1] = last - head
        written = writev(fd, iovecs_at, count)
        iovecs[count - 1, 1] = stride - head
        return bool(written >= 0)

    def _lay_out(self, at: int, stride: int, head: int) -> tuple[NDArray[np.uint64], int]:
        """Where the header with the first payload is, and the other payloads (struct iovec)."""
        if len(self._iovecs) >= _KNOWN:
            self._iovecs.clear()
        address = self._address + at
        iovecs = np.empty((MAX_RUN, 2), np.uint64)
        iovecs[:, 0] = np.arange(MAX_RUN, dtype=np.uint64) * np.uint64(stride)
        iovecs[:, 0] += np.uint64(address + head)
        iovecs[:, 1] = stride - head
        iovecs[0] = address - VNET_HEADER, VNET_HEADER + stride
        places = self._iovecs[at, stride, head] = iovecs, iovecs.ctypes.data
        return places
