"""Super-packets from the TUN device cut up: the headers of all segments, made at once.

The kernel hands over TCP and UDP packets of up to 64 KiB with the size that they are to be cut
into (TSO, USO). Each segment becomes a datagram of its own, so each needs whole headers: IP's
length and checksum, TCP's sequence number and flags or UDP's length, and their checksum over the
payload.

Segments are rows. Super-packets of a flow are much alike, and several are cut up at once, so
everything that depends only on sizes is kept as a `Layout`: the views that are written and read
through. What is left to do is a handful of operations on all rows of all packets, and the
peculiarities of each packet's first and last row.

Sums are in the machine's byte order (see `podwire.tunnel.checksum`). The kernel has left the sum of
the pseudo header in the checksum field (CHECKSUM_PARTIAL), so nothing here reads the addresses: it
stays there, for the length that a segment has, and is part of the row when that is summed up.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from podwire.tunnel.checksum import U8, row_checks, row_sums, swap16
from podwire.tunnel.headers import (
    CWR,
    DONT_FRAGMENT,
    FIN,
    GSO_ECN,
    GSO_UDP_L4,
    PSH,
    VNET,
    set_ip_length,
)
from podwire.tunnel.session import BatchBuffer

#: A packet of 64 KiB in segments of the smallest MSS that Linux takes (48 bytes).
MAX_SEGMENTS = 1366
#: Both headers: IPv4 and TCP with all their options, or IPv6 with a short extension.
MAX_HEADERS = 120

#: What a packet tells once: with its first segment or with its last.
_ONCE = FIN | PSH | CWR
#: All segments of a packet, of which the last is filled up.
_PACKED = MAX_SEGMENTS * MAX_HEADERS + (1 << 17)

_KNOWN = 256
_ONES = np.array(0xFFFF, np.uint32)
_U16, _NATIVE16 = struct.Struct("!H"), struct.Struct("=H")


class Division:
    """How a super-packet is cut up: into `count` segments of a header of `head` bytes and `mss`
    bytes of payload, the last maybe shorter. `l4` is the offset of the TCP or UDP header."""

    __slots__ = ("before", "count", "head", "l4", "mss", "segment", "six", "tcp")

    def __init__(self, *, six: bool, tcp: bool, l4: int, head: int, mss: int, count: int) -> None:
        self.six, self.tcp, self.l4, self.head = six, tcp, l4, head
        self.mss, self.count, self.segment = mss, count, head + mss
        #: Of the packet, the bytes that are before the last segment's payload.
        self.before = head + (count - 1) * mss

    def size_of(self, length: int) -> int:
        """Of all segments, for a packet of `length` bytes."""
        return length + (self.count - 1) * self.head


class Segmenter:
    """Cuts up packets in `buffer`, in slots of `room` bytes, the first packet at `at`. All three
    are even, and behind a packet its slot has room for one more segment, which is overwritten."""

    def __init__(self, buffer: U8, at: int, room: int) -> None:
        self._buffer, self._view = buffer, buffer.data
        self._at, self._room = at, room
        slots = len(buffer) // room
        self._whole: U8 = np.zeros(slots * _PACKED, np.uint8)
        whole = self._whole.data
        #: Where packets are put back to back, by slots.
        self.packed = [
            BatchBuffer(whole[begin : begin + _PACKED])
            for begin in range(0, slots * _PACKED, _PACKED)
        ]
        self._divisions: dict[tuple[int, int, int, int, int], Division] = {}
        self._layouts: dict[tuple[int, int, Division], Layout] = {}

    def divide(self, slot: int, length: int) -> Division | None:
        """How the super-packet of `length` bytes in a slot is to be cut up, as the `virtio_net_hdr`
        in front of it has it. None for what can be no super-packet.

        Equal divisions are nearly always the same object.
        """
        view, at = self._view, self._at + slot * self._room
        _, gso_type, _, mss, l4, _ = VNET.unpack_from(view, at - VNET.size)
        tcp = gso_type & ~GSO_ECN != GSO_UDP_L4
        least = l4 + (20 if tcp else 8)
        if mss <= 0 or l4 & 1 or l4 < 20 or least > length:
            return None
        head = l4 + (view[at + l4 + 12] >> 4 << 2) if tcp else least
        count = -(-(length - head) // mss)
        key = (view[at] & 0xF0 | tcp, l4, head, mss, count)
        known = self._divisions.get(key)
        if known is None:
            if not 0 < count <= MAX_SEGMENTS or not least <= head <= MAX_HEADERS:
                return None
            if len(self._divisions) >= _KNOWN:
                self._divisions.clear()
            six = view[at] >> 4 == 6
            known = Division(six=six, tcp=tcp, l4=l4, head=head, mss=mss, count=count)
            self._divisions[key] = known
        return known

    def cut(self, first: int, lengths: Sequence[int], division: Division) -> None:
        """Put the segments of packets of these lengths, in slots from `first` on and all divided
        like that, into `packed`. The packets' own headers are used up."""
        key = (first, len(lengths), division)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _KNOWN:
                self._layouts.clear()
            at = self._at + first * self._room
            layout = Layout(self._buffer, at, self._room, self._whole, *key)
            self._layouts[key] = layout
        layout.fill(lengths)

    def pack(self, packets: U8) -> BatchBuffer:
        """Put packets of one size back to back; what was in the first of `packed` is lost."""
        self._whole[: packets.size].reshape(packets.shape)[:] = packets
        return self.packed[0]


