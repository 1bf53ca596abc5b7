"""The database: atomic, in step with memory, back after a crash, refused when it is damaged."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path

import msgspec
import pytest

from podwire.errors import IpamError
from podwire.ipam.node_subnet import ExhaustedError, RequestedAddressError
from podwire.ipam.record import Key, PodIdentity, Record, State
from podwire.ipam.store import Store
from podwire.model.cluster import Attachment
from podwire.model.state import IPAddress

V4 = ip_network("10.244.1.0/24")
V6 = ip_network("fd00:10:244:1::/64")
DUAL = (V4, V6)
Subnets = tuple[IPv4Network | IPv6Network, ...]


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_store(tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Store]]:
    stores: list[Store] = []

    def reopen() -> Store:
        for store in stores:
            store.close()
        stores.append(Store(tmp_path / "ipam.db", clock=clock))
        return stores[-1]

    yield reopen
    for store in stores:
        store.close()


def reserve(
    store: Store, name: str, *requested: str, subnets: Subnets = (V4,), ifname: str = "eth0"
) -> Record:
    key = Key(name, ifname)

    def make(ips: tuple[IPAddress, ...]) -> Attachment:
        pairs = zip(ips, subnets, strict=True)
        return Attachment(
            container_id=name,
            ifname=ifname,
            netns=f"/run/netns/{name}",
            host_ifname=f"veth{name}",
            mac=b"\x0a\x58" + ips[0].packed[-4:],
            ips=tuple(ip_interface((ip, subnet.prefixlen)) for ip, subnet in pairs),
            gateways=tuple(subnet.network_address + 1 for subnet in subnets),
            pod=f"default/{name}",
            mtu=1450,
        )

    return store.reserve(
        key,
        make,
        subnets=subnets,
        requested=[ip_address(ip) for ip in requested],
        network="podwire",
        pod=PodIdentity("default", name, "uid-1"),
    )


def ips(record: Record) -> list[str]:
    return [str(ip) for ip in record.attachment.ips]


def test_one_address_of_each_subnet(open_store: Callable[[], Store]) -> None:
    record = reserve(open_store(), "a", subnets=DUAL)
    assert ips(record) == ["10.244.1.2/24", "fd00:10:244:1::2/64"]
    assert record.state is State.PENDING


def test_everything_is_back_after_a_restart(open_store: Callable[[], Store]) -> None:
    store = open_store()
    reserve(store, "a", subnets=DUAL)
    reserve(store, "b", subnets=DUAL)
    reserve(store, "c", subnets=DUAL)
    store.mark_ready(Key("a", "eth0"))
    store.begin_delete(Key("b", "eth0"))
    before = dict(store.records)
    store = open_store()
    assert store.records == before
    assert [r.state for r in store.records.values()] == ["ready", "deleting", "pending"]
    assert ips(reserve(store, "d", subnets=DUAL)) == ["10.244.1.5/24", "fd00:10:244:1::5/64"]


def test_the_reuse_delay_outlives_a_restart(open_store: Callable[[], Store], clock: Clock) -> None:
    small = (ip_network("10.0.0.0/29"),)
    store = open_store()
    for name in "abcde":
        reserve(store, name, subnets=small)
    clock.now += 1
    store.begin_delete(Key("d", "eth0"))
    clock.now += 50
    store.begin_delete(Key("b", "eth0"))
    store = open_store()
    clock.now += 15
    assert ips(reserve(store, "f", subnets=small)) == ["10.0.0.5/29"]
    store = open_store()
    clock.now += 60
    assert ips(reserve(store, "g", subnets=small)) == ["10.0.0.3/29"]


def test_a_requested_address_is_honoured_and_does_not_move_the_search(
    open_store: Callable[[], Store],
) -> None:
    store = open_store()
    assert ips(reserve(store, "a", "10.244.1.200", subnets=DUAL)) == [
        "10.244.1.200/24",
        "fd00:10:244:1::2/64",
    ]
    assert ips(reserve(store, "b", subnets=DUAL)) == ["10.244.1.2/24", "fd00:10:244:1::3/64"]


@pytest.mark.parametrize(
    ("requested", "reason"),
    [
        (["10.9.9.9"], "outside of this node's subnet 10.244.1.0/24 and fd00"),
        (["10.244.1.2"], "held by pod default/a"),
        (["10.244.1.1"], "gateway"),
        (["10.244.1.7", "10.244.1.8"], "one address of 10.244.1.0/24"),
    ],
)
def test_a_refused_request_changes_nothing(
    open_store: Callable[[], Store], requested: list[str], reason: str
) -> None:
    store = open_store()
    reserve(store, "a", subnets=DUAL)
    with pytest.raises(RequestedAddressError, match=reason):
        reserve(store, "b", *requested, subnets=DUAL)
    assert list(store.records) == [Key("a", "eth0")]
    assert ips(reserve(store, "b", subnets=DUAL)) == ["10.244.1.3/24", "fd00:10:244:1::3/64"]


def test_exhaustion_of_one_family_takes_nothing_of_the_other(
    open_store: Callable[[], Store],
) -> None:
    store, small = open_store(), (V6, ip_network("10.0.0.0/30"))
    reserve(store, "a", subnets=small)
    with pytest.raises(ExhaustedError, match="1 of 1 held"):
        reserve(store, "b", subnets=small)
    assert store.pool(V6).held == 1


def test_the_same_container_may_have_two_interfaces(open_store: Callable[[], Store]) -> None:
    store = open_store()
    reserve(store, "a")
    assert ips(reserve(store, "a", ifname="net1")) == ["10.244.1.3/24"]
    with pytest.raises(IpamError, match="has eth0 already"):
        reserve(store, "a")


def test_only_deleted_attachments_can_be_forgotten(open_store: Callable[[], Store]) -> None:
    store = open_store()
    key = reserve(store, "a").key
    store.forget([key, Key("never", "eth0")])
    assert key in store.records
    store.begin_delete(key)
    store.begin_delete(key)
    store.forget([key])
    assert not open_store().records


def test_a_write_that_fails_leaves_memory_as_it_was(
    open_store: Callable[[], Store], tmp_path: Path
) -> None:
    store = open_store()
    reserve(store, "a")
    store.close()
    with pytest.raises(IpamError):
        reserve(store, "b")
    assert list(store.records) == [Key("a", "eth0")]
    assert store.pool(V4).held == 1


def test_a_second_agent_is_refused(open_store: Callable[[], Store], tmp_path: Path) -> None:
    reserve(open_store(), "a")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from podwire.ipam.store import Store\n"
        "Store(Path(sys.argv[1]), busy_timeout_s=0.05)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "ipam.db")], capture_output=True, text=True
    )
    assert "stop the other podwire agent" in done.stderr


@pytest.mark.parametrize("damage", ["not a database", "torn page"])
def test_a_damaged_database_is_refused_and_kept(
    open_store: Callable[[], Store], tmp_path: Path, damage: str
) -> None:
    store, path = open_store(), tmp_path / "ipam.db"
    for number in range(200):
        reserve(store, f"c{number}")
    store.close()
    data = path.read_bytes()
    if damage == "torn page":
        path.write_bytes(data[:4096] + b"\xff" * 8192 + data[12288:])
    else:
        path.write_bytes(b"hello" * 1000)
    before = path.read_bytes()
    with pytest.raises(IpamError, match="is damaged") as caught:
        open_store()
    assert "move the file aside" in (caught.value.remedy or "")
    assert path.read_bytes() == before


def test_a_database_of_the_first_version_is_opened(
    open_store: Callable[[], Store], tmp_path: Path
) -> None:
    record = reserve(open_store(), "a")
    open_store().close()
    with sqlite3.connect(tmp_path / "ipam.db") as db:
        db.execute("ALTER TABLE attachment DROP COLUMN may_spoof")
        db.execute("PRAGMA user_version = 1")
    db.close()
    for _ in range(2):
        store = open_store()
        assert store.records == {record.key: record}
        reserve(store, "b")
        store.begin_delete(Key("b", "eth0"))
        store.forget([Key("b", "eth0")])


def test_a_pod_that_may_spoof_may_do_so_after_a_restart(open_store: Callable[[], Store]) -> None:
    store = open_store()
    attachment = msgspec.structs.replace(reserve(store, "a").attachment, may_spoof=True)
    store.begin_delete(Key("a", "eth0"))
    store.forget([Key("a", "eth0")])
    store.write(attachment, last={}, network="podwire", pod=PodIdentity("default", "a", ""))
    assert open_store().records[Key("a", "eth0")].attachment == attachment


def test_a_database_of_a_later_version_is_refused(
    open_store: Callable[[], Store], tmp_path: Path
) -> None:
    open_store().close()
    with sqlite3.connect(tmp_path / "ipam.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(IpamError, match="later Podwire"):
        open_store()


@pytest.mark.slow
def test_a_process_killed_anywhere_leaves_no_address_held_twice(tmp_path: Path) -> None:
    """Kill -9 of a process that reserves and releases as fast as it can, at 20 moments."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ipaddress import ip_interface, ip_network\n"
        "from podwire.ipam.record import Key, PodIdentity\n"
        "from podwire.ipam.store import Store\n"
        "from podwire.model.cluster import Attachment\n"
        "subnet = ip_network('10.244.1.0/24')\n"
        "store = Store(Path(sys.argv[1]))\n"
        "print('open', flush=True)\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    key = Key(f'{sys.argv[2]}-{n}', 'eth0')\n"
        "    store.reserve(key, lambda ips: Attachment(container_id=key[0], ifname='eth0',\n"
        "        netns='', host_ifname='', mac=b'', mtu=0, gateways=(subnet[1],),\n"
        "        ips=(ip_interface((ips[0], 24)),)), subnets=(subnet,), network='n',\n"
        "        pod=PodIdentity())\n"
        "    store.mark_ready(key)\n"
        "    if len(store.records) > 50:\n"
        "        old = next(iter(store.records))\n"
        "        store.begin_delete(old); store.forget([old])\n"
    )
    path = tmp_path / "ipam.db"
    for number in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(number)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        deadline = time.monotonic() + 0.003 * number
        while time.monotonic() < deadline:
            pass
        process.kill()
        process.wait()
        process.stdout.close()
        store = Store(path)
        held = [
            str(r.attachment.ips[0])
            for r in store.records.values()
            if r.state is not State.DELETING
        ]
        assert len(held) == len(set(held)) == store.pool(V4).held
        store.close()
        with sqlite3.connect(path) as db:
            query = "SELECT count(*) FROM address WHERE container_id IS NOT NULL"
            assert db.execute(query).fetchone() == (len(held),)
        db.close()


