"""What a ruleset does to a packet: read from the rules, and tried with a real packet."""

from __future__ import annotations

import socket
import subprocess
from ipaddress import ip_address
from typing import Literal

import pytest

from podwire.kernel.matching import Flow
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from podwire.kernel.observe import nft_messages
from podwire.kernel.observe.nft_trace import NftTap
from podwire.kernel.ruleset import list_chains, read_ruleset
from podwire.kernel.ruling import Ruling, rulings
from podwire.kernel.xtables import legacy_chains
from podwire.model.probe import ProbeMatch

from ..conftest import Namespace

pytestmark = pytest.mark.root

PORT, FROM = 8472, 4000
HOOKS = ("prerouting", "input")
HOME = {4: "127.0.0.1", 6: "::1"}


def flow(version: Literal[4, 6]) -> Flow:
    return Flow(
        version=version,
        iifname="lo",
        source=ip_address(HOME[version]),
        target=ip_address(HOME[version]),
        protocol="udp",
        sport=FROM,
        dport=PORT,
        target_type="local",
    )


TABLE = """table inet fw {{
  set ports {{ type inet_service; elements = {{ 53, 8472 }}; }}
  set nets {{ type ipv4_addr; flags interval; elements = {{ 10.0.0.0/8, 127.0.0.0-127.0.0.9 }}; }}
  map verdicts {{ type inet_service : verdict; elements = {{ 8472 : drop, 53 : accept }}; }}
  chain other {{
    {other}
  }}
  chain input {{
    type filter hook input priority 0; policy {policy};
    {rules}
  }}
}}
"""

NFT = [
    "udp dport 8472 drop",
    "udp dport 8473 drop",
    "udp dport @ports drop",
    "udp dport != @ports drop",
    "udp dport { 1-3, 8000-9000 } drop",
    "udp dport 8000-9000 reject",
    "udp dport < 8472 drop",
    "udp dport >= 8472 drop",
    "udp sport 4000 udp dport 8472 counter drop",
    "tcp dport 8472 drop",
    "meta l4proto { tcp, udp } th dport 8472 drop",
    "meta l4proto tcp drop",
    "ip protocol udp drop",
    "ip6 nexthdr udp drop",
    "ip saddr @nets drop",
    "ip saddr 127.0.0.0/8 drop",
    "ip saddr != 127.0.0.0/8 drop",
    "ip saddr { 10.0.0.0/8, 127.0.0.1 } drop",
    "ip daddr 127.0.0.2-127.0.0.5 drop",
    "iifname lo drop",
    "iif lo drop",
    'iifname "l*" drop',
    'iifname { "eth0", "lo" } drop',
    'iifname != "lo" drop',
    "ct state new drop",
    "ct state established,related drop",
    "ct state vmap { established : accept, new : drop }",
    "ct status dnat drop",
    "meta mark 0x1 drop",
    "meta mark & 0xff == 0x1 drop",
    "meta mark != 0x1 drop",
    "meta nfproto ipv4 drop",
    "fib daddr type local drop",
    "fib daddr type != local drop",
    "fib saddr . iif oif missing drop",
    "fib saddr . iif oif exists accept; drop",
    "fib saddr . mark . iif oif 0 drop",
    "icmp type echo-request accept; drop",
    "icmpv6 type != echo-request drop",
    "meta l4proto { icmp, ipv6-icmp } accept; drop",
    "udp sport . udp dport { 4000 . 8472 } drop",
    "udp sport . udp dport { 4001 . 8472 } drop",
    "udp dport vmap @verdicts",
    "udp dport vmap { 53 : drop }",
    "accept; drop",
    "udp dport 53 accept; drop",
    "return; drop",
    "jump other; accept",
    "goto other",
    "udp dport 53 jump other; accept",
    "jump other; drop",
]
OTHERS = ["drop", "accept", "return; drop", "udp dport 53 drop"]

