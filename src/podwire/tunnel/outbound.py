"""From the TUN device to the peers.

    TUN ─ read ─▶ super-packets ─────────▶ put together as segments (`segment`) ─▶ one send each
               └▶ packets of equal size ─▶ patched in rows (`rows`) ─────────────▶ one send
               └▶ a single packet ───────▶ checked and patched ──────────────────▶ one send

A packet's way is decided by its destination's lease; its TTL is decremented, as Flannel does at
either end. While packets come one at a time each is sent at once; when more than that were waiting,
those of equal size that follow each other are gathered into one batch. While super-packets come,
several are read before any is sent: those that are divided alike are cut up together.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import readv
from typing import Final

import numpy as np

from podwire.kernel.tun import VNET_HEADER
from podwire.model.tunnel import BATCH_BYTES
from podwire.tunnel.headers import (
    GSO_NONE,
    IPV4_START,
    NEEDS_CSUM,
    PLAIN_IPV4,
    TTL_CHECK,
    VNET,
    VNET_IPV4_START,
    complete_checksum,
    decrement_ttl,
    parse,
    raised,
)
from podwire.tunnel.icmp import Problem, is_multicast, stays_on_link
from podwire.tunnel.path import Path
from podwire.tunnel.rows import Rows
from podwire.tunnel.segment import Division, Segmenter
from podwire.tunnel.sockets import ROUNDS, SLOTS, read
from podwire.tunnel.table import Peer

#: Where the first packet is read to: an even place with room for the header in front.
_START: Final = 16
_FRONT: Final = _START - VNET_HEADER
_LONGEST = 65536 + VNET_HEADER
#: A slot: a packet, and as much again for its last segment to be made as long as the others.
_ROOM: Final = _START + 2 * 65536
#: Packets that are gathered, and bytes, before they are sent.
_GATHERED = 64
_GATHERED_BYTES = BATCH_BYTES - 2048
#: Packets from which on rows are quicker than one after the other.
_FEW = 4
_SHORTEST = IPV4_START.size
_unpack, _pack = VNET_IPV4_START.unpack_from, TTL_CHECK.pack_into


class Outbound:
    """Reads the TUN device and sends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd, self._routes = path.tun.fd, path.table.routes
        # The slots of super-packets; or packets gathered, and one more of any size.
        self._buffer = np.zeros(max(SLOTS * _ROOM, _START + _GATHERED_BYTES + _LONGEST), np.uint8)
        self._view = self._buffer.data
        self._address: int = self._buffer.ctypes.data
        self._rooms = [self._view[_FRONT : _START + _LONGEST]]
        self._segmenter = Segmenter(self._buffer[: SLOTS * _ROOM], _START, _ROOM)
        #: Whether packets came one at a time of late; whether super-packets did.
        self._calm, self._bulk = True, False

    def pump(self, drain: bool) -> bool:
        """Move what waits at the device, up to a bound, or one packet; whether it was many."""
        if self._bulk:
            return self._pump_slots(())
        if not drain:
            self.pump_one()
            return self._bulk
        fd, view, start = self._fd, self._view, self._address - VNET_HEADER
        at = first = _START
        count = size = stride = packets = 0
        while packets < _GATHERED and at <= _GATHERED_BYTES:
            length = read(fd, start + at, _LONGEST) - VNET_HEADER
            if length <= 0:
                break
            packets += 1
            if view[at - VNET_HEADER + 1] != GSO_NONE:
                if count:
                    self._flush(first, count, size, stride)
                if at != _START:
                    front = at - VNET_HEADER
                    self._buffer[_FRONT : _START + length] = self._buffer[front : at + length]
                return self._pump_slots((length,))
            if packets == 1 and self._calm:
                self._one(at, length)
                continue
            if length == size and count:
                count += 1
            else:
                if count:
                    self._flush(first, count, size, stride)
                first, count, size = at, 1, length
                stride = (length + VNET_HEADER + 15) & ~15
            at += stride
        if count:
            self._flush(first, count, size, stride)
        self._calm = packets <= 2
        return not self._calm

    def _pump_slots(self, lengths: Sequence[int]) -> bool:
        """Move what waits, as many packets at once as there are slots; whether there was a
        super-packet. The first slots have packets of `lengths` already."""
        fd, begin = self._fd, self._address + _FRONT
        self._bulk = False
        for _ in range(ROUNDS):
            lengths = list(lengths)
            for slot in range(len(lengths), SLOTS):
                length = read(fd, begin + slot * _ROOM, _LONGEST) - VNET_HEADER
                if length <= 0:
                    break
                lengths.append(length)
            self._pass_on(lengths)
            if len(lengths) < SLOTS:
                break
            lengths = ()
        return self._bulk

    def _pass_on(self, lengths: Sequence[int]) -> None:
        """Send what is in the slots; neighbours that are divided alike are cut up together."""
        first, peers, division = 0, list[Peer](), None
        for slot, length in enumerate(lengths):
            at = _START + slot * _ROOM
            is_super = self._view[at - VNET_HEADER + 1] != GSO_NONE
            peer = self._route(at, length) if is_super else None
            alike = self._divide(slot, length) if peer is not None else None
            if alike is None or alike is not division:
                self._send_segments(first, lengths, peers, division)
                first, peers, division = slot, [], alike
            if peer is not None and alike is not None:
                peers.append(peer)
            elif not is_super:
                self._one(at, length)
        self._send_segments(first, lengths, peers, division)

    def _divide(self, slot: int, length: int) -> Division | None:
        division = self._segmenter.divide(slot, length)
        if division is None:
            self._path.drops["tun_malformed"] += 1
        self._bulk = True
        return division

    def _send_segments(
        self, first: int, lengths: Sequence[int], peers: Sequence[Peer], division: Division | None
    ) -> None:
        """Cut up super-packets, in slots from `first` on, and send each to its peer."""
        if division is None:
            return
        lengths = lengths[first : first + len(peers)]
        self._segmenter.cut(first, lengths, division)
        for slot, (length, peer) in enumerate(zip(lengths, peers, strict=True), first):
            packed, size = self._segmenter.packed[slot], division.size_of(length)
            self._path.send_packed(peer, packed, size, division.segment)

    def pump_one(self) -> bool:
        """Move the packet that waits at the device; whether there was one.

        For an IPv4 packet to a known address this is what `_route` and `_one` do, in one piece:
        where packets come one at a time, all that is done to each adds to their latency.
        """
        try:
            length = readv(self._fd, self._rooms) - VNET_HEADER
        except OSError:
            return False
        view, path = self._view, self._path
        flags, gso, first, total, ttl, protocol, check, target = _unpack(view, _FRONT)
        if gso != GSO_NONE:
            self._pump_slots((length,))
            return True
        peer = self._routes.get(target)
        if (
            peer is None
            or length < _SHORTEST
            or first != PLAIN_IPV4
            or total != length
            or ttl <= 1
            or (path.require_encryption and not peer.encrypted)
        ):
            if length > 0:
                self._one(_START, length)
            return True
        # `raised`, without the call.
        check = check + 0x100 if check < 0xFEFF else (check + 0x101) & 0xFFFF
        _pack(view, _START + 8, ttl - 1, protocol, check)
        if flags & NEEDS_CSUM and not self._complete(_START, length):
            return True
        packet = view[_START : _START + length]
        line = peer.line
        if line is None or peer.encrypted:
            path.send_one(peer, packet)
            return True
        try:
            line.send(packet)
        except OSError:
            # Once more, by the way that sees to what may be wrong.
            path.send_one(peer, packet)
        else:
            peer.sent_packets += 1
            peer.sent_bytes += length
        return True

    def _route(self, at: int, length: int) -> Peer | None:
        """The peer that a packet goes to, having decremented its TTL; None where it goes no
        further, which is then counted and answered."""
        path = self._path
        first, total, ttl, protocol, check, _, target = IPV4_START.unpack_from(self._view, at)
        peer = path.table.routes.get(target)
        if (
            peer is not None
            and first == PLAIN_IPV4
            and total == length
            and ttl > 1
            and (peer.encrypted or not path.require_encryption)
        ):
            TTL_CHECK.pack_into(self._view, at + 8, ttl - 1, protocol, raised(check))
            return peer
        header = parse(self._view, at, length)
        if header is None:
            path.drops["tun_malformed"] += 1
            return None
        ttl, _, target = header
        peer = path.table.route(target)
        if peer is None:
            if is_multicast(target):
                # The node itself sends to those on the link, as on each of its interfaces.
                path.drops["multicast"] += not stays_on_link(target)
            else:
                self._refuse(at, length, "no_lease", Problem.NO_ROUTE)
            return None
        if ttl <= 1:
            self._refuse(at, length, "ttl_expired", Problem.TIME_EXCEEDED)
            return None
        if path.require_encryption and not peer.encrypted:
            self._refuse(at, length, "no_public_key", Problem.NO_ROUTE)
            return None
        decrement_ttl(self._view, at)
        return peer

    def _refuse(self, at: int, length: int, reason: str, problem: Problem) -> None:
        self._path.drops[reason] += 1
        self._path.answer(self._view[at : at + length], problem)

    def _one(self, at: int, length: int) -> None:
        peer = self._route(at, length)
        if peer is None:
            return
        if self._view[at - VNET_HEADER] & NEEDS_CSUM and not self._complete(at, length):
            return
        self._path.send_one(peer, self._view[at : at + length])

    def _complete(self, at: int, length: int) -> bool:
        """Fill in the checksum that the kernel left out; False where it is in no place for one,
        which is then counted."""
        *_, start, offset = VNET.unpack_from(self._view, at - VNET_HEADER)
        if complete_checksum(self._view, at, length, start, offset):
            return True
        self._path.drops["tun_malformed"] += 1
        return False

    def _flush(self, first: int, count: int, size: int, stride: int) -> None:
        """Send the `count` packets of `size` bytes, one every `stride` bytes from `first`."""
        if count < _FEW or not self._flush_rows(first, count, size, stride):
            for at in range(first, first + count * stride, stride):
                self._one(at, size)

    def _flush_rows(self, first: int, count: int, size: int, stride: int) -> bool:
        """Send them in one go; False, and nothing is changed, where they are not alike."""
        path = self._path
        rows = Rows(self._buffer, first, count, size, stride)
        if rows.target is None or not rows.are_alike():
            return False
        route = path.table.route
        peer = route(rows.target)
        if peer is None or (path.require_encryption and not peer.encrypted):
            return False
        if any(route(target) is not peer for target in rows.other_targets()):
            return False
        path.send_packed(peer, self._segmenter.pack(rows.patch()), count * size, size)
        return True
