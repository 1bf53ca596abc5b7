"""Datagrams of equal size put together: which of them continue one flow, and their one header.

UDP GRO hands over many datagrams of one peer at once, each an IP packet, all of one size except
for the last, which may be shorter. Where neighbours among them are TCP segments that follow each
other (or UDP datagrams of one flow), the kernel can take them as one super-packet, by the rules of
its own GRO: equal headers but for what counts up, and PSH or FIN only at the end.

Putting packets together says that their checksums were right, since the kernel takes the whole
without looking. So only packets whose checksums hold are put together; all others go on alone, as
they came, for the kernel to judge.

Nearly always a batch is one run, as the peer's tunnel has cut it up: `batches` finds that out with
a few operations on everything at once. Only when it is not, `runs` looks at each packet.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from podwire.tunnel.checksum import U8, U16, row_sums, sum_of, swap16
from podwire.tunnel.headers import (
    CWR,
    DONT_FRAGMENT,
    FIN,
    FRAGMENT_OFFSET,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    IPV4,
    MORE_FRAGMENTS,
    NEEDS_CSUM,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    VNET,
    set_ip_length,
)

_U16 = struct.Struct("!H")
_NATIVE16 = struct.Struct("=H")


class Shape:
    """Where the headers of a run of packets lie: offsets and lengths in bytes."""

    __slots__ = ("field", "head", "l4", "mask", "protocol", "version")

    def __init__(self, version: int, protocol: int, l4: int, head: int) -> None:
        self.version, self.protocol, self.l4, self.head = version, protocol, l4, head
        #: Where the checksum is, from `l4` on.
        self.field = 16 if protocol == TCP else 6
        #: The bits that neighbours have in common.
        self.mask = _mask(version, protocol, l4, head)


_shapes: dict[tuple[int, int, int, int], Shape] = {}


def shape_of(buffer: bytearray | memoryview, at: int, size: int) -> Shape | None:
    """The shape of the packet at `at`, if packets like it can be put together at all.

    At least `size` bytes of it are there. None for fragments, IPv6 with extension headers, what
    is neither TCP nor UDP, and TCP segments without data or with SYN, RST or URG.
    """
    if size < 28:
        return None
    if buffer[at] >> 4 == 4:
        first, _, _, _, fragment, _, protocol, _, _, _ = IPV4.unpack_from(buffer, at)
        l4 = (first & 15) << 2
        if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) or l4 < 20:
            return None
        version = 4
    elif buffer[at] >> 4 == 6 and size >= 48:
        protocol, l4, version = buffer[at + 6], 40, 6
    else:
        return None
    if protocol == TCP:
        if size <= l4 + 20 or buffer[at + l4 + 13] & (SYN | RST | URG):
            return None
        head = l4 + (buffer[at + l4 + 12] >> 4 << 2)
        if head < l4 + 20:
            return None
    elif protocol == UDP:
        head = l4 + 8
    else:
        return None
    if size <= head:
        return None
    key = (version, protocol, l4, head)
    shape = _shapes.get(key)
    if shape is None:
        shape = _shapes[key] = Shape(*key)
    return shape


def merge(view: memoryview, at: int, count: int, stride: int, last: int, shape: Shape) -> None:
    """Make the header of the packet at `at` that of the whole run of `count` packets.

    In front of it comes a `virtio_net_hdr`; behind it follow the payloads as they are. The last
    packet has `last` bytes.
    """
    l4, head, size = shape.l4, shape.head, stride - shape.head
    total = head + (count - 1) * size + last - head
    set_ip_length(view, at, total)
    addresses = view[at + 12 : at + 20] if shape.version == 4 else view[at + 8 : at + 40]
    pseudo = sum_of(addresses) + swap16(shape.protocol) + swap16(total - l4)
    # Not complemented: the sum of the pseudo header, from which the kernel goes on.
    _NATIVE16.pack_into(view, at + l4 + shape.field, pseudo % 0xFFFF)
    if shape.protocol == TCP:
        view[at + l4 + 13] |= view[at + (count - 1) * stride + l4 + 13] & (FIN | PSH)
        gso_type = GSO_TCPV4 if shape.version == 4 else GSO_TCPV6
        if view[at + l4 + 13] & CWR:
            gso_type |= GSO_ECN
    else:
        _U16.pack_into(view, at + l4 + 4, total - l4)
        gso_type = GSO_UDP_L4
    VNET.pack_into(view, at - VNET.size, NEEDS_CSUM, gso_type, head, size, l4, shape.field)


def runs(buffer: U8, at: int, count: int, stride: int, last: int, shape: Shape) -> list[int]:
    """Where runs begin among `count` packets, one every `stride` bytes from `at`; and `count`.

    The last packet has `last` bytes. The buffer has room for it to be as long as the others; what
    is behind it is overwritten. `shape` is the first packet's. `at` is even.
    """
    head, l4 = shape.head, shape.l4
    if last <= head:
        # Too short to have the same headers, let alone data.
        if count < 3:
            return list(range(count + 1))
        return [*runs(buffer, at, count - 1, stride, stride, shape), count]
    end = at + count * stride
    buffer[end - stride + last : end] = 0
    rows = buffer[at:end].reshape(count, stride)
    words = rows[:, :head].copy().view(np.uint16)
    valid = _valid(rows, words, stride, last, shape)
    joined = ~((words[1:] ^ words[:-1]) & shape.mask).any(axis=1)
    joined &= valid[1:]
    joined &= valid[:-1]
    if shape.version == 4:
        if int(words[0, 3]) & swap16(DONT_FRAGMENT):
            # Nobody looks at the identification of what is never fragmented (RFC 6864).
            joined &= words[1:, 3] == words[0, 3]
        else:
            ids = words[:, 2].copy().view(">u2").astype(np.uint16)
            joined &= ids[1:] == ids[:-1] + np.uint16(1)
    if shape.protocol == TCP:
        sequence_at = l4 + 4 >> 1
        sequence = words[:, sequence_at : sequence_at + 2].copy().view(">u4").ravel()
        sequence = sequence.astype(np.uint32)
        joined &= sequence[1:] == sequence[:-1] + np.uint32(stride - head)
        ends = swap16(FIN | PSH)
        joined &= (words[:-1, l4 + 12 >> 1] & ends) == 0
    if joined.all():
        return [0, count]
    return [0, *(np.flatnonzero(~joined) + 1).tolist(), count]


def _valid(rows: U8, words: U16, stride: int, last: int, shape: Shape) -> NDArray[np.bool_]:
    """Of each packet whether its lengths and checksums are right."""
    l4 = shape.l4
    valid: NDArray[np.bool_] = np.ones(len(words), np.bool_)
    if shape.version == 4:
        length, whole, rest = 1, stride, last
        sums = row_sums(words[:, : l4 >> 1])
        valid &= sums % 0xFFFF == 0
        # IP's own header now counts as zero in the sum of the packet, and the addresses twice.
        sums = row_sums(words[:, 6:10])
    else:
        length, whole, rest = 2, stride - 40, last - 40
        sums = 4 * 0xFFFF - row_sums(words[:, :4])
    field = words[:, length] == swap16(whole)
    field[-1] = words[-1, length] == swap16(rest)
    valid &= field
    if shape.protocol == UDP:
        length = l4 + 4 >> 1
        field = words[:, length] == swap16(stride - l4)
        field[-1] = words[-1, length] == swap16(last - l4)
        valid &= field
        valid &= words[:, length + 1] != 0
    if stride & 1:
        padded = np.zeros((len(rows), stride + 1), np.uint8)
        padded[:, :stride] = rows
        rows = padded
    sums += row_sums(rows.view(np.uint16))
    sums += np.uint32(swap16(shape.protocol) + swap16(stride - l4))
    sums[-1] += (swap16(last - l4) - swap16(stride - l4)) % 0xFFFF
    valid &= sums % 0xFFFF == 0
    return valid


def _mask(version: int, protocol: int, l4: int, head: int) -> U16:
    mask = np.full(head >> 1, 0xFFFF, np.uint16)
    if version == 4:
        mask[[1, 2, 5]] = 0  # Total length, identification, checksum.
    else:
        mask[2] = 0  # Payload length.
    if protocol == TCP:
        mask[[l4 + 4 >> 1, l4 + 6 >> 1, l4 + 16 >> 1]] = 0  # Sequence number, checksum.
        mask[l4 + 12 >> 1] = swap16(0xFFFF & ~(FIN | PSH))
    else:
        mask[[l4 + 4 >> 1, l4 + 6 >> 1]] = 0  # Length, checksum.
    return mask


def not_last(shape: Shape) -> U16:
    """The bits that all packets of a run but the last have in common besides: lengths, flags."""
    mask = np.zeros(shape.head >> 1, np.uint16)
    mask[1 if shape.version == 4 else 2] = 0xFFFF
    if shape.protocol == UDP:
        mask[shape.l4 + 4 >> 1] = 0xFFFF
    else:
        mask[shape.l4 + 12 >> 1] = 0xFFFF
    return mask
