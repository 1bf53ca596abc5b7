"""What to do with blocks: which one to claim, which address to take, what to give back.

What lives here: decisions, as functions of immutable values. What does not: documents, the database
and the order of requests (`podwire.ipam.block_allocator`).

How it works. A node looks for free blocks from a place of its own on, the hash of its name, so that
nodes that start together do not fight for the same one. In a block, addresses are handed out round
and round. What a document says about this node is never believed: `merge` puts there what the node
itself knows to be true, and keeps what other nodes have borrowed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import msgspec

from podwire.ipam.block import RESERVED, Block, Holder, Pool
from podwire.model.state import IPNetwork


def start(node: str, pool: Pool) -> int:
    """The number of the block that a node looks at first."""
    digest = hashlib.sha256(f"{node} {pool.cidr}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % pool.blocks


def taken(pool: Pool, blocks: Iterable[IPNetwork]) -> set[int]:
    """The numbers of the pool's blocks that these blocks, perhaps of another size, overlap."""
    found: set[int] = set()
    for block in blocks:
        if block.version == pool.cidr.version and block.overlaps(pool.cidr):
            last = block.broadcast_address
            low = pool.index(block.network_address) if block.network_address in pool.cidr else 0
            high = pool.index(last) if last in pool.cidr else pool.blocks - 1
            found.update(range(low, high + 1))
    return found


def choose_block(pool: Pool, unavailable: Set[int], node: str) -> int | None:
    """The number of a free block for `node`, None where all are taken (`unavailable`)."""
    first = start(node, pool)
    # Among one more than are taken, in a row, one is free.
    for step in range(min(pool.blocks, len(unavailable) + 1)):
        index = (first + step) % pool.blocks
        if index not in unavailable:
            return index
    return None


def choose_address(block: Block, busy: int, cooling: Sequence[int], after: int) -> int | None:
    """The offset of the next address to hand out, None where all are held.

    `busy` is a bitmap of what is held, by whomever. `cooling` are offsets that were released a
    moment ago, longest ago first: the first of them is taken where nothing else is free.
    """
    size = block.cidr.num_addresses
    resting = busy
    for offset in cooling:
        resting |= 1 << offset
    for begin in (max(after + 1, RESERVED), RESERVED):
        shifted = resting >> begin
        offset = begin + (~shifted & (shifted + 1)).bit_length() - 1
        if offset < size:
            return offset
    return next((offset for offset in cooling if not busy >> offset & 1), None)


def bitmap(offsets: Iterable[int]) -> int:
    """A bit for each offset."""
    found = 0
    for offset in offsets:
        found |= 1 << offset
    return found


class Merged(NamedTuple):
    """A block as it should be, and our own offsets that somebody else has there."""

    block: Block
    lost: frozenset[int]


def merge(block: Block, node: str, wanted: Mapping[int, Holder]) -> Merged:
    """`block` with `wanted` as all that `node` has of it."""
    held = {offset: one for offset, one in block.held.items() if one.node != node}
    lost = frozenset(wanted.keys() & held.keys())
    held.update((offset, one) for offset, one in wanted.items() if offset not in lost)
    if held == block.held:
        return Merged(block, lost)
    return Merged(msgspec.structs.replace(block, held=held), lost)


def reclaim(block: Block, gone: Collection[str]) -> Block | None:
    """`block` without what the nodes `gone` had of it; None where nothing keeps it any more."""
    held = {offset: one for offset, one in block.held.items() if one.node not in gone}
    node = "" if block.node in gone else block.node
    if not node and not held:
        return None
    if node == block.node and len(held) == len(block.held):
        return block
    return msgspec.structs.replace(block, node=node, held=held)


def nodes_of(block: Block) -> set[str]:
    """The nodes that own it, or have an address of it."""
    return {one.node for one in block.held.values()} | ({block.node} if block.node else set())


def has_room(block: Block) -> bool:
    """Whether an address of it is free."""
    return len(block.held) < block.cidr.num_addresses - RESERVED


def lenders(blocks: Iterable[Block], pools: Sequence[Pool], node: str) -> Iterator[Block]:
    """Others' blocks of these pools with a free address to borrow, the emptier quarters first."""
    able = [
        block
        for block in blocks
        if block.node != node and has_room(block) and any(pool.has(block.cidr) for pool in pools)
    ]
    # Not all borrow of the same one: among those about as empty, each node has an order of its own.
    able.sort(key=lambda block: (_quarters(block), _rank(node, block)))
    return iter(able)


def orphans(blocks: Iterable[Block], pool: Pool, node: str) -> Iterator[Block]:
    """Nobody's blocks of the pool's size with room, which may be claimed as they are."""
    able = [
        block
        for block in blocks
        if not block.node
        and has_room(block)
        and block.cidr.prefixlen == pool.block_len
        and pool.has(block.cidr)
    ]
    return iter(sorted(able, key=lambda block: _rank(node, block)))


def _quarters(block: Block) -> int:
    return len(block.held) * 4 // block.cidr.num_addresses


def _rank(node: str, block: Block) -> bytes:
    return hashlib.sha256(f"{node} {block.cidr}".encode()).digest()
