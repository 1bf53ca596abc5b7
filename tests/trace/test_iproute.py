"""Commands with names of interfaces in them, which are pasted by people."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from podwire.kernel.observe.lookup_messages import RTN_UNICAST, FibEntry
from podwire.trace import iproute
from podwire.trace.decisions import mend

EVIL = "x;reboot"


def test_any_interfaces_name_is_one_word_of_a_command() -> None:
    ip, mac = ip_address("10.244.1.2"), bytes(6)
    entry = FibEntry(
        dst=ip_network("10.244.1.0/24"),
        kind=RTN_UNICAST,
        protocol=4,
        table=254,
        metric=0,
        scope=0,
        ifindex=1,
        via=b"",
        src=b"",
        onlink=False,
        mtu=0,
    )
    commands = (
        iproute.route_command(ip, iif=EVIL),
        iproute.neighbor_command(ip, EVIL),
        iproute.tunnel_fdb_command(mac, EVIL),
        iproute.bridge_fdb_command(mac, EVIL),
        iproute.link_command(EVIL),
        mend.removal_line(entry, EVIL),
    )
    for command in commands:
        assert f"'{EVIL}'" in command
    key = f"net/ipv4/conf/{EVIL}/rp_filter"
    assert mend.sysctl_line(key, "0") == f"sysctl -w '{key}'=0"


def test_usual_names_are_as_they_are() -> None:
    assert iproute.link_command("flannel.1") == "ip -d link show flannel.1"
    assert iproute.link_command("eth0@if3") == "ip -d link show eth0@if3"
