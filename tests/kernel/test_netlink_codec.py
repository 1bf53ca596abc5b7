"""The wire format as pure functions: what is encoded comes back, and garbage is harmless."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from podwire.kernel import messages, nft
from podwire.kernel.messages import AddressKey, FdbKey, NeighborKey, RouteKey, RouteValue
from podwire.kernel.netlink import HEADER, attr, parse_attrs, split

INDEX = st.integers(1, 2**31 - 1)
IPV4 = st.binary(min_size=4, max_size=4)
MAC = st.binary(min_size=6, max_size=6)


def payload(message: bytes) -> bytes:
    return message[HEADER.size :]


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_attributes_come_back(attrs: dict[int, bytes]) -> None:
    assert parse_attrs(b"".join(attr(kind, data) for kind, data in attrs.items())) == attrs


@given(st.binary(max_size=200))
def test_garbage_attributes_and_messages_end_quietly(data: bytes) -> None:
    parse_attrs(data)
    list(split(data))


@given(IPV4, st.integers(0, 32), INDEX, IPV4, st.booleans())
def test_routes_come_back(dst: bytes, plen: int, index: int, via: bytes, onlink: bool) -> None:
    key = RouteKey(socket.AF_INET, dst, plen, 0)
    value = RouteValue(index, via, b"", onlink)
    encoded = messages.add_route(key, value, replace=False)
    assert messages.parse_route(payload(encoded)) == (key, value, 112, 254)


@given(IPV4, INDEX, MAC)
def test_neighbors_and_fdb_entries_come_back(ip: bytes, index: int, mac: bytes) -> None:
    neighbor = messages.set_neighbor(NeighborKey(index, socket.AF_INET, ip), mac)
    family, where, state, dst, lladdr = messages.parse_neighbor(payload(neighbor))
    assert (family, where, dst, lladdr) == (socket.AF_INET, index, ip, mac)
    assert state == messages.NUD_PERMANENT
    fdb = messages.set_fdb(FdbKey(index, mac), ip)
    family, where, _, dst, lladdr = messages.parse_neighbor(payload(fdb))
    assert (family, where, dst, lladdr) == (messages.AF_BRIDGE, index, ip, mac)


@given(IPV4, st.integers(0, 32), INDEX)
def test_addresses_come_back(ip: bytes, plen: int, index: int) -> None:
    key = AddressKey(index, socket.AF_INET, ip, plen)
    assert messages.parse_address(payload(messages.add_address(key))) == (key, 0)


def test_only_notifications_about_a_table_name_one() -> None:
    name = attr(1, b"podwire\0")
    assert nft.notified_table(10 << 8 | 1, b"\1\0\0\0" + name) == ("inet", "podwire")
    assert nft.notified_table(10 << 8 | 15, b"\1\0\0\0" + attr(2, b"\0\0\0\1")) is None
    assert nft.notified_table(2, b"\1\0\0\0" + name) is None
