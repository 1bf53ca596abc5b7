"""An encrypted session: two keys, two counters, and what was received before.

What lives here: sealing packets into datagrams and opening them, one by one and by the batch, and
the window against replays. What does not: where keys come from, when they are too old, and whose
they are (`podwire.tunnel.secure`). Nothing here does I/O.

A transport message is, as WireGuard's,

     0       1      4                8                       16              16 + n   32 + n
    +-------+------+----------------+------------------------+------------------+-------+
    | 4     | 0    | receiver       | counter                | n bytes of IP    | tag   |
    +-------+------+----------------+------------------------+------------------+-------+

little-endian, without padding, so that packets of one size stay datagrams of one size, which is
what the kernel's UDP segmentation wants. AES-256-GCM with the counter as nonce covers the packet;
the header needs no more cover, as a changed one names another key or nonce.

A batch is laid out as the kernel's UDP_SEGMENT and UDP_GRO have it: segments of one size back to
back, of which the last may be shorter. Buffers are used again and again (`BatchBuffer`).
"""

from __future__ import annotations

import struct
from array import array
from collections import deque
from itertools import repeat

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from podwire.tunnel.noise import TAG_SIZE

#: The header, of one datagram and of many: the prefix and the counter.
HEADER = struct.Struct("<QQ")
HEADERS = np.dtype([("prefix", "<u8"), ("counter", "<u8")])

#: A transport message's type, the little-endian word that it begins with.
TRANSPORT = 4
HEADER_SIZE = HEADER.size
#: What encryption makes each packet longer by, in bytes.
OVERHEAD = HEADER_SIZE + TAG_SIZE
#: How far behind the newest a datagram may be and still be received.
WINDOW = 2048
#: Below this number of datagrams, NumPy costs more than it saves.
_FEW = 8
#: Layouts that are remembered of a buffer. Who sends ever other sizes gains nothing by it.
_CUTS = 16


def prefix_of(index: int) -> int:
    """The first 8 bytes of datagrams to the end that calls a session so, as a number."""
    return TRANSPORT | index << 32


class ReplayWindow:
    """The counters received, of the newest `WINDOW` (as RFC 6479, without its shifting).

    A counter's place holds the counter itself, so nothing has to be cleared when it moves on.
    """

    __slots__ = ("_places", "newest")

    def __init__(self) -> None:
        self.newest = -1
        self._places = array("Q", b"\xff" * (8 * WINDOW))

    def takes(self, counter: int) -> bool:
        """Whether this counter is neither known nor too old to know."""
        if counter > self.newest:
            return True
        return counter > self.newest - WINDOW and self._places[counter % WINDOW] != counter

    def add(self, counter: int) -> None:
        """Note a counter whose datagram is authentic."""
        self._places[counter % WINDOW] = counter
        if counter > self.newest:
            self.newest = counter

    def add_run(self, counters: range) -> None:
        """Note counters one after the other, all newer than the newest."""
        start = counters[0] % WINDOW
        if start + len(counters) <= WINDOW:
            self._places[start : start + len(counters)] = array("Q", counters)
            self.newest = counters[-1]
        else:
            for counter in counters:
                self.add(counter)