@pytest.mark.slow
def test_speed_does_not_depend_on_how_many_are_held(open_store: Callable[[], Store]) -> None:
    """An ADD's share in here, reserve and mark_ready, takes at most 0.3 ms (p50)."""
    store, subnets = open_store(), (ip_network("10.244.0.0/16"),)
    for held in (10, 1_000, 10_000):
        for number in range(len(store.records), held):
            store.mark_ready(reserve(store, f"c{number}", subnets=subnets).key)
        times = []
        for number in range(200):
            started = time.perf_counter()
            key = reserve(store, f"x{number}", subnets=subnets).key
            store.mark_ready(key)
            times.append(time.perf_counter() - started)
            store.begin_delete(key)
            store.forget([key])
        assert sorted(times)[100] < 0.0003, f"{held} held"


def test_a_subnet_that_was_another_size_before_holds_and_frees_the_same_addresses(
    open_store: Callable[[], Store],
) -> None:
    store = open_store()
    smaller = ip_network("10.244.1.0/29")
    old = reserve(store, "old")
    for name in ("b", "c", "d", "e"):
        reserve(store, name, subnets=(smaller,))
    with pytest.raises(ExhaustedError):
        reserve(store, "f", subnets=(smaller,))
    store.begin_delete(old.key)
    assert reserve(store, "f", subnets=(smaller,)).attachment.ips[0].ip == old.attachment.ips[0].ip
    with pytest.raises(RequestedAddressError, match="is held by pod default/f"):
        reserve(store, "g", str(old.attachment.ips[0].ip))


def test_a_row_that_makes_no_sense_is_damage(
    open_store: Callable[[], Store], tmp_path: Path
) -> None:
    store = open_store()
    reserve(store, "a")
    store.close()
    with sqlite3.connect(tmp_path / "ipam.db") as db:
        db.execute("""UPDATE attachment SET addresses = '[["10.244.1.2"]]'""")
    db.close()
    with pytest.raises(IpamError, match="is damaged") as refused:
        open_store()
    assert "move the file aside" in (refused.value.remedy or "")


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IpamError, match="Not a directory"):
        Store(tmp_path / "file" / "state" / "ipam.db")
