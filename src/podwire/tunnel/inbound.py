"""From the peers to the TUN device.

    underlay ─ receive ─▶ a batch of one peer ─▶ runs of one flow (`coalesce`) ─▶ one write each
    or line            └▶ a single datagram ──▶ checked and patched ───────────▶ one write

A datagram is taken from a peer's address and port only, sealed if the peer encrypts, and the packet
in it only from a source inside of that peer's lease to a destination inside of ours. Its TTL is
decremented, as Flannel does at either end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby, pairwise
from os import write
from time import monotonic
from typing import Final

import numpy as np

from podwire.kernel.tun import VNET_HEADER
from podwire.tunnel.area import MAX_RUN, Area
from podwire.tunnel.coalesce import Shape, merge, shape_of
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
from podwire.tunnel.secure import OVERHEAD
from podwire.tunnel.sockets import ROOM, ROUNDS, SLOTS, START, Underlay
from podwire.tunnel.table import Line, Peer

#: Where the `virtio_net_hdr` of what was received is: all zeros, but while a run is written.
_FRONT: Final = START - VNET_HEADER
#: The kernel answers some packets (echoes, SYNs) while they are written to the device. So an answer
#: is looked for without being told of it, and where there is none, after so many packets again.
_DOUBT = 32
_SHORTEST = IPV4_START.size
_unpack, _pack = IPV4_START.unpack_from, TTL_CHECK.pack_into


class Inbound:
    """Receives from one underlay socket and its lines, and writes to the TUN device."""

    def __init__(
        self, path: Path, underlay: Underlay, readers: Readers, answer: Callable[[], bool]
    ) -> None:
        """`answer` moves what waits at the device, and tells whether anything did."""
        self._path, self._underlay = path, underlay
        self._fd, self._local = path.tun.fd, path.table.local
        self._answer = answer
        #: How many packets more nobody answers at once.
        self._doubt = 0
        self._received, self._opened = Area(underlay.buffer), Area(np.zeros(ROOM, np.uint8))
        self._lines = Lines(
            underlay, path.table, readers, lambda line: partial(self._pump_line, line)
        )
        readers.set(underlay.fd, self.pump, often=False)
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
        for _ in range(ROUNDS if drain else 1):
            found = []
            for slot in range(SLOTS if drain else 1):
                size = underlay.receive(line, slot)
                if size < 0:
                    break
                found.append((underlay.source, size, underlay.segment))
            slot = 0
            for batch, alike in groupby(found):
                source, size, segment = batch
                many |= size > segment
                number = len(list(alike))
                peer = self._path.table.by_source.get(source)
                if peer is None:
                    self._path.drops["not_a_peer"] += number * max(1, -(-size // (segment or 1)))
                else:
                    self._receive(peer, slot, number, size, segment)
                    if line is None:
                        self._lines.earn(source, number)
                slot += number
            if slot < SLOTS:
                break
        if line is not None:
            line.bulk = many
        return many

    def _pump_line(self, line: Line, drain: bool) -> bool:
        """The same of a line.

        A whole IPv4 packet of known addresses goes the short way: what `_accept` and `_one` do, in
        one piece, since where packets come one at a time all that is done to each is latency.
        """
        path, view = self._path, self._received.view
        peer = line.peer
        if drain or line.bulk or peer is None or peer.encrypted or path.require_encryption:
            return self._pump(line, drain or line.bulk)
        try:
            size = line.receive_into(self._underlay.room)
        except OSError:
            return False
        first, total, ttl, protocol, check, source, target = _unpack(view, START)
        if (
            total != size
            or size < _SHORTEST
            or first != PLAIN_IPV4
            or ttl <= 1
            or not peer.owned.get(source)
            or not self._local.get(target)
        ):
            segment = _segment_of(view, size)
            self._receive(peer, 0, 1, size, segment)
            line.bulk = size > segment
            return line.bulk
        # `raised`, without the call.
        check = check + 0x100 if check < 0xFEFF else (check + 0x101) & 0xFFFF
        _pack(view, START + 8, ttl - 1, protocol, check)
        try:
            write(self._fd, view[_FRONT : START + size])
        except OSError:
            path.drops["tun_refused"] += 1
            return False
        if self._doubt:
            self._doubt -= 1
        elif not self._answer():
            self._doubt = _DOUBT
        peer.heard = monotonic()
        peer.received_packets += 1
        peer.received_bytes += size
        return False

    def _receive(self, peer: Peer, first: int, number: int, size: int, segment: int) -> None:
        """Pass on `number` batches of a peer, in slots from `first` on, each of `size` bytes in
        datagrams of `segment` bytes, the last maybe shorter."""
        drops = self._path.drops
        if size == 0:
            drops["malformed"] += number
        elif peer.encrypted:
            for slot in range(first, first + number):
                self._open(peer, slot, size, segment)
        elif self._path.require_encryption:
            drops["not_encrypted"] += number * -(-size // segment)
        else:
            self._pass_on(peer, self._received, first, number, size, segment)

    def _open(self, peer: Peer, slot: int, size: int, segment: int) -> None:
        secure, closed, opened = self._path.secure, self._received, self._opened
        assert secure is not None  # noqa: S101  no peer is encrypted without
        length = secure.open_into(peer.name, closed.whole[slot], size, segment, opened.whole[0])
        if secure.outbox:
            self._path.flush_outbox()
        if length:
            self._pass_on(peer, opened, 0, 1, length, min(length, segment - OVERHEAD))

    def _pass_on(
        self, peer: Peer, area: Area, first: int, number: int, size: int, segment: int
    ) -> None:
        """The same of what is bare."""
        peer.heard = monotonic()
        view, starts = area.view, area.starts[first : first + number]
        if size <= segment:
            for at in starts:
                self._one(peer, view, at, size)
            return
        count = -(-size // segment)
        last = size - (count - 1) * segment
        shapes = [self._mergeable(view, at, segment, count) for at in starts]
        shape = shapes[0]
        if (
            number > 1
            and shape is not None
            and shapes.count(shape) == number
            and area.batches.are_runs(first, number, count, segment, last, shape)
        ):
            for at in starts:
                self._run(peer, area, at, count, segment, last, shape)
            return
        for slot, shape in enumerate(shapes, first):
            self._split(peer, area, slot, count, segment, last, shape)

    def _split(
        self,
        peer: Peer,
        area: Area,
        slot: int,
        count: int,
        segment: int,
        last: int,
        shape: Shape | None,
    ) -> None:
        """Pass on a batch of packets that are not all one run."""
        view, at = area.view, area.starts[slot]
        borders: Iterable[int] = range(count + 1)
        if shape is not None:
            borders = area.batches.borders(slot, count, segment, last, shape)
        for first, end in pairwise(borders):
            begin, length = at + first * segment, last if end == count else segment
            if shape and end > first + 1 and shape_of(view, begin, segment) is shape:
                self._run(peer, area, begin, end - first, segment, length, shape)
                continue
            for one in range(first, end):
                self._one(peer, view, at + one * segment, last if one == count - 1 else segment)

    def _mergeable(self, view: memoryview, at: int, size: int, count: int) -> Shape | None:
        """The shape of `count` packets like the one at `at`, if they may be put together."""
        shape = shape_of(view, at, size) if count <= MAX_RUN else None
        if shape is None or not self._merges[shape.version, shape.protocol == TCP]:
            return None
        return shape

    def _accept(self, peer: Peer, view: memoryview, at: int, size: int, count: int) -> bool:
        """Whether `count` packets with the header at `at` may pass; it is decremented then."""
        path = self._path
        first, total, ttl, protocol, check, source, target = IPV4_START.unpack_from(view, at)
        if (
            first == PLAIN_IPV4
            and total == size
            and ttl > 1
            and peer.owned.get(source)
            and path.table.local.get(target)
        ):
            TTL_CHECK.pack_into(view, at + 8, ttl - 1, protocol, raised(check))
            return True
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
        self, peer: Peer, area: Area, at: int, count: int, stride: int, last: int, shape: Shape
    ) -> None:
        """Pass on packets that are one run, as one super-packet."""
        view = area.view
        if not self._accept(peer, view, at, stride, count):
            return
        merge(view, at, count, stride, last, shape)
        written = area.write_run(self._fd, at, count, stride, last, shape.head)
        view[at - VNET_HEADER : at] = _NO_OFFLOAD
        if written:
            peer.received_packets += count
            peer.received_bytes += (count - 1) * stride + last
        else:
            self._path.drops["tun_refused"] += count


def _segment_of(view: memoryview, size: int) -> int:
    """How long each datagram is of what was received, bare: as long as the packet in the first,
    where one of that length or the rest follows, and all of it otherwise."""
    segment = packet_size(view, START)
    rest = size - segment
    if 0 < segment < size and packet_size(view, START + segment) == min(segment, rest):
        return segment
    return size


_NO_OFFLOAD = bytes(VNET_HEADER)
