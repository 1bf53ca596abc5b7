"""The reconciler against a real kernel: applied once, unchanged after, mended when disturbed."""

from __future__ import annotations

import json

import pytest

from podwire.kernel.messages import (
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
)
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from podwire.kernel.nft import NFNLGRP_NFTABLES
from podwire.kernel.reconcile import Reconciler
from podwire.model.state import Desired
from tests.conftest import Namespace
from tests.kernel.entries import DESIRED, UNDERLAY, cause, peer

pytestmark = pytest.mark.root

#: The masquerade rule becomes another one, with the comment that it had.
REWRITE = (
    "nft replace rule inet podwire postrouting $(nft -a list chain inet podwire postrouting |"
    r""" sed -n 's/.*\(comment ".*"\) # \(handle .*\)/\2 accept \1/p')"""
)


def test_the_kernel_ends_up_as_flannel_would_leave_it(
    inside: Namespace, reconciler: Reconciler
) -> None:
    report = reconciler.reconcile(record=True)
    assert report.failures == []
    assert (
        report.changes == len(report.lines) == 2 + 2 + 1 + 3 * 2 + 1
    )  # elements come with their table
    (vtep,) = json.loads(inside.run("ip -d -j link show flannel.1"))
    data = vtep["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"]) == (1, 8472, "172.18.0.11")
    assert (data["learning"], vtep["mtu"]) == (False, 1450)
    routes = {one["dst"]: one for one in json.loads(inside.run("ip -j route show proto 112"))}
    assert routes.keys() == {"10.244.2.0/24", "10.244.3.0/24"}
    assert routes["10.244.2.0/24"]["gateway"] == "10.244.2.0"
    assert routes["10.244.2.0/24"]["flags"] == ["onlink"]
    neighbors = json.loads(inside.run("ip -j neigh show dev flannel.1"))
    assert {(one["dst"], one["lladdr"], *one["state"]) for one in neighbors} == {
        ("10.244.2.0", "02:00:00:00:00:02", "PERMANENT"),
        ("10.244.3.0", "02:00:00:00:00:03", "PERMANENT"),
    }
    fdb = json.loads(inside.run("bridge -j fdb show dev flannel.1"))
    assert {(one["mac"], one["dst"]) for one in fdb} == {
        ("02:00:00:00:00:02", "172.18.0.12"),
        ("02:00:00:00:00:03", "172.18.0.13"),
    }
    assert inside.run("cat /proc/sys/net/ipv4/ip_forward").strip() == "1"


def test_a_second_reconcile_and_a_new_reconciler_change_nothing(reconciler: Reconciler) -> None:
    reconciler.reconcile()
    assert reconciler.plan() == []
    assert reconciler.reconcile().changes == 0
    restarted = Reconciler()
    restarted.replace(DESIRED)
    assert restarted.reconcile().changes == 0
    restarted.close()


def test_the_printed_lines_do_what_applying_does(inside: Namespace, reconciler: Reconciler) -> None:
    for change in reconciler.plan():
        inside.run(change.line)
    assert reconciler.plan() == []


@pytest.mark.parametrize(
    "disturbance",
    [
        "ip link del flannel.1",
        "ip link del cni0",
        "ip link set flannel.1 down",
        "ip link set cni0 mtu 1400",
        "ip link set flannel.1 address 02:00:00:00:00:aa",
        "ip route del 10.244.2.0/24",
        "ip route replace 10.244.2.0/24 via 10.244.3.0 dev flannel.1 onlink proto 112",
        "ip neigh del 10.244.2.0 dev flannel.1",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:bb dev flannel.1 nud permanent",
        "bridge fdb del 02:00:00:00:00:02 dev flannel.1",
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 172.18.0.99",
        "bridge fdb append 02:00:00:00:00:dd dev flannel.1 dst 172.18.0.99",
        "ip route add 10.244.9.0/24 via 10.244.2.0 dev flannel.1 onlink proto 112",
        "ip address del 10.244.1.0/32 dev flannel.1",
        "ip address add 10.244.9.9/24 dev cni0",
        "nft delete table inet podwire",
        "nft flush chain inet podwire postrouting",
        REWRITE,
        "nft delete element inet podwire cluster4 '{ 10.244.0.0/16 }'",
        "nft add element inet podwire cluster4 '{ 8.8.8.0/24 }'",
        "nft add element inet podwire peers4 '{ 192.0.2.1 }'",
        "nft delete element inet podwire peers4 '{ 172.18.0.12 }'",
        "nft flush set inet podwire peers4",
        "nft add table ip podwire",
        "sysctl -qw net.ipv4.ip_forward=0",
    ],
)
def test_whatever_is_disturbed_comes_back(
    inside: Namespace, reconciler: Reconciler, disturbance: str
) -> None:
    reconciler.reconcile()
    inside.run(disturbance)
    assert reconciler.plan() != []
    report = reconciler.reconcile()
    assert report.failures == []
    assert reconciler.plan() == []


