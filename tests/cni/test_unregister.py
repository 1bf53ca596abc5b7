"""The background half of DEL: batches, waiting, and a kernel that refuses; no root."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from podwire.cni.unregister import Unregistrar
from podwire.errors import KernelError
from podwire.ipam.record import Key, PodIdentity, Record, State
from podwire.ipam.store import Store
from podwire.model.cluster import Attachment

SUBNET = ip_network("10.244.1.0/24")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "ipam.db")
    yield store
    store.close()


def deleting(store: Store, name: str, netns: str = "/run/netns/x") -> Key:
    key = Key(name, "eth0")
    store.reserve(
        key,
        lambda ips: Attachment(
            container_id=name,
            ifname="eth0",
            netns=netns,
            host_ifname=f"veth{name}",
            mac=bytes(6),
            ips=(ip_interface((ips[0], 24)),),
            gateways=(ip_address("10.244.1.1"),),
        ),
        subnets=(SUBNET,),
        network="podwire",
        pod=PodIdentity(),
    )
    store.begin_delete(key)
    return key


class Kernel:
    """Notes what is deleted; waits for `gate`, and raises `error` if there is one."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def unregister(self, records: Sequence[Record]) -> None:
        self.batches.append([record.key.container_id for record in records])
        await self.gate.wait()
        if self.error is not None:
            raise self.error


async def test_what_comes_meanwhile_is_one_batch(store: Store) -> None:
    kernel = Kernel()
    unregistrar = Unregistrar(store, kernel.unregister)
    first = deleting(store, "a")
    unregistrar.start()
    while not kernel.batches:
        await asyncio.sleep(0)
    others = [deleting(store, name) for name in "bcd"]
    for key in others:
        unregistrar.add(key)
    kernel.gate.set()
    for key in [first, *others]:
        await unregistrar.gone(key)
    assert kernel.batches == [["a"], ["b", "c", "d"]]
    assert not store.records
    await unregistrar.stop()


@pytest.mark.parametrize("error", [KernelError("busy", errno=16), RuntimeError("a bug")])
async def test_a_refusal_keeps_the_row_and_does_not_block_anybody(
    store: Store, error: Exception
) -> None:
    kernel = Kernel()
    kernel.gate.set()
    kernel.error = error
    unregistrar = Unregistrar(store, kernel.unregister)
    key = deleting(store, "a")
    unregistrar.start()
    await unregistrar.gone(key)
    assert store.records[key].state is State.DELETING
    with pytest.raises(KernelError, match="could not be deleted"):
        await unregistrar.make_room(key, "/run/netns/x", "other")
    kernel.error = None
    await unregistrar.make_room(key, "/run/netns/x", "other")
    assert not store.records
    await unregistrar.stop()


@pytest.mark.parametrize(("netns", "name"), [("/run/netns/a", "other"), ("/run/netns/b", "vetha")])
async def test_only_what_is_in_the_way_is_waited_for(store: Store, netns: str, name: str) -> None:
    kernel = Kernel()
    unregistrar = Unregistrar(store, kernel.unregister)
    deleting(store, "a", "/run/netns/a")
    unregistrar.start()
    await unregistrar.make_room(Key("b", "eth0"), "/run/netns/b", "other")
    await unregistrar.make_room(Key("b", "net1"), "/run/netns/a", "other")
    waiting = asyncio.create_task(unregistrar.make_room(Key("b", "eth0"), netns, name))
    while not kernel.batches:
        await asyncio.sleep(0)
    assert not waiting.done()
    kernel.gate.set()
    await waiting
    assert not store.records
    await unregistrar.stop()


async def test_stopping_waits_also_for_a_key_whose_row_is_gone(store: Store) -> None:
    kernel = Kernel()
    unregistrar = Unregistrar(store, kernel.unregister)
    key = deleting(store, "a")
    unregistrar.start()
    store.forget([key])
    kernel.gate.set()
    async with asyncio.timeout(60):
        await unregistrar.stop()
    assert kernel.batches == [[]]
