"""The nft tap in real namespaces: which rule judged which packet, and nothing left behind."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import netns, nft
from podwire.kernel.netlink import NETLINK_NETFILTER, Failure, NetlinkSocket
from podwire.kernel.nft_context import OUTPUT_HANDLE, Nft
from podwire.kernel.observe import nft_trace
from podwire.kernel.observe.nft_trace import PREFIX, NftTap, RawNftStep
from podwire.kernel.reconcile import Reconciler
from podwire.model.probe import Probe, ProbeMatch, Protocol
from podwire.trace.probe import Prober
from tests.conftest import Namespace

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Site:
    """`a` and `c` on a router's bridge, `b` behind its `eth2`; of one IP version."""

    version: Literal[4, 6]
    router: Namespace
    a: Namespace
    b: Namespace
    a_fd: int
    router_fd: int

    def ip(self, net: int, host: int) -> str:
        return f"10.84.{net}.{host}" if self.version == 4 else f"fd84:{net}::{host}"

    @property
    def gateway(self) -> str:
        return self.ip(1, 1)

    @property
    def bridged(self) -> str:
        return self.ip(1, 3)

    @property
    def routed(self) -> str:
        return self.ip(2, 2)

    def rule(self, family: str, hook: str, text: str, *, kind: str = "filter") -> int:
        """Add a rule to chain `hook` of table `t`; its handle."""
        self.router.run(f"nft add table {family} t")
        at = f"type {kind} hook {hook} priority 10;"
        self.router.run(f"nft 'add chain {family} t {hook} {{ {at} }}'")
        echoed = self.router.run(f"nft -ae 'add rule {family} t {hook} {text}'")
        return int(re.findall(r"# handle (\d+)$", echoed, re.MULTILINE)[-1])

    def prober(self, target: str, protocol: Protocol = "icmp", **more: Any) -> Prober:
        port = None if protocol == "icmp" else 7777
        fields: dict[str, Any] = {"timeout_s": 0.05, "port": port} | more
        return Prober(self.a_fd, Probe(protocol=protocol, target=target, **fields))

    def match(
        self, prober: Prober, target: str, protocol: Protocol = "icmp", *neighbors: str
    ) -> ProbeMatch:
        return ProbeMatch(
            protocol=protocol,
            source=prober.source,
            target=target,
            ident=prober.ident,
            port=None if protocol == "icmp" else 7777,
            translated=protocol != "icmp",
            neighbors=neighbors,
        )

    def steps(self, target: str, protocol: Protocol = "icmp", **more: Any) -> list[RawNftStep]:
        """What the router's tap sees of one probe from `a`."""
        with self.prober(target, protocol, **more) as prober:
            return self.steps_of(prober, self.match(prober, target, protocol))

    def steps_of(self, prober: Prober, match: ProbeMatch) -> list[RawNftStep]:
        with NftTap(self.router_fd, match) as tap:
            prober.fire()
            return read(tap)


def read(tap: NftTap) -> list[RawNftStep]:
    """All of it, as soon as there is any; nothing where there is nothing for long."""
    return tap.read() if select.select([tap], [], [], 1)[0] else []


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def site(request: pytest.FixtureRequest, make_namespace: Callable[[], Namespace]) -> Iterator[Site]:
    version: Literal[4, 6] = request.param
    router, a, b, c = (make_namespace() for _ in range(4))
    for one in (router, a, b, c):
        one.run("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0")
    router.run(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1;"
        " ip link add br0 type bridge; ip link set br0 up"
    )
    fds = [netns.open_netns(one.path) for one in (a, router)]
    made = Site(version, router, a, b, *fds)
    length = 24 if version == 4 else "64 nodad"
    wires = ((a, "pa", 1, 2), (c, "pc", 1, 3), (b, "eth2", 2, 2))
    router.run(
        "set -e;"
        + "".join(
            f"ip link add {port} type veth peer name eth0 netns {one.name}; ip link set {port} up;"
            for one, port, _, _ in wires
        )
        + "ip link set pa master br0; ip link set pc master br0;"
        f"ip addr add {made.ip(1, 1)}/{length} dev br0;"
        f"ip addr add {made.ip(2, 1)}/{length} dev eth2"
    )
    for one, _, net, host in wires:
        one.run(
            f"set -e; ip link set eth0 up; ip addr add {made.ip(net, host)}/{length} dev eth0;"
            f"ip -{version} route add default via {made.ip(net, 1)}"
        )
    yield made
    for fd in fds:
        os.close(fd)


