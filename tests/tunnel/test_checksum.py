"""Internet checksums against the obvious way to compute them."""

from __future__ import annotations

import struct
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.tunnel.checksum import check_of, row_checks, row_sums, sum_of, swap16
from tests.tunnel.packets import checksum


def _stored(check: int) -> int:
    """What is read in network byte order where a checksum was stored."""
    found: int = struct.unpack("!H", struct.pack("=H", check))[0]
    return found


@given(st.binary(max_size=1500))
@settings(max_examples=100)
def test_a_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    assert _stored(check_of(sum_of(data))) % 0xFFFF == checksum(data) % 0xFFFF


def test_long_data_is_summed_like_short() -> None:
    data = bytes(range(256)) * 4 + b"\xff"
    for size in (599, 600, 601, 1024, 1025):
        assert _stored(check_of(sum_of(data[:size]))) == checksum(data[:size])


@given(st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=5))
@settings(max_examples=50)
def test_rows_are_summed_one_by_one(rows: list[bytes]) -> None:
    words = np.frombuffer(b"".join(rows), np.uint16).reshape(len(rows), 4)
    found = [_stored(int(check)) for check in row_checks(row_sums(words))]
    # Zero is written as 0xFFFF, which UDP requires, and which is the same to all others.
    assert found == [checksum(row) or 0xFFFF for row in rows]


def test_a_number_in_network_order_is_swapped_on_a_little_endian_machine() -> None:
    assert swap16(0x1234) == (0x3412 if sys.byteorder == "little" else 0x1234)
