"""Batches that are one run each, as the peer's tunnel has cut up super-packets: told at once.

What lives here: a few operations on all packets of a batch, or of several batches that are alike.
What does not: what a run is, and where runs begin in other batches (`coalesce`).
"""

from __future__ import annotations

import struct

import numpy as np

from podwire.tunnel.checksum import U8, sum_of, swap16
from podwire.tunnel.coalesce import Shape, not_last, runs
from podwire.tunnel.headers import DONT_FRAGMENT, FIN, PSH, TCP

_U16 = struct.Struct("!H")
_LAYOUTS = 256


class Batches:
    """Batches of datagrams in `buffer`, in slots of `room` bytes, the first from `at` on, which is
    even. Behind a batch its slot has room for one more datagram, which is overwritten."""

    def __init__(self, buffer: U8, at: int, room: int) -> None:
        self._buffer, self._at, self._room = buffer, at, room
        self._layouts: dict[tuple[int, int, int, int, Shape], Layout] = {}

    def borders(self, slot: int, count: int, stride: int, last: int, shape: Shape) -> list[int]:
        """Where runs begin among `count` packets, one every `stride` bytes; and `count`.

        The last packet has `last` bytes. `shape` is the first packet's.
        """
        if self.are_runs(slot, 1, count, stride, last, shape):
            return [0, count]
        at = self._at + slot * self._room
        return runs(self._buffer, at, count, stride, last, shape)

    def are_runs(
        self, slot: int, number: int, count: int, stride: int, last: int, shape: Shape
    ) -> bool:
        """Whether each of so many batches, in slots from `slot` on, is one run.

        Yes is certain but for errors that cancel each other out in a checksum; no is not.
        """
        key = (slot, number, count, stride, shape)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _LAYOUTS:
                self._layouts.clear()
            at = self._at + slot * self._room
            layout = Layout(self._buffer, at, self._room, number, count, stride, shape)
            self._layouts[key] = layout
        return layout.are_runs(last)


class Layout:
    """Batches of one division: views of all headers at once, and what a run looks like in them."""

    def __init__(
        self, buffer: U8, at: int, room: int, number: int, count: int, stride: int, shape: Shape
    ) -> None:
        self._view, self._count, self._stride = buffer.data, count, stride
        self._shape = shape
        self._starts = [at + slot * room for slot in range(number)]
        size = count * stride
        data = np.ndarray((number, size), np.uint8, buffer.data, at, (room, 1))
        self._tails: U8 = data[:, -stride:]
        self._words = None if stride & 1 else data.view(np.uint16)
        words = (number, count, shape.head >> 2)
        #: All headers, to be compared with the first one of each batch.
        self._headers = np.ndarray(words, np.uint32, buffer.data, at, (room, stride, 4))
        self._firsts = self._headers[:, :1]
        self._mask = np.empty(words[1:], np.uint32)
        self._mask[:] = shape.mask.view(np.uint32)
        self._mask[:-1] |= not_last(shape).view(np.uint32)
        self._last = (count - 1) * stride
        self._differences = np.empty(words, np.uint32)
        if shape.protocol == TCP:
            place = at + shape.l4 + 4
            sequence = np.ndarray((number, count), ">u4", buffer.data, place, (room, stride))
            self._sequence, self._sequence_before = sequence[:, 1:], sequence[:, :1]
            self._steps = np.arange(1, count, dtype=np.uint32) * np.uint32(stride - shape.head)

    def are_runs(self, last: int) -> bool:
        """Whether all batches are one run each, of which the last packet has `last` bytes."""
        if self._words is None or last <= self._shape.head:
            return False
        for at in self._starts:
            if not self._may_be_run(at, last):
                return False
        if self._shape.protocol == TCP:
            first = self._sequence_before.astype(np.uint32)
            if np.count_nonzero(self._sequence != first + self._steps):
                return False
        np.bitwise_xor(self._headers, self._firsts, out=self._differences)
        np.bitwise_and(self._differences, self._mask, out=self._differences)
        return not np.count_nonzero(self._differences) and self._sum_up(last)

    def _may_be_run(self, at: int, last: int) -> bool:
        """What is to be seen by the first and the last header of a batch."""
        shape, view, stride, end = self._shape, self._view, self._stride, at + self._last
        length = _U16.unpack_from
        if shape.version == 4:
            # The identification is not compared: nobody looks at it where DF is set (RFC 6864).
            if not view[at + 6] & DONT_FRAGMENT >> 8:
                return False
            place, whole, rest = 2, stride, last
        else:
            place, whole, rest = 4, stride - 40, last - 40
        if length(view, at + place)[0] != whole or length(view, end + place)[0] != rest:
            return False
        if shape.protocol == TCP:
            return not view[at + shape.l4 + 13] & (FIN | PSH)
        place = shape.l4 + 4
        return bool(
            length(view, at + place)[0] == stride - shape.l4
            and length(view, end + place)[0] == last - shape.l4
        )

    def _sum_up(self, last: int) -> bool:
        """Whether the sums of everything are what they are with all checksums right."""
        shape, view, l4 = self._shape, self._view, self._shape.l4
        assert self._words is not None  # noqa: S101  are_runs has seen to that
        if last != self._stride:
            self._tails[:, last:] = 0
        totals = np.add.reduce(self._words, axis=1, dtype=np.uint32).tolist()
        # TCP's and UDP's part of each packet is zero together with its pseudo header: addresses,
        # protocol and length.
        for total, at in zip(totals, self._starts, strict=True):
            if shape.version == 4:
                # IP's own header is zero by itself.
                each = sum_of(view[at + 12 : at + 20])
                total += (self._count - 1) * swap16(self._stride - l4) + swap16(last - l4)
            else:
                # The addresses and the length are in the header already, and three words more.
                each = -sum_of(view[at : at + 4]) - sum_of(view[at + 6 : at + 8])
            total += self._count * (each + swap16(shape.protocol))
            if total % 0xFFFF:
                return False
        return True
