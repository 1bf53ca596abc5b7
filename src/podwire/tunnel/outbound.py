"""From the TUN device to the peers.

    TUN ─ read ─▶ a super-packet ────────▶ put together as segments (`segment`) ─▶ one send
               └▶ packets of equal size ─▶ checked and patched in rows ─────────▶ one send
               └▶ a single packet ──────▶ checked and patched ────────────────▶ one send

A packet's way is decided by its destination's lease; its TTL is decremented, as Flannel does at
either end. While packets come one at a time each is sent at once; when more than that were waiting,
those of equal size that follow each other are gathered into one batch.
"""

from __future__ import annotations

from os import readv
from typing import Final, NamedTuple

import numpy as np

from podwire.kernel.tun import VNET_HEADER
from podwire.model.tunnel import BATCH_BYTES
from podwire.tunnel.checksum import row_checks, row_sums, swap16
from podwire.tunnel.coalesce import VNET
from podwire.tunnel.headers import (
    IPV4_START,
    PLAIN_IPV4,
    TTL_CHECK,
    complete_checksum,
    decrement_ttl,
    parse,
    raised,
)
from podwire.tunnel.icmp import Problem, is_multicast, stays_on_link
from podwire.tunnel.path import Path
from podwire.tunnel.segment import NEEDS_CSUM, Segmenter
from podwire.tunnel.sockets import read
from podwire.tunnel.table import Peer

#: Where the first packet is read to: an even place with room for the header in front.
_START: Final = 16
_FRONT: Final = _START - VNET_HEADER
_LONGEST = 65536 + VNET_HEADER
#: Packets that are gathered, and bytes, before they are sent.
_GATHERED = 64
_GATHERED_BYTES = BATCH_BYTES - 2048
#: Packets from which on rows are quicker than one after the other.
_FEW = 4
#: Super-packets in a row, until the other direction has its turn.
_SUPERS = 8


