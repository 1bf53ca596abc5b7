"""The underlay as it is found in a real namespace: link, both addresses, neighbours."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.underlay import find_underlay
from podwire.model.cluster import Underlay
from tests.conftest import Namespace

pytestmark = pytest.mark.root

LINKS = (
    "ip link add eth0 type veth peer name wire0; ip link add eth1 type veth peer name wire1;"
    "for one in eth0 wire0 eth1 wire1; do ip link set $one up; done;"
    "ip address add 172.18.0.11/16 dev eth0; ip address add 192.0.2.1/24 dev eth1;"
    "ip route add default via 172.18.0.1;"
)
V4, V6 = ip_address("172.18.0.11"), ip_address("fd00:172:18::11")


def find(*candidates: str, iface: str | None = None) -> Underlay:
    with NetlinkSocket() as sock:
        found = find_underlay(sock, tuple(map(ip_address, candidates)), iface)
    assert isinstance(found, Underlay), found
    return found


def test_both_families_of_the_link_and_its_neighbours(inside: Namespace) -> None:
    inside.run(LINKS + "ip address add fd00:172:18::11/64 dev eth0 nodad")
    inside.run("ip route add 10.9.0.0/16 via 172.18.0.1; ip route add 10.8.0.0/24 dev eth0")
    found = find("172.18.0.11")
    assert found == find("172.18.0.11", "fd00:172:18::11") == find() == find(iface="eth0")
    # Known by both, whichever comes first.
    assert found == find("fd00:172:18::11", "172.18.0.11")
    assert (found.dev, found.mtu, found.ip, found.ip6) == ("eth0", 1500, V4, V6)
    assert found.on_link == (
        ip_network("10.8.0.0/24"),
        ip_network("172.18.0.0/16"),
        ip_network("fd00:172:18::/64"),
    )
    assert found.is_neighbor(ip_address("172.18.7.7"))
    assert not found.is_neighbor(ip_address("192.0.2.7"))
    assert find(iface="192.0.2.1").dev == "eth1"


def test_a_node_known_by_ipv6_alone_is_reached_by_that(inside: Namespace) -> None:
    inside.run(LINKS + "ip address add fd00:172:18::11/64 dev eth0 nodad")
    found = find("fd00:172:18::11")
    assert (found.ip, found.ip6) == (V6, None)


@pytest.mark.parametrize(
    "fleeting",
    [
        "fd00:172:18::99/64 dev eth0 nodad preferred_lft 0",
        "fd00:172:18::99/64 dev eth0",
        "fe80::99/64 dev eth0 nodad",
    ],
)
def test_addresses_that_are_not_to_last_are_no_underlay(inside: Namespace, fleeting: str) -> None:
    # Duplicates are looked for as long as the test takes: the address is tentative.
    inside.run(LINKS + "sysctl -qw net.ipv6.conf.eth0.dad_transmits=100")
    inside.run(f"ip address add {fleeting}")
    assert find("172.18.0.11").ip6 is None


def test_which_of_several_does_not_depend_on_their_order(inside: Namespace) -> None:
    inside.run(LINKS)
    for last in ("12", "11", "13"):
        inside.run(f"ip address add fd00:172:18::{last}/64 dev eth0 nodad")
    assert find("172.18.0.11").ip6 == V6
    assert find("172.18.0.11", "fd00:172:18::13").ip6 == ip_address("fd00:172:18::13")


def test_why_there_is_none(inside: Namespace) -> None:
    with NetlinkSocket() as sock:
        assert "no link is named eth7" in str(find_underlay(sock, (), "eth7"))
        assert "link lo has no address" in str(find_underlay(sock, (), "lo"))
        assert "no default route" in str(find_underlay(sock, (V4,)))
