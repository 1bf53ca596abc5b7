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
back, of which the last may be shorter.
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

    def seal_into(self, source: memoryview, length: int, segment: int, out: memoryview) -> int:
        """Seal a batch; how many bytes of `out` its datagrams take.

        `source` holds `length` bytes in segments of `segment`, `out` gets them in segments of
        `segment + OVERHEAD`. Both are views of bytes, of different memory.
        """
        stride = segment + OVERHEAD
        full, rest = divmod(length, segment)
        count = full + (rest > 0)
        first = self.sent
        self.sent = first + count
        end = length + count * OVERHEAD
        if count < _FEW:
            at = 0
            for index in range(count):
                start = index * segment
                stop = min(start + segment, length)
                counter = first + index
                HEADER.pack_into(out, at, self._sent_prefix, counter)
                tag_end = at + OVERHEAD + stop - start
                self._seal_into(
                    counter.to_bytes(12, "big"),
                    source[start:stop],
                    None,
                    out[at + HEADER_SIZE : tag_end],
                )
                at = tag_end
            return end
        headers = np.ndarray((count,), HEADERS, out, 0, (stride,))
        headers["prefix"] = self._sent_prefix
        headers["counter"] = np.arange(first, first + count, dtype=np.uint64)
        nonces = [counter.to_bytes(12, "big") for counter in range(first, first + count)]
        body = segment + TAG_SIZE
        plain = [source[at : at + segment] for at in range(0, full * segment, segment)]
        sealed = [out[at : at + body] for at in range(HEADER_SIZE, full * stride, stride)]
        if rest:
            plain.append(source[full * segment : length])
            sealed.append(out[full * stride + HEADER_SIZE : end])
        deque(map(self._seal_into, nonces, plain, repeat(None), sealed), 0)
        return end

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
        source: memoryview,
        length: int,
        segment: int,
        out: memoryview,
        counters: list[int],
    ) -> int | None:
        """Open a batch that is just as the peer sent it; how many bytes of `out` its packets take.

        `source` and `out` are as in `seal_into`; `counters` are those of the batch's headers, which
        all begin with `prefix`, and each datagram but the last holds a packet. None, and nothing
        is noted, where they are not all new, in order and authentic: then each is for `open`.
        """
        run = range(counters[0], counters[0] + len(counters))
        if counters[0] <= self._window.newest or counters != list(run):
            return None
        stride = segment - OVERHEAD
        full, rest = divmod(length, segment)
        end = full * stride
        nonces = [counter.to_bytes(12, "big") for counter in counters]
        body = segment - HEADER_SIZE
        sealed = [source[at : at + body] for at in range(HEADER_SIZE, full * segment, segment)]
        plain = [out[at : at + stride] for at in range(0, end, stride)]
        if rest:
            sealed.append(source[full * segment + HEADER_SIZE : length])
            plain.append(out[end : end + rest - OVERHEAD])
            end += rest - OVERHEAD
        try:
            deque(map(self._open_into, nonces, sealed, repeat(None), plain), 0)
        except InvalidTag:
            return None
        self._window.add_run(run)
        return end
