"""Leases in a real etcd: acquired, kept, lost, and acquired anew."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from podwire.cluster.etcd import leases
from podwire.cluster.etcd.leases import EtcdLeases
from podwire.cluster.etcd.url import EtcdConfig
from podwire.cluster.source import (
    Changed,
    Connected,
    Disconnected,
    Event,
    LeaseSource,
    NetworkChanged,
    OwnChanged,
    StoredNetwork,
    Synced,
)
from podwire.errors import InputError, PodwireError, StoreUnavailableError
from podwire.model.cluster import Lease, Node

from .server import EtcdServer, Wire

pytestmark = pytest.mark.slow

CONFIG = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
DUAL = {**CONFIG, "EnableIPv6": True, "IPv6Network": "fd00:5::/48"}
MAC = bytes.fromhex("c6d2326f8f44")


def wish(last: int, **more: Any) -> Lease:
    """What node number `last` asks for."""
    mac = MAC[:5] + bytes([last])
    return Lease((), "vxlan", ip_address(f"192.168.64.{last}"), vni=1, vtep_mac=mac, **more)


class Station:
    """A node: its source, what it was told, and what it knows from that."""

    def __init__(self, source: EtcdLeases) -> None:
        self.source = source
        self.events: list[Event] = []
        self.nodes: dict[str, Node] = {}
        self._changed = asyncio.Event()

    def tell(self, event: Event) -> None:
        self.events.append(event)
        match event:
            case Synced(nodes):
                self.nodes = dict(nodes)
            case Changed(name, None):
                self.nodes.pop(name, None)
            case Changed(name, node) if node is not None:
                self.nodes[name] = node
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_told(self, kind: type[Event]) -> Event:
        await self.until(lambda: any(isinstance(one, kind) for one in self.events))
        return next(one for one in self.events if isinstance(one, kind))

    async def until_network(self, count: int) -> StoredNetwork:
        """The configuration, once it has so many networks."""

        def is_there() -> bool:
            network = self.source.network
            return network is not None and len(network.networks) == count

        await self.until(is_there)
        assert self.source.network is not None
        return self.source.network

    @property
    def losses(self) -> list[str]:
        """Why this node's lease was lost, each time."""
        return [one.reason for one in self.events if isinstance(one, OwnChanged) and one.reason]


@contextlib.asynccontextmanager
async def station(config: EtcdConfig, name: str, **more: Any) -> AsyncGenerator[Station]:
    source = EtcdLeases(config, name, **more)
    _: LeaseSource = source
    async with source:
        one = Station(source)
        task = asyncio.create_task(source.run(one.tell))
        try:
            await one.until_told(Synced)
            yield one
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def stored(etcd: EtcdServer, config: EtcdConfig) -> Callable[[], dict[str, Any]]:
    """What is below the prefix's `subnets/`: last parts of keys and values."""

    def read() -> dict[str, Any]:
        text = etcd.ctl("get", "--prefix", f"{config.prefix}/subnets/")
        lines = text.splitlines()
        pairs = zip(lines[::2], lines[1::2], strict=True)
        return {key.rpartition("/")[2]: json.loads(value) for key, value in pairs}

    return read


@pytest.fixture
def network(etcd: EtcdServer, config: EtcdConfig) -> None:
    etcd.put(f"{config.prefix}/config", CONFIG)


async def test_a_lease_is_written_as_flannel_writes_it(
    network: None, etcd: EtcdServer, config: EtcdConfig
) -> None:
    async with station(config, "node1") as one:
        lease = await one.source.acquire(wish(3), [ip_network("10.5.52.0/24")])
        assert lease.subnets == (ip_network("10.5.52.0/24"),)
        assert one.source.own.node.lease == lease
    found = etcd.ctl("get", "--prefix", f"{config.prefix}/subnets/", "-w", "json")
    kv = json.loads(found)["kvs"][0]
    assert kv["lease"]
    plain = etcd.ctl("get", f"{config.prefix}/subnets/10.5.52.0-24", "--print-value-only")
    assert plain.strip() == (
        '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:03"},"PodwireNode":"node1"}'
    )
    ttl = etcd.ctl("lease", "timetolive", f"{kv['lease']:x}")
    assert "TTL(86400s)" in ttl


