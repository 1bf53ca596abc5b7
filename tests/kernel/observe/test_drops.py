"""What the kernel says of packets that it drops, in namespaces where something is broken.

The words are those of Linux 6.18.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from podwire.kernel import netns
from podwire.kernel.observe.drops import DropTap
from podwire.model.probe import ProbeMatch
from tests.conftest import Namespace
from tests.kernel.observe.conftest import MakeTun
from tests.kernel.observe.overlay import Overlay, address
from tests.kernel.observe.packets import samples

pytestmark = pytest.mark.root

BOTH = pytest.mark.parametrize("version", [4, 6])
SO_ATTACH_FILTER = 26  # asm-generic/socket.h


@pytest.fixture
def overlay(make_namespace: Callable[[], Namespace]) -> Overlay:
    return Overlay(make_namespace)


#: Not all of ICMPv6: without NDP no packet gets far.
REQUESTS = ("icmp type echo-request", "icmpv6 type echo-request")
REPLIES = ("icmp type echo-reply", "icmpv6 type echo-reply")
ERRORS = ("icmp type destination-unreachable", "icmpv6 type packet-too-big")


def nft(hook: str, verdict: str = "drop", about: tuple[str, ...] = REQUESTS) -> str:
    chain = f"add chain inet t c {{ type filter hook {hook} priority 0; }}"
    rules = (f"add rule inet t c {one} {verdict}" for one in about)
    return "; ".join(f"nft '{line}'" for line in ("add table inet t", chain, *rules))


# --- each way to lose a packet ----------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("place", "line", "reason", "location", "where"),
    [
        (
            "node1",
            "ip route del 10.97.2.0/24; ip -6 route del fd97:2::/64",
            "IP_INNOROUTES",
            ("ip_error", "ip6_pkt_discard"),
            "node1 pod1",
        ),
        (
            "node1",
            "ip route replace blackhole 10.97.2.0/24;"
            "ip -6 route del fd97:2::/64; ip -6 route add blackhole fd97:2::/64",
            "NOT_SPECIFIED",
            ("ip_error", "dst_discard_out"),
            "node1 pod1",
        ),
        (
            "node1",
            "cd /proc/sys/net; echo 0 >ipv4/ip_forward; echo 0 >ipv6/conf/all/forwarding",
            "IP_INADDRERRORS",
            ("ip_error", "ip6_forward"),
            "node1 pod1",
        ),
        (
            "node2",
            "cd /proc/sys/net; echo 0 >ipv4/ip_forward; echo 0 >ipv6/conf/all/forwarding",
            "IP_INADDRERRORS",
            ("ip_error", "ip6_forward"),
            "node2 flannel.1",
        ),
        (
            "node1",
            "bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2",
            "NO_TX_TARGET",
            ("vxlan_xmit", "vxlan_xmit"),
            "node1 flannel.1",
        ),
        (
            "node1",
            "ip neigh change 10.97.2.0 lladdr 02:00:00:00:00:99 dev flannel.1;"
            "ip neigh change fd97:2:: lladdr 02:00:00:00:00:99 dev flannel.1",
            "NO_TX_TARGET",
            ("vxlan_xmit", "vxlan_xmit"),
            "node1 flannel.1",
        ),
        (
            "node2",
            "ip link set flannel.1 address 02:00:00:00:00:99",
            "OTHERHOST",
            ("ip_rcv_core", "ip6_rcv_core"),
            "node2 flannel.1",
        ),
        (
            "node1",
            "ip link set flannel.1 down",
            "IP_INNOROUTES",
            ("ip_error", "ip6_pkt_discard"),
            "node1 pod1",
        ),
        (
            "node1",
            "ip link set eth0 down",
            "IP_OUTNOROUTES",
            ("vxlan_xmit_one", "vxlan_xmit_one"),
            "node1 flannel.1",
        ),
        ("node1", nft("prerouting"), "NETFILTER_DROP", None, "node1 pod1"),
        ("node1", nft("forward"), "NETFILTER_DROP", None, "node1 pod1"),
        ("node1", nft("forward", "reject"), "NETFILTER_DROP", None, "node1 pod1"),
        ("node1", nft("postrouting"), "NETFILTER_DROP", None, "node1 flannel.1"),
        ("pod2", nft("input"), "NETFILTER_DROP", None, "pod2 eth0"),
    ],
    ids=[
        "no route",
        "blackhole",
        "not forwarding",
        "not forwarding there",
        "no FDB entry",
        "wrong neighbour",
        "another MAC",
        "tunnel down",
        "underlay down",
        "nft prerouting",
        "nft forward",
        "nft reject",
        "nft postrouting",
        "nft input",
    ],
)
def test_an_echo_request_is_lost(
    overlay: Overlay,
    version: int,
    place: str,
    line: str,
    reason: str,
    location: tuple[str, str] | None,
    where: str,
) -> None:
    overlay.run(place, line)
    before = time.time_ns()
    drop = overlay.probe("icmp", version)
    assert (drop.reason, overlay.where(drop)) == (reason, where)
    assert drop.location == (location[version == 6] if location else "nft_do_chain")
    assert before < drop.time_ns < time.time_ns()
    assert drop.ifindex > 0
    assert len(drop.data) == 84
    assert address("pod2", version) in addresses(drop.data)


def addresses(data: bytes) -> tuple[str, str]:
    """Of an IP packet, from and to."""
    if data[0] >> 4 == 4:
        return socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
    return (
        socket.inet_ntop(socket.AF_INET6, data[8:24]),
        socket.inet_ntop(socket.AF_INET6, data[24:40]),
    )


def test_the_reverse_path_filter(overlay: Overlay) -> None:
    overlay.run("node2", "echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter")
    overlay.run("node2", "ip route replace 10.97.1.0/24 via 192.0.2.1 dev eth0")
    drop = overlay.probe("icmp", 4)
    assert (drop.reason, overlay.where(drop)) == ("IP_RPFILTER", "node2 flannel.1")


@BOTH
def test_too_big_to_be_forwarded(overlay: Overlay, version: int) -> None:
    overlay.run("node1", "ip link set flannel.1 mtu 1300")
    drop = overlay.probe("icmp", version, size=1400)
    # IPv6 has already given it to the next device when it looks at the MTU.
    assert drop.reason == "PKT_TOO_BIG"
    assert overlay.where(drop) == ("node1 pod1" if version == 4 else "node1 flannel.1")
    assert len(drop.data) == 192


@BOTH
def test_too_big_for_the_other_end_of_a_veth(overlay: Overlay, version: int) -> None:
    overlay.run("pod2", "ip link set eth0 mtu 1300")
    drop = overlay.probe("icmp", version, size=1400)
    assert drop.reason == "NOT_SPECIFIED"
    assert drop.location.startswith("__dev_forward_skb")
    assert overlay.where(drop) == "node2 pod2"


@BOTH
def test_the_neighbour_does_not_answer(overlay: Overlay, version: int) -> None:
    drop = overlay.probe("icmp", version, target=address("nobody", version))
    assert drop.reason == ("NEIGH_FAILED" if version == 4 else "NOT_SPECIFIED")
    assert (drop.location, overlay.where(drop)) == ("neigh_invalidate", "node2 pod2")


@BOTH
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ip link set flannel.1 down", "NO_SOCKET"),
        ("ip link del flannel.1", "NO_SOCKET"),
        (
            "ip link del flannel.1;"
            "ip link add flannel.1 type vxlan id 2 dev eth0 dstport 8472; ip link set flannel.1 up",
            "VXLAN_VNI_NOT_FOUND",
        ),
        (nft("input", about=("udp dport 8472",)), "NETFILTER_DROP"),
    ],
    ids=["tunnel down", "no tunnel", "another VNI", "firewall"],
)
def test_dropped_while_it_is_wrapped(
    overlay: Overlay, version: int, line: str, reason: str
) -> None:
    overlay.run("node2", line)
    drop = overlay.probe("icmp", version)
    assert (drop.reason, overlay.where(drop)) == (reason, "node2 eth0")
    assert addresses(drop.data) == ("192.0.2.1", "192.0.2.2")
    assert addresses(drop.data[50:]) == (address("pod1", version), address("pod2", version))


@BOTH
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("target", ["pod2", "node1"])
def test_nothing_listens(overlay: Overlay, version: int, protocol: Any, target: str) -> None:
    drop = overlay.probe(protocol, version, target=address(target, version))
    where = "pod2 eth0" if target == "pod2" else "node1 pod1"
    assert (drop.reason, overlay.where(drop)) == ("NO_SOCKET", where)


@BOTH
def test_the_senders_own_firewall(overlay: Overlay, version: int) -> None:
    """There the packet has no device yet, and tells its socket's namespace and route's device."""
    overlay.run("pod1", nft("output", about=("meta l4proto udp",)))
    match = overlay.match("udp", version)
    with DropTap(match) as tap:
        with pytest.raises(PermissionError):
            overlay.send(match)
        (drop,) = overlay.wait(tap)
    assert (drop.reason, overlay.where(drop)) == ("NETFILTER_DROP", "pod1 eth0")


@BOTH
def test_the_reply_is_the_probes_too(overlay: Overlay, version: int) -> None:
    overlay.run("node1", nft("forward", about=REPLIES))
    drop = overlay.probe("icmp", version)
    assert (drop.reason, overlay.where(drop)) == ("NETFILTER_DROP", "node1 flannel.1")
    assert addresses(drop.data) == (address("pod2", version), address("pod1", version))


@BOTH
def test_an_error_about_a_probe_is_the_probes_too(overlay: Overlay, version: int) -> None:
    overlay.run("node1", "ip link set flannel.1 mtu 1300")
    overlay.run("pod1", nft("input", about=ERRORS))
    match = overlay.match("udp", version)
    with DropTap(match) as tap:
        overlay.send(match, size=1400)
        drops = overlay.wait(tap, 2)
    told = {(drop.reason, overlay.where(drop)[:5]) for drop in drops}
    assert told == {("PKT_TOO_BIG", "node1"), ("NETFILTER_DROP", "pod1 ")}


# --- and nothing else -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "match",
    [
        ProbeMatch(protocol="icmp", source="10.97.1.2", target="10.97.2.2", ident=0xA1B2),
        ProbeMatch(
            protocol="icmp",
            source="fd97::2",
            target="fd97:2::2",
            ident=0xA1B2,
            bare_ports=(8285,),
        ),
        ProbeMatch(protocol="tcp", source="10.97.1.2", target="10.97.2.2", ident=40000, port=443),
        ProbeMatch(
            protocol="tcp",
            source="fd97::2",
            target="fd97:2::2",
            ident=40000,
            port=443,
            translated=True,
        ),
        ProbeMatch(
            protocol="udp",
            source="10.97.1.2",
            target="10.97.2.2",
            ident=40000,
            port=53,
            translated=True,
            tunnel_ports=(8285, 8472),
        ),
        ProbeMatch(protocol="udp", source="fd97::2", target="fd97:2::2", ident=40000, port=53),
    ],
    ids=lambda match: f"{match.protocol}-{match.source}",
)
def test_exactly_the_probes_packets_are_told(
    match: ProbeMatch, namespace: Namespace, make_tun: MakeTun
) -> None:
    """Each sample is dropped on its way in, by a rule that drops everything."""
    tun = make_tun(namespace, "tun0")
    fd = netns.open_netns(namespace.path)
    here = netns.netns_inode(fd)
    os.close(fd)
    namespace.run(
        "nft add table netdev t; nft 'add chain netdev t c"
        " { type filter hook ingress device tun0 priority 0; policy drop; }'"
    )
    # A TUN device without a header of its own takes what begins like IP.
    packets = [sample for sample in samples(match) if sample.data[0] >> 4 in (4, 6)]
    seen: list[bytes] = []
    with DropTap(match) as tap:
        for sample in packets:
            os.write(tun, sample.data)
            seen += [drop.data for drop in tap.read() if drop.netns == here]
    wrong = [sample.name for sample in packets if sample.matches != (sample.data[:192] in seen)]
    assert wrong == []
    assert len(seen) == sum(sample.matches for sample in packets)


@BOTH
def test_copies_that_nobody_misses_are_not_told(overlay: Overlay, version: int) -> None:
    """Of a reply that arrives: no ping socket wants it, a raw socket's filter does not, a packet
    socket has no room, and a socket is closed that has not read it."""
    pod = netns.open_netns(overlay.places["pod1"].path)
    with netns.entered(pod):
        kind = (socket.AF_INET6, 58) if version == 6 else (socket.AF_INET, 1)
        picky = socket.socket(kind[0], socket.SOCK_RAW, kind[1])
        full = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    os.close(pod)
    reject = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    attach = struct.pack("HxxxxxxQ", 1, ctypes.addressof(reject))
    picky.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, attach)
    full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    match = overlay.match("icmp", version)
    later = overlay.match("icmp", version, target=address("nobody", version))
    with picky, full, DropTap(match) as tap, DropTap(later) as last:
        for _ in range(20):
            overlay.send(match, size=1400)
        overlay.send(later)
        overlay.wait(last)
        assert tap.read() == []


def test_two_taps_at_once(overlay: Overlay) -> None:
    overlay.run("node1", nft("forward"))
    one, other = overlay.match("icmp", 4), overlay.match("icmp", 6)
    with DropTap(one) as first, DropTap(other) as second, DropTap(one) as third:
        overlay.send(one)
        overlay.send(other)
        told = [overlay.wait(tap) for tap in (first, second, third)]
    assert [[drop.data[0] >> 4 for drop in drops] for drops in told] == [[4], [6], [4]]
    assert told[0][0].data == told[2][0].data


def test_the_ring_goes_round(overlay: Overlay) -> None:
    overlay.run("node1", nft("forward"))
    match = overlay.match("icmp", 4)
    sizes = range(84, 284, 2)
    with DropTap(match) as tap:
        for _ in range(5):  # of 64 KiB, a hundred drops take half
            for size in sizes:
                overlay.send(match, size=size)
            drops = overlay.wait(tap, len(sizes))
            assert [len(drop.data) for drop in drops] == [min(size, 192) for size in sizes]
