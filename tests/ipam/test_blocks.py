"""What is decided about blocks: pure functions, against the plainest way of saying the same."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.errors import InputError
from podwire.ipam import blocks
from podwire.ipam.block import (
    Block,
    Holder,
    Pool,
    decode_block,
    decode_pool,
    encode_block,
    encode_pool,
)
from podwire.model.documents import Document

CIDR = ip_network("10.0.0.16/28")
offsets = st.integers(0, 15)
holders = st.sampled_from(["n1", "n2", "n3"]).map(Holder)
held = st.dictionaries(offsets, holders)


def document(name: str, value: bytes) -> Document:
    return Document("ipamblocks", name, value, "1")


@given(busy=st.sets(offsets), cooling=st.lists(offsets, unique=True), after=st.integers(-1, 15))
@settings(max_examples=60)
def test_the_next_address_is_the_first_one_after_the_last(
    busy: set[int], cooling: list[int], after: int
) -> None:
    found = blocks.choose_address(Block(CIDR, "n1"), blocks.bitmap(busy), cooling, after)
    around = [*range(max(1, after + 1), 16), *range(1, 16)]
    free = [one for one in around if one not in busy and one not in cooling]
    rest = [one for one in cooling if one not in busy]
    assert found == next(iter(free or rest), None) or (found == 0 and 0 in rest)


@given(block=held, wanted=st.dictionaries(offsets, st.just(Holder("n1"))))
@settings(max_examples=60)
def test_merging_keeps_what_others_have_and_says_what_is_true_of_this_node(
    block: dict[int, Holder], wanted: dict[int, Holder]
) -> None:
    merged, lost = blocks.merge(Block(CIDR, "n1", 1, block), "n1", wanted)
    others = {offset: one for offset, one in block.items() if one.node != "n1"}
    assert {offset: one for offset, one in merged.held.items() if one.node != "n1"} == others
    assert lost == wanted.keys() & others.keys()
    mine = {offset for offset, one in merged.held.items() if one.node == "n1"}
    assert mine == wanted.keys() - lost
    assert blocks.merge(merged, "n1", wanted).block is merged  # nothing is left to write


@given(block=held, owner=st.sampled_from(["", "n1", "n2"]))
@settings(max_examples=40)
def test_reclaiming_leaves_nothing_of_the_gone(block: dict[int, Holder], owner: str) -> None:
    before = Block(CIDR, owner, 1, block)
    left = blocks.reclaim(before, {"n1"})
    others = {offset: one for offset, one in block.items() if one.node != "n1"}
    if left is None:
        assert not others
        assert owner in ("", "n1")
    else:
        assert "n1" not in blocks.nodes_of(left)
        assert left.held == others


@given(block=held, owner=st.sampled_from(["", "n1"]), sequence=st.integers(0, 9))
@settings(max_examples=20)
def test_a_block_is_what_its_document_says(
    block: dict[int, Holder], owner: str, sequence: int
) -> None:
    one = Block(CIDR, owner, sequence, block)
    assert decode_block(document("10-0-0-16-28", encode_block(one))) == one


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b'{"cidr": "10.0.0.17/28"}',
        b'{"cidr": "10.0.0.0/28"}',
        b'{"cidr": "10.0.0.0/8"}',
        b'{"cidr": "10.0.0.16/28", "allocations": [{"ip": "10.0.0.1", "node": "n"}]}',
        b'{"cidr": "10.0.0.16/28", "allocations": [{"ip": "10.0.0.17"}]}',
    ],
)
def test_what_is_no_block_is_refused(value: bytes) -> None:
    with pytest.raises(InputError, match=r"ipamblocks/10-0-0-16-28: "):
        decode_block(document("10-0-0-16-28", value))


def test_every_block_of_a_pool_is_claimed_in_the_end() -> None:
    pool = Pool("p", ip_network("fd00::/120"), 124)
    unavailable: set[int] = set()
    while (index := blocks.choose_block(pool, unavailable, "n1")) is not None:
        assert pool.index(pool.block(index)[5]) == index
        unavailable.add(index)
    assert unavailable == set(range(16))


def test_nodes_do_not_all_begin_at_the_same_block() -> None:
    pool = Pool("p", ip_network("10.0.0.0/16"), 26)
    assert len({blocks.start(f"node{number}", pool) for number in range(100)}) > 80


def test_blocks_of_another_size_are_in_the_way() -> None:
    pool = Pool("p", ip_network("10.0.0.0/24"), 26)
    others = [ip_network("10.0.0.64/28"), ip_network("10.0.0.128/25"), ip_network("fd00::/122")]
    assert blocks.taken(pool, others) == {1, 2, 3}
    assert blocks.taken(pool, [ip_network("10.0.0.0/16")]) == {0, 1, 2, 3}


def test_lenders_are_others_with_room_the_emptiest_first() -> None:
    pool = Pool("p", ip_network("10.0.0.0/24"), 30)
    full = {offset: Holder("n2") for offset in (1, 2, 3)}
    half = {1: Holder("n2"), 2: Holder("n2")}
    candidates = [
        Block(ip_network("10.0.0.0/30"), "n1"),
        Block(ip_network("10.0.0.4/30"), "n2", 1, full),
        Block(ip_network("10.0.0.8/30"), "n2", 2, half),
        Block(ip_network("10.0.0.12/30"), "n3"),
        Block(ip_network("10.0.1.0/30"), "n3"),
    ]
    found = [str(one.cidr) for one in blocks.lenders(candidates, [pool], "n1")]
    assert found == ["10.0.0.12/30", "10.0.0.8/30"]


def test_a_pool_is_what_its_document_says() -> None:
    pool = Pool("east", ip_network("10.0.0.0/16"), 26, True)
    assert decode_pool(Document("ippools", "east", encode_pool(pool), "1")) == pool
    plain = Document("ippools", "east", b'{"cidr": "fd00::/48"}', "1")
    assert decode_pool(plain).block_len == 122
    wrong = Document("ippools", "east", b'{"cidr": "10.0.0.0/16", "blockSize": 12}', "1")
    with pytest.raises(InputError, match="blockSize") as caught:
        decode_pool(wrong)
    assert caught.value.remedy == "choose 20 to 30"