async def test_nodes_learn_of_each_other_and_of_flannels(
    network: None, etcd: EtcdServer, config: EtcdConfig
) -> None:
    async with station(config, "node1") as one, station(config, "node2") as two:
        await one.source.acquire(wish(1))
        mine = await two.source.acquire(wish(2, public_key=bytes(range(32))))
        await one.until(lambda: "node2" in one.nodes)
        assert one.nodes["node2"].lease == mine
        etcd.put(f"{config.prefix}/subnets/10.5.9.0-24", {"PublicIP": "192.168.64.9"})
        await one.until(lambda: "192.168.64.9" in one.nodes)
        flannel = one.nodes["192.168.64.9"].lease
        assert flannel is not None
        assert (flannel.backend, flannel.subnets) == ("udp", (ip_network("10.5.9.0/24"),))
        etcd.put(f"{config.prefix}/subnets/10.5.9.0-24", "{")
        await one.until(lambda: "192.168.64.9" not in one.nodes)
        etcd.ctl("del", f"{config.prefix}/subnets/", "--prefix")
        await two.until(lambda: not two.nodes)


async def test_a_restart_changes_nothing(network: None, config: EtcdConfig) -> None:
    async with station(config, "watcher") as watcher:
        async with station(config, "node1") as one:
            first = await one.source.acquire(wish(1))
        await watcher.until(lambda: "node1" in watcher.nodes)
        watcher.events.clear()
        async with station(config, "node1") as one:
            assert await one.source.acquire(wish(1)) == first
            assert await one.source.acquire(wish(1)) == first
            assert not await one.source.publish(first)
        async with station(config, "node2") as two:
            await two.source.acquire(wish(2))
        await watcher.until(lambda: "node2" in watcher.nodes)
        assert [one.name for one in watcher.events if isinstance(one, Changed)] == ["node2"]


async def test_a_lease_of_flannels_under_our_address_is_taken_up(
    network: None, etcd: EtcdServer, config: EtcdConfig, stored: Callable[[], dict[str, Any]]
) -> None:
    """flanneld ran here before."""
    value = {"PublicIP": "192.168.64.1", "PublicIPv6": None, "BackendType": "host-gw"}
    etcd.put(f"{config.prefix}/subnets/10.5.77.0-24", value)
    async with station(config, "node1") as one:
        lease = await one.source.acquire(wish(1), [ip_network("10.5.8.0/24")])
    assert lease.subnets == (ip_network("10.5.77.0/24"),)
    assert stored()["10.5.77.0-24"]["BackendType"] == "vxlan"


async def test_a_reservation_stays_one(network: None, etcd: EtcdServer, config: EtcdConfig) -> None:
    key = f"{config.prefix}/subnets/10.5.1.0-24"
    etcd.put(key, {"PublicIP": "192.168.64.1"})
    async with station(config, "node1") as one:
        lease = await one.source.acquire(wish(1))
        assert lease.subnets == (ip_network("10.5.1.0/24"),)
        kv = await one.source.client.get(key.encode())
        assert kv is not None
        assert (kv.lease, b"vxlan" in kv.value) == (0, True)


async def test_the_previous_subnet_is_kept_where_it_is_free(
    network: None, etcd: EtcdServer, config: EtcdConfig
) -> None:
    etcd.put(f"{config.prefix}/subnets/10.5.20.0-24", {"PublicIP": "192.168.64.9"})
    async with station(config, "node1") as one, station(config, "node2") as two:
        kept = await one.source.acquire(wish(1), [ip_network("10.5.30.0/24")])
        other = await two.source.acquire(wish(2), [ip_network("10.5.20.0/24")])
    assert kept.subnets == (ip_network("10.5.30.0/24"),)
    assert other.subnets != (ip_network("10.5.20.0/24"),)


async def test_a_node_with_another_address_keeps_its_subnet(
    network: None, config: EtcdConfig, stored: Callable[[], dict[str, Any]]
) -> None:
    async with station(config, "node1") as one:
        before = await one.source.acquire(wish(1))
    async with station(config, "node1") as one:
        after = await one.source.acquire(wish(7), before.subnets)
    assert after.subnets == before.subnets
    assert [value["PublicIP"] for value in stored().values()] == ["192.168.64.7"]