class Outbound:
    """Reads the TUN device and sends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = path.tun.fd
        # Packets gathered, one more of any size, and room for the segmenter behind it.
        self._buffer = np.zeros(_START + _GATHERED_BYTES + 3 * _LONGEST, np.uint8)
        self._view = self._buffer.data
        self._address: int = self._buffer.ctypes.data
        self._rooms = [self._view[_FRONT : _START + _LONGEST]]
        self._segmenter = Segmenter(self._buffer)
        #: Whether packets came one at a time of late.
        self._calm = True

    def pump(self, drain: bool) -> bool:
        """Move what waits at the device, up to a bound, or one packet; whether it was many."""
        if not drain:
            return self._pump_one()
        fd, view, start = self._fd, self._view, self._address - VNET_HEADER
        at = first = _START
        count = size = stride = packets = supers = 0
        while True:
            length = read(fd, start + at, _LONGEST) - VNET_HEADER
            if length <= 0:
                break
            packets += 1
            if view[at - VNET_HEADER + 1]:
                if count:
                    self._flush(first, count, size, stride)
                    count = 0
                self._super(at, length)
                at = first = _START
                supers += 1
                if supers == _SUPERS:
                    break
                continue
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
            if packets >= _GATHERED or at > _GATHERED_BYTES:
                break
        if count:
            self._flush(first, count, size, stride)
        self._calm = packets <= 2
        return supers > 0 or not self._calm

    def _pump_one(self) -> bool:
        """Move one packet.

        For an IPv4 packet to a known address this is what `_route` and `_one` do, in one piece:
        where packets come one at a time, all that is done to each adds to their latency.
        """
        try:
            length = readv(self._fd, self._rooms) - VNET_HEADER
        except OSError:
            return False
        view, path = self._view, self._path
        if view[_FRONT + 1]:
            self._super(_START, length)
            return True
        first, total, ttl, protocol, check, _, target = IPV4_START.unpack_from(view, _START)
        peer = path.table.routes.get(target)
        if (
            peer is None
            or length < IPV4_START.size
            or first != PLAIN_IPV4
            or total != length
            or ttl <= 1
            or (path.require_encryption and not peer.encrypted)
        ):
            if length > 0:
                self._one(_START, length)
            return False
        TTL_CHECK.pack_into(view, _START + 8, ttl - 1, protocol, raised(check))
        if view[_FRONT] & NEEDS_CSUM and not self._complete(_START, length):
            return False
        packet = view[_START : _START + length]
        line = peer.line
        if line is None or peer.encrypted:
            path.send_one(peer, packet)
            return False
        try:
            line.send(packet)
        except OSError:
            # Once more, by the way that sees to what may be wrong.
            path.send_one(peer, packet)
        else:
            peer.sent_packets += 1
            peer.sent_bytes += length
        return False

    def _route(self, at: int, length: int) -> Peer | None:
        """The peer that a packet goes to, having decremented its TTL; None where it goes no
        further, which is then counted and answered."""
        path = self._path
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

    def _super(self, at: int, length: int) -> None:
        peer = self._route(at, length)
        if peer is None:
            return
        _, gso_type, _, mss, l4, _ = VNET.unpack_from(self._view, at - VNET_HEADER)
        layout = self._segmenter.segment(at, length, gso_type, mss, l4)
        if layout is None:
            self._path.drops["tun_malformed"] += 1
            return
        size = length + (layout.count - 1) * layout.head
        segment = layout.head + mss
        segmenter = self._segmenter
        self._path.send_packed(peer, segmenter.packed, size, segment)

    def _flush(self, first: int, count: int, size: int, stride: int) -> None:
        """Send the `count` packets of `size` bytes, one every `stride` bytes from `first`."""
        if count < _FEW or not self._flush_rows(first, count, size, stride):
            for at in range(first, first + count * stride, stride):
                self._one(at, size)

    def _flush_rows(self, first: int, count: int, size: int, stride: int) -> bool:
        """Send them in one go; False, and nothing is changed, where they are not alike."""
        view, path = self._view, self._path
        header = parse(view, first, size)
        if header is None:
            return False
        begin = first - VNET_HEADER
        rows = self._buffer[begin : begin + count * stride].reshape(count, stride)
        ip = _IPV6 if view[first] >> 4 == 6 else _IPV4
        lengths, targets = rows[:, ip.length], rows[:, ip.target]
        if (rows[:, _SAME] != rows[0, _SAME]).any() or (lengths != lengths[0]).any():
            return False
        flags, _, _, _, start, offset = VNET.unpack_from(view, begin)
        if flags & NEEDS_CSUM and (start & 1 or offset & 1 or start + offset + 2 > size):
            return False
        peer = path.table.route(header[2])
        if peer is None or (path.require_encryption and not peer.encrypted):
            return False
        if (targets != targets[0]).any():
            packed, each = targets.tobytes(), targets.shape[1]
            route = path.table.route
            if any(route(packed[at : at + each]) is not peer for at in range(0, len(packed), each)):
                return False
        words = rows.view(np.uint16)
        ttl = rows[:, ip.ttl]
        if (ttl <= 1).any():
            return False
        ttl -= 1
        if ip is _IPV4:
            checks = words[:, ip.check].astype(np.uint32) + np.uint32(swap16(0x100))
            words[:, ip.check] = (checks & 0xFFFF) + (checks >> 16)
        if flags & NEEDS_CSUM:
            rows[:, VNET_HEADER + size : VNET_HEADER + size + (size & 1)] = 0
            end = VNET_HEADER + size + 1 >> 1
            sums = row_sums(words[:, VNET_HEADER + start >> 1 : end])
            words[:, VNET_HEADER + start + offset >> 1] = row_checks(sums)
        segmenter = self._segmenter
        segmenter.pack(rows[:, VNET_HEADER : VNET_HEADER + size])
        path.send_packed(peer, segmenter.packed, count * size, size)
        return True


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
