"""Pods' interfaces in real namespaces: routed ones with all that the node holds of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from msgspec import structs

from podwire.errors import KernelError
from podwire.kernel import netns
from podwire.kernel.attach import attach, cut_off, detach
from podwire.kernel.attach_check import check
from podwire.kernel.judge import ROUTE_GROUPS
from podwire.kernel.netlink import NETLINK_NETFILTER, Message, NetlinkSocket
from podwire.kernel.nft import NFNLGRP_NFTABLES
from podwire.kernel.reconcile import Reconciler
from podwire.model.state import (
    Address,
    Bridge,
    Desired,
    Entry,
    Link,
    Neighbor,
    NftChain,
    NftElement,
    NftHook,
    NftOpenSet,
    NftRule,
    NftTable,
    Route,
    Sysctl,
    Veth,
    Why,
)
from tests.conftest import Namespace

pytestmark = pytest.mark.root

WHY = Why("Pod/default/a", "is tried out")
HOST_MAC = bytes([0xEE] * 6)
GATEWAY4, GATEWAY6 = ip_address("169.254.1.1"), ip_address("fe80::ecee:eeff:feee:eeee")

OWN: tuple[Entry, ...] = (
    Sysctl(key="net/ipv4/ip_forward", value="1", why=WHY),
    Sysctl(key="net/ipv6/conf/all/forwarding", value="1", why=WHY),
    NftTable(
        name="podwire",
        why=WHY,
        open_sets=(
            NftOpenSet(name="guarded", type="ifname", why=WHY),
            NftOpenSet(name="bindings4", type="ifname . ipv4_addr", why=WHY),
        ),
        chains=(
            NftChain(
                name="from_pods",
                hook=NftHook(type="filter", hook="prerouting", priority=-300),
                rules=(
                    NftRule(text="iifname @guarded iifname . ip saddr != @bindings4 drop", why=WHY),
                ),
            ),
        ),
    ),
)


def pod_mac(number: int) -> bytes:
    return b"\x02\0\0\0\0" + bytes([number])


def host(number: int, *, protocol: int = 80) -> tuple[Entry, ...]:
    """What the node holds of a pod."""
    name, ip = f"cali{number}", ip_address(f"10.1.0.{number}")
    return (
        Link(
            name=name,
            kind=Veth(peer="eth0", peer_mac=pod_mac(number)),
            mtu=1450,
            mac=HOST_MAC,
            link_local=True,
            alias=f"podwire pod default/p{number} eth0",
            why=WHY,
        ),
        Sysctl(key=f"net/ipv4/conf/{name}/proxy_arp", value="1", why=WHY),
        Sysctl(key=f"net/ipv4/neigh/{name}/proxy_delay", value="0", why=WHY),
        Sysctl(key=f"net/ipv6/conf/{name}/accept_ra", value="0", why=WHY),
        # As all of IPv6 on a machine without it.
        Sysctl(key=f"net/ipv6/conf/{name}/of_no_kernel", value="0", why=WHY),
        Route(dst=ip_network(ip), dev=name, protocol=protocol, why=WHY),
        Route(dst=ip_network(f"fd00:1::{number}"), dev=name, protocol=protocol, why=WHY),
        Neighbor(dev=name, ip=ip, mac=pod_mac(number), why=WHY),
        NftElement(set="guarded", key=(name,), why=WHY),
        NftElement(set="bindings4", key=(name, ip), why=WHY),
    )


def pod(number: int) -> tuple[Address | Route | Neighbor, ...]:
    """What its own namespace holds."""
    return (
        Address(dev="eth0", ip=ip_interface(f"10.1.0.{number}/32"), why=WHY),
        Address(dev="eth0", ip=ip_interface(f"fd00:1::{number}/128"), why=WHY),
        Route(dst=ip_network(GATEWAY4), dev="eth0", why=WHY),
        Route(dst=ip_network("0.0.0.0/0"), via=GATEWAY4, dev="eth0", why=WHY),
        Route(dst=ip_network("::/0"), via=GATEWAY6, dev="eth0", why=WHY),
        Neighbor(dev="eth0", ip=GATEWAY6, mac=HOST_MAC, why=WHY),
    )


class Node:
    """A node with a reconciler, and pods that can be attached to it."""

    def __init__(self, node: Namespace, make: Callable[[], Namespace], stack: ExitStack) -> None:
        self.node = node
        self.pods = {number: make() for number in (5, 6)}
        self.fds = {number: netns.open_netns(one.path) for number, one in self.pods.items()}
        for fd in self.fds.values():
            stack.callback(os.close, fd)
        self.sock = stack.enter_context(NetlinkSocket())
        self._route = stack.enter_context(NetlinkSocket(groups=ROUTE_GROUPS))
        groups = (NFNLGRP_NFTABLES,)
        self._netfilter = stack.enter_context(NetlinkSocket(NETLINK_NETFILTER, groups))
        self.reconciler = Reconciler()
        stack.callback(self.reconciler.close)
        self.reconciler.replace(Desired({"Node/node1": OWN}))
        assert self.reconciler.reconcile().failures == []

    def attach(self, number: int, *, noted: bool = True) -> None:
        attach(self.sock, host(number), pod(number), self.fds[number])
        if noted:
            self.note(number)

    def note(self, number: int) -> None:
        self.reconciler.note(f"Attachment/{number}", host(number))

    def check(self, number: int) -> list[str]:
        return check(self.sock, host(number), pod(number), self.fds[number])

    def notified(self) -> list[Message]:
        return [*self._route.notifications(), *self._netfilter.notifications()]

    def is_amiss(self) -> bool:
        return self.reconciler.any_amiss(self.notified())

    def elements(self) -> str:
        return self.node.run(
            "nft list set inet podwire guarded; nft list set inet podwire bindings4"
        )


@pytest.fixture
def node(inside: Namespace, make_namespace: Callable[[], Namespace]) -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(inside, make_namespace, stack)


def test_routed_pods_reach_each_other_at_once_and_send_as_themselves_only(node: Node) -> None:
    # ARP is answered for what the node has a route to, by another link.
    node.node.run("ip link add eth0 type bridge; ip link set eth0 up")
    node.node.run("ip address add 172.18.0.11/16 dev eth0; ip route add default via 172.18.0.1")
    node.attach(5)
    node.attach(6)
    for version, target in ((4, "10.1.0.6"), (6, "fd00:1::6")):
        node.pods[5].run(f"ping -{version} -c1 -W5 {target}")
        node.node.run(f"ping -{version} -c1 -W5 {target}")
    assert "tentative" not in node.node.run("ip -6 address show dev cali5")
    assert "proto kernel" not in node.node.run("ip -4 route show dev cali5")
    node.pods[5].run("ip address add 10.1.0.77/32 dev eth0")
    node.pods[5].run("ping -c1 -W0.2 -I 10.1.0.77 10.1.0.6; test $? = 1")


def test_what_is_attached_is_as_wanted(node: Node) -> None:
    node.attach(5)
    assert node.check(5) == []
    assert node.reconciler.plan() == []
    assert not node.is_amiss()
    for disturbance, mentions in (
        ("ip route del 10.1.0.5/32", "route 10.1.0.5/32 is missing on the node"),
        ("ip -6 route del fd00:1::5/128", "route fd00:1::5/128 is missing on the node"),
        ("ip neigh del 10.1.0.5 dev cali5", "neighbour 10.1.0.5 is missing on the node"),
        ("ip link set cali5 down", "cali5 is down"),
        ("sysctl -qw net.ipv4.conf.cali5.proxy_arp=0", "proxy_arp is not 1"),
        ("nft delete element inet podwire guarded '{ \"cali5\" }'", '"cali5" is missing'),
        ("ip address del fe80::ecee:eeff:feee:eeee/64 dev cali5", ""),
    ):
        node.node.run(disturbance)
        assert mentions in " ".join(node.check(5))
        assert node.is_amiss(), disturbance
        report = node.reconciler.reconcile()
        assert (report.failures, report.missing) == ([], [])
        assert node.check(5) == []
        if node.is_amiss():
            node.reconciler.reconcile()
        assert node.reconciler.plan() == [], disturbance
        assert not node.is_amiss()
    node.node.run("sysctl -qw net.ipv6.conf.cali5.accept_ra=2")  # Which nobody is notified of.
    assert node.check(5) == ["sysctl net/ipv6/conf/cali5/accept_ra is not 0"]
    node.reconciler.reconcile()
    assert node.check(5) == []


def test_a_comparison_in_between_takes_nothing_from_a_pod_that_is_just_attached(
    node: Node,
) -> None:
    node.reconciler.own_protocol(80)
    node.attach(5, noted=False)
    before = node.elements()
    assert not node.is_amiss()
    assert node.reconciler.plan() == []
    assert node.reconciler.reconcile().changes == 0
    assert node.check(5) == []
    node.note(5)
    assert node.reconciler.plan() == []
    # Its link has gone, and nobody knew.
    node.reconciler.want("Attachment/5", ())
    node.node.run("ip link del cali5")
    report = node.reconciler.reconcile()
    assert report.failures == []
    assert before != node.elements()
    assert "cali5" not in node.elements()


def test_what_of_a_pod_does_not_go_with_its_link_goes_when_it_is_detached(node: Node) -> None:
    node.attach(5)
    node.attach(6)
    assert not node.is_amiss()
    cut_off(node.sock, "cali5")
    assert "10.1.0.5" not in node.node.run("ip route show")
    node.reconciler.note("Attachment/5", ())
    assert "cali5" not in node.elements()
    detach(node.sock, "cali5")
    assert not node.is_amiss()
    assert node.reconciler.plan() == []
    assert "cali6" in node.elements()
    node.attach(5)
    assert node.check(5) == []
    assert not node.is_amiss()


def test_a_pod_that_is_attached_anew_is_known_by_its_new_link(node: Node) -> None:
    node.attach(5)
    node.node.run("ip link del cali5")
    assert node.is_amiss()
    assert [link.name for link in node.reconciler.reconcile().missing] == ["cali5"]
    node.attach(5)
    node.notified()
    assert node.reconciler.plan() == []
    node.node.run("ip neigh del 10.1.0.5 dev cali5")
    assert node.is_amiss()


def test_nothing_is_left_of_what_could_not_be_attached(node: Node) -> None:
    node.node.run("ip link add other type bridge; ip link set other up")
    node.node.run("ip route add 10.1.0.5/32 dev other")
    with pytest.raises(KernelError, match=r"ip route add 10\.1\.0\.5/32 dev cali5.*File exists"):
        node.attach(5)
    assert "cali5" not in node.node.run("ip link show") + node.elements()
    assert "dev other" in node.node.run("ip route show 10.1.0.5")
    node.node.run("ip link del other; nft delete table inet podwire")
    with pytest.raises(KernelError, match="wait until the agent has made its nft tables") as early:
        node.attach(5)
    assert early.value.errno == errno.EAGAIN, "for which a runtime is told to try again"
    assert "cali5" not in node.node.run("ip link show")


def test_a_wiring_that_changes_takes_the_port_off_the_bridge(node: Node) -> None:
    node.attach(5)
    node.node.run("ip link add br0 type bridge; ip link set br0 up; ip link set cali5 master br0")
    assert "cali5 is a port of a bridge" in node.check(5)
    assert node.is_amiss()
    lines = [change.line for change in node.reconciler.plan()]
    assert "ip link set cali5 nomaster" in lines
    assert node.reconciler.reconcile().failures == []
    assert node.check(5) == []


def test_who_was_asked_for_before_it_was_there_is_asked_for_anew(node: Node) -> None:
    bridge = Link(name="br0", kind=Bridge(), mtu=1450, alias="podwire pods", why=WHY)
    address = Address(dev="br0", ip=ip_interface("10.1.0.1/24"), why=WHY)
    node.reconciler.replace(Desired({"Node/node1": (*OWN, bridge, address)}))
    assert node.reconciler.reconcile().failures == []
    node.node.run("ip neigh replace 10.1.0.5 dev br0 nud incomplete")
    port = Link(name="veth5", kind=Veth(peer="eth0", peer_mac=pod_mac(5)), mtu=1450, why=WHY)
    port = structs.replace(port, master="br0", alias="podwire pod default/p5 eth0")
    inside = Address(dev="eth0", ip=ip_interface("10.1.0.5/24"), why=WHY)
    attach(node.sock, port, (inside,), node.fds[5])
    assert node.node.run("ip neigh show to 10.1.0.5 dev br0") == ""
    assert "1 received" in node.node.run("ping -c 1 -W 10 10.1.0.5")
