"""Ranges over each real store: claimed, used up, given away, kept, reclaimed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from podwire.ipam import range_ring
from podwire.ipam.node_subnet import ExhaustedError, RequestedAddressError
from podwire.ipam.range_allocator import RangeAllocator
from podwire.ipam.ranges import Token, decode_token, encode_token, lenders, ranges
from podwire.ipam.record import Key
from podwire.ipam.store import Store
from podwire.model.documents import Documents
from podwire.plan.wiring.bridge import gateway
from tests.ipam.conftest import BOTH, Stored
from tests.ipam.pods import add, delete, ips_of

BIG = (ip_network("10.32.0.0/12"),)
#: Two slots of 16 addresses.
SMALL = (ip_network("10.32.0.0/27"),)

Make = Callable[..., RangeAllocator]

pytestmark = pytest.mark.parametrize("stored", BOTH, indirect=True)


@pytest.fixture
async def make(documents: Documents, open_store: Callable[..., Store]) -> AsyncIterator[Make]:
    """Makes a node's allocator; again, after stopping it, where the node has one."""
    made: dict[str, RangeAllocator] = {}

    async def nobody_is_gone(name: str) -> bool:
        return False

    def one(node: str = "n1", **settings: Any) -> RangeAllocator:
        settings = {"networks": BIG, "is_gone": nobody_is_gone, **settings}
        made[node] = RangeAllocator(documents, open_store(node), node=node, **settings)
        return made[node]

    yield one
    for allocator in made.values():
        await allocator.stop()


async def fill(allocator: RangeAllocator, name: str) -> list[str]:
    """Pods until there is no address left."""
    ips: list[str] = []
    while True:
        try:
            ips += ips_of(await add(allocator, f"{name}{len(ips)}"))
        except ExhaustedError:
            return ips


async def owned(documents: Documents, node: str) -> int:
    """How many addresses of SMALL are in a node's ranges."""
    tokens = [decode_token(one) for one in (await documents.list("ipamranges")).values()]
    return sum(one.size for one in ranges(tokens, SMALL[0]) if one.token.node == node)


async def test_the_first_range_has_the_bridge_s_address(make: Make) -> None:
    one = make()
    await one.start()
    (subnet,) = one.subnets
    assert subnet.prefixlen == 20  # 256 of them in the network
    pods = [ips_of(await add(one, name))[0] for name in "abc"]
    assert str(gateway(subnet)) not in pods
    assert all(ip_address(ip) in subnet for ip in pods)
    with pytest.raises(RequestedAddressError, match="the node itself"):
        await add(one, "d", str(gateway(subnet)))


async def test_both_families(make: Make) -> None:
    one = make(networks=(*BIG, ip_network("fd00:10:32::/64")))
    await one.start()
    assert [subnet.version for subnet in one.subnets] == [4, 6]
    ips = ips_of(await add(one, "a"))
    assert all(ip_address(ip) in subnet for ip, subnet in zip(ips, one.subnets, strict=True))


async def test_handing_out_asks_nobody(stored: Stored, make: Make) -> None:
    one = make()
    await one.start()
    await stored.away()
    assert len({ip for number in range(50) for ip in ips_of(await add(one, f"p{number}"))}) == 50
    await stored.back()


async def test_a_free_slot_is_claimed_when_the_first_is_full(make: Make) -> None:
    one = make(networks=SMALL)
    await one.start()
    first = one.subnets
    ips = await fill(one, "p")
    # Less the network's own address, its broadcast address and the bridge's.
    assert len(ips) == len(set(ips)) == 29
    assert one.subnets[0] == first[0]


async def test_how_long_an_address_has_been_free_outlives_a_restart(make: Make) -> None:
    one = make(networks=SMALL)
    await one.start()
    first, _, third = [ips_of(await add(one, name))[0] for name in "abc"]
    delete(one, one._store, "c")
    delete(one, one._store, "a")
    await one.stop()
    again = make(networks=SMALL)
    await again.start()
    ips = await fill(again, "p")
    assert ips.index(third) < ips.index(first)


async def test_who_has_space_gives_half_of_it(documents: Documents, make: Make) -> None:
    nodes = [make(f"n{number}", networks=SMALL) for number in range(4)]
    for node in nodes:
        await node.start()  # the last two find no free slot
    assert {await owned(documents, f"n{number}") for number in range(4)} == {8}
    subnets = [subnet for node in nodes for subnet in node.subnets]
    assert sum(subnet.num_addresses for subnet in subnets) == 32
    ips = [ip for number, node in enumerate(nodes) for ip in await fill(node, f"n{number}-")]
    # Three are the network's and its own bridges' addresses; each node has a bridge.
    assert len(ips) == len(set(ips)) == 32 - 2 - 4


async def test_all_run_out_at_once(documents: Documents, make: Make) -> None:
    nodes = [make(f"n{number}", networks=SMALL) for number in range(3)]
    await asyncio.gather(*(node.start() for node in nodes))
    filled = await asyncio.gather(*(fill(node, f"n{number}-") for number, node in enumerate(nodes)))
    ips = [ip for one in filled for ip in one]
    assert len(ips) == len(set(ips))
    assert len(ips) >= 20  # what is left is in pieces too small to be given away


async def test_a_restarted_node_has_what_it_had(make: Make) -> None:
    one = make()
    await one.start()
    before = one.subnets
    ips = {ip for number in range(5) for ip in ips_of(await add(one, f"p{number}"))}
    await one.stop()
    again = make()
    await again.start()
    assert again.subnets == before
    assert not ips & {ip for number in range(5) for ip in ips_of(await add(again, f"q{number}"))}