class BatchBuffer:
    """Memory in which batches are laid out again and again, with the views that it was cut into.

    A stream's batches are all cut alike, and cutting takes as long as a quarter of the encryption.
    """

    __slots__ = ("_cuts", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._cuts: dict[tuple[int, int, int], list[memoryview]] = {}

    def cut(self, start: int, size: int, stride: int, count: int) -> list[memoryview]:
        """`size` bytes every `stride` from `start` on, `count` times or more."""
        cuts = self._cuts.get((start, size, stride))
        if cuts is None or len(cuts) < count:
            if len(self._cuts) >= _CUTS:
                self._cuts.clear()
            view = self.view
            cuts = [view[at : at + size] for at in range(start, start + count * stride, stride)]
            self._cuts[start, size, stride] = cuts
        return cuts


class Session:
    """What two ends share between two handshakes.

    `local` is the index by which the peer names it, `remote` that by which this end does;
    `initiator` says who asked for it, `born` when (monotonic seconds). `counters` are the caller's,
    and told of what is dropped here and why: `not_authentic`, `replayed`.
    """

    __slots__ = (
        "_open",
        "_open_into",
        "_seal",
        "_seal_into",
        "_sent_prefix",
        "_window",
        "born",
        "counters",
        "initiator",
        "local",
        "prefix",
        "remote",
        "sent",
    )

    def __init__(
        self,
        *,
        local: int,
        remote: int,
        initiator: bool,
        send: bytes,
        receive: bytes,
        born: float,
        counters: dict[str, int],
    ) -> None:
        self.local = local
        self.remote = remote
        self.initiator = initiator
        self.born = born
        self.counters = counters
        self.sent = 0
        #: What datagrams to this end begin with.
        self.prefix = prefix_of(local)
        self._sent_prefix = prefix_of(remote)
        self._window = ReplayWindow()
        sending, receiving = AESGCM(send), AESGCM(receive)
        self._seal, self._seal_into = sending.encrypt, sending.encrypt_into
        self._open, self._open_into = receiving.decrypt, receiving.decrypt_into

    def seal(self, packet: bytes) -> bytes:
        """One packet's datagram; an empty one is a keepalive."""
        counter = self.sent
        self.sent = counter + 1
        return HEADER.pack(self._sent_prefix, counter) + self._seal(
            counter.to_bytes(12, "big"), packet, None
        )

    def seal_into(
        self, source: BatchBuffer, start: int, length: int, segment: int, out: BatchBuffer
    ) -> int:
        """Seal a batch; how many bytes of `out` its datagrams take.

        `source` holds, from `start` on, `length` bytes in segments of `segment`; `out` gets them
        in segments of `segment + OVERHEAD`. Both are of bytes, of different memory.
        """
        stride = segment + OVERHEAD
        full, rest = divmod(length, segment)
        count = full + (rest > 0)
        first = self.sent
        self.sent = first + count
        if count < _FEW:
            for number in range(count):
                at = start + number * segment
                size = min(segment, start + length - at)
                self._seal_one(source.view[at : at + size], first + number, out, number * stride)
            return length + count * OVERHEAD
        headers = np.ndarray((count,), HEADERS, out.view, 0, (stride,))
        headers["prefix"] = self._sent_prefix
        headers["counter"] = np.arange(first, first + count, dtype=np.uint64)
        # As many nonces as segments are full: the views may be more.
        nonces = [counter.to_bytes(12, "big") for counter in range(first, first + full)]
        plain = source.cut(start, segment, segment, full)
        sealed = out.cut(HEADER_SIZE, segment + TAG_SIZE, stride, full)
        deque(map(self._seal_into, nonces, plain, repeat(None), sealed), 0)
        if rest:
            last = source.view[start + length - rest : start + length]
            self._seal_one(last, first + full, out, full * stride)
        return length + count * OVERHEAD

    def _seal_one(self, packet: memoryview, counter: int, out: BatchBuffer, at: int) -> None:
        HEADER.pack_into(out.view, at, self._sent_prefix, counter)
        end = at + OVERHEAD + len(packet)
        nonce = counter.to_bytes(12, "big")
        self._seal_into(nonce, packet, None, out.view[at + HEADER_SIZE : end])

    def open(self, datagram: memoryview | bytes, counter: int) -> bytes | None:
        """The packet in one datagram to this end, empty for a keepalive; None for a bad one.

        The caller has seen that it begins with `prefix`, then this counter, and is of `OVERHEAD`
        bytes at least.
        """
        if not self._window.takes(counter):
            self.counters["replayed"] += 1
            return None
        try:
            packet = self._open(counter.to_bytes(12, "big"), datagram[HEADER_SIZE:], None)
        except InvalidTag:
            self.counters["not_authentic"] += 1
            return None
        self._window.add(counter)
        return packet

    def open_into(
        self,
        source: BatchBuffer,
        length: int,
        segment: int,
        out: BatchBuffer,
        counters: list[int],
    ) -> int | None:
        """Open a batch that is just as the peer sent it; how many bytes of `out` its packets take.

        `source` and `out` are as in `seal_into`, from 0 on; `counters` are those of the batch's
        headers, which all begin with `prefix`, and each datagram but the last holds a packet. None,
        and nothing is noted, where they are not all new, in order and authentic: then each is for
        `open`.
        """
        run = range(counters[0], counters[0] + len(counters))
        if counters[0] <= self._window.newest or counters != list(run):
            return None
        stride = segment - OVERHEAD
        full, rest = divmod(length, segment)
        end = full * stride
        nonces = [counter.to_bytes(12, "big") for counter in run[:full]]
        sealed = source.cut(HEADER_SIZE, segment - HEADER_SIZE, segment, full)
        plain = out.cut(0, stride, stride, full)
        try:
            deque(map(self._open_into, nonces, sealed, repeat(None), plain), 0)
            if rest:
                self._open_into(
                    run[full].to_bytes(12, "big"),
                    source.view[full * segment + HEADER_SIZE : length],
                    None,
                    out.view[end : end + rest - OVERHEAD],
                )
                end += rest - OVERHEAD
        except InvalidTag:
            return None
        self._window.add_run(run)
        return end
