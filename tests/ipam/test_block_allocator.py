"""Blocks over each real store: claimed, filled, borrowed, given back, mended, reclaimed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from podwire.errors import IpamError, StoreUnavailableError
from podwire.ipam.block import Block, Holder, Pool, decode_block, encode_block, encode_pool
from podwire.ipam.block_allocator import BlockAllocator
from podwire.ipam.node_subnet import ContendedError, ExhaustedError, RequestedAddressError
from podwire.ipam.record import Key, Record
from podwire.ipam.store import Store
from podwire.model.documents import Documents
from tests.ipam.conftest import BOTH, Stored
from tests.ipam.pods import add, delete, ips_of

NETWORK = (ip_network("172.31.0.0/24"),)
DUAL = (ip_network("172.31.0.0/24"), ip_network("fd00:172:31::/112"))
#: Two blocks of four addresses, of which three are for pods.
TINY = (ip_network("172.31.0.0/29"),)

Make = Callable[..., BlockAllocator]

pytestmark = pytest.mark.parametrize("stored", BOTH, indirect=True)


@pytest.fixture
async def make(documents: Documents, open_store: Callable[..., Store]) -> AsyncIterator[Make]:
    """Makes a node's allocator, whose store is its `store`."""
    made: list[BlockAllocator] = []

    async def nobody_is_gone(name: str) -> bool:
        return False

    def one(node: str = "n1", **settings: Any) -> BlockAllocator:
        clock = settings.get("clock")
        store = open_store(node, **({"clock": clock} if clock else {}))
        settings = {"networks": NETWORK, "is_gone": nobody_is_gone, **settings}

        def changed() -> None:
            allocator.told(allocator.subnets)

        settings.setdefault("changed", changed)
        allocator = BlockAllocator(documents, store, node=node, **settings)
        made.append(allocator)
        return allocator

    yield one
    for allocator in made:
        await allocator.stop()


def tiny(make: Make, node: str = "n1", **settings: Any) -> BlockAllocator:
    return make(node, networks=TINY, block_len={4: 30, 6: 126}, **settings)


async def held(documents: Documents) -> dict[str, str]:
    """Node by address, as the documents say."""
    blocks = map(decode_block, (await documents.list("ipamblocks")).values())
    return {str(one.address(at)): who.node for one in blocks for at, who in one.held.items()}


async def owners(documents: Documents) -> dict[str, str]:
    """Node by block."""
    blocks = map(decode_block, (await documents.list("ipamblocks")).values())
    return {str(one.cidr): one.node for one in blocks}