IPTABLES = [
    "-A INPUT -p udp --dport 8472 -j DROP",
    "-A INPUT -p udp --dport 1:53 -j DROP",
    "-A INPUT -p udp ! --dport 53 -j REJECT",
    "-A INPUT -p tcp --dport 8472 -j DROP",
    "-A INPUT -p udp -m multiport --dports 53,8000:9000 -j DROP",
    "-A INPUT -p udp -m multiport ! --dports 53,8000:9000 -j DROP",
    "-A INPUT -p udp -m multiport --sports 4000 -j DROP",
    "-A INPUT -s 127.0.0.0/8 -j DROP",
    "-A INPUT ! -s 127.0.0.0/8 -j DROP",
    "-A INPUT -i lo -j DROP",
    "-A INPUT -i l+ -j DROP",
    "-A INPUT ! -i lo -j DROP",
    "-A INPUT -i eth+ -j DROP",
    "-A INPUT -m conntrack --ctstate NEW -j DROP",
    "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j DROP",
    "-A INPUT -m comment --comment because -j DROP",
    "-A INPUT -m mark --mark 0x4000/0x4000 -j DROP",
    "-A INPUT -m mark ! --mark 0x4000/0x4000 -j DROP",
    "-P INPUT DROP",
    "-P INPUT DROP; -A INPUT -p udp --dport 8472 -j ACCEPT",
    "-N ZONE; -A INPUT -j ZONE; -A ZONE -p udp -j DROP",
    "-N ZONE; -A INPUT -j ZONE; -A ZONE -p udp -j RETURN; -A ZONE -j DROP",
    "-N ZONE; -A INPUT -g ZONE; -A INPUT -j DROP",
    "-N ZONE; -A INPUT -p tcp -j ZONE; -A ZONE -j DROP",
    "-t raw -A PREROUTING -p udp -j DROP",
    "-t mangle -A PREROUTING -p udp --dport 53 -j DROP",
]


