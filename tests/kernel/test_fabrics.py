"""What the other fabrics hold, each entry by itself: made, kept, changed, mended and taken away."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

import pytest

from podwire.kernel.judge import ROUTE_GROUPS
from podwire.kernel.netlink import NETLINK_NETFILTER, Message, NetlinkSocket
from podwire.kernel.nft import NFNLGRP_NFTABLES
from podwire.kernel.reconcile import Reconciler
from podwire.model.state import (
    Address,
    Blackhole,
    Bridge,
    Desired,
    Entry,
    FdbEntry,
    Link,
    Neighbor,
    PortFdbEntry,
    Route,
    Sysctl,
    Tun,
    Vxlan,
    Why,
)
from tests.conftest import Namespace

pytestmark = pytest.mark.root

WHY = Why("Node/node1", "is tried out")

NODE = (
    "ip link add eth0 type veth peer name wire && ip link set eth0 up && ip link set wire up"
    " && ip address add 172.18.0.11/16 dev eth0 && ip address add fd00:172:18::11/64 dev eth0 nodad"
)

ZEROS = bytes(6)
POD, OTHER_POD = bytes.fromhex("0a580a200005"), bytes.fromhex("0a580a200006")
PEERS = tuple(ip_address(f"172.18.0.1{number}") for number in (2, 3))


def bridge(**options: bool | None) -> Link:
    kind = Bridge(multicast_snooping=options.pop("multicast_snooping", False))
    return Link(name="weave", kind=kind, mtu=1376, mac=OTHER_POD, why=WHY, **options)  # type: ignore[arg-type]


def segment(*, port: bool = True, gbp: bool = False, **options: bool) -> Link:
    """A VXLAN device, of a learning one the port of the bridge."""
    kind = Vxlan(vni=6784, port=6784, local=ip_address("172.18.0.11"), dev="eth0", gbp=gbp)
    master = "weave" if port else None
    return Link(name="vxlan-6784", kind=kind, mtu=1376, master=master, why=WHY, **options)  # type: ignore[arg-type]


def flood(*dsts: int) -> tuple[Entry, ...]:
    return tuple(FdbEntry(dev="vxlan-6784", mac=ZEROS, dst=PEERS[one], why=WHY) for one in dsts)


def far(mac: bytes = POD) -> tuple[Entry, ...]:
    """What is known of a pod on a peer."""
    return (
        FdbEntry(dev="vxlan-6784", mac=mac, dst=PEERS[0], why=WHY),
        PortFdbEntry(dev="vxlan-6784", mac=mac, why=WHY),
        Neighbor(dev="weave", ip=ip_address("10.32.0.5"), mac=mac, why=WHY),
        Neighbor(dev="weave", ip=ip_address("fd00:10:32::5"), mac=mac, why=WHY),
    )


def block(text: str, protocol: int = 80) -> Blackhole:
    return Blackhole(dst=ip_network(text), protocol=protocol, why=WHY)


def direct(text: str, via: str, protocol: int = 80) -> Route:
    return Route(dst=ip_network(text), via=ip_address(via), dev="eth0", protocol=protocol, why=WHY)


def tun(mtu: int = 1472) -> Link:
    return Link(name="flannel0", kind=Tun(), mtu=mtu, alias="podwire tunnel", why=WHY)


class Case(NamedTuple):
    """Entries, what becomes of them (None: gone), and what somebody does to them."""

    entries: tuple[Entry, ...]
    changed: tuple[Entry, ...]
    disturbances: tuple[str, ...]
    #: Whether a change of these is small enough to be applied by itself.
    narrow: bool = True


BASE: tuple[Entry, ...] = (bridge(), segment(neigh_suppress=True, isolated=False))
CASES = {
    "blackholes": Case(
        (block("10.1.0.0/26"), block("fd00:1::/122")),
        (block("10.1.0.64/26"), block("fd00:1::/122", 112)),
        (
            "ip route del blackhole 10.1.0.0/26",
            "ip route replace 10.1.0.0/26 dev eth0 proto 80",
            "ip -6 route del blackhole fd00:1::/122",
            "ip route add blackhole 10.9.0.0/26 proto 80",
            "ip -6 route add fd00:9::/64 via fd00:172:18::12 proto 112",
        ),
    ),
    "direct routes": Case(
        (direct("10.1.0.0/26", "172.18.0.12"), direct("fd00:1::/122", "fd00:172:18::12")),
        (direct("10.1.0.0/26", "172.18.0.13", 112), direct("fd00:1::/122", "fd00:172:18::13")),
        (
            "ip route del 10.1.0.0/26",
            "ip -6 route del fd00:1::/122",
            "ip -6 route replace fd00:1::/122 via fd00:172:18::14 proto 80",
            "ip link set eth0 down; ip link set eth0 up;"
            " ip address replace fd00:172:18::11/64 dev eth0 nodad",
            "ip address del 172.18.0.11/16 dev eth0; ip address add 172.18.0.11/16 dev eth0",
        ),
    ),
    "flooding": Case(
        flood(0, 1),
        flood(1),
        (
            "bridge fdb del 00:00:00:00:00:00 dev vxlan-6784 dst 172.18.0.12 self",
            "bridge fdb append 00:00:00:00:00:00 dev vxlan-6784 dst 172.18.0.99 self permanent",
        ),
    ),
    "remote pods": Case(
        far(),
        far(OTHER_POD),
        (
            "bridge fdb del 0a:58:0a:20:00:05 dev vxlan-6784 master",
            "bridge fdb replace 0a:58:0a:20:00:05 dev wire1 master static",
            "bridge fdb add 0a:58:0a:20:00:09 dev vxlan-6784 master static",
            "bridge fdb replace 0a:58:0a:20:00:05 dev vxlan-6784 master permanent",
            "bridge fdb del 0a:58:0a:20:00:05 dev vxlan-6784 self",
            "ip neigh del 10.32.0.5 dev weave",
            "ip neigh replace 10.32.0.5 lladdr 0a:58:0a:20:00:05 dev weave nud reachable",
            "ip neigh add fd00:10:32::9 lladdr 0a:58:0a:20:00:09 dev weave nud permanent",
        ),
    ),
    "settings": Case(
        (Sysctl(key="net/ipv4/conf/eth0/proxy_arp", value="1", why=WHY),),
        (Sysctl(key="net/ipv4/conf/eth0/proxy_arp", value="0", why=WHY),),
        ("sysctl -qw net.ipv4.conf.eth0.proxy_arp=0",),
    ),
    "bridge": Case(
        (),
        (bridge(multicast_snooping=True, promiscuous=True), *BASE[1:]),
        (
            "ip link set weave type bridge mcast_snooping 1",
            "ip link set weave down",
        ),
        narrow=False,
    ),
    "port": Case(
        (),
        (BASE[0], segment(neigh_suppress=False, port_learning=False, hairpin=True, isolated=True)),
        (
            "bridge link set dev vxlan-6784 neigh_suppress off",
            "bridge link set dev vxlan-6784 isolated on",
            "ip link set vxlan-6784 nomaster",
            "ip link del weave",
        ),
        narrow=False,
    ),
    "group policy": Case(
        (), (BASE[0], segment(gbp=True)), ("ip link del vxlan-6784",), narrow=False
    ),
    "tun": Case(
        (tun(), Address(dev="flannel0", ip=ip_interface("10.244.1.0/16"), why=WHY)),
        (tun(1440), Address(dev="flannel0", ip=ip_interface("10.244.2.0/16"), why=WHY)),
        (
            "ip link set flannel0 mtu 1300",
            "ip link del flannel0",
            "ip address del 10.244.1.0/16 dev flannel0",
            "ip address add 10.9.9.9/32 dev flannel0",
        ),
        narrow=False,
    ),
}
#: Of these the base is another one.
WITHOUT_BASE = ("tun",)


@pytest.fixture
def reconciler(inside: Namespace) -> Iterator[Reconciler]:
    inside.run(NODE)
    inside.run("ip link add wire1 type veth peer name x")
    one = Reconciler(protocols=(80,))
    yield one
    one.close()


def desired(name: str, entries: tuple[Entry, ...]) -> Desired:
    if CASES[name].narrow:
        return Desired({"Node/node1": BASE, "Node/node2": entries})
    return Desired({"Node/node1": entries or BASE})


def settle(reconciler: Reconciler) -> None:
    report = reconciler.reconcile()
    assert report.failures == []
    assert reconciler.plan() == []
    assert reconciler.reconcile().changes == 0


@pytest.mark.parametrize("name", CASES)
def test_made_kept_changed_and_taken_away(
    inside: Namespace, reconciler: Reconciler, name: str
) -> None:
    case = CASES[name]
    reconciler.replace(desired(name, case.entries))
    settle(reconciler)
    inside.run("ip link set wire1 master weave", check=name not in WITHOUT_BASE)
    with Watch() as watch:
        if case.narrow:
            report = reconciler.update("Node/node2", case.changed)
            assert report is not None
            assert report.failures == []
            assert report.changes
            assert not reconciler.any_amiss(watch.read())
            assert reconciler.plan() == []
            report = reconciler.update("Node/node2", ())
            assert report is not None
            assert report.failures == []
            assert not reconciler.any_amiss(watch.read())
        reconciler.replace(desired(name, case.changed))
        settle(reconciler)
        assert not reconciler.any_amiss(watch.read())
    reconciler.replace(Desired({}))
    settle(reconciler)
    assert inside.run("ip route show proto 80; ip -6 route show proto 80") == ""
    assert inside.run("ip neigh show nud permanent") == ""
    assert "vxlan" not in inside.run("bridge fdb show; ip link show")


@pytest.mark.parametrize("name", CASES)
def test_disturbed_and_mended(inside: Namespace, reconciler: Reconciler, name: str) -> None:
    case = CASES[name]
    reconciler.replace(desired(name, case.entries))
    settle(reconciler)
    inside.run("ip link set wire1 master weave", check=name not in WITHOUT_BASE)
    with Watch() as watch:
        for disturbance in case.disturbances:
            inside.run(disturbance)
            assert reconciler.any_amiss(watch.read()), disturbance
            assert reconciler.plan() != [], disturbance
            assert reconciler.reconcile().failures == []
            # A link that is made anew takes down what hung on it, which is told a moment later.
            if reconciler.any_amiss(watch.read()):
                assert reconciler.reconcile().failures == []
            assert reconciler.plan() == [], disturbance
            assert not reconciler.any_amiss(watch.read()), disturbance


@pytest.mark.parametrize("name", CASES)
def test_the_printed_lines_do_the_same(
    inside: Namespace, reconciler: Reconciler, name: str
) -> None:
    case = CASES[name]
    for entries in (case.entries, case.changed):
        reconciler.replace(desired(name, entries))
        for change in reconciler.plan():
            inside.run(change.line)
        assert reconciler.plan() == []
    reconciler.replace(Desired({}))
    for change in reconciler.plan():
        inside.run(change.line, check="ip link" in change.line)
    assert reconciler.plan() == []


class Watch:
    """Notifications of rtnetlink and nf_tables."""

    def __enter__(self) -> Watch:
        self._route = NetlinkSocket(groups=ROUTE_GROUPS)
        self._netfilter = NetlinkSocket(NETLINK_NETFILTER, groups=(NFNLGRP_NFTABLES,))
        return self

    def __exit__(self, *_: object) -> None:
        self._route.close()
        self._netfilter.close()

    def read(self) -> list[Message]:
        return [*self._route.notifications(), *self._netfilter.notifications()]
