"""IP headers (RFC 791, RFC 8200): what the tunnel reads of them, and the TTL's decrement.

Functions on one packet in a buffer. A header is a tuple here, since it is made for each packet
that comes alone.
"""

from __future__ import annotations

import struct

from podwire.tunnel.checksum import check_of, sum_of, swap16

IPV4 = struct.Struct("!BBHHHBBH4s4s")
IPV6 = struct.Struct("!IHBB16s16s")
#: What a packet's way depends on: the first byte, total length, TTL, protocol, checksum, source and
#: destination.
IPV4_START = struct.Struct("!BxHxxxxBBH4s4s")
#: The same behind a virtio header, without the source but with the header's flags and gso_type.
VNET_IPV4_START = struct.Struct("!BB8xBxHxxxxBBH4x4s")
#: The first byte of a header without options.
PLAIN_IPV4 = 0x45
#: From the eighth byte of IPv4's on.
TTL_CHECK = struct.Struct("!BBH")
#: struct virtio_net_hdr (include/uapi/linux/virtio_net.h): flags, gso_type, hdr_len, gso_size,
#: csum_start, csum_offset; and its `flags` and `gso_type`.
VNET = struct.Struct("=BBHHHH")
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
#: Of IPv4's, in the machine's byte order: total length and checksum.
_SIZE_CHECK = struct.Struct("=2xH6xH")
_U16, _NATIVE16 = struct.Struct("!H"), struct.Struct("=H")

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
FIN, SYN, RST, PSH, URG, CWR = 0x01, 0x02, 0x04, 0x08, 0x20, 0x80
#: Of IPv4's third word of 16 bits: don't fragment, more fragments follow, and the offset.
DONT_FRAGMENT, MORE_FRAGMENTS, FRAGMENT_OFFSET = 0x4000, 0x2000, 0x1FFF

Buffer = bytearray | memoryview


def parse(buffer: Buffer, at: int, size: int) -> tuple[int, bytes, bytes] | None:
    """(TTL or hop limit, source, destination) of the packet of `size` bytes at `at`.

    None for what is no IP packet of just that size.
    """
    if size < 20:
        return None
    version = buffer[at] >> 4
    if version == 4:
        first, _, total, _, _, ttl, _, _, source, target = IPV4.unpack_from(buffer, at)
        if total != size or not 20 <= (first & 15) << 2 <= size:
            return None
        return ttl, source, target
    if version == 6 and size >= 40:
        _, payload, _, ttl, source, target = IPV6.unpack_from(buffer, at)
        if payload != size - 40:
            return None
        return ttl, source, target
    return None


def decrement_ttl(buffer: Buffer, at: int) -> None:
    """Take one from the TTL or hop limit (it must not be zero); IPv4's checksum follows.

    The checksum is adjusted, not made anew (RFC 1624), so that one that was wrong stays wrong.
    """
    if buffer[at] >> 4 == 6:
        buffer[at + 7] -= 1
        return
    ttl, protocol, check = TTL_CHECK.unpack_from(buffer, at + 8)
    TTL_CHECK.pack_into(buffer, at + 8, ttl - 1, protocol, raised(check))


def raised(check: int) -> int:
    """IPv4's checksum for a TTL that is one less."""
    return check + 0x100 if check < 0xFEFF else (check + 0x101) & 0xFFFF


def set_ip_length(buffer: Buffer, at: int, size: int) -> None:
    """Make `size` the size that the packet at `at` says it has; IPv4's checksum follows, as for the
    TTL."""
    if buffer[at] >> 4 == 6:
        _U16.pack_into(buffer, at + 4, size - 40)
        return
    old, check = _SIZE_CHECK.unpack_from(buffer, at)
    _U16.pack_into(buffer, at + 2, size)
    _NATIVE16.pack_into(buffer, at + 10, check_of(0xFFFF - check - old + swap16(size)))


def packet_size(buffer: Buffer, at: int) -> int:
    """What the IP packet at `at` says of its size; 0 where there is none."""
    version = buffer[at] >> 4
    if version == 4:
        return int.from_bytes(buffer[at + 2 : at + 4])
    if version == 6:
        return 40 + int.from_bytes(buffer[at + 4 : at + 6])
    return 0


def may_fragment(buffer: bytes | Buffer, at: int) -> bool:
    """Whether a router may cut the packet up: IPv4 without DF."""
    return buffer[at] >> 4 == 4 and not buffer[at + 6] & 0x40


def complete_checksum(buffer: Buffer, at: int, size: int, start: int, offset: int) -> bool:
    """Fill in the checksum that the kernel has left for others to compute (CHECKSUM_PARTIAL).

    It covers the packet from `start` on, and is at `offset` from there, where the kernel has left
    the pseudo header's sum. False where that is not in the packet.
    """
    if start + offset + 2 > size:
        return False
    check = check_of(sum_of(buffer[at + start : at + size]))
    # Zero would mean for UDP that there is none; for others it is equal to this (RFC 768).
    _NATIVE16.pack_into(buffer, at + start + offset, check or 0xFFFF)
    return True
