"""What is decided about ranges: they never overlap, and what is given away is nobody's."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.errors import InputError
from podwire.ipam.ranges import (
    Token,
    choose_slot,
    cut,
    decode_token,
    encode_token,
    in_order,
    is_valid,
    lenders,
    ranges,
    slot_size,
    usable,
)
from podwire.model.documents import Document

NETWORK = ip_network("10.32.0.0/24")  # 16 slots of 16
BASE = int(NETWORK.network_address)
nodes = st.sampled_from(["n1", "n2", "n3"])
tokens = st.dictionaries(st.integers(0, 255), nodes).map(
    lambda found: [Token(NETWORK, IPv4Address(BASE + at), node) for at, node in found.items()]
)


@given(found=tokens)
@settings(max_examples=60)
def test_ranges_do_not_overlap_and_end_with_their_slot(found: list[Token]) -> None:
    made = ranges(found, NETWORK)
    assert len(made) == len(found)
    for one, following in itertools.pairwise(made):
        assert one.end <= following.first
    for one in made:
        assert one.size > 0
        assert (one.end - 1 - BASE) // 16 == (one.first - BASE) // 16
        cidrs = one.cidrs
        assert sum(cidr.num_addresses for cidr in cidrs) == one.size
        assert int(cidrs[0].network_address) == one.first


@given(found=tokens, held=st.sets(st.integers(BASE, BASE + 255)))
@settings(max_examples=80)
def test_what_is_given_away_is_free_and_inside_of_an_own_range(
    found: list[Token], held: set[int]
) -> None:
    own = [one for one in ranges(found, NETWORK) if one.token.node == "n1"]
    piece = cut(own, held)
    if piece is None:
        for one in own:  # No free stretch is worth it.
            first, end = usable(one)
            free = "".join("." if number in held else "x" for number in range(first, end))
            assert max(map(len, free.split("."))) < 16
        return
    whole, first, end = piece
    assert whole in own
    assert whole.first < first < end <= whole.end
    assert not held & set(range(first, end))
    # The node keeps about as much of the stretch.
    assert end - first <= whole.size // 2 + 4


@given(found=tokens, node=nodes)
@settings(max_examples=40)
def test_a_slot_is_claimed_where_no_range_begins_with_one(found: list[Token], node: str) -> None:
    first = choose_slot(NETWORK, found, node)
    starts = {token.first for token in found}
    if first is None:
        assert {IPv4Address(BASE + 16 * slot) for slot in range(16)} <= starts
    else:
        assert first not in starts
        assert (int(first) - BASE) % 16 == 0


@pytest.mark.parametrize(
    ("network", "size"),
    [("10.32.0.0/12", 4096), ("10.0.0.0/24", 16), ("10.0.0.0/28", 16), ("fd00::/64", 1 << 56)],
)
def test_slots(network: str, size: int) -> None:
    assert slot_size(ip_network(network)) == size


def test_who_has_most_is_asked_first() -> None:
    found = [
        Token(NETWORK, ip_address("10.32.0.0"), "n1"),
        Token(NETWORK, ip_address("10.32.0.16"), "n2"),
        Token(NETWORK, ip_address("10.32.0.24"), "n3"),
        Token(NETWORK, ip_address("10.32.0.32"), "n3"),
    ]
    asked = lenders(ranges(found, NETWORK), "n1")
    assert [(one.node, str(one.first)) for one in asked] == [
        ("n3", "10.32.0.32"),
        ("n2", "10.32.0.16"),
    ]


def test_the_range_that_was_first_stays_first() -> None:
    late = Token(NETWORK, ip_address("10.32.0.0"), "n1", sequence=2)
    early = Token(NETWORK, ip_address("10.32.0.64"), "n1", sequence=1)
    assert [one.token for one in in_order(ranges([late, early], NETWORK))] == [early, late]


@pytest.mark.parametrize(
    ("in_front", "valid"),
    [
        ([(0, "n1", "first", "")], True),
        ([(0, "n1", "second", "")], False),  # The next agent has the range that it came from.
        ([(0, "n1", "second", ""), (4, "n3", "", "first")], True),  # Given later by the same one.
        ([(0, "n1", "second", ""), (4, "n3", "", "second")], False),
        ([(16, "n1", "first", "")], False),
        ([], False),
    ],
)
def test_a_gift_is_taken_while_its_giver_has_the_range_it_came_from(
    in_front: list[tuple[int, str, str, str]], valid: bool
) -> None:
    others = [
        Token(NETWORK, NETWORK[at], node, instance, giver=giver)
        for at, node, instance, giver in in_front
    ]
    gift = Token(NETWORK, NETWORK[8], "n2", giver="first")
    assert is_valid(gift, [*others, gift]) == valid
    used = Token(NETWORK, NETWORK[8], "n2", "mine", giver="first")
    assert is_valid(used, [*others, used])  # It has been taken.


def test_a_range_is_what_its_document_says() -> None:
    token = Token(ip_network("fd00::/64"), ip_address("fd00::"), "n1", "abc", 3, ("n2",), "def")
    assert token.name == "fd00--0"
    assert decode_token(Document("ipamranges", token.name, encode_token(token), "1")) == token


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b'{"network": "10.32.0.0/24", "first": "10.33.0.0", "node": "n"}',
        b'{"network": "10.32.0.0/24", "first": "10.32.0.0", "node": ""}',
        b'{"network": "10.32.0.0/24", "first": "10.32.0.1", "node": "n"}',
    ],
)
def test_what_is_no_range_is_refused(value: bytes) -> None:
    with pytest.raises(InputError, match=r"ipamranges/10-32-0-0: "):
        decode_token(Document("ipamranges", "10-32-0-0", value, "1"))
