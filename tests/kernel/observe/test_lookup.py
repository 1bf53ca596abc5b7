"""The kernel's answers about one packet, and entries found by what a person knows, for real."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe import entries, lookup
from podwire.kernel.observe.interfaces import find_interface, read_interfaces
from podwire.kernel.observe.lookup_messages import (
    NUD_FAILED,
    NUD_INCOMPLETE,
    RTN_BLACKHOLE,
    RTN_LOCAL,
    RTN_PROHIBIT,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RouteAnswer,
    RouteQuestion,
)
from podwire.kernel.observe.rule_listing import ListedRule, list_rules, parse_ruleset
from tests.conftest import Namespace

MAC = bytes.fromhex("020000000002")
LINES = """
ip link add br0 address 02:00:00:00:00:0b type bridge
ip link add port1 type veth peer name pod1
ip link set port1 master br0 up; ip link set pod1 up; ip link set br0 up
ip address add 10.1.0.1/24 dev br0; ip address add fd01::1/64 dev br0 nodad
ip link add eth0 type veth peer name wire; ip link set wire up; ip link set eth0 up mtu 1400
ip address add 10.0.0.1/24 dev eth0; ip address add fd00::1/64 dev eth0 nodad
ip link add vx0 type vxlan id 3 local 10.0.0.1 dev eth0 dstport 8472 nolearning
ip link set vx0 up
ip route add 10.2.0.0/24 via 10.2.0.0 dev vx0 onlink proto 112
ip route add fd02::/64 via fd02:: dev vx0 onlink proto 112
ip route add blackhole 10.3.0.0/24; ip route add blackhole fd03::/64
ip route add unreachable 10.4.0.0/24; ip route add unreachable fd04::/64
ip route add prohibit 10.5.0.0/24; ip route add prohibit fd05::/64
ip route add 10.6.0.0/24 via 10.0.0.9 dev eth0 mtu 1300
ip route add 10.7.0.0/24 nexthop via 10.0.0.8 dev eth0 nexthop via 10.0.0.9 dev eth0
ip neigh add 10.2.0.0 lladdr 02:00:00:00:00:02 dev vx0 nud permanent
ip neigh add fd02:: lladdr 02:00:00:00:00:02 dev vx0 nud permanent
bridge fdb add 02:00:00:00:00:02 dev vx0 dst 10.0.0.2
bridge fdb add 02:00:00:00:00:22 dev port1 master static
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
"""


@pytest.fixture
def sock(inside: Namespace) -> Iterator[NetlinkSocket]:
    inside.run("set -e; " + LINES.strip())
    with NetlinkSocket() as one:
        yield one


def index(sock: NetlinkSocket, name: str) -> int:
    found = find_interface(sock, name)
    assert found is not None
    return found.index


def ask(sock: NetlinkSocket, dst: str, src: str = "", iif: str = "") -> RouteAnswer:
    question = RouteQuestion(
        dst=ip_address(dst).packed,
        src=ip_address(src).packed if src else b"",
        iif=index(sock, iif) if iif else 0,
        protocol=58 if ":" in dst else 1,
    )
    return lookup.route(sock, question)


@pytest.mark.root
@pytest.mark.parametrize(
    ("dst", "src", "prefix", "via"),
    [
        ("10.2.0.7", "10.1.0.9", "10.2.0.0/24", "10.2.0.0"),
        ("fd02::7", "fd01::9", "fd02::/64", "fd02::"),
    ],
)
def test_a_route_is_what_becomes_of_it_and_the_entry_that_says_so(
    sock: NetlinkSocket, dst: str, src: str, prefix: str, via: str
) -> None:
    for answer in (ask(sock, dst, src, "br0"), ask(sock, dst)):
        assert (answer.errno, answer.kind) == (0, RTN_UNICAST)
        assert (answer.ifindex, answer.via) == (index(sock, "vx0"), ip_address(via).packed)
        assert answer.match is not None
        assert (answer.match.dst, answer.match.protocol) == (ip_network(prefix), 112)
        assert answer.match.onlink


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [
        (RTN_BLACKHOLE, 3, errno.EINVAL),
        (RTN_UNREACHABLE, 4, errno.EHOSTUNREACH),
        (RTN_PROHIBIT, 5, errno.EACCES),
    ],
)
def test_a_refusal_is_an_answer_and_its_entry_can_be_found(
    sock: NetlinkSocket, kind: int, number: int, code: int
) -> None:
    for dst, src in ((f"10.{number}.0.7", "10.1.0.9"), (f"fd0{number}::7", "fd01::9")):
        for answer in (ask(sock, dst, src, "br0"), ask(sock, dst)):
            assert (answer.errno, answer.match) == (code, None)
        entry = lookup.refusing_entry(sock, ip_address(dst).packed)
        assert entry is not None
        assert (entry.kind, ip_address(dst) in entry.dst) == (kind, True)
    assert lookup.refusing_entry(sock, ip_address("10.2.0.7").packed) is None


@pytest.mark.root
def test_local_and_no_way_at_all(sock: NetlinkSocket) -> None:
    for dst in ("10.1.0.1", "fd01::1"):
        assert ask(sock, dst).kind == RTN_LOCAL
    for dst in ("192.0.2.1", "fd99::1"):
        assert ask(sock, dst).errno == errno.ENETUNREACH
        assert ask(sock, dst).match is None


@pytest.mark.root
def test_a_routes_own_mtu_and_several_next_hops(sock: NetlinkSocket) -> None:
    small = ask(sock, "10.6.0.7")
    assert small.match is not None
    assert (small.mtu, small.match.mtu) == (1300, 1300)
    (several,) = entries.routes_of(sock, ip_network("10.7.0.0/24"))
    assert [ip_address(via).exploded for _, via in several.hops] == ["10.0.0.8", "10.0.0.9"]
    assert several.via == several.hops[0][1]


@pytest.mark.root
def test_forwarding_and_the_reverse_path(sock: NetlinkSocket, inside: Namespace) -> None:
    inside.run("sysctl -qw net.ipv4.conf.br0.rp_filter=1")
    assert ask(sock, "10.2.0.7", "10.0.0.77", "br0").errno in (errno.EXDEV, errno.EINVAL)
    found = lookup.settings(sock, 4, index(sock, "br0"))
    assert found is not None
    assert (found.forwarding, found.rp_filter) == (True, 1)
    inside.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    assert ask(sock, "10.2.0.7", "10.1.0.9", "br0").errno == errno.EHOSTUNREACH
    for version in (4, 6):
        assert not lookup.general_settings(sock, version).forwarding
    assert lookup.settings(sock, 4, 999) is None


@pytest.mark.root
def test_a_sysctl_is_read_where_the_socket_is(sock: NetlinkSocket, inside: Namespace) -> None:
    inside.run("sysctl -qw net.ipv4.conf.br0.rp_filter=2")
    assert lookup.sysctl_value(sock, "net/ipv4/conf/br0/rp_filter") == "2"
    assert lookup.sysctl_value(sock, "net/ipv4/conf/nowhere/rp_filter") is None


@pytest.mark.root
def test_neighbours_by_their_state(sock: NetlinkSocket, inside: Namespace) -> None:
    tunnel = index(sock, "vx0")
    for ip in ("10.2.0.0", "fd02::"):
        found = lookup.neighbor(sock, tunnel, ip_address(ip).packed)
        assert found is not None
        assert (found.mac, found.state_name, found.usable) == (MAC, "PERMANENT", True)
    assert lookup.neighbor(sock, tunnel, ip_address("10.2.0.1").packed) is None
    inside.run("ping -c 1 -W 1 10.0.0.99", check=False)
    asked = lookup.neighbor(sock, index(sock, "eth0"), ip_address("10.0.0.99").packed)
    assert asked is not None
    assert asked.state & (NUD_INCOMPLETE | NUD_FAILED)
    assert not asked.usable


@pytest.mark.root
def test_the_tunnels_end_and_its_default_one(sock: NetlinkSocket, inside: Namespace) -> None:
    tunnel, other = index(sock, "vx0"), bytes.fromhex("020000000003")
    assert lookup.tunnel_end(sock, tunnel, MAC) == ip_address("10.0.0.2").packed
    assert lookup.tunnel_end(sock, tunnel, other) is None
    inside.run("bridge fdb append 00:00:00:00:00:00 dev vx0 dst 10.0.0.9")
    assert lookup.tunnel_end(sock, tunnel, other) == ip_address("10.0.0.9").packed
    assert lookup.tunnel_end(sock, tunnel, MAC) == ip_address("10.0.0.2").packed


@pytest.mark.root
def test_a_bridge_has_a_mac_at_a_port_itself_or_not_at_all(sock: NetlinkSocket) -> None:
    bridge, port = index(sock, "br0"), find_interface(sock, "port1")
    assert port is not None
    assert lookup.bridge_port(sock, bridge, bytes.fromhex("02000000000b")) == bridge
    assert lookup.bridge_port(sock, bridge, port.mac) == bridge
    assert lookup.bridge_port(sock, bridge, bytes.fromhex("020000000022")) == port.index
    assert lookup.bridge_port(sock, bridge, bytes.fromhex("020000000077")) is None


@pytest.mark.root
def test_interfaces_tell_pairs_ports_tunnels_and_state(
    sock: NetlinkSocket, inside: Namespace
) -> None:
    inside.run("bridge link set dev port1 state 0; ip link set wire down")
    by_name = {one.name: one for one in read_interfaces(sock)}
    port, pod = by_name["port1"], by_name["pod1"]
    assert (port.kind, port.link, pod.link) == ("veth", pod.index, port.index)
    assert (port.master, port.forwarding) == (by_name["br0"].index, False)
    tunnel = by_name["vx0"].vxlan
    assert tunnel is not None
    assert (tunnel.vni, tunnel.port, tunnel.underlay) == (3, 8472, by_name["eth0"].index)
    assert by_name["eth0"].addresses[:2] == ("10.0.0.1/24", "fd00::1/64")
    assert (by_name["eth0"].up, by_name["eth0"].carrier, by_name["wire"].up) == (True, False, False)
    assert by_name["lo"].kind == "loopback"
    assert find_interface(sock, "nowhere") is None
    assert find_interface(sock, 0) is None
    assert find_interface(sock, 999) is None


@pytest.mark.root
def test_entries_are_found_by_what_a_person_knows(sock: NetlinkSocket, inside: Namespace) -> None:
    inside.run(
        "ip route add 10.2.0.0/24 dev br0 table 7; ip route add 10.2.0.0/24 dev br0 metric 5"
    )
    assert [
        (one.table, one.metric) for one in entries.routes_of(sock, ip_network("10.2.0.0/24"))
    ] == [
        (254, 0),
        (254, 5),
        (7, 0),
    ]
    (local,) = entries.routes_of(sock, ip_network("10.1.0.1/32"))
    assert local.kind == RTN_LOCAL
    assert entries.routes_of(sock, ip_network("10.2.0.0/25")) == []
    (by_ip,) = entries.neighbors_of(sock, ip_address("10.2.0.0"))
    assert by_ip.mac == MAC
    assert len(entries.neighbors_of(sock, MAC)) == 2
    (fdb,) = entries.fdb_of(sock, MAC)
    assert (fdb.ifindex, fdb.dst) == (index(sock, "vx0"), ip_address("10.0.0.2").packed)
    assert entries.fdb_of(sock, ip_address("10.0.0.2")) == [fdb]
    assert entries.addresses(sock)[ip_address("fd01::1")] == index(sock, "br0")


RULESET = """table inet one { # handle 1
	set some { # handle 4
		type ipv4_addr
		elements = { 10.0.0.0/8 }
	}

	chain first { # handle 2
		type filter hook forward priority filter; policy accept;
		ip saddr @some drop # handle 5
		tcp dport { 22,
				23 } accept # handle 6
	}

	chain second { # handle 3
	}
}
table bridge two { # handle 9
	chain first { # handle 1
		drop # handle 2
	}
}
"""


def test_a_listing_becomes_rules() -> None:
    hook = "type filter hook forward priority filter; policy accept;"
    assert parse_ruleset(RULESET) == [
        ListedRule("inet", "one", "first", 5, "ip saddr @some drop", hook),
        ListedRule("inet", "one", "first", 6, "tcp dport { 22, 23 } accept", hook),
        ListedRule("bridge", "two", "first", 2, "drop", ""),
    ]
    assert parse_ruleset("") == []


@pytest.mark.root
def test_rules_of_this_namespace_are_listed(inside: Namespace) -> None:
    inside.run(
        "nft add table ip t; nft add chain ip t c '{ type filter hook input priority 0; }';"
        " nft add rule ip t c tcp dport 22 counter drop"
    )
    (only,) = list_rules()
    assert (only.family, only.table, only.chain) == ("ip", "t", "c")
    assert only.text == "tcp dport 22 counter drop"
    assert only.hook.startswith("type filter hook input")