class Layout:
    """`number` packets of one division, in slots from `first` on: the first at `at`, and then one
    every `room` bytes. Their segments are put in `whole`."""

    def __init__(
        self, buffer: U8, at: int, room: int, whole: U8, first: int, number: int, division: Division
    ) -> None:
        self._division, self._view, self._whole = division, buffer.data, whole.data
        count, l4, head, stride = division.count, division.l4, division.head, division.segment
        to = first * _PACKED
        #: Where each packet begins, and its segments.
        self._places = [(at + slot * room, to + slot * _PACKED) for slot in range(number)]
        shape, places, all_segments = (number, count), (buffer.data, at), (whole.data, to)
        template, payload = (number, 1, head), (*shape, division.mss)
        self._templates: U8 = np.ndarray(template, np.uint8, *places, (room, 0, 1))
        self._payloads: U8 = np.ndarray(
            payload, np.uint8, buffer.data, at + head, (room, division.mss, 1)
        )
        segments: U8 = np.ndarray((*shape, stride), np.uint8, *all_segments, (_PACKED, stride, 1))
        self._headers, self._packed_payloads = segments[:, :, :head], segments[:, :, head:]
        #: What TCP's and UDP's checksums are over.
        self._summed = segments[:, :, l4:]
        self._words: NDArray[np.uint16] | None = None
        if not stride & 1:
            words, strides = (*shape, stride - l4 >> 1), (_PACKED, stride, 2)
            self._words = np.ndarray(words, np.uint16, whole.data, to + l4, strides)
        self._field = l4 + (16 if division.tcp else 6)
        rows = (_PACKED, stride)
        self._checks = np.ndarray(shape, np.uint16, whole.data, to + self._field, rows)
        if division.tcp:
            self._sequence = np.ndarray(shape, ">u4", whole.data, to + l4 + 4, rows)
            self._steps = np.arange(count, dtype=np.uint32) * np.uint32(division.mss)
        #: Of a segment, as it is in the pseudo header.
        self._l4_length = swap16(stride - l4)

    def fill(self, lengths: Sequence[int]) -> None:
        """Put together the segments of packets of these lengths; a last one that is shorter is
        filled up with zeros."""
        division, view = self._division, self._view
        tcp, flags_at = division.tcp, division.l4 + 13
        once: list[tuple[int, int]] = []
        short: list[tuple[int, int]] = []
        for number, (length, (at, to)) in enumerate(zip(lengths, self._places, strict=True)):
            self._set_lengths(at, length)
            if tcp and (flags := view[at + flags_at]) & _ONCE:
                view[at + flags_at] = flags & ~_ONCE
                once.append((to, flags))
            if length != division.before + division.mss:
                self._payloads[number, -1, length - division.before :] = 0
                short.append((number, length - division.before))
        self._headers[:] = self._templates
        self._packed_payloads[:] = self._payloads
        if tcp:
            self._sequence[:] = self._sequence[:, :1] + self._steps
        for to, flags in once:
            # The end's flags go with the last segment.
            last = to + (division.count - 1) * division.segment
            self._whole[to + flags_at] |= flags & CWR
            self._whole[last + flags_at] |= flags & (FIN | PSH)
        for number, last in short:
            self._shorten(number, last)
        if not division.six:
            for number, (_, to) in enumerate(self._places):
                # Of what is never fragmented nobody looks at the identification (RFC 6864).
                if not self._whole[to + 6] & DONT_FRAGMENT >> 8:
                    self._set_identifications(number)
        sums = np.add.reduce(self._row_words(), axis=2, dtype=np.uint32)
        for number, last in short:
            length = swap16(division.head - division.l4 + last)
            sums[number, -1] += (length - self._l4_length) % 0xFFFF
        np.remainder(sums, _ONES, out=sums)
        np.subtract(_ONES, sums, out=sums)
        self._checks[:] = sums

    def _set_lengths(self, at: int, length: int) -> None:
        """Make the lengths in the header at `at` those of a segment, also where they are summed."""
        division, view = self._division, self._view
        field = at + self._field
        # In one's complement, as all sums here.
        pseudo = _NATIVE16.unpack_from(view, field)[0] - swap16(length - division.l4)
        _NATIVE16.pack_into(view, field, (pseudo + self._l4_length) % 0xFFFF)
        if not division.tcp:
            _U16.pack_into(view, at + division.l4 + 4, division.segment - division.l4)
        set_ip_length(view, at, division.segment)

    def _shorten(self, number: int, last: int) -> None:
        """The last segment of a packet has only `last` bytes of payload."""
        division, whole = self._division, self._whole
        at = self._places[number][1] + (division.count - 1) * division.segment
        size = division.head + last
        if not division.tcp:
            _U16.pack_into(whole, at + division.l4 + 4, size - division.l4)
        set_ip_length(whole, at, size)

    def _set_identifications(self, number: int) -> None:
        headers = self._headers[number]
        words = headers.copy().view(np.uint16)
        first = np.uint16(swap16(int(words[0, 2])))
        words[:, 2] = (np.arange(len(words), dtype=np.uint16) + first).astype(">u2").view(np.uint16)
        words[:, 5] = 0
        words[:, 5] = row_checks(row_sums(words[:, : self._division.l4 >> 1]))
        headers[:] = words.view(np.uint8)

    def _row_words(self) -> NDArray[np.uint16]:
        if self._words is not None:
            return self._words
        *shape, size = self._summed.shape
        padded = np.zeros((*shape, size + 1), np.uint8)
        padded[:, :, :-1] = self._summed
        return padded.view(np.uint16)
