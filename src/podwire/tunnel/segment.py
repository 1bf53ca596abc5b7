"""A super-packet from the TUN device cut up: the headers of all segments, made at once.

The kernel hands over TCP and UDP packets of up to 64 KiB with the size that they are to be cut
into (TSO, USO). Each segment becomes a datagram of its own, so each needs whole headers: IP's
length and checksum, TCP's sequence number and flags or UDP's length, and their checksum over the
payload.

Segments are rows. Super-packets of a flow are much alike, so everything that depends only on sizes
is kept as a `Layout`: the views that are written and read through. What is left to do for a packet
is a handful of operations on all rows, and the first and last row's peculiarities.

Sums are in the machine's byte order (see `podwire.tunnel.checksum`). The kernel has left the sum of
the pseudo header in the checksum field (CHECKSUM_PARTIAL), so nothing here reads the addresses: it
stays there, for the length that a segment has, and is part of the row when that is summed up.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from podwire.tunnel.checksum import U8, check_of, row_checks, row_sums, swap16
from podwire.tunnel.headers import DONT_FRAGMENT
from podwire.tunnel.session import BatchBuffer

#: struct virtio_net_hdr's `gso_type` (include/uapi/linux/virtio_net.h) and `flags`.
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
NEEDS_CSUM = 1

#: A packet of 64 KiB in segments of the smallest MSS that Linux takes (48 bytes).
MAX_SEGMENTS = 1366
#: Both headers: IPv4 and TCP with all their options, or IPv6 with a short extension.
MAX_HEADERS = 120

FIN, SYN, RST, PSH, URG, CWR = 0x01, 0x02, 0x04, 0x08, 0x20, 0x80
_ONCE = FIN | PSH | CWR

_LAYOUTS = 256
_ONES = np.array(0xFFFF, np.uint32)
_U16, _U32, _NATIVE16 = struct.Struct("!H"), struct.Struct("!I"), struct.Struct("=H")


class Segmenter:
    """Cuts up packets in `buffer`, one at a time: what it returns is valid until the next one.

    Behind a packet the buffer has room for one more segment, which is overwritten.
    """

    def __init__(self, buffer: U8) -> None:
        self._buffer, self._view = buffer, buffer.data
        self._whole = np.zeros(MAX_SEGMENTS * MAX_HEADERS + (1 << 17), np.uint8)
        #: Where packets are put back to back.
        self.packed = BatchBuffer(self._whole.data)
        self._layouts: dict[tuple[int, int, int, int, int, int], Layout] = {}

    def segment(self, at: int, size: int, gso_type: int, mss: int, l4: int) -> Layout | None:
        """Put the segments of the packet of `size` bytes at `at`, which is even, into `packed`.

        `mss` is the payload of each segment but the last, `l4` the offset of the TCP or UDP header
        in the packet. The packet's own header is used up. None for what can be no super-packet.
        """
        view = self._view
        tcp = gso_type & ~GSO_ECN != GSO_UDP_L4
        if mss <= 0 or l4 & 1 or not 20 <= l4 <= size - (20 if tcp else 8):
            return None
        head = l4 + (view[at + l4 + 12] >> 4 << 2 if tcp else 8)
        payload = size - head
        count = -(-payload // mss)
        key = (at, l4, head, mss, count, view[at] & 0xF0 | tcp)
        layout = self._layouts.get(key)
        if layout is None:
            least = l4 + (20 if tcp else 8)
            if payload <= 0 or count > MAX_SEGMENTS or not least <= head <= MAX_HEADERS:
                return None
            if len(self._layouts) >= _LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[key] = Layout(
                self._buffer, self._whole, at, l4, head, mss, count, tcp=tcp
            )
        layout.fill(size)
        return layout

    def pack(self, rows: U8) -> None:
        """Put packets of one size back to back in `packed`."""
        self._whole[: rows.size].reshape(rows.shape)[:] = rows


class Layout:
    """Packets at `at` of one division: `count` segments of `mss` bytes, and where they are put."""

    def __init__(
        self,
        buffer: U8,
        whole: U8,
        at: int,
        l4: int,
        head: int,
        mss: int,
        count: int,
        *,
        tcp: bool,
    ) -> None:
        self._at, self._l4, self.head, self.mss, self.count, self._tcp = (
            at,
            l4,
            head,
            mss,
            count,
            tcp,
        )
        self._six = buffer.item(at) >> 4 == 6
        self._view, self._whole = buffer.data, whole.data
        stride = head + mss
        packed = whole[: count * stride].reshape(count, stride)
        self._headers: U8 = packed[:, :head]
        self._packed_payloads: U8 = packed[:, head:]
        self._template: U8 = buffer[at : at + head]
        self._last_row = (count - 1) * stride
        self._field = l4 + (16 if tcp else 6)
        self._checks = np.ndarray((count,), np.uint16, whole.data, self._field, (stride,))
        if tcp:
            self._sequence = np.ndarray((count,), ">u4", whole.data, l4 + 4, (stride,))
            self._steps = np.arange(count, dtype=np.uint32) * np.uint32(mss)
        start = at + head
        self._payloads: U8 = buffer[start : start + count * mss].reshape(count, mss)
        #: What the checksums are over.
        self._summed: U8 = packed[:, l4:]
        self._words = None
        if not mss & 1:
            words = (count, stride - l4 >> 1)
            self._words = np.ndarray(words, np.uint16, whole.data, l4, (stride, 2))

    def fill(self, size: int) -> None:
        """Put together the segments of the packet of `size` bytes; the last is filled up with
        zeros."""
        view, at, head, l4, mss = self._view, self._at, self.head, self._l4, self.mss
        whole, row = self._whole, self._last_row
        last = size - head - (self.count - 1) * mss
        # In one's complement: the length in the pseudo header is a segment's now.
        field, length = at + self._field, swap16(head - l4 + mss)
        pseudo = _NATIVE16.unpack_from(view, field)[0] - swap16(size - l4) + length
        _NATIVE16.pack_into(view, field, pseudo % 0xFFFF)
        if self._tcp:
            flags = view[at + l4 + 13]
            view[at + l4 + 13] = flags & ~_ONCE
            self._set_ip(size, last)
            first = _U32.unpack_from(view, at + l4 + 4)[0]
            self._sequence[:] = self._steps + np.uint32(first)
            # It tells something once: with the first segment. The end's flags go with the last.
            whole[l4 + 13] |= flags & CWR
            whole[row + l4 + 13] |= flags & (FIN | PSH)
        else:
            _U16.pack_into(view, at + l4 + 4, 8 + mss)
            self._set_ip(size, last)
            _U16.pack_into(whole, row + l4 + 4, 8 + last)
        if last != mss:
            self._payloads[-1, last:] = 0
        self._packed_payloads[:] = self._payloads
        sums = np.add.reduce(self._row_words(), axis=1, dtype=np.uint32)
        if last != mss:
            sums[-1] += (swap16(head - l4 + last) - length) % 0xFFFF
        np.remainder(sums, _ONES, out=sums)
        np.subtract(_ONES, sums, out=sums)
        self._checks[:] = sums

    def _set_ip(self, size: int, last: int) -> None:
        """Write the rows, with IP's lengths and checksums; the rest is as in the packet."""
        view, at, length = self._view, self._at, self.head + self.mss
        whole, row = self._whole, self._last_row
        if self._six:
            _U16.pack_into(view, at + 4, length - 40)
            self._headers[:] = self._template
            _U16.pack_into(whole, row + 4, self.head + last - 40)
            return
        # The checksum is adjusted, as for the TTL.
        total = 0xFFFF - _NATIVE16.unpack_from(view, at + 10)[0] - swap16(size) + swap16(length)
        _U16.pack_into(view, at + 2, length)
        _NATIVE16.pack_into(view, at + 10, check_of(total))
        self._headers[:] = self._template
        if last != self.mss:
            total += swap16(self.head + last) - swap16(length)
            _U16.pack_into(whole, row + 2, self.head + last)
            _NATIVE16.pack_into(whole, row + 10, check_of(total))
        # Of what is never fragmented nobody looks at the identification (RFC 6864).
        if not view[at + 6] & DONT_FRAGMENT >> 8:
            self._set_identifications()

    def _set_identifications(self) -> None:
        words = self._headers.view(np.uint16)
        first = np.uint16(swap16(int(words[0, 2])))
        words[:, 2] = (np.arange(self.count, dtype=np.uint16) + first).astype(">u2").view(np.uint16)
        words[:, 5] = 0
        words[:, 5] = row_checks(row_sums(words[:, : self._l4 >> 1]))

    def _row_words(self) -> NDArray[np.uint16]:
        if self._words is not None:
            return self._words
        padded = np.zeros((self.count, self._summed.shape[1] + 1), np.uint8)
        padded[:, :-1] = self._summed
        return padded.view(np.uint16)