async def test_many_nodes_at_once_get_a_subnet_each(etcd: EtcdServer, config: EtcdConfig) -> None:
    """More than there would be without luck: 25 nodes want 62 subnets of each family at random."""
    small = {"Network": "10.5.0.0/18", "EnableIPv6": True, "IPv6Network": "fd00:5::/58"}
    etcd.put(f"{config.prefix}/config", small)
    sources = [EtcdLeases(config, f"node{number}") for number in range(25)]
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(60):
        for source in sources:
            await stack.enter_async_context(source)
        found = await asyncio.gather(
            *(source.acquire(wish(number + 1)) for number, source in enumerate(sources))
        )
        subnets = {subnet for lease in found for subnet in lease.subnets}
        listing = await sources[0].client.range(b"/", b"0")
    assert len(subnets) == 50
    below = f"{config.prefix}/subnets/".encode()
    assert len([kv for kv in listing.kvs if kv.key.startswith(below)]) == 25


async def test_two_that_want_the_same_subnet(network: None, config: EtcdConfig) -> None:
    previous = [ip_network("10.5.40.0/24")]
    async with EtcdLeases(config, "node1") as one, EtcdLeases(config, "node2") as two:
        found = await asyncio.gather(one.acquire(wish(1), previous), two.acquire(wish(2), previous))
    holders = [lease for lease in found if list(lease.subnets) == previous]
    assert len(holders) == 1
    assert found[0].subnets != found[1].subnets