async def until(condition: Callable[[], Any]) -> None:
    """Wait until an (asynchronous) condition is true."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_the_first_block_and_the_first_pod(documents: Documents, make: Make) -> None:
    one = make()
    await one.start()
    (block,) = one.subnets
    assert block.prefixlen == 26
    assert ips_of(await add(one, "a")) == [str(block[1])]  # the first one is the tunnel's
    assert await held(documents) == {str(block[1]): "n1"}
    assert list(await documents.list("ippools")) == ["default-ipv4-ippool"]


async def test_both_families(documents: Documents, make: Make) -> None:
    one = make(networks=DUAL)
    await one.start()
    assert [subnet.prefixlen for subnet in one.subnets] == [26, 122]
    ips = ips_of(await add(one, "a"))
    assert ips == [str(one.subnets[0][1]), str(one.subnets[1][1])]
    assert set(await held(documents)) == set(ips)


async def test_a_further_block_when_the_first_is_full(make: Make) -> None:
    told: list[None] = []
    one = tiny(make, changed=lambda: told.append(None))
    await one.start()
    first = one.subnets
    records = await asyncio.gather(*(add(one, f"p{number}") for number in range(6)))
    assert len({ip for record in records for ip in ips_of(record)}) == 6
    assert len(one.subnets) == 2
    assert one.subnets[:1] == first  # the tunnel's address stays
    assert len(told) == 1
    with pytest.raises(ExhaustedError, match="default-ipv4-ippool"):
        await add(one, "p7")


async def test_an_address_is_borrowed_when_no_block_is_free(
    documents: Documents, make: Make
) -> None:
    one, two = tiny(make), tiny(make, "n2")
    await asyncio.gather(one.start(), two.start())
    for number in range(3):
        await add(one, f"p{number}")
    (borrowed,) = ips_of(await add(one, "borrower"))
    assert borrowed in map(str, two.subnets[0])
    assert one.subnets[1:] == (ip_network(borrowed),)
    assert (await held(documents))[borrowed] == "n1"
    # Its owner does not know yet, and hands out another one.
    ips = {ip for number in range(2) for ip in ips_of(await add(two, f"q{number}"))}
    assert borrowed not in ips
    with pytest.raises(ExhaustedError):
        await add(two, "q3")
    assert len(await held(documents)) == 6


async def test_what_is_borrowed_is_given_back(documents: Documents, make: Make) -> None:
    one, two = tiny(make), tiny(make, "n2")
    await asyncio.gather(one.start(), two.start())
    running = asyncio.create_task(one.run())
    for number in range(4):
        await add(one, f"p{number}")
    delete(one, one._store, "p3")

    async def only_own() -> bool:
        return len(await held(documents)) == 3 and len(one.subnets) == 1

    await until(only_own)
    running.cancel()


async def test_what_is_borrowed_is_nobody_elses_before_others_know_that_it_is_given_back(
    documents: Documents, make: Make
) -> None:
    told = asyncio.Event()
    one, two = tiny(make, changed=told.set), tiny(make, "n2")
    await asyncio.gather(one.start(), two.start())
    running = asyncio.create_task(one.run())
    for number in range(3):
        await add(one, f"p{number}")
    before = one.subnets
    (borrowed,) = ips_of(await add(one, "borrower"))
    leased = one.subnets
    delete(one, one._store, "borrower")
    assert one.subnets == before
    one.told(leased)  # The lease of a moment ago.
    with pytest.raises(RequestedAddressError, match="is held by"):
        await add(two, "q", borrowed)
    # The node itself may have it again.
    assert ips_of(await add(one, "again", borrowed)) == [borrowed]
    one.told(before)
    assert (await held(documents))[borrowed] == "n1"
    delete(one, one._store, "again")
    one.told(one.subnets)

    async def free() -> bool:
        return borrowed not in await held(documents)

    await until(free)
    assert ips_of(await add(two, "q", borrowed)) == [borrowed]
    running.cancel()


async def test_what_others_have_given_back_of_an_own_block_is_free_again(make: Make) -> None:
    one, two = tiny(make), tiny(make, "n2")
    await asyncio.gather(one.start(), two.start())
    running = asyncio.create_task(two.run())
    for number in range(6):
        await add(two, f"q{number}")  # three of them of n1's block
    with pytest.raises(ExhaustedError):
        await add(one, "a")
    lent = [ip for record in two._store.records.values() for ip in ips_of(record)]
    asked = next(ip for ip in lent if ip_address(ip) in one.subnets[0])
    with pytest.raises(RequestedAddressError, match=r"is held by pod default/q\d on n2"):
        await add(one, "a", asked)
    for number in range(6):
        delete(two, two._store, f"q{number}")

    async def had() -> bool:
        try:
            return ips_of(await add(one, "a", asked)) == [asked]
        except RequestedAddressError:
            return False

    await until(had)
    assert len({ip for name in "bc" for ip in ips_of(await add(one, name))}) == 2
    assert len(one.subnets) == 1
    running.cancel()


async def test_a_block_that_was_lent_goes_to_who_needs_it_when_it_is_empty(
    documents: Documents, make: Make
) -> None:
    one, two = tiny(make, keep_empty_s=0.0), tiny(make, "n2", keep_empty_s=0.0)
    await one.start()
    for number in range(4):
        await add(one, f"p{number}")  # of both blocks
    await two.start()
    await add(two, "borrower")
    await add(one, "p4")  # which tells n1 of the borrower
    for number in range(5):
        delete(one, one._store, f"p{number}")
    running = [asyncio.create_task(node.run()) for node in (one, two)]
    delete(two, two._store, "borrower")

    async def shared() -> bool:
        return sorted((await owners(documents)).values()) == ["n1", "n2"]

    await until(shared)
    for task in running:
        task.cancel()


async def test_a_released_address_is_not_reused_at_once(make: Make) -> None:
    now = [1_000_000.0]
    one = tiny(make, clock=lambda: now[0])
    await one.start()
    ips = [ips_of(await add(one, name)) for name in "ab"]
    delete(one, one._store, "a")
    delete(one, one._store, "b")
    third = ips_of(await add(one, "c"))
    assert third not in ips
    # Nothing else is free in its block: the one that has been free for longest.
    assert ips_of(await add(one, "d")) == ips[0]


async def test_empty_blocks_are_released_but_for_the_first(
    documents: Documents, make: Make
) -> None:
    one = tiny(make, keep_empty_s=0.0)
    await one.start()
    first = one.subnets
    for number in range(4):
        await add(one, f"p{number}")
    assert len(one.subnets) == 2
    for number in range(4):
        delete(one, one._store, f"p{number}")
    running = asyncio.create_task(one.run())

    async def one_left() -> bool:
        return await owners(documents) == {str(first[0]): "n1"}

    await until(one_left)
    assert one.subnets == first
    running.cancel()


async def test_what_is_given_back_is_told_first(documents: Documents, make: Make) -> None:
    """Peers would otherwise hear of the next one who has it, and believe the one of before."""
    now = [1_000_000.0]
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    one, two = tiny(make, clock=lambda: now[0], changed=tell), tiny(make, "n2")
    await one.start()
    (first,) = one.subnets
    for number in range(4):
        await add(one, f"p{number}")
    (_, second) = one.subnets
    for number in range(4):
        delete(one, one._store, f"p{number}")
    running = asyncio.create_task(one.run())

    async def later(seconds: float) -> None:
        now[0] += seconds
        one.labels_are({"looked": str(now[0])})

    async def left() -> bool:
        await later(200.0 if second in one.subnets else 0.0)
        return one.subnets == (first,)

    await until(left)
    assert set(await owners(documents)) == {str(first), str(second)}
    # Which it has back as soon as it needs it.
    for number in range(4):
        await add(one, f"q{number}")
    assert set(one.subnets) == {first, second}
    for number in range(4):
        delete(one, one._store, f"q{number}")
    await until(left)

    async def gone() -> bool:
        await later(5.0)
        return set(await owners(documents)) == {str(first)}

    await until(gone)
    running.cancel()
    # Also what was borrowed.
    await two.start()
    for number in range(4):
        await add(one, f"r{number}")
    assert len(one.subnets) == 2
    before = told
    delete(one, one._store, "r3")
    assert list(one.subnets) == [first]
    assert (told - before, len(await held(documents))) == (1, 4)


async def test_an_address_that_is_asked_for(documents: Documents, make: Make) -> None:
    one, two = make(), make("n2")
    await asyncio.gather(one.start(), two.start())
    assert ips_of(await add(one, "a", "172.31.0.77")) == ["172.31.0.77"]
    foreign = str(two.subnets[0][9])
    assert ips_of(await add(one, "b", foreign)) == [foreign]
    assert ip_network(foreign) in one.subnets
    for ip, why in (
        ("172.31.0.77", "ips: 172.31.0.77 is held by pod default/a on n1"),
        (str(one.subnets[0][0]), "is the first address of the block"),
        ("10.9.9.9", "is in no pool that is enabled; expected an address of 172.31.0.0/24"),
        ("fd00::1", "is of a family that the pod network does not have"),
    ):
        with pytest.raises(RequestedAddressError, match=why):
            await add(two, "c", ip, ips_field="ips")
    assert len(await held(documents)) == 2


async def test_an_address_that_two_ask_for_at_once(documents: Documents, make: Make) -> None:
    nodes = [make(f"n{number}") for number in range(4)]
    await asyncio.gather(*(node.start() for node in nodes))
    asked = (add(node, "a", "172.31.0.77") for node in nodes)
    results = await asyncio.gather(*asked, return_exceptions=True)
    (had,) = [one for one in results if not isinstance(one, BaseException)]
    assert ips_of(had) == ["172.31.0.77"]
    refused = [str(one) for one in results if isinstance(one, RequestedAddressError)]
    assert len(refused) == 3
    assert all("172.31.0.77 is held by pod default/a on n" in one for one in refused)
    assert len(await held(documents)) == 1


async def test_a_block_that_was_claimed_for_nothing_is_released(
    documents: Documents, make: Make
) -> None:
    one = tiny(make, keep_empty_s=0.0)
    await one.start()
    before = await owners(documents)
    await add(one, "a")
    other = next(cidr for cidr in ("172.31.0.0/30", "172.31.0.4/30") if cidr not in before)
    with pytest.raises(RequestedAddressError, match="is the first address of the block"):
        await add(one, "b", str(ip_network(other)[0]))
    assert await owners(documents) == before
    with pytest.raises(IpamError, match="has eth0 already"):
        await add(one, "a", str(ip_network(other)[1]))
    running = asyncio.create_task(one.run())

    async def only_the_first() -> bool:
        return await owners(documents) == before and len(await held(documents)) == 1

    await until(only_the_first)
    running.cancel()


async def test_blocks_of_another_size_are_left_alone(documents: Documents, make: Make) -> None:
    """The pool was deleted, and made anew with larger blocks, while blocks of it are in use."""
    old = tiny(make, "n2")
    await old.start()
    (block,) = old.subnets
    (theirs,) = ips_of(await add(old, "q"))
    one = make()  # Blocks of /26, as the pool of the whole network has it by default.
    pool = (await documents.list("ippools"))["default-ipv4-ippool"]
    await documents.delete(pool)
    await documents.create("ippools", pool.name, encode_pool(Pool(pool.name, NETWORK[0], 26)))
    await one.start()
    assert not any(block.subnet_of(own) for own in one.subnets)  # type: ignore[arg-type]
    free = next(ip for ip in ("172.31.0.1", "172.31.0.5") if ip_address(ip) not in block)
    with pytest.raises(RequestedAddressError, match=f"which overlaps the block {block}"):
        await add(one, "a", free)
    with pytest.raises(RequestedAddressError, match=f"{theirs} is held by pod default/q on n2"):
        await add(one, "a", theirs)
    spare = next(str(block[number]) for number in (2, 3) if str(block[number]) != theirs)
    assert ips_of(await add(one, "a", spare)) == [spare]


async def test_pods_that_start_while_the_documents_are_read_anew(
    documents: Documents, make: Make
) -> None:
    one = make()
    await one.start()
    starting = (one.start() for _ in range(3))
    pods = (add(one, f"p{number}") for number in range(20))
    results = await asyncio.gather(*starting, *pods, return_exceptions=True)
    assert all(isinstance(one, ContendedError | Record | None) for one in results)
    await add(one, "last")  # Whatever is left of those that were refused goes with the next write.
    await one._blocks.flush()
    known = {ip for record in one._store.records.values() for ip in ips_of(record)}
    assert set(await held(documents)) == known


async def test_what_is_deleted_while_the_allocator_starts(documents: Documents, make: Make) -> None:
    one = make()
    await one.start()
    (kept,) = ips_of(await add(one, "kept"))
    await add(one, "deleted")
    again = make()
    starting = asyncio.create_task(again.start())
    while again._starts == 0:
        await asyncio.sleep(0)
    again._store.begin_delete(Key("deleted", "eth0"))  # Nobody knows this allocator yet.
    await starting
    running = asyncio.create_task(again.run())

    async def released() -> bool:
        return set(await held(documents)) == {kept}

    await until(released)
    running.cancel()


async def test_what_a_node_has_left_that_went_while_nobody_looked(
    documents: Documents, make: Make
) -> None:
    async def is_gone(name: str) -> bool:
        return name == "n2"

    two = make("n2")
    await two.start()
    await add(two, "q")
    await two.stop()
    one = make(is_gone=is_gone, grace_s=0.0)
    await one.start()
    one.nodes_are(["n1"])

    async def released() -> bool:
        return set((await owners(documents)).values()) == {"n1"}

    await until(released)


async def test_pools_that_are_asked_for(documents: Documents, make: Make) -> None:
    for name, cidr, disabled in (
        ("east", "172.31.0.0/26", False),
        ("west", "172.31.0.64/26", False),
        ("old", "172.31.0.128/26", True),
        ("overlapping", "172.31.0.0/25", False),
        ("outside", "10.0.0.0/24", False),
    ):
        pool = Pool(name, ip_network(cidr), 28, disabled)
        await documents.create("ippools", name, encode_pool(pool))
    one = make()
    await one.start()
    for wished, cidr in (("west", "172.31.0.64/26"), ("172.31.0.0/26", "172.31.0.0/26")):
        (ip,) = ips_of(await add(one, f"in-{wished[:4]}", pools=(wished,)))
        assert ip_network(ip).subnet_of(ip_network(cidr))  # type: ignore[arg-type]
    for wished, why in (
        ("old", "pools: pool old is disabled; the pools are east, west"),
        ("north", "pools: pool north does not exist"),
        ("overlapping", "does not exist"),
    ):
        with pytest.raises(RequestedAddressError, match=why):
            await add(one, "x", pools=(wished,))
    with pytest.raises(RequestedAddressError, match="which pools does not name"):
        await add(one, "x", "172.31.0.70", pools=("east",))


async def test_pools_for_some_nodes(documents: Documents, make: Make) -> None:
    for name, cidr, selector in (
        ("gpus", "172.31.0.0/26", "has(gpu) && zone == 'a'"),
        ("rest", "172.31.0.64/26", "!has(gpu)"),
    ):
        pool = Pool(name, ip_network(cidr), 28, node_selector=selector)
        await documents.create("ippools", name, encode_pool(pool))
    one = make()
    one.labels_are({"gpu": "h"})
    await one.start()
    assert one.subnets == ()
    with pytest.raises(ExhaustedError, match=r"no IPv4 pool is for this node: gpus \(has"):
        await add(one, "a")
    # Who names one has it everywhere.
    assert ips_of(await add(one, "b", pools=("rest",)))[0].startswith("172.31.0.")
    assert ips_of(await add(one, "c", "172.31.0.9")) == ["172.31.0.9"]
    for labels, cidr in (({"gpu": "h", "zone": "a"}, "172.31.0.0/26"), ({}, "172.31.0.64/26")):
        one.labels_are(labels)
        (ip,) = ips_of(await add(one, f"in-{cidr}"))
        assert ip_address(ip) in ip_network(cidr)


async def test_without_labels_no_pool_is_for_some_nodes(documents: Documents, make: Make) -> None:
    pool = Pool("east", NETWORK[0], 28, node_selector="has(east)")
    await documents.create("ippools", "east", encode_pool(pool))
    one = make()
    await one.start()
    assert list(await documents.list("ippools")) == ["east"]
    with pytest.raises(ExhaustedError, match=r"east: spec\.nodeSelector: .* nodes have no labels"):
        await add(one, "a")


async def test_what_only_the_document_knows_is_released_at_start(
    documents: Documents, make: Make
) -> None:
    one = make()
    await one.start()
    (kept,) = ips_of(await add(one, "kept"))
    (document,) = (await documents.list("ipamblocks")).values()
    block = decode_block(document)
    lost = {**block.held, 9: Holder("n1", "default/lost"), 10: Holder("n2", "default/other")}
    value = encode_block(Block(block.cidr, block.node, block.sequence, lost))
    await documents.replace(document, value)
    again = make()
    await again.start()
    assert await held(documents) == {kept: "n1", str(block.cidr[10]): "n2"}
    assert again.subnets == one.subnets


async def test_what_the_document_lacks_is_registered_again(
    documents: Documents, make: Make
) -> None:
    one = make()
    await one.start()
    (kept,) = ips_of(await add(one, "kept"))
    (document,) = (await documents.list("ipamblocks")).values()
    await documents.delete(document)
    again = make()
    await again.start()
    assert await held(documents) == {kept: "n1"}


async def test_a_block_that_is_lost_meanwhile_comes_back(documents: Documents, make: Make) -> None:
    """Others have reclaimed it, since the node was not in the cluster for a while."""
    one = make()
    await one.start()
    before = one.subnets
    (kept,) = ips_of(await add(one, "kept"))
    (document,) = (await documents.list("ipamblocks")).values()
    await documents.delete(document)
    running = asyncio.create_task(one.run())
    one.doubt()

    async def back() -> bool:
        return await held(documents) == {kept: "n1"}

    await until(back)
    assert one.subnets == before
    running.cancel()


async def test_while_the_store_is_away_pods_wait_and_deletions_do_not(
    stored: Stored, documents: Documents, make: Make
) -> None:
    one = make()
    await one.start()
    running = asyncio.create_task(one.run())
    await add(one, "a")
    (kept,) = ips_of(await add(one, "b"))
    await stored.away()
    with pytest.raises(StoreUnavailableError):
        await add(one, "c")
    delete(one, one._store, "a")
    assert set(one._store.records) == {("b", "eth0")}
    await stored.back()

    async def handed_in() -> bool:
        return await held(documents) == {kept: "n1"}

    await until(handed_in)
    running.cancel()


async def test_a_removed_node_is_reclaimed(documents: Documents, make: Make) -> None:
    gone = {"n2"}

    async def is_gone(name: str) -> bool:
        return name in gone

    one = tiny(make, is_gone=is_gone, grace_s=0.0)
    two = tiny(make, "n2")
    await asyncio.gather(one.start(), two.start())
    (lent,) = [str(subnet) for subnet in two.subnets]
    for number in range(4):
        await add(two, f"q{number}")  # the last one is borrowed of n1
    for number in range(3):
        await add(one, f"p{number}") if number < 2 else None
    before = await held(documents)
    assert sorted(before.values()) == ["n1"] * 2 + ["n2"] * 4
    one.nodes_are(["n1", "n2"])
    one.nodes_are(["n1"])

    async def reclaimed() -> bool:
        return set((await held(documents)).values()) == {"n1"}

    await until(reclaimed)
    assert lent not in await owners(documents)
    for number in range(3):
        await add(one, f"r{number}")


async def test_a_node_that_only_seems_gone_keeps_what_it_has(
    documents: Documents, make: Make
) -> None:
    asked = asyncio.Event()

    async def is_gone(name: str) -> bool:
        asked.set()
        return False

    one, two = make(is_gone=is_gone, grace_s=0.0), make("n2")
    await asyncio.gather(one.start(), two.start())
    await add(two, "a")
    before = await held(documents)
    one.nodes_are(["n1", "n2"])
    one.nodes_are(["n1"])
    await asyncio.wait_for(asked.wait(), 30)
    await one.stop()
    assert await held(documents) == before


async def test_a_borrowed_address_outlives_its_block_s_owner(
    documents: Documents, make: Make
) -> None:
    async def is_gone(name: str) -> bool:
        return name == "n2"

    one = tiny(make, is_gone=is_gone, grace_s=0.0, scarce_s=0.0)
    two = tiny(make, "n2")
    await asyncio.gather(one.start(), two.start())
    (lent,) = map(str, two.subnets)
    records = [await add(one, f"p{number}") for number in range(4)]
    one.nodes_are(["n1", "n2"])
    one.nodes_are(["n1"])

    async def nobody_s() -> bool:
        return (await owners(documents))[lent] == ""

    await until(nobody_s)
    # The next pod makes it this node's own.
    await add(one, "p4")
    assert (await owners(documents))[lent] == "n1"
    assert ip_network(lent) in one.subnets
    assert {ip for record in records for ip in ips_of(record)} < set(await held(documents))