only_ipv4 = pytest.mark.parametrize("site", [4], indirect=True, ids=["ipv4"])

PLACES = [
    ("inet", "prerouting", "routed"),
    ("inet", "input", "gateway"),
    ("inet", "forward", "routed"),
    ("inet", "output", "gateway"),
    ("inet", "postrouting", "routed"),
    ("ip", "forward", "routed"),
    ("bridge", "prerouting", "bridged"),
    ("bridge", "input", "gateway"),
    ("bridge", "forward", "bridged"),
    ("bridge", "output", "gateway"),
    ("bridge", "postrouting", "bridged"),
]


@pytest.mark.parametrize(("family", "hook", "target"), PLACES)
def test_the_rule_that_drops_is_named(site: Site, family: str, hook: str, target: str) -> None:
    if family == "ip" and site.version == 6:
        family = "ip6"
    # Of the replies where the router answers, of the requests elsewhere; not NDP.
    kind = "echo-reply" if hook == "output" else "echo-request"
    layer = "icmp" if site.version == 4 else "icmpv6"
    text = f'{layer} type {kind} counter drop comment "planned"'
    handle = site.rule(family, hook, text)
    steps = site.steps(getattr(site, target))
    (drop,) = [step for step in steps if step.verdict == "drop"]
    assert (drop.kind, drop.family, drop.table, drop.chain) == ("rule", family, "t", hook)
    assert drop.handle == handle
    assert drop.rule == text
    assert drop.data[0] >> 4 == site.version
    assert b"podw" in drop.data


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_every_protocol_is_seen_and_every_retry(site: Site, protocol: Protocol) -> None:
    number = {"icmp": "{ icmp, ipv6-icmp }"}.get(protocol, protocol)
    site.rule("inet", "forward", f"meta l4proto {number} iifname br0 drop")
    steps = site.steps(site.routed, protocol, count=2)
    assert [step.verdict for step in steps] == ["drop", "drop"]
    assert all(step.iif and step.oif and step.iif != step.oif for step in steps)
    header = 20 if site.version == 4 else 40
    assert {len(step.data) for step in steps} == {header + 20}


@only_ipv4
def test_a_policy_a_jump_and_what_marks_are_told_and_the_rest_is_not(site: Site) -> None:
    site.rule("inet", "forward", "counter")
    site.router.run(
        "nft 'add chain inet t deep; add rule inet t forward meta mark set 7;"
        " add rule inet t forward ip saddr 10.84.1.0/24 jump deep;"
        " add rule inet t deep ip daddr 1.2.3.4 drop; add rule inet t deep counter return;"
        " add chain inet t forward { policy drop; }'"
    )
    steps = site.steps(site.routed)
    assert [(step.kind, step.chain, step.rule, step.verdict) for step in steps] == [
        ("rule", "forward", "meta mark set 0x00000007", "continue"),
        ("rule", "forward", "ip saddr 10.84.1.0/24 jump deep", "jump deep"),
        ("policy", "forward", "", "drop"),
    ]
    assert steps[-1].handle == 0
    assert all(step.data == steps[0].data for step in steps)


