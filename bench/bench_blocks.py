#!/usr/bin/env python3
"""Blocks for 10 to 100,000 pods on up to 1,000 nodes: every claim and every address, planned.

Pods come in random order of their nodes. Each address is chosen in one of its node's blocks, a full
node claims a further block, and where no block is free one address is borrowed; the decisions are
those of the allocator, without a store. The limit in the same run is a plain dict: the same number
of addresses, the next one each time, without blocks, nodes or round robin.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from ipaddress import IPv4Address, ip_network
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.harness import show, spread
from podwire.ipam import blocks
from podwire.ipam.block import Block, Holder, Pool

ROUNDS = 5
NODES = 1_000
#: Room for little more than the 2,000 blocks that 100 pods on each of 1,000 nodes take.
POOL = Pool("bench", ip_network("10.0.0.0/15"), 26)


class Node:
    """What the allocator keeps of one node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.own: list[tuple[Block, dict[int, Holder]]] = []
        self.last = -1


def plan(pods: int, nodes: int) -> tuple[float, int, int]:
    """Seconds for all pods, the blocks claimed, and the addresses borrowed."""
    order = [number % nodes for number in range(pods)]
    random.Random(1).shuffle(order)
    members = [Node(f"node{number}") for number in range(nodes)]
    claimed: set[int] = set()
    everything: list[Block] = []
    taken: set[IPv4Address | object] = set()
    borrowed = 0
    started = time.perf_counter()
    for number, which in enumerate(order):
        node = members[which]
        holder = Holder(node.name, f"default/pod{number}", f"c{number}", "eth0")
        while True:
            place = choose(node)
            if place is not None:
                block, held, offset = place
                node.last = offset
                held[offset] = holder
                taken.add(block.address(offset))
                break
            index = blocks.choose_block(POOL, claimed, node.name)
            if index is None:
                lender = next(blocks.lenders(everything, [POOL], node.name))
                free = blocks.choose_address(lender, blocks.bitmap(lender.held), (), -1)
                assert free is not None
                lender.held[free] = holder  # type: ignore[index]
                taken.add(lender.address(free))
                borrowed += 1
                break
            claimed.add(index)
            held = {}
            block = Block(POOL.block(index), node.name, len(node.own), held)
            node.own.append((block, held))
            everything.append(block)
            node.last = -1
    seconds = time.perf_counter() - started
    assert len(taken) == pods, "an address was handed out twice"
    return seconds, len(claimed), borrowed


def choose(node: Node) -> tuple[Block, dict[int, Holder], int] | None:
    """An address of one of the node's own blocks."""
    for block, held in node.own:
        offset = blocks.choose_address(block, blocks.bitmap(held), (), node.last)
        if offset is not None:
            return block, held, offset
    return None


def limit(pods: int, nodes: int) -> float:
    """Seconds for the same number of addresses out of a dict."""
    started = time.perf_counter()
    base = POOL.cidr.network_address
    held: dict[object, Holder] = {}
    for number in range(pods):
        held[base + number] = Holder(f"node{number % nodes}", f"default/pod{number}", "c", "eth0")
    return time.perf_counter() - started


def main() -> None:
    for pods in (10, 1_000, 10_000, 100_000):
        nodes = max(1, min(NODES, pods // 100))
        ours, plain = [], []
        for _ in range(ROUNDS):
            seconds, claims, borrowed = plan(pods, nodes)
            ours.append(seconds * 1000)
            plain.append(limit(pods, nodes) * 1000)
        ratio = statistics.median(ours) / statistics.median(plain)
        show(
            f"{pods:,} pods on {nodes:,} nodes: {claims:,} blocks claimed, {borrowed:,} addresses"
            f" borrowed; {ROUNDS} rounds, ms",
            [
                ("planned", spread(ours), "5000" if pods == 100_000 else ""),
                ("  a plain dict", spread(plain), f"x{ratio:.1f}"),
            ],
        )


if __name__ == "__main__":
    main()
