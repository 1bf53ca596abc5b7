#!/usr/bin/env python3
"""Blocks for 10 to 100,000 pods on up to 1,000 nodes: every address chosen, one node planned.

Pods come in random order of their nodes. Each address is chosen in one of its node's blocks, and a
full node claims a further block; the decisions are those of the allocator, without a store. Then
the network of one of the nodes is planned: the routes to all blocks of the others, and its own
pods. The limit in the same run is a plain dict: the same number of addresses, the next one each
time, without blocks, nodes or round robin.

What a store costs is what a claim costs: one create for each block and one shared write for all
pods that start together. Where nothing is free, an address is borrowed; the lender is chosen among
all blocks, which is measured by itself.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from ipaddress import IPv4Address, IPv4Interface, ip_address, ip_network
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.harness import show, spread
from podwire.ipam import blocks
from podwire.ipam.block import Block, Holder, Pool
from podwire.model.cluster import Attachment, ClusterView, Lease, NetworkConfig, Node, Underlay
from podwire.plan.node import plan
from podwire.plan.profiles import fabric
from podwire.plan.wiring.routed import GATEWAY4

ROUNDS = 5
NODES = 1_000
#: Room for little more than the 2,000 blocks that 100 pods on each of 1,000 nodes take.
POOL = Pool("bench", ip_network("10.0.0.0/15"), 26)
BORROWED = 100
CALICO = fabric("calico")


class Member:
    """What the allocator keeps of one node."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"node{number}"
        self.blocks: list[tuple[Block, dict[int, Holder]]] = []
        self.last = -1

    def choose(self) -> IPv4Address | None:
        """An address of one of its own blocks."""
        for block, held in self.blocks:
            if not blocks.has_room(block):
                continue
            offset = blocks.choose_address(block, blocks.bitmap(held), (), self.last)
            if offset is not None:
                self.last = offset
                held[offset] = Holder(self.name, f"default/pod{len(held)}", "c", "eth0")
                return block.address(offset)  # type: ignore[return-value]
        return None

    @property
    def lease(self) -> Lease:
        subnets = tuple(block.cidr for block, _ in self.blocks)
        return Lease(subnets, "host-gw", IPv4Address(0xAC120000 + 11 + self.number))

    @property
    def attachments(self) -> list[Attachment]:
        ips = [block.address(offset) for block, held in self.blocks for offset in held]
        return [
            Attachment(
                container_id=f"c{number}",
                ifname="eth0",
                netns="/run/netns/x",
                host_ifname=f"cali{number:011x}",
                mac=bytes(6),
                ips=(IPv4Interface(ip),),
                gateways=(GATEWAY4,),
                pod=f"default/pod{number}",
                mtu=1450,
            )
            for number, ip in enumerate(ips)
        ]


def hand_out(pods: int, nodes: int) -> tuple[float, list[Member]]:
    """Seconds for the addresses of all pods, and who has them then."""
    order = [number % nodes for number in range(pods)]
    random.Random(1).shuffle(order)
    members = [Member(number) for number in range(nodes)]
    claimed: set[int] = set()
    taken: set[IPv4Address] = set()
    started = time.perf_counter()
    for which in order:
        member = members[which]
        while (ip := member.choose()) is None:
            index = blocks.choose_block(POOL, claimed, member.name)
            assert index is not None
            claimed.add(index)
            held: dict[int, Holder] = {}
            block = Block(POOL.block(index), member.name, len(member.blocks), held)
            member.blocks.append((block, held))
            member.last = -1
        taken.add(ip)
    seconds = time.perf_counter() - started
    assert len(taken) == pods, "an address was handed out twice"
    return seconds, members


def plan_one(members: list[Member]) -> tuple[float, int]:
    """Seconds for the network of the first node, and its entries."""
    started = time.perf_counter()
    first = members[0]
    config = NetworkConfig(
        node=first.name,
        network=(POOL.cidr,),
        lease=first.lease,
        underlay=Underlay(
            "eth0", first.lease.public_ip, 1500, on_link=(ip_network("172.16.0.0/12"),)
        ),
        mtu=1450,
        fabric=CALICO,
    )
    nodes = {one.name: Node(one.name, lease=one.lease) for one in members}
    desired = plan(ClusterView(config, nodes), first.attachments)
    entries = sum(len(found) for found in desired.by_cause.values())
    seconds = time.perf_counter() - started
    assert entries > sum(len(one.blocks) for one in members)
    return seconds, entries


def borrow(members: list[Member]) -> float:
    """Seconds for the lenders of some addresses, each chosen among all blocks anew."""
    everything = [block for member in members for block, _ in member.blocks]
    started = time.perf_counter()
    for number in range(BORROWED):
        lender = next(blocks.lenders(everything, [POOL], f"late{number}"))
        free = blocks.choose_address(lender, blocks.bitmap(lender.held), (), -1)
        assert free is not None
        lender.held[free] = Holder(f"late{number}")  # type: ignore[index]
    return time.perf_counter() - started


def limit(pods: int, nodes: int) -> float:
    """Seconds for the same number of addresses out of a dict."""
    started = time.perf_counter()
    base = ip_address("10.0.0.0")
    held: dict[object, Holder] = {}
    for number in range(pods):
        held[base + number] = Holder(f"node{number % nodes}", f"default/pod{number}", "c", "eth0")
    return time.perf_counter() - started


def main() -> None:
    for pods in (10, 1_000, 10_000, 100_000):
        nodes = max(1, min(NODES, pods // 100))
        chosen, planned, whole, borrowed, plain = [], [], [], [], []
        for _ in range(ROUNDS):
            choosing, members = hand_out(pods, nodes)
            planning, entries = plan_one(members)
            chosen.append(choosing * 1000)
            planned.append(planning * 1000)
            whole.append(chosen[-1] + planned[-1])
            plain.append(limit(pods, nodes) * 1000)
            claimed = sum(len(one.blocks) for one in members)
            if nodes > 1:
                borrowed.append(borrow(members) * 1000 / BORROWED)
        ratio = statistics.median(chosen) / statistics.median(plain)
        each = statistics.median(chosen) / pods * 1000
        show(
            f"{pods:,} pods, {nodes:,} nodes, {claimed:,} blocks; {entries:,} entries on a node;"
            f" {ROUNDS} rounds, ms",
            [
                ("planned", spread(whole), "5000" if pods == 100_000 else ""),
                ("  all addresses", spread(chosen), f"x{ratio:.1f} a dict, {each:.1f} µs each"),
                ("  one node's entries", spread(planned), ""),
                ("a plain dict", spread(plain), ""),
                *([("a lender chosen", spread(borrowed), "")] if borrowed else []),
            ],
        )


if __name__ == "__main__":
    main()