@only_ipv4
def test_reject_is_a_drop_whose_text_says_so_and_the_error_is_seen_too(site: Site) -> None:
    site.rule("inet", "forward", "iifname br0 reject with icmp admin-prohibited")
    site.rule("inet", "output", "icmp type destination-unreachable accept")
    steps = site.steps(site.routed)
    assert [(step.rule, step.verdict) for step in steps if step.kind == "rule"] == [
        # The rejecting rule sends the error, and its verdict is told after that.
        ("icmp type destination-unreachable accept", "accept"),
        ('iifname "br0" reject with icmp admin-prohibited', "drop"),
    ]


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_a_translated_probe_is_seen_both_ways(site: Site, protocol: Protocol) -> None:
    masquerade = "oifname eth2 masquerade fully-random"
    site.rule("inet", "postrouting", masquerade, kind="nat")
    site.rule("inet", "prerouting", 'iifname "eth2" accept')
    steps = site.steps(site.routed, protocol)
    rules = [(step.rule, step.verdict) for step in steps if step.kind == "rule"]
    assert rules == [
        ('oifname "eth2" masquerade fully-random', "accept"),
        ('iifname "eth2" accept', "accept"),
    ]


@only_ipv4
def test_the_tunnel_s_packet_is_seen_by_what_is_in_it(site: Site) -> None:
    site.router.run(
        "ip link add vx0 type vxlan id 1 dstport 8472 dev eth2 remote 10.84.2.2;"
        " ip link set vx0 up; ip addr add 10.84.7.1/24 dev vx0;"
        " ip neigh add 10.84.7.2 dev vx0 lladdr 02:00:00:00:00:07"
    )
    handle = site.rule("inet", "output", "udp dport 8472 drop")
    (drop,) = site.steps("10.84.7.2")
    assert (drop.rule, drop.handle, drop.verdict) == ("udp dport 8472 drop", handle, "drop")
    assert drop.data[20:24][2:] == (8472).to_bytes(2, "big")


def test_a_neighbor_s_question_that_is_dropped_is_seen(site: Site) -> None:
    family, hook, rule = {
        4: ("arp", "input", "arp operation request drop"),
        6: ("inet", "input", "icmpv6 type nd-neighbor-solicit drop"),
    }[site.version]
    site.rule(family, hook, rule)
    with site.prober(site.gateway) as prober:
        steps = site.steps_of(prober, site.match(prober, site.gateway, "icmp", site.gateway))
    assert {(step.family, step.rule, step.verdict) for step in steps} == {(family, rule, "drop")}


@only_ipv4
def test_two_taps_see_each_their_own_and_nobody_else_s(site: Site) -> None:
    site.rule("inet", "prerouting", "meta nftrace set 1")  # somebody else traces everything
    site.rule("inet", "forward", "counter accept")
    with site.prober(site.routed) as one, site.prober(site.routed, count=2) as other:
        with (
            NftTap(site.router_fd, site.match(one, site.routed)) as first,
            NftTap(site.router_fd, site.match(other, site.routed)) as second,
        ):
            site.a.run(f"ping -c 3 -i 0.01 {site.routed}")
            one.fire()
            other.fire()
            seen = [
                {int.from_bytes(step.data[24:26], "big") for step in read(tap)}
                for tap in (first, second)
            ]
        assert seen == [{one.ident}, {other.ident}]


@only_ipv4
def test_where_nobody_filters_nothing_is_put_in_the_way(site: Site) -> None:
    with (
        site.prober(site.routed) as prober,
        NftTap(site.router_fd, site.match(prober, site.routed)) as tap,
    ):
        assert site.router.run("nft list tables") == ""
        prober.fire()
        assert tap.read() == []


@only_ipv4
def test_closing_leaves_no_table_and_no_descriptor(site: Site) -> None:
    site.rule("inet", "forward", "accept")
    site.rule("bridge", "forward", "accept")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with site.prober(site.routed) as prober:
        tap = NftTap(site.router_fd, site.match(prober, site.routed))
        tables = site.router.run("nft list tables")
        tap.close()
        tap.close()
    assert tables.count(PREFIX) == 2
    assert PREFIX not in site.router.run("nft list tables")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@only_ipv4
