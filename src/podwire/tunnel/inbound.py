"""From the peers to the TUN device.

    underlay ─ receive ─▶ a batch of one peer ─▶ runs of one flow (`coalesce`) ─▶ one write each
    or line            └▶ a single datagram ──▶ checked and patched ───────────▶ one write

A datagram is taken from a peer's address and port only, sealed if the peer encrypts, and the packet
in it only from a source inside of that peer's lease to a destination inside of ours. Its TTL is
decremented, as Flannel does at either end.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from os import write
from time import monotonic
from typing import Final

import numpy as np
from numpy.typing import NDArray

from podwire.kernel.tun import VNET_HEADER
from podwire.tunnel.coalesce import Batches, Shape, merge, shape_of
from podwire.tunnel.headers import (
    IPV4_START,
    PLAIN_IPV4,
    TCP,
    TTL_CHECK,
    decrement_ttl,
    packet_size,
    parse,
    raised,
)
from podwire.tunnel.icmp import Problem
from podwire.tunnel.lines import Lines
from podwire.tunnel.path import Path
from podwire.tunnel.readers import Readers
from podwire.tunnel.secure import OVERHEAD, BatchBuffer
from podwire.tunnel.sockets import START, Underlay, writev
from podwire.tunnel.table import Line, Peer

#: Where the `virtio_net_hdr` of what was received is: all zeros, but while a run is written.
_FRONT: Final = START - VNET_HEADER
#: Batches in a row, until the other direction has its turn.
_BATCHES: Final = 8
#: Packets that a run may have: the kernel puts no more than 64 datagrams together (GRO), and
#: writev takes 1024 places (UIO_MAXIOV).
_MAX_RUN: Final = 512


class Inbound:
    """Receives from one underlay socket and its lines, and writes to the TUN device."""

    def __init__(self, path: Path, underlay: Underlay, readers: Readers) -> None:
        self._path, self._underlay = path, underlay
        self._fd = path.tun.fd
        self._opened = np.zeros_like(underlay.buffer)
        self._opened_view = self._opened.data
        self._opened_at: int = self._opened.ctypes.data
        self._closed_batch = BatchBuffer(underlay.view[START:])
        self._opened_batch = BatchBuffer(self._opened_view[START:])
        self._bare = Batches(underlay.buffer, START)
        self._sealed = Batches(self._opened, START)
        self._lines = Lines(
            underlay, path.table, readers, lambda line: partial(self._pump_line, line)
        )
        readers.set(underlay.fd, self.pump)
        self._iovecs: dict[tuple[int, int, int], tuple[NDArray[np.uint64], int]] = {}
        features = path.tun.features
        self._merges = {
            (4, True): "tso4" in features,
            (6, True): "tso6" in features,
            (4, False): "uso4" in features,
            (6, False): "uso6" in features,
        }

    def look_again(self) -> None:
        """Peers have changed."""
        self._lines.look_again()

    def pump(self, drain: bool) -> bool:
        """Move what waits at the socket, up to a bound, or one batch; whether it was many."""
        return self._pump(None, drain)

    def _pump(self, line: Line | None, drain: bool) -> bool:
        underlay = self._underlay
        many = False
        for _ in range(_BATCHES if drain else 1):
            size = underlay.receive(line)
            if size < 0:
                break
            if self._receive(size) and line is None:
                self._lines.earn(underlay.source)
            many |= size > underlay.segment
        return many

    def _pump_line(self, line: Line, drain: bool) -> bool:
        """The same of a line.

        A whole IPv4 packet of known addresses goes the short way: what `_accept` and `_one` do, in
        one piece, since where packets come one at a time all that is done to each is latency.
        """
        underlay, path = self._underlay, self._path
        peer = line.peer
        if drain or peer is None or peer.encrypted or path.require_encryption:
            return self._pump(line, drain)
        try:
            size = line.receive_into(underlay.room)
        except OSError:
            return False
        view = underlay.view
        first, total, ttl, protocol, check, source, target = IPV4_START.unpack_from(view, START)
        if (
            total != size
            or size < IPV4_START.size
            or first != PLAIN_IPV4
            or ttl <= 1
            or not peer.owned.get(source)
            or not path.table.local.get(target)
        ):
            segment = _segment_of(view, size)
            self._receive_from(peer, size, segment)
            return size > segment
        TTL_CHECK.pack_into(view, START + 8, ttl - 1, protocol, raised(check))
        peer.heard = monotonic()
        try:
            write(self._fd, view[_FRONT : START + size])
        except OSError:
            path.drops["tun_refused"] += 1
        else:
            peer.received_packets += 1
            peer.received_bytes += size
        return False

    def _receive(self, size: int) -> bool:
        """Pass on what was received; whether it came from a peer."""
        underlay, path = self._underlay, self._path
        peer = path.table.by_source.get(underlay.source)
        if peer is None:
            path.drops["not_a_peer"] += -(-size // underlay.segment) if size else 1
            return False
        self._receive_from(peer, size, underlay.segment)
        return True

    def _receive_from(self, peer: Peer, size: int, segment: int) -> None:
        underlay, path = self._underlay, self._path
        if size == 0:
            path.drops["malformed"] += 1
        elif peer.encrypted:
            self._open(peer, size, segment)
        elif path.require_encryption:
            path.drops["not_encrypted"] += -(-size // segment)
        else:
            self._batch(peer, self._bare, underlay.view, underlay.address, size, segment)

    def _open(self, peer: Peer, size: int, segment: int) -> None:
        secure = self._path.secure
        assert secure is not None  # noqa: S101  no peer is encrypted without
        opened = secure.open_into(peer.name, self._closed_batch, size, segment, self._opened_batch)
        if secure.outbox:
            self._path.flush_outbox()
        if opened:
            each = min(opened, segment - OVERHEAD)
            self._batch(peer, self._sealed, self._opened_view, self._opened_at, opened, each)

    def _batch(
        self,
        peer: Peer,
        batches: Batches,
        view: memoryview,
        address: int,
        size: int,
        segment: int,
    ) -> None:
        """Pass on the packets from `START` on, each of `segment` bytes but the last."""
        peer.heard = monotonic()
        if size <= segment:
            self._one(peer, view, START, size)
            return
        count = -(-size // segment)
        last = size - (count - 1) * segment
        shape = shape_of(view, START, segment) if count <= _MAX_RUN else None
        if shape is None or not self._merges[shape.version, shape.protocol == TCP]:
            for at in range(START, START + size, segment):
                self._one(peer, view, at, min(segment, START + size - at))
            return
        borders = batches.borders(count, segment, last, shape)
        for first, end in pairwise(borders):
            at = START + first * segment
            length = last if end == count else segment
            if end > first + 1 and shape_of(view, at, segment) is shape:
                self._run(peer, view, address, at, end - first, segment, length, shape)
                continue
            for one in range(first, end):
                at = START + one * segment
                self._one(peer, view, at, last if one == count - 1 else segment)

    def _accept(self, peer: Peer, view: memoryview, at: int, size: int, count: int) -> bool:
        """Whether `count` packets with the header at `at` may pass; it is decremented then."""
        path = self._path
        header = parse(view, at, size)
        if header is None:
            path.drops["malformed"] += count
            return False
        ttl, source, target = header
        if not peer.owns(source):
            path.drops["foreign_source"] += count
            return False
        if not path.table.is_local(target):
            path.drops["foreign_destination"] += count
            return False
        if ttl <= 1:
            path.drops["ttl_expired_inbound"] += count
            path.answer(view[at : at + size], Problem.TIME_EXCEEDED)
            return False
        decrement_ttl(view, at)
        return True

    def _one(self, peer: Peer, view: memoryview, at: int, size: int) -> None:
        if not self._accept(peer, view, at, size, 1):
            return
        # In a batch this is the end of the packet before, which has been passed on.
        front = at - VNET_HEADER
        view[front:at] = _NO_OFFLOAD
        try:
            write(self._fd, view[front : at + size])
        except OSError:
            self._path.drops["tun_refused"] += 1
        else:
            peer.received_packets += 1
            peer.received_bytes += size

    def _run(
        self,
        peer: Peer,
        view: memoryview,
        address: int,
        at: int,
        count: int,
        stride: int,
        last: int,
        shape: Shape,
    ) -> None:
        """Pass on packets that are one run, as one super-packet."""
        if not self._accept(peer, view, at, stride, count):
            return
        merge(view, at, count, stride, last, shape)
        places = self._iovecs.get((address + at, stride, shape.head))
        if places is None:
            places = self._lay_out(address + at, stride, shape.head)
        iovecs, iovecs_at = places
        payload = stride - shape.head
        iovecs[count - 1, 1] = last - shape.head
        written = writev(self._fd, iovecs_at, count)
        iovecs[count - 1, 1] = payload
        view[at - VNET_HEADER : at] = _NO_OFFLOAD
        if written < 0:
            self._path.drops["tun_refused"] += count
        else:
            peer.received_packets += count
            peer.received_bytes += (count - 1) * stride + last

    def _lay_out(self, address: int, stride: int, head: int) -> tuple[NDArray[np.uint64], int]:
        """Where the header with the first payload is, and the other payloads."""
        if len(self._iovecs) > 256:
            self._iovecs.clear()
        iovecs = np.empty((_MAX_RUN, 2), np.uint64)
        iovecs[:, 0] = np.arange(_MAX_RUN, dtype=np.uint64) * np.uint64(stride)
        iovecs[:, 0] += np.uint64(address + head)
        iovecs[:, 1] = stride - head
        iovecs[0] = address - VNET_HEADER, VNET_HEADER + stride
        places = self._iovecs[address, stride, head] = iovecs, iovecs.ctypes.data
        return places


def _segment_of(view: memoryview, size: int) -> int:
    """How long each datagram is of what was received, bare: as long as the packet in the first,
    where one of that length or the rest follows, and all of it otherwise."""
    segment = packet_size(view, START)
    rest = size - segment
    if 0 < segment < size and packet_size(view, START + segment) == min(segment, rest):
        return segment
    return size


_NO_OFFLOAD = bytes(VNET_HEADER)
