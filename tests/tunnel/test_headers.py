"""IP headers: what is read, and what the decrement changes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.tunnel.headers import complete_checksum, decrement_ttl, may_fragment, parse
from tests.tunnel.packets import Packet, is_valid, packets


@given(packets())
@settings(max_examples=100)
def test_one_hop_less_and_still_valid(packet: Packet) -> None:
    buffer = bytearray(b"\0\0" + packet.data())
    size = len(buffer) - 2
    assert parse(buffer, 2, size) == (packet.ttl, *packet.addresses())
    decrement_ttl(buffer, 2)
    assert bytes(buffer[2:]) == replace(packet, ttl=packet.ttl - 1).data()


@given(packets(), st.integers(1, 0xFFFF))
@settings(max_examples=50)
def test_a_wrong_checksum_stays_wrong(packet: Packet, error: int) -> None:
    packet = replace(packet, version=4)
    buffer = bytearray(packet.data())
    check = (int.from_bytes(buffer[10:12], "big") + error) % (1 << 16)
    buffer[10:12] = check.to_bytes(2, "big")
    was_valid = is_valid(bytes(buffer))
    decrement_ttl(buffer, 0)
    assert is_valid(bytes(buffer)) == was_valid


@given(packets())
@settings(max_examples=50)
def test_a_checksum_left_open_is_filled_in(packet: Packet) -> None:
    buffer = bytearray(packet.partial())
    start, field = (20 if packet.version == 4 else 40), (16 if packet.protocol == 6 else 6)
    assert complete_checksum(buffer, 0, len(buffer), start, field)
    assert is_valid(bytes(buffer))
    assert not complete_checksum(buffer, 0, len(buffer), len(buffer) - 1, 0)


@given(st.binary(max_size=80))
@settings(max_examples=80)
def test_what_is_no_packet_of_that_size_is_none(data: bytes) -> None:
    buffer = bytearray(data)
    header = parse(buffer, 0, len(buffer))
    if header is not None:
        assert buffer[0] >> 4 in (4, 6) and len(header[1]) == len(header[2])


def test_lengths_that_disagree() -> None:
    for packet in (Packet(payload=b"x"), Packet(version=6, payload=b"x")):
        data = bytearray(packet.data())
        assert parse(data, 0, len(data)) is not None
        assert parse(data, 0, len(data) - 1) is None
        assert parse(bytearray(data + b"\0"), 0, len(data) + 1) is None
    data[0] = 0x44
    assert parse(data, 0, len(data)) is None


def test_only_ipv4_without_df_may_be_cut_up() -> None:
    assert may_fragment(Packet(dont_fragment=False).data(), 0)
    assert not may_fragment(Packet().data(), 0)
    assert not may_fragment(Packet(version=6).data(), 0)
