"""Node blocks: assigned, kept apart, freed, and missing."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.errors import InputError
from podwire.lab.api.kinds import EVENT, NODE
from podwire.lab.api.kinds.meta import condition
from podwire.lab.controllers.pod_cidrs import PodCidrs, Pool
from tests.lab.controllers.conftest import Cluster, node


def pools(*networks: str, mask: int = 24) -> list[Pool]:
    return [Pool(ip_network(network), mask) for network in networks]


def cidrs(cluster: Cluster) -> dict[str, Any]:
    return {n["metadata"]["name"]: n["spec"].get("podCIDR") for n in cluster.objects.list(NODE)}


async def test_each_node_gets_the_next_block(cluster: Cluster) -> None:
    cluster.create(NODE, node("before"))
    async with cluster.running(PodCidrs(cluster.objects, pools("10.244.0.0/16"))):
        cluster.create(NODE, node("n1"))
        cluster.create(NODE, node("n2"))
        await cluster.until(lambda: all(cidrs(cluster).values()))
    assert cidrs(cluster) == {
        "before": "10.244.0.0/24",
        "n1": "10.244.1.0/24",
        "n2": "10.244.2.0/24",
    }
    assert cluster.objects.get(NODE, "", "n1")["spec"]["podCIDRs"] == ["10.244.1.0/24"]


async def test_blocks_of_nodes_own_are_left_and_avoided(cluster: Cluster) -> None:
    async with cluster.running(PodCidrs(cluster.objects, pools("10.244.0.0/16"))):
        cluster.create(NODE, node("own", podCIDR="10.244.0.0/23"))
        cluster.create(NODE, node("elsewhere", podCIDR="192.168.0.0/24"))
        cluster.create(NODE, node("n1"))
        await cluster.until(lambda: cidrs(cluster)["n1"])
    assert cidrs(cluster) == {
        "own": "10.244.0.0/23",
        "elsewhere": "192.168.0.0/24",
        "n1": "10.244.2.0/24",
    }


async def test_overlap_that_a_node_brings_is_told(cluster: Cluster) -> None:
    async with cluster.running(PodCidrs(cluster.objects, pools("10.244.0.0/16"))):
        cluster.create(NODE, node("a", podCIDR="10.244.3.0/24"))
        cluster.create(NODE, node("b", podCIDR="10.244.3.0/24"))
        await cluster.until(lambda: cluster.names(EVENT))
    event = cluster.objects.list(EVENT)[0]
    assert (event["reason"], event["involvedObject"]["name"]) == ("PodCIDROverlap", "b")


async def test_exhaustion_is_told_and_ends_when_a_block_is_free(cluster: Cluster) -> None:
    async with cluster.running(PodCidrs(cluster.objects, pools("10.0.0.0/23"))):
        for name in "abcd":
            cluster.create(NODE, node(name))
        await cluster.until(lambda: len(cluster.names(EVENT)) == 2)
        unserved = cluster.objects.get(NODE, "", "c")
        assert condition(unserved, "NetworkUnavailable")["reason"] == "CIDRNotAvailable"
        assert {event["type"] for event in cluster.objects.list(EVENT)} == {"Warning"}
        cluster.objects.delete(NODE, "", "a")
        await cluster.until(lambda: cidrs(cluster)["c"])
        await cluster.settled()
    assert cidrs(cluster) == {"b": "10.0.1.0/24", "c": "10.0.0.0/24", "d": None}


async def test_a_freed_block_is_not_reused_at_once(cluster: Cluster) -> None:
    async with cluster.running(PodCidrs(cluster.objects, pools("10.244.0.0/16"))):
        cluster.create(NODE, node("a"))
        await cluster.until(lambda: cidrs(cluster)["a"])
        cluster.objects.delete(NODE, "", "a")
        cluster.create(NODE, node("b"))
        await cluster.until(lambda: cidrs(cluster)["b"])
    assert cidrs(cluster) == {"b": "10.244.1.0/24"}


async def test_dual_stack(cluster: Cluster) -> None:
    both = [*pools("10.244.0.0/16"), *pools("fd00:10::/56", mask=64)]
    async with cluster.running(PodCidrs(cluster.objects, both)):
        cluster.create(NODE, node("a"))
        await cluster.until(lambda: cidrs(cluster)["a"])
    spec = cluster.objects.get(NODE, "", "a")["spec"]
    assert spec["podCIDRs"] == ["10.244.0.0/24", "fd00:10::/64"]


@pytest.mark.parametrize(("network", "mask"), [("10.0.0.0/24", 16), ("10.0.0.0/8", 28)])
def test_pools_that_make_no_sense(network: str, mask: int) -> None:
    with pytest.raises(InputError):
        Pool(ip_network(network), mask)


@given(st.lists(st.sampled_from(["take", "release", "own"]), max_size=60), st.randoms())
def test_blocks_never_overlap(actions: list[str], random: Any) -> None:
    pool = Pool(ip_network("10.0.0.0/27"), 30)
    held: list[Any] = []
    for action in actions:
        if action == "release" and held:
            pool.release(held.pop(random.randrange(len(held))))
            continue
        block: Any = pool.free(random.choice([None, 0, 3, 99]))
        if action == "own":
            block = ip_network((int(pool.network[0]) + 8 * random.randrange(4), 29))
            if any(block.overlaps(other) for other in held):
                continue
        if block is None:
            assert sum(other.num_addresses for other in held) == 32
            continue
        assert pool.take(block)
        held.append(block)
        assert not any(one.overlaps(other) for one, other in combinations(held, 2))


def test_a_nodes_number_chooses_its_block_while_that_is_free() -> None:
    pool = Pool(ip_network("10.244.0.0/16"), 24)
    second = pool.free(2)
    assert second == ip_network("10.244.2.0/24")
    pool.take(second)
    assert pool.free(2) == ip_network("10.244.0.0/24")
    assert pool.free(256) == ip_network("10.244.1.0/24")