def test_a_killed_process_leaves_no_table(site: Site) -> None:
    site.rule("inet", "forward", "accept")
    program = (
        "from podwire.kernel.observe.nft_trace import NftTap\n"
        "from podwire.model.probe import ProbeMatch\n"
        "ends = dict(source='10.84.1.2', target='10.84.2.2')\n"
        "tap = NftTap(None, ProbeMatch(protocol='icmp', ident=7, **ends))\n"
        "print('open', flush=True)\n"
        "input()\n"
    )
    enter = ["ip", "netns", "exec", site.router.name]
    process = subprocess.Popen(
        [*enter, sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert PREFIX in site.router.run("nft list tables")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert PREFIX not in site.router.run("nft list tables")


@only_ipv4
def test_a_rule_that_was_replaced_is_read_anew(site: Site) -> None:
    site.rule("inet", "forward", "ip ttl 1 drop")
    with site.prober(site.routed) as prober:
        match = site.match(prober, site.routed)
        with NftTap(site.router_fd, match) as tap:
            for text in ("ip daddr 10.84.2.2 accept", "ip saddr 10.84.1.2 accept"):
                site.router.run(f"nft 'flush chain inet t forward; add rule inet t forward {text}'")
                prober.fire()
                assert text in {step.rule for step in read(tap)}
            prober.fire()
            site.router.run("nft 'flush chain inet t forward'")
            gone = [step for step in read(tap) if step.kind == "rule"]
    assert {(step.rule, step.verdict) for step in gone} == {("", "accept")}
    assert all(step.handle for step in gone)


@only_ipv4
@pytest.mark.skipif(shutil.which("iptables-nft") is None, reason="iptables-nft is not installed")
def test_a_rule_of_iptables_nft_is_named_in_nft_s_words(site: Site) -> None:
    site.router.run(
        "iptables-nft -A FORWARD -p icmp -m comment --comment policy -m limit --limit 1/h"
        " -m physdev ! --physdev-is-bridged -j DROP"
    )
    (drop,) = [step for step in site.steps(site.routed) if step.verdict == "drop"]
    assert (drop.family, drop.table, drop.chain) == ("ip", "filter", "FORWARD")
    assert "drop" in drop.rule
    assert "icmp" in drop.rule
    assert "limit" in drop.rule


@only_ipv4
def test_text_is_printed_in_two_threads_at_once(site: Site) -> None:
    """What prints iptables' extensions is shared by all contexts of a process."""
    site.rule("inet", "forward", "meta random & 3 < 1 accept")
    with netns.entered(site.router_fd):
        contexts = [Nft(OUTPUT_HANDLE) for _ in range(2)]
    outputs: list[set[bytes]] = [set(), set()]

    def list_often(number: int) -> None:
        for _ in range(50):
            outputs[number].add(contexts[number].run("list table inet t"))

    threads = [threading.Thread(target=list_often, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for context in contexts:
        context.close()
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 1


@only_ipv4
def test_an_agent_sees_that_the_table_is_not_its_business(site: Site) -> None:
    site.rule("inet", "forward", "accept")
    with netns.entered(site.router_fd):
        watch = NetlinkSocket(NETLINK_NETFILTER, (nft.NFNLGRP_NFTABLES,))
        reconciler = Reconciler()
    with site.prober(site.routed) as prober:
        NftTap(site.router_fd, site.match(prober, site.routed)).close()
    notified = watch.notifications()
    watch.close()
    (table,) = {nft.notified_table(one.type, one.payload) for one in notified} - {None}
    assert table is not None
    assert table[1].startswith(PREFIX)
    assert not reconciler.any_amiss(notified)
    reconciler.close()


def test_a_kernel_without_owned_tables_is_told_apart_from_a_refusal() -> None:
    old = nft_trace.not_installed([Failure(1, 22, ""), Failure(2, 2, "")])
    assert isinstance(old, UnsupportedError)
    assert "Linux 5.12" in str(old)
    refused = nft_trace.not_installed([Failure(0, 1, "")])
    assert isinstance(refused, KernelError)
    assert refused.errno == 1
