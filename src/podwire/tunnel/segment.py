"""A super-packet from the TUN device cut up: the headers of all segments, made at once.

The kernel hands over TCP and UDP packets of up to 64 KiB with the size that they are to be cut
into (TSO, USO). Each segment becomes a datagram of its own, so each needs whole headers: IP's
length, identification and checksum, TCP's sequence number and flags or UDP's length, and their
checksum over the payload. The payload stays where it is: a segment is sent from two places.

Everything is done in rows, one a segment, in 16-bit words of the machine's byte order (see
`podwire.tunnel.checksum`). The kernel has left the sum of the pseudo header in the checksum field
(CHECKSUM_PARTIAL), so nothing here needs to know the addresses.
"""

from __future__ import annotations

import numpy as np

from podwire.tunnel.checksum import U8, U16, U32, row_checks, row_sums, swap16

#: struct virtio_net_hdr's `gso_type` (include/uapi/linux/virtio_net.h) and `flags`.
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
NEEDS_CSUM = 1

#: A packet of 64 KiB in segments of the smallest MSS that Linux takes (48 bytes).
MAX_SEGMENTS = 1366
#: Both headers: IPv4 and TCP with all their options, or IPv6 with a short extension.
MAX_HEADERS = 120

FIN, SYN, RST, PSH, URG, CWR = 0x01, 0x02, 0x04, 0x08, 0x20, 0x80
_ONCE = FIN | PSH | CWR

_COUNT16 = np.arange(MAX_SEGMENTS, dtype=np.uint16)
_COUNT32 = np.arange(MAX_SEGMENTS, dtype=np.uint32)


class Segmenter:
    """Cuts up one super-packet at a time; what it returns is valid until the next one."""

    def __init__(self) -> None:
        self._scratch = np.zeros(MAX_SEGMENTS * MAX_HEADERS, np.uint8)
        self._rows: dict[int, tuple[U8, U16]] = {}
        #: Where the headers start, as an address.
        self.address: int = self._scratch.ctypes.data

    def segment(
        self, buffer: U8, at: int, size: int, gso_type: int, mss: int, l4: int
    ) -> U8 | None:
        """The headers of each segment of the packet of `size` bytes at `at`, one row each.

        `mss` is the payload of each segment but the last, `l4` the offset of the TCP or UDP header
        in the packet. `at` is even. The buffer has room for `mss` more bytes behind the packet,
        which are overwritten. None for what can be no super-packet.
        """
        tcp = gso_type & ~GSO_ECN != GSO_UDP_L4
        if mss <= 0 or l4 & 1 or not 20 <= l4 <= size - (20 if tcp else 8):
            return None
        head = l4 + (buffer.item(at + l4 + 12) >> 4 << 2 if tcp else 8)
        payload = size - head
        count = -(-payload // mss)
        if payload <= 0 or count > MAX_SEGMENTS or not l4 + 8 <= head <= MAX_HEADERS:
            return None
        all_rows, all_words = self._rows.get(head) or self._make_rows(head)
        rows, words = all_rows[:count], all_words[:count]
        rows[:] = buffer[at : at + head]
        last = payload - (count - 1) * mss
        _set_ip(words, buffer.item(at) >> 4, l4, head, mss, last)
        field = (l4 + 16 if tcp else l4 + 6) >> 1
        # The sum of the pseudo header, with the length of one segment instead of the whole.
        pseudo = int(words[0, field]) - swap16(size - l4) + swap16(head - l4 + mss)
        words[:, field] = 0
        if tcp:
            _set_tcp(rows, words, l4, mss)
        else:
            words[:, l4 + 4 >> 1] = swap16(8 + mss)
            words[-1, l4 + 4 >> 1] = swap16(8 + last)
        sums = row_sums(words[:, l4 >> 1 :])
        sums += _payload_sums(buffer, at + head, payload, count, mss)
        sums += np.uint32(pseudo % 0xFFFF)
        sums[-1] += (swap16(head - l4 + last) - swap16(head - l4 + mss)) % 0xFFFF
        words[:, field] = row_checks(sums)
        return rows

    def _make_rows(self, head: int) -> tuple[U8, U16]:
        rows = self._scratch[: MAX_SEGMENTS * head].reshape(MAX_SEGMENTS, head)
        self._rows[head] = rows, rows.view(np.uint16)
        return self._rows[head]


def _set_ip(words: U16, version: int, l4: int, head: int, mss: int, last: int) -> None:
    if version == 6:
        words[:, 2] = swap16(head - 40 + mss)
        words[-1, 2] = swap16(head - 40 + last)
        return
    words[:, 1] = swap16(head + mss)
    words[-1, 1] = swap16(head + last)
    first = swap16(int(words[0, 2]))
    words[:, 2] = _network16(_COUNT16[: len(words)] + np.uint16(first))
    words[:, 5] = 0
    words[:, 5] = row_checks(row_sums(words[:, : l4 >> 1]))


def _set_tcp(rows: U8, words: U16, l4: int, mss: int) -> None:
    at = l4 + 4 >> 1
    first = swap16(int(words[0, at])) << 16 | swap16(int(words[0, at + 1]))
    sequence = _COUNT32[: len(words)] * np.uint32(mss) + np.uint32(first)
    words[:, at : at + 2] = _network32(sequence).view(np.uint16).reshape(-1, 2)
    flags = int(rows[0, l4 + 13])
    if flags & _ONCE:
        # The end's flags belong to the last segment, and CWR, which tells it once, to the first.
        rows[:, l4 + 13] = flags & ~_ONCE
        rows[0, l4 + 13] |= flags & CWR
        rows[-1, l4 + 13] |= flags & (FIN | PSH)


def _payload_sums(buffer: U8, at: int, size: int, count: int, mss: int) -> U32:
    end = at + count * mss
    buffer[at + size : end] = 0
    rows = buffer[at:end]
    if mss & 1 == 0:
        return row_sums(rows.view(np.uint16).reshape(count, mss >> 1))
    padded = np.zeros((count, mss + 1), np.uint8)
    padded[:, :mss] = rows.reshape(count, mss)
    return row_sums(padded.view(np.uint16))


def _network16(numbers: U16) -> U16:
    return numbers.astype(">u2").view(np.uint16)


def _network32(numbers: U32) -> U32:
    return numbers.astype(">u4").view(np.uint32)
