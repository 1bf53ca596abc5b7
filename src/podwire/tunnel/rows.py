"""Packets of one size from the TUN device, patched all at once.

What lives here: whether packets that were gathered are alike, and what each of them needs, done in
rows. What does not: where they go (`outbound`). A row is a packet with its `virtio_net_hdr` in
front.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from podwire.kernel.tun import VNET_HEADER
from podwire.tunnel.checksum import U8, row_checks, row_sums, swap16
from podwire.tunnel.headers import NEEDS_CSUM, VNET, parse


class Rows:
    """`count` packets of `size` bytes, one every `stride` bytes from `first` on in `buffer`."""

    def __init__(self, buffer: U8, first: int, count: int, size: int, stride: int) -> None:
        begin = first - VNET_HEADER
        self._rows = buffer[begin : begin + count * stride].reshape(count, stride)
        self._size = size
        self._ip = _IPV6 if buffer.item(first) >> 4 == 6 else _IPV4
        self._flags, _, _, _, self._start, self._offset = VNET.unpack_from(buffer.data, begin)
        #: The destination of the first; None where it is no packet.
        self.target: bytes | None = None
        if header := parse(buffer.data, first, size):
            self.target = header[2]

    def are_alike(self) -> bool:
        """Whether the same is to be done to all of them, and can be done in rows."""
        rows, ip, start, offset = self._rows, self._ip, self._start, self._offset
        lengths = rows[:, ip.length]
        if (rows[:, _SAME] != rows[0, _SAME]).any() or (lengths != lengths[0]).any():
            return False
        if (rows[:, ip.ttl] <= 1).any():
            return False
        fits = not start & 1 and not offset & 1 and start + offset + 2 <= self._size
        return fits or not self._flags & NEEDS_CSUM

    def other_targets(self) -> list[bytes]:
        """The destinations, where not all have the first's."""
        targets = self._rows[:, self._ip.target]
        if not (targets != targets[0]).any():
            return []
        packed, each = targets.tobytes(), targets.shape[1]
        return [packed[at : at + each] for at in range(0, len(packed), each)]

    def patch(self) -> U8:
        """Decrement their TTLs and fill in the checksums that the kernel left out; the packets."""
        rows, ip, size = self._rows, self._ip, self._size
        words = rows.view(np.uint16)
        rows[:, ip.ttl] -= 1
        if ip is _IPV4:
            checks = words[:, ip.check].astype(np.uint32) + np.uint32(swap16(0x100))
            words[:, ip.check] = (checks & 0xFFFF) + (checks >> 16)
        if self._flags & NEEDS_CSUM:
            rows[:, VNET_HEADER + size : VNET_HEADER + size + (size & 1)] = 0
            start, end = VNET_HEADER + self._start >> 1, VNET_HEADER + size + 1 >> 1
            sums = row_sums(words[:, start:end])
            words[:, start + (self._offset >> 1)] = row_checks(sums)
        return rows[:, VNET_HEADER : VNET_HEADER + size]


class _Places(NamedTuple):
    """Where IP's fields are in a row, which begins with a `virtio_net_hdr`; `check` in words."""

    length: slice
    ttl: int
    target: slice
    check: int


_IPV4 = _Places(slice(12, 14), 18, slice(26, 30), 10)
_IPV6 = _Places(slice(14, 16), 17, slice(34, 50), 0)
#: What is the same in all rows that are alike: the header in front, IP's version and header length.
_SAME = slice(0, VNET_HEADER + 1)