async def test_a_full_network_is_said_and_asked_again(
    etcd: EtcdServer, config: EtcdConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_AGAIN_S", 0.01)
    etcd.put(f"{config.prefix}/config", {"Network": "10.5.0.0/22", "SubnetMin": "10.5.3.0"})
    async with station(config, "node1") as one, station(config, "node2") as two:
        lease = await one.source.acquire(wish(1))
        two.events.clear()
        with pytest.raises(PodwireError, match=r"all subnets of 10\.5\.0\.0/22"):
            await two.source.acquire(wish(2))
        await two.until_told(OwnChanged)
        etcd.ctl("del", f"{config.prefix}/subnets/10.5.3.0-24")
        assert (await two.source.acquire(wish(2))).subnets == lease.subnets


async def test_a_lease_deleted_is_acquired_anew(
    network: None, etcd: EtcdServer, config: EtcdConfig
) -> None:
    async with station(config, "node1") as one:
        lease = await one.source.acquire(wish(1))
        etcd.ctl("del", f"{config.prefix}/subnets/", "--prefix")
        await one.until(lambda: bool(one.losses))
        assert "gone" in one.losses[0]
        assert await one.source.acquire(wish(1), lease.subnets) == lease


async def test_a_lease_that_is_kept_alive_does_not_expire(
    network: None, etcd: EtcdServer, config: EtcdConfig
) -> None:
    """A lease of 2 s is renewed each second; another one of 2 s, which nobody renews, expires."""
    async with station(config, "node1", ttl_s=2) as one:
        async with EtcdLeases(config, "node2", ttl_s=2) as two:
            await two.acquire(wish(2))
        lease = await one.source.acquire(wish(1))
        await one.until(lambda: "node2" in one.nodes)
        await one.until(lambda: "node2" not in one.nodes)
        assert one.nodes["node1"].lease == lease
        assert not one.losses


async def test_a_subnet_that_was_taken_is_not_taken_back(
    network: None, etcd: EtcdServer, config: EtcdConfig
) -> None:
    """A machine cloned from this one: of the same name, with the same subnet.env."""
    async with station(config, "node1") as one:
        lease = await one.source.acquire(wish(1))
        async with station(config, "node1") as clone:
            assert (await clone.source.acquire(wish(2), lease.subnets)).subnets == lease.subnets
            await one.until(lambda: bool(one.losses))
            assert "taken by node node1" in one.losses[0]
            again = await one.source.acquire(wish(1), lease.subnets)
            assert again.subnets != lease.subnets
            await one.until(lambda: len(one.nodes) == 2)
            assert one.nodes["node1"].lease == again


async def test_what_somebody_else_wrote_is_written_again(
    network: None, etcd: EtcdServer, config: EtcdConfig, stored: Callable[[], dict[str, Any]]
) -> None:
    async with station(config, "node1") as one:
        lease = await one.source.acquire(wish(1))
        name = next(iter(stored()))
        etcd.put(f"{config.prefix}/subnets/{name}", {"PublicIP": "192.168.64.1"})
        await one.until(lambda: bool(one.losses))
        assert await one.source.acquire(wish(1)) == lease
        assert stored()[name]["BackendType"] == "vxlan"


async def test_another_backend_is_another_value_at_the_same_key(
    network: None, config: EtcdConfig, stored: Callable[[], dict[str, Any]]
) -> None:
    async with station(config, "node1") as one:
        lease = await one.source.acquire(wish(1))
        direct = Lease((), "host-gw", lease.public_ip)
        assert (await one.source.acquire(direct)).subnets == lease.subnets
    assert list(stored().values()) == [
        {
            "PublicIP": "192.168.64.1",
            "PublicIPv6": None,
            "BackendType": "host-gw",
            "PodwireNode": "node1",
        }
    ]


async def test_a_network_that_gets_ipv6_keeps_its_ipv4_subnets(
    network: None, etcd: EtcdServer, config: EtcdConfig, stored: Callable[[], dict[str, Any]]
) -> None:
    async with station(config, "node1") as one:
        before = await one.source.acquire(wish(1))
        etcd.put(f"{config.prefix}/config", DUAL)
        dual = await one.until_network(2)
        assert one.events[-2:] == [NetworkChanged(dual), OwnChanged()]
        after = await one.source.acquire(wish(1, public_ip6=ip_address("fd00::1"), vtep_mac6=MAC))
        assert after.subnets[0] == before.subnets[0]
        assert len(after.subnets) == 2
        await one.until(lambda: one.nodes["node1"].lease == after)
        assert not one.losses
        (name,) = stored()
        assert name.startswith(f"{before.subnets[0].network_address}-24&fd00:5:0:")
        assert name.endswith("::-64")


async def test_ipv6_alone(etcd: EtcdServer, config: EtcdConfig) -> None:
    etcd.put(f"{config.prefix}/config", {**DUAL, "EnableIPv4": False})
    mine = Lease((), "vxlan", ip_address("fd00::1"), vni=1, vtep_mac=MAC)
    theirs = Lease((), "vxlan", ip_address("fd00::2"), vni=1, vtep_mac=MAC)
    async with station(config, "node1") as one, station(config, "node2") as two:
        lease = await one.source.acquire(mine)
        other = await two.source.acquire(theirs)
        assert (lease.subnets[0].version, len({*lease.subnets, *other.subnets})) == (6, 2)
        await two.until(lambda: "node1" in two.nodes)
        assert two.nodes["node1"].lease == lease


async def test_without_a_configuration_it_is_said_how_to_put_one(
    etcd: EtcdServer, config: EtcdConfig
) -> None:
    async with station(config, "node1") as one:
        assert one.source.network is None
        with pytest.raises(PodwireError, match="no network configuration") as caught:
            await one.source.acquire(wish(1))
        assert f"etcdctl put {config.prefix}/config" in (caught.value.remedy or "")
        etcd.put(f"{config.prefix}/config", {"Network": "10.5.0.0/33"})
        with pytest.raises(InputError, match=r"config: Network: '10\.5\.0\.0/33'"):
            await one.source.acquire(wish(1))
        etcd.put(f"{config.prefix}/config", CONFIG)
        await one.until(lambda: one.source.network is not None)
        assert await one.source.acquire(wish(1))


async def test_the_configuration_is_told_before_the_nodes(
    network: None, config: EtcdConfig
) -> None:
    async with station(config, "node1") as one:
        kinds = [type(event) for event in one.events]
        assert kinds.index(NetworkChanged) < kinds.index(Synced)
        stored = one.source.network
        assert stored is not None
        assert (stored.backend.type, stored.networks) == ("vxlan", (ip_network("10.5.0.0/16"),))


async def test_a_node_without_a_subnet_of_its_own(
    network: None, config: EtcdConfig, stored: Callable[[], dict[str, Any]]
) -> None:
    """Blocks are claimed as needed; going back to a subnet a node leaves nothing behind."""
    blocks = (ip_network("10.5.3.64/26"), ip_network("10.5.9.7/32"))
    async with station(config, "node1") as one, station(config, "node2") as two:
        lease = Lease(blocks, "vxlan", ip_address("192.168.64.1"), vni=1, vtep_mac=MAC)
        assert await one.source.publish(lease)
        assert not await one.source.publish(lease)
        await two.until(lambda: "node1" in two.nodes)
        assert two.nodes["node1"].lease == lease
        assert stored() == {}
        more = Lease(blocks[:1], "host-gw", ip_address("192.168.64.1"))
        assert await one.source.publish(more)
        await two.until(lambda: two.nodes["node1"].lease == more)
        subnet = await one.source.acquire(wish(1))
        await two.until(lambda: [one.lease for one in two.nodes.values()] == [subnet])


async def test_another_ipam_after_a_restart_leaves_no_lease_of_the_last_one(
    network: None, etcd: EtcdServer, config: EtcdConfig
) -> None:
    blocks = Lease((ip_network("10.5.3.64/26"),), "host-gw", ip_address("192.168.64.1"))

    async def held(work: Callable[[EtcdLeases], Awaitable[Any]]) -> set[str]:
        async with station(config, "node1") as one, station(config, "node2") as two:
            await work(one.source)
            await two.until(lambda: list(two.nodes) == ["node1"])
            return {str(subnet) for subnet in two.nodes["node1"].lease.subnets}  # type: ignore[union-attr]

    (first,) = await held(lambda source: source.acquire(wish(1)))
    assert await held(lambda source: source.publish(blocks)) == {"10.5.3.64/26"}
    assert await held(lambda source: source.acquire(wish(1), [ip_network(first)])) == {first}


async def test_two_nodes_of_one_name_without_subnets(
    network: None, config: EtcdConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_AGAIN_S", 0.01)
    async with station(config, "node1") as one, station(config, "node1") as two:
        await one.source.publish(Lease((), "host-gw", ip_address("192.168.64.1")))
        await two.source.publish(Lease((), "host-gw", ip_address("192.168.64.2")))
        await one.until(lambda: bool(one.losses))
    assert one.losses == ["there is another node node1, at 192.168.64.2"]


async def test_a_lease_that_expires_while_the_store_is_away(
    network: None, etcd: EtcdServer, config: EtcdConfig, wire: Wire
) -> None:
    through = replace(config, endpoints=(f"127.0.0.1:{wire.port}",), call_timeout_s=0.2)
    async with station(through, "node1", ttl_s=2) as one, station(config, "other") as other:
        lease = await one.source.acquire(wish(1))
        await other.until(lambda: "node1" in other.nodes)
        wire.silence()
        await other.until(lambda: "node1" not in other.nodes)
        assert one.nodes["node1"].lease == lease
        wire.heal()
        await one.until(lambda: bool(one.losses))
        assert await one.source.acquire(wish(1), lease.subnets) == lease
        await other.until(lambda: "node1" in other.nodes)


async def test_the_store_going_and_coming_back(
    network: None, etcd: EtcdServer, config: EtcdConfig, wire: Wire
) -> None:
    through = replace(config, endpoints=(f"127.0.0.1:{wire.port}",))
    async with station(through, "node1") as one:
        lease = await one.source.acquire(wish(1))
        await one.until_told(Connected)
        one.events.clear()
        wire.silence()
        told = await one.until_told(Disconnected)
        assert isinstance(told, Disconnected)
        assert "no answer in time" in str(told.error)
        with pytest.raises(StoreUnavailableError):
            await one.source.acquire(wish(1, public_key=bytes(32)))
        etcd.put(f"{config.prefix}/subnets/10.5.9.0-24", {"PublicIP": "192.168.64.9"})
        assert one.nodes["node1"].lease == lease
        wire.heal()
        await one.until_told(Connected)
        await one.until(lambda: "192.168.64.9" in one.nodes)


async def test_a_compaction_while_away_is_caught_up_with(
    network: None, etcd: EtcdServer, config: EtcdConfig, wire: Wire
) -> None:
    through = replace(config, endpoints=(f"127.0.0.1:{wire.port}",))
    etcd.put(f"{config.prefix}/subnets/10.5.8.0-24", {"PublicIP": "192.168.64.8"})
    async with station(through, "node1") as one:
        lease = await one.source.acquire(wish(1))
        await one.until_told(Connected)
        one.events.clear()
        await wire.cut()
        await one.until_told(Disconnected)
        etcd.ctl("del", f"{config.prefix}/subnets/10.5.8.0-24")
        etcd.put(f"{config.prefix}/subnets/10.5.9.0-24", {"PublicIP": "192.168.64.9"})
        found = etcd.ctl("get", "x", "-w", "json")
        etcd.ctl("compact", str(json.loads(found)["header"]["revision"]))
        await wire.open()
        await one.until(lambda: set(one.nodes) == {"node1", "192.168.64.9"})
        assert one.nodes["node1"].lease == lease
        assert not one.losses