async def test_what_is_deleted_while_the_allocator_starts(make: Make) -> None:
    one = make()
    await one.start()
    (ip,) = ips_of(await add(one, "deleted"))
    await one.stop()
    again = make()
    starting = asyncio.create_task(again.start())
    while again._stopped:
        await asyncio.sleep(0)
    again._store.begin_delete(Key("deleted", "eth0"))  # Nobody knows this allocator yet.
    await starting
    assert ips_of(await add(again, "new", ip)) == [ip]


async def test_what_is_in_use_is_never_given_away(make: Make) -> None:
    one = make(networks=(ip_network("10.32.0.0/28"),))
    await one.start()
    used = {ip for number in range(6) for ip in ips_of(await add(one, f"p{number}"))}
    two = make("n2", networks=(ip_network("10.32.0.0/28"),))
    await two.start()
    assert not used & set(await fill(two, "q"))
    assert not set(await fill(one, "r")) & used


async def test_what_is_being_given_away_is_used_no_more(
    stored: Stored, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while nobody can tell whether it has arrived."""
    monkeypatch.setattr(range_ring, "_RETRY_S", 0.01)
    network = (ip_network("10.32.0.0/28"),)
    one = make(networks=network)
    await one.start()
    await stored.away()
    giving = asyncio.create_task(one._ring._give(network[0], "n2"))
    while not one._ring._given:
        await asyncio.sleep(0)
    (given,) = one._ring._given.values()
    with pytest.raises(RequestedAddressError, match="is in a range of node n2"):
        await add(one, "a", str(given.first))
    await stored.back()
    await giving
    two = make("n2", networks=network)
    await two.start()
    assert ips_of(await add(two, "b", str(given.first + 2))) == [str(given.first + 2)]


async def test_who_has_nothing_to_give_says_so(make: Make) -> None:
    network = (ip_network("10.32.0.0/28"),)
    one = make(networks=network)
    await one.start()
    await fill(one, "p")
    delete(one, one._store, "p3")
    two = make("n2", networks=network)
    with pytest.raises(ExhaustedError, match="no address of"):
        await two.start()


async def test_a_removed_node_is_reclaimed(documents: Documents, make: Make) -> None:
    async def is_gone(name: str) -> bool:
        return name == "n2"

    one = make(networks=SMALL, is_gone=is_gone, grace_s=0.0)
    two = make("n2", networks=SMALL)
    await asyncio.gather(one.start(), two.start())
    await fill(two, "q")
    await two.stop()
    one.nodes_are(["n1", "n2"])
    one.nodes_are(["n1"])
    async with asyncio.timeout(30):
        while await owned(documents, "n2"):
            await asyncio.sleep(0.01)
    assert len(await fill(one, "p")) == 29


async def test_a_range_that_is_lost_meanwhile_comes_back(documents: Documents, make: Make) -> None:
    """Others have reclaimed it, since the node was not in the cluster for a while."""
    one = make()
    await one.start()
    before = one.subnets
    (document,) = (await documents.list("ipamranges")).values()
    await documents.delete(document)
    async with asyncio.timeout(30):
        while not await documents.list("ipamranges"):
            await asyncio.sleep(0.01)
    await add(one, "a")
    assert one.subnets == before  # also while it is lost


async def test_what_is_asked_for(make: Make) -> None:
    one, two = make(), make("n2")
    await asyncio.gather(one.start(), two.start())
    own, theirs = one.subnets[0], two.subnets[0]
    assert ips_of(await add(one, "a", str(own[9]))) == [str(own[9])]
    for ip, why in (
        (str(own[9]), "is held by pod default/a"),
        (str(theirs[9]), "is in a range of node n2"),
        ("10.99.0.1", "is outside of the pod network"),
    ):
        with pytest.raises(RequestedAddressError, match=why):
            await add(one, "b", ip)
    with pytest.raises(RequestedAddressError, match="has no pools"):
        await add(one, "b", pools=("east",))


async def test_what_a_dead_agent_gives_too_late_is_sent_back(
    documents: Documents, make: Make
) -> None:
    network = (ip_network("10.32.0.0/28"),)
    one = make(networks=network)
    await one.start()
    (before,) = (await documents.list("ipamranges")).values()
    await one.stop()
    one = make(networks=network)
    await one.start()
    used = {ip for number in range(10) for ip in ips_of(await add(one, f"p{number}"))}
    late = Token(network[0], ip_address("10.32.0.8"), "n2", giver=decode_token(before).instance)
    await documents.create("ipamranges", late.name, encode_token(late))
    two = make("n2", networks=network)
    with contextlib.suppress(ExhaustedError):
        await two.start()
        assert not used & set(await fill(two, "q"))
    tokens = map(decode_token, (await documents.list("ipamranges")).values())
    assert late.giver not in {token.giver for token in tokens}


async def test_who_does_not_answer_is_asked_last(make: Make) -> None:
    nodes = {name: make(name, networks=SMALL) for name in ("n0", "n1")}
    for node in nodes.values():
        await node.start()
    ring = nodes["n0"]._ring
    async with asyncio.timeout(30):
        while {token.node for token in ring.tokens} != set(nodes):
            await asyncio.sleep(0.01)
    first, second = [one.node for one in lenders(ranges(ring.tokens, SMALL[0]), "n2")]
    await nodes[first].stop()
    two = make("n2", networks=SMALL)
    await two.start()
    assert two._ring._silent == {first}
    later = [one.node for one in two._ring.in_turn(SMALL[0])]
    assert later == [second, first]