def passes(version: int) -> bool:
    """Whether a datagram arrives."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with (
        socket.socket(family, socket.SOCK_DGRAM) as receiver,
        socket.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((HOME[version], PORT))
        receiver.setblocking(False)
        sender.bind((HOME[version], FROM))
        sender.sendto(b"x", (HOME[version], PORT))
        try:
            return receiver.recv(10) == b"x"  # On lo, it has arrived when sendto is over.
        except BlockingIOError:
            return False


def found(version: Literal[4, 6] = 4) -> list[Ruling]:
    return rulings(read_ruleset(HOOKS), HOOKS, flow(version))


def check(rules: str, version: Literal[4, 6] = 4) -> None:
    drops = found(version)
    assert all(one.unless is None for one in drops), rules
    assert (not drops) == passes(version), rules


def test_rules_of_nft_do_what_the_kernel_does(inside: Namespace) -> None:
    for rules in NFT:
        for policy in ("accept", "drop"):
            for other in OTHERS if "other" in rules else OTHERS[:1]:
                text = TABLE.format(
                    rules=rules.replace("; ", "\n    "),
                    other=other.replace("; ", "\n    "),
                    policy=policy,
                )
                inside.run(f"nft -f - <<'END'\nflush ruleset\n{text}END")
                check(text)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_rules_of_iptables_do_what_the_kernel_does(
    inside: Namespace, variant: str, version: Literal[4, 6]
) -> None:
    program = f"iptables-{variant}" if version == 4 else f"ip6tables-{variant}"
    for line in IPTABLES:
        rules = line if version == 4 else line.replace("127.0.0.0/8", "::/120")
        inside.run("; ".join(f"{program} {rule}" for rule in rules.split("; ")))
        check(rules, version)
        undo = [f"{program} -P INPUT ACCEPT"]
        undo += [f"{program} -t {table} -F" for table in ("filter", "raw", "mangle")]
        inside.run("; ".join([*undo, f"{program} -X"]))


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_rule_about_fragments_is_not_about_whole_packets(inside: Namespace, variant: str) -> None:
    inside.run(f"iptables-{variant} -A INPUT -f -j DROP")
    check("-f")
    inside.run(f"iptables-{variant} -F; iptables-{variant} -A INPUT ! -f -j DROP")
    check("! -f")


def test_rules_that_change_while_they_are_read(inside: Namespace) -> None:
    """What is read is one of the states that there were."""
    inside.run("iptables-legacy -P INPUT ACCEPT")
    changing = "while :; do iptables-legacy -A INPUT -j DROP; iptables-legacy -F INPUT; done"
    with subprocess.Popen(["sh", "-c", changing]) as busy:
        try:
            changes, before = 0, 0
            while changes < 20:
                (rules,) = (len(one.rules) for one in legacy_chains(4) if one.name == "INPUT")
                assert rules in (0, 1)
                changes, before = changes + (rules != before), rules
        finally:
            busy.kill()


def test_what_cannot_be_told_is_named(inside: Namespace) -> None:
    inside.run("iptables -P INPUT DROP; iptables -A INPUT -m physdev --physdev-in a -j ACCEPT")
    (ruling,) = found()
    assert ruling.rule is None
    assert ruling.unless is not None
    assert "physdev" in ruling.unless.text
    assert str(ruling.chain) == "iptables INPUT"


def test_a_drop_that_cannot_be_told_is_none(inside: Namespace) -> None:
    inside.run("iptables -A INPUT -m physdev --physdev-in a -j DROP")
    assert found() == []


def test_chains_of_netdev_see_their_own_device(inside: Namespace) -> None:
    inside.run("ip link add wire0 type veth peer name wire1; nft add table netdev fw")
    for name, devices in (("other", "device wire0"), ("here", "devices = { wire0, lo }")):
        hook = f"type filter hook ingress {devices} priority 0 ; policy drop ;"
        inside.run(f"nft 'add chain netdev fw {name} {{ {hook} }}'")
    hooks = ("ingress",)
    (ruling,) = rulings(read_ruleset(hooks), hooks, flow(4))
    assert ruling.chain.name == "here"


def test_chains_of_one_name_in_nft_and_legacy_are_two(inside: Namespace) -> None:
    inside.run("iptables-nft -P INPUT DROP; iptables-legacy -P INPUT DROP")
    assert [str(one.chain) for one in found()] == ["iptables INPUT", "iptables-legacy INPUT"]


def test_tables_of_iptables_are_not_made_by_looking(inside: Namespace) -> None:
    list_chains()
    assert inside.run("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names") == ""


def test_our_own_table_is_none_of_others(inside: Namespace) -> None:
    inside.run("nft 'table inet podwire { chain c { type filter hook input priority 0; drop; }; }'")
    assert list_chains() == []
    assert found() == []


def test_the_table_of_a_trace_is_none_of_others(inside: Namespace) -> None:
    inside.run("nft add table inet fw")
    match = ProbeMatch(protocol="icmp", source="192.0.2.1", target="192.0.2.2", ident=1)
    with NftTap(None, match):
        assert "podwire_trace_" in inside.run("nft list tables")
        assert list_chains() == []


def test_a_table_that_nft_has_no_words_for_is_left_out(inside: Namespace) -> None:
    inside.run("nft 'table inet fw { chain c { type filter hook input priority 0; drop; }; }'")
    name = "fw\nadd table inet made\nlist table inet fw"
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        table = nft_messages.new_table(nft_messages.INET, name)
        chain = nft_messages.new_chain(nft_messages.INET, name, "c", hook=1)
        assert sock.request(nft_messages.batch([table, chain])) == []
        assert [str(one.chain) for one in found()] == ["inet fw c"]
    assert inside.run("nft list tables") == "table inet fw\n"


def test_rules_are_told_in_their_own_words(inside: Namespace) -> None:
    inside.run("iptables -A INPUT -p udp -m multiport --dports 8472,53 -j DROP")
    (ruling,) = found()
    assert ruling.rule is not None
    assert ruling.rule.text == "meta l4proto udp udp dport { 8472, 53 } drop"
