"""The Internet checksum (RFC 1071) of single packets and of many rows at once.

Everything here is in the machine's own byte order: the one's complement sum of swapped words is
the swapped sum (RFC 1071, section 2 B), so nothing is swapped, neither words nor results. A sum is
any number that is congruent modulo 0xFFFF, and a checksum the word to store.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

_ORDER = sys.byteorder
_SWAPPED = _ORDER == "little"
#: From here on NumPy is quicker than Python's integers.
_LONG = 600


def swap16(value: int) -> int:
    """A 16-bit number as the machine reads it where it stands in network byte order."""
    return ((value & 0xFF) << 8 | value >> 8) if _SWAPPED else value


def sum_of(data: bytes | bytearray | memoryview) -> int:
    """The sum of the words of `data`; an odd last byte counts as if a zero followed."""
    if len(data) < _LONG:
        return int.from_bytes(data, _ORDER) % 0xFFFF
    even = len(data) & ~1
    total = int(np.add.reduce(np.frombuffer(data, np.uint16, even >> 1), dtype=np.uint32))
    if even != len(data):
        total += data[-1] if _SWAPPED else data[-1] << 8
    return total


def check_of(total: int) -> int:
    """The checksum for data of this sum (the field itself being zero in it)."""
    return -total % 0xFFFF


def row_sums(words: U16) -> U32:
    """The sum of each row. A row has to have fewer than 65,536 words."""
    sums: U32 = np.add.reduce(words, axis=1, dtype=np.uint32)
    return sums


def row_checks(sums: U32) -> U16:
    """The checksum of each row, as 0xFFFF where it would be zero: right for TCP and for UDP
    (RFC 768: zero means that there is none), and equal to zero for IP."""
    return (0xFFFF - sums % 0xFFFF).astype(np.uint16)
