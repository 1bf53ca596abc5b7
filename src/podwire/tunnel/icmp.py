"""ICMP errors about packets that go no further (RFC 792, 1812, 4443).

What lives here: whether a packet may be answered, and the message. What does not: the IP header in
front of it, which the kernel makes, with the address that it would answer from itself.
"""

from __future__ import annotations

import struct
from enum import Enum

from podwire.tunnel.checksum import check_of, sum_of
from podwire.tunnel.headers import FRAGMENT_OFFSET, ICMP, ICMPV6, IPV4

_HEADER = struct.Struct("!BBHI")
_NATIVE16 = struct.Struct("=H")
#: As much of the packet as fits, without the message growing beyond what every path takes
#: (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4).
_LIMIT4, _LIMIT6 = 576 - 20 - 8, 1280 - 40 - 8
#: ICMP messages that ask, and so may be answered with an error (RFC 1122, section 3.2.2).
_ICMP_QUESTIONS = (0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 30, 42, 43)


class Problem(Enum):
    """What there is to tell: type and code in ICMP, type and code in ICMPv6."""

    NO_ROUTE = (3, 0, 1, 0)
    TIME_EXCEEDED = (11, 0, 3, 0)
    TOO_BIG = (3, 4, 2, 0)


def error_about(packet: bytes | memoryview, problem: Problem, mtu: int = 0) -> bytes | None:
    """The ICMP message for the packet's source; for IPv6 without its checksum.

    `mtu` is what fits, for TOO_BIG. None where there must be no answer: to an ICMP error, to a
    fragment other than the first, and where source or destination are not single hosts. `packet`
    is whole, and of a length that its header agrees with.
    """
    type4, code4, type6, code6 = problem.value
    if packet[0] >> 4 == 4:
        first, _, _, _, fragment, _, protocol, _, source, target = IPV4.unpack_from(packet)
        header = (first & 15) << 2
        if fragment & FRAGMENT_OFFSET or not _is_host4(source) or not _is_host4(target):
            return None
        if protocol == ICMP and (len(packet) <= header or packet[header] not in _ICMP_QUESTIONS):
            return None
        body = _HEADER.pack(type4, code4, 0, mtu) + bytes(packet[:_LIMIT4])
        message = bytearray(body)
        _NATIVE16.pack_into(message, 2, check_of(sum_of(body)))
        return bytes(message)
    source, target = packet[8:24], packet[24:40]
    if source[0] == 0xFF or not any(source):
        return None
    if target[0] == 0xFF and problem is not Problem.TOO_BIG:
        return None
    if packet[6] == ICMPV6 and (len(packet) <= 40 or packet[40] < 128):
        return None
    return _HEADER.pack(type6, code6, 0, mtu) + bytes(packet[:_LIMIT6])


def is_multicast(address: bytes) -> bool:
    """Whether a packed address is of a group, or the broadcast address of every link."""
    if len(address) == 4:
        return address[0] >> 4 == 14 or address == b"\xff\xff\xff\xff"
    return address[0] == 0xFF


def stays_on_link(address: bytes) -> bool:
    """Whether a packed address is of a group that no router passes packets on for (RFC 5771,
    section 4; RFC 4291, section 2.7)."""
    if len(address) == 4:
        return address[:3] == b"\xe0\0\0"
    return address[0] == 0xFF and address[1] & 0x0F <= 2


def _is_host4(address: bytes) -> bool:
    """Not this network, loopback, a group, or broadcast (RFC 1122, section 3.2.1.3)."""
    return 0 < address[0] < 224 and address[0] != 127
