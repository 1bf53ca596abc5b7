"""Who has which addresses, against asking every lease."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.errors import InputError
from podwire.model.tunnel import TunnelPeer
from podwire.tunnel.table import Peer, Table


def peer(name: str, *subnets: str, address: str = "192.0.2.1", port: int = 8285) -> Peer:
    return Peer(TunnelPeer(name=name, subnets=subnets, address=address, port=port))


networks = st.builds(
    lambda number, length: ip_network((number >> 32 - length << 32 - length, length)),
    st.integers(0, 255).map(lambda byte: 10 << 24 | byte << 10),
    st.integers(8, 32),
)


@given(st.lists(networks, max_size=12), st.lists(st.integers(0, 1 << 18), max_size=20))
@settings(max_examples=100)
def test_the_longest_prefix_wins(leases: list[object], hosts: list[int]) -> None:
    table = Table()
    for number, net in enumerate(leases):
        table.set_peer(peer(f"n{number}", str(net)))
    for host in hosts:
        address = IPv4Address((10 << 24) + host)
        holders = [
            (net.prefixlen, number)  # type: ignore[attr-defined]
            for number, net in enumerate(leases)
            if address in net  # type: ignore[operator]
        ]
        found = table.route(address.packed)
        assert (found.name if found else None) == (f"n{max(holders)[1]}" if holders else None)


def test_changes_are_seen_at_once() -> None:
    table = Table()
    pod = ip_address("10.244.1.5").packed
    assert table.route(pod) is None
    table.set_peer(peer("a", "10.244.1.0/24", "fd00:1::/64"))
    first = table.route(pod)
    assert first is not None and first.name == "a"
    assert table.route(ip_address("fd00:1::5").packed) is first
    first.sent_packets = 7
    table.set_peer(peer("a", "10.244.2.0/24", address="192.0.2.9"))
    assert table.route(pod) is None
    moved = table.route(ip_address("10.244.2.5").packed)
    assert moved is not None and moved.sent_packets == 7
    assert list(table.by_source.values()) == [moved]
    table.replace([peer("b", "10.244.1.0/24")])
    assert table.peers.keys() == {"b"} and table.route(ip_address("10.244.2.5").packed) is None
    table.remove_peer("b")
    table.remove_peer("b")
    assert table.route(pod) is None and not table.by_source


def test_a_node_may_have_two_leases_for_as_long_as_the_old_one_lives() -> None:
    table = Table()
    old, new = (ip_address(f"10.244.{number}.5").packed for number in (1, 2))
    for name in ("first", "second"):
        table.set_peer(peer("before", "10.244.1.0/24"))
        table.set_peer(peer("now", "10.244.2.0/24"))
        (source,) = table.by_source.values()
        assert source.owns(old) and source.owns(new)
        assert not source.owns(ip_address("10.244.3.5").packed)
        table.remove_peer("before" if name == "first" else "now")
        (source,) = table.by_source.values()
        assert (source.owns(old), source.owns(new)) == (name != "first", name == "first")


def test_of_two_that_claim_the_same_the_newer_has_it_until_it_is_gone() -> None:
    table = Table()
    pod = ip_address("10.244.1.5").packed
    table.set_peer(peer("old", "10.244.1.0/24"))
    table.set_peer(peer("new", "10.244.1.0/24", address="192.0.2.2"))
    found = table.route(pod)
    assert found is not None and found.name == "new"
    table.remove_peer("new")
    found = table.route(pod)
    assert found is not None and found.name == "old"


def test_own_subnets_and_owned_sources() -> None:
    table = Table()
    table.set_own((ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")))
    inside = [ip_address(text).packed for text in ("10.244.1.9", "fd00:1::9")]
    outside = [ip_address(text).packed for text in ("10.244.2.9", "fd00:2::9")]
    one = peer("a", "10.244.1.0/24", "fd00:1::/64")
    for _ in range(2):
        assert all(table.is_local(address) and one.owns(address) for address in inside)
        assert not any(table.is_local(address) or one.owns(address) for address in outside)


@pytest.mark.parametrize(
    ("address", "text"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::ffff:172.18.0.12", "::ffff:172.18.0.12")],
)
def test_a_peer_is_told_by_its_address_and_port(address: str, text: str) -> None:
    one = peer("a", address=address, port=8285)
    assert one.place == (text, 8285)
    assert one.place != peer("a", address=address, port=8286).place


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "node1"),
        ("address", "10.0.0.0/24"),
        ("subnets", ("10.244.1.7/24",)),
        ("subnets", ("x",)),
    ],
)
def test_a_wrong_peer_is_refused_by_name(field: str, value: object) -> None:
    fields = {"name": "node1", "subnets": (), "address": "192.0.2.1", field: value}
    with pytest.raises(InputError, match=f"peer node1: {field}"):
        Peer(TunnelPeer(**fields))  # type: ignore[arg-type]