@pytest.mark.parametrize(
    "disturbance",
    [
        "ip link del flannel.1",
        "ip link set flannel.1 down",
        "ip link set cni0 mtu 1400",
        "ip route del 10.244.2.0/24",
        "ip neigh del 10.244.2.0 dev flannel.1",
        "bridge fdb del 02:00:00:00:00:02 dev flannel.1",
        "ip route add 10.244.9.0/24 via 10.244.2.0 dev flannel.1 onlink proto 112",
        "ip neigh add 10.244.9.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent",
        "bridge fdb append 02:00:00:00:00:09 dev flannel.1 dst 172.18.0.99 self permanent",
        "nft add element inet podwire peers4 '{ 192.0.2.1 }'",
        "nft delete element inet podwire peers4 '{ 172.18.0.12 }'",
        "nft delete element inet podwire cluster4 '{ 10.244.0.0/16 }'",
        "nft flush chain inet podwire postrouting",
        REWRITE,
        "nft delete table inet podwire",
    ],
)
def test_a_notification_tells_a_disturbance_from_our_own_work(
    inside: Namespace, reconciler: Reconciler, disturbance: str
) -> None:
    groups = (RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_ROUTE)
    with (
        NetlinkSocket(groups=groups) as route,
        NetlinkSocket(NETLINK_NETFILTER, groups=(NFNLGRP_NFTABLES,)) as netfilter,
    ):

        def amiss() -> bool:
            return reconciler.any_amiss([*route.notifications(), *netfilter.notifications()])

        reconciler.reconcile()
        assert not amiss()
        reconciler.update(cause(3), ())
        assert not amiss()
        inside.run("ip link add other type bridge; ip route add 10.99.0.0/24 via 172.18.0.1")
        assert not amiss()
        inside.run(disturbance)
        assert amiss()


def test_the_bridge_keeps_its_mtu_when_its_last_port_goes(
    inside: Namespace, reconciler: Reconciler
) -> None:
    reconciler.reconcile()
    inside.run("ip link add p type veth peer name q && ip link set p master cni0; ip link del p")
    assert reconciler.plan() == []


def test_what_others_made_is_left_alone(inside: Namespace, reconciler: Reconciler) -> None:
    inside.run(
        "ip link add cni9 type bridge; ip link set cni9 up; ip address add 10.9.0.1/24 dev cni9;"
        "ip route add 10.99.0.0/24 via 172.18.0.1 proto static;"
        "ip neigh add 172.18.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent;"
        "nft add table inet other; nft add chain inet other c"
    )
    look = "ip link show cni9; ip address show dev cni9; ip route show proto static;" + (
        "ip neigh show 172.18.0.77; nft list table inet other"
    )
    before = inside.run(look)
    reconciler.reconcile()
    reconciler.replace(Desired({}))
    reconciler.reconcile()
    assert inside.run(look) == before


def test_a_foreign_link_or_route_in_the_way_is_refused_not_touched(
    inside: Namespace, reconciler: Reconciler
) -> None:
    inside.run("ip link add cni0 type bridge; ip route add 10.244.2.0/24 dev eth0 proto static")
    report = reconciler.reconcile()
    assert any("cni0 exists and was not made by Podwire" in one for one in report.failures)
    assert any("10.244.2.0/24" in one and "File exists" in one for one in report.failures)
    assert "proto static" in inside.run("ip route show 10.244.2.0/24")
    assert "flannel.1" in inside.run("ip route show 10.244.3.0/24")


def test_nothing_of_ours_stays_when_nothing_is_wanted(
    inside: Namespace, reconciler: Reconciler
) -> None:
    reconciler.reconcile()
    reconciler.replace(Desired({}))
    assert reconciler.reconcile().failures == []
    links = {one["ifname"] for one in json.loads(inside.run("ip -j link"))}
    assert links == {"lo", "eth0", "wire"}
    assert inside.run("ip route show proto 112; nft list tables") == ""


def test_an_update_touches_one_peers_entries_only(
    inside: Namespace, reconciler: Reconciler
) -> None:
    reconciler.reconcile()
    report = reconciler.update(cause(2), peer(2, mac=0x22, at=22))
    assert report is not None
    # Another MAC is a change of the neighbour, and another entry of the FDB.
    assert (report.changes, report.failures) == (1 + 2 + 2, [])
    assert "172.18.0.22" in inside.run("bridge fdb show dev flannel.1")
    assert "172.18.0.22" in inside.run("nft list set inet podwire peers4")
    assert reconciler.plan() == []
    gone = reconciler.update(cause(2), ())
    assert gone is not None
    assert gone.changes == 4
    assert inside.run("ip route show 10.244.2.0/24") == ""
    assert reconciler.plan() == []


def test_a_subnet_that_changes_hands_is_not_lost(inside: Namespace, reconciler: Reconciler) -> None:
    reconciler.reconcile()
    for number, entries in ((4, peer(4, subnet=2)), (2, ())):
        if reconciler.update(cause(number), entries) is None:
            reconciler.reconcile()
    assert "10.244.2.0/24" in inside.run("ip route show")
    assert "02:00:00:00:00:04" in inside.run("ip neigh show 10.244.2.0 dev flannel.1")
    assert reconciler.plan() == []


@pytest.mark.parametrize("order", [(4, 2), (2, 4)])
def test_what_two_causes_want_is_the_firsts_whatever_came_first(
    inside: Namespace, reconciler: Reconciler, order: tuple[int, int]
) -> None:
    reconciler.reconcile()
    for number in order:
        if reconciler.update(cause(number), peer(number, subnet=9)) is None:
            reconciler.reconcile()
    assert reconciler.plan() == []
    assert "02:00:00:00:00:02" in inside.run("ip neigh show 10.244.9.0 dev flannel.1")
    assert reconciler.update(cause(2), ()) is None
    reconciler.reconcile()
    assert "02:00:00:00:00:04" in inside.run("ip neigh show 10.244.9.0 dev flannel.1")


def test_entries_wait_for_an_underlay_that_is_missing(inside: Namespace) -> None:
    reconciler = Reconciler()
    reconciler.replace(DESIRED)
    report = reconciler.reconcile()
    assert any("eth0 does not exist" in one for one in report.failures)
    inside.run(UNDERLAY)
    assert reconciler.reconcile().failures == []
    assert reconciler.plan() == []
    reconciler.close()
