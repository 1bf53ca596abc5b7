"""Two nodes that claim one thing: who holds it, and that the order of events does not matter."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from podwire.model.cluster import ClusterView, Lease, NetworkConfig, Node, Underlay
from podwire.plan.claims import Claims
from podwire.plan.node import cause_of_node, objections, plan, plan_peer

CONFIG = NetworkConfig(
    node="node1",
    network=(ip_network("10.244.0.0/16"),),
    lease=Lease(
        (ip_network("10.244.1.0/24"),), "vxlan", ip_address("172.18.0.11"), 1, b"\x02\0\0\0\0\1"
    ),
    underlay=Underlay("eth0", ip_address("172.18.0.11"), 1500),
    mtu=1450,
)


def node(name: str, subnet: int, mac: int, created: str = "", vni: int = 1) -> Node:
    lease = Lease(
        # An even one with 100 added has the next one in it as well.
        subnets=(ip_network(f"10.244.{subnet % 100}.0/{24 - subnet // 100}"),),
        backend="vxlan",
        public_ip=ip_address("172.18.0.12") + int(name[-1]),
        vni=vni,
        vtep_mac=b"\x02\0\0\0\0" + bytes([mac]),
    )
    return Node(name, lease=lease, created=created)


OLD = node("node9", 7, 9, "2026-01-01T00:00:00Z")
NEW = node("node2", 7, 2, "2026-01-02T00:00:00Z")


def test_the_older_node_holds_a_subnet_and_the_other_is_left_out_with_the_reason() -> None:
    claims = Claims([NEW, OLD])
    assert claims.disputes(OLD, CONFIG.network) == []
    assert objections(CONFIG, NEW, claims) == [
        "node node2 leases 10.244.7.0/24, as the older node node9 does"
    ]
    assert plan_peer(CONFIG, OLD, claims)
    assert plan_peer(CONFIG, NEW, claims) == ()


def test_of_one_age_the_first_by_name_holds() -> None:
    claims = Claims([node("node3", 7, 3), node("node2", 8, 3)])
    assert claims.disputes(node("node2", 8, 3), CONFIG.network) == []
    (sentence,) = claims.disputes(node("node3", 7, 3), CONFIG.network)
    assert sentence == "node node3 has VTEP MAC 02:00:00:00:00:03, as the older node node2 does"


def test_a_mac_of_another_vni_is_another_mac() -> None:
    claims = Claims([node("node2", 2, 3, vni=5), node("node3", 3, 3)])
    assert claims.disputes(node("node3", 3, 3), CONFIG.network) == []


def with_subnets(name: str, created: str, *subnets: str) -> Node:
    lease = node(name, 1, int(name[-1])).lease
    assert lease is not None
    networks = tuple(map(ip_network, subnets))
    return Node(name, lease=msgspec.structs.replace(lease, subnets=networks), created=created)


def test_a_part_of_anothers_subnet_is_held_by_the_older_node() -> None:
    """In an etcd anybody may write what would take a part of a node's traffic, or all of many's."""
    wide = with_subnets("node3", "2", "10.244.6.0/23")
    for other, loser in (
        (with_subnets("node4", "1", "10.244.7.0/24"), wide),
        (with_subnets("node4", "3", "10.244.7.0/24"), None),
    ):
        claims = Claims([wide, other])
        loser = loser or other
        winner = wide if loser is other else other
        assert claims.disputes(winner, CONFIG.network) == []
        (sentence,) = claims.disputes(loser, CONFIG.network)
        assert "overlaps" in sentence
        assert sentence.endswith(f"of the older node {winner.name}")
        assert claims.replace(other, None) == {"node3"}
        assert claims.disputes(wide, CONFIG.network) == []


def test_what_is_outside_of_the_network_is_nobodys_to_hold() -> None:
    """One wrong key must not have everybody left out who comes later."""
    everything = with_subnets("node3", "1", "0.0.0.0/0")
    later = with_subnets("node4", "2", "10.244.7.0/24")
    claims = Claims([everything, later])
    assert objections(CONFIG, later, claims) == []
    assert objections(CONFIG, everything, claims)


def test_a_single_address_is_lent_by_blocks_and_nobodys_subnet_else() -> None:
    block = with_subnets("node3", "1", "10.244.7.0/26")
    lent = with_subnets("node4", "2", "10.244.7.64/26", "10.244.7.5/32")
    claims = Claims([block, lent])
    assert claims.disputes(lent, CONFIG.network) == []
    (sentence,) = objections(CONFIG, lent, claims)
    assert sentence == "node node4 leases 10.244.7.5/32, a single address and no subnet"


def test_what_is_this_nodes_own_is_nobody_elses() -> None:
    for peer in (node("node2", 1, 2), node("node2", 2, 1)):
        (sentence,) = objections(CONFIG, peer)
        assert "this node's own" in sentence
        assert plan_peer(CONFIG, peer) == ()


def test_a_peer_that_no_tunnel_reaches_is_left_out_with_the_reason() -> None:
    good = node("node2", 2, 2)
    assert objections(CONFIG, good) == []
    assert good.lease is not None
    for change, says in (
        ({"vni": 2}, "is in VNI 2, this node in 1"),
        ({"backend": "host-gw"}, "has backend host-gw, this node vxlan"),
        ({"public_ip": ip_address("fd00::2")}, "no family in common"),
    ):
        other = msgspec.structs.replace(good, lease=msgspec.structs.replace(good.lease, **change))
        (sentence,) = objections(CONFIG, other)
        assert says in sentence
        assert plan_peer(CONFIG, other) == ()


CHANGES = st.tuples(
    st.sampled_from(["node2", "node3", "node4", "node5"]),
    st.none()
    | st.tuples(
        st.sampled_from([2, 3, 4, 102, 104]), st.integers(2, 4), st.sampled_from(["", "a", "b"])
    ),
)


@given(st.lists(CHANGES, max_size=30))
def test_changes_one_by_one_end_in_the_plan_of_the_whole(
    changes: list[tuple[str, tuple[int, int, str] | None]],
) -> None:
    nodes: dict[str, Node] = {}
    claims = Claims()
    planned = dict(plan(ClusterView(CONFIG, nodes)).by_cause)
    for name, what in changes:
        before = nodes.pop(name, None)
        if what is not None:
            nodes[name] = node(name, *what)
        for concerned in {name} | claims.replace(before, nodes.get(name)):
            entries = plan_peer(CONFIG, nodes[concerned], claims) if concerned in nodes else ()
            planned.pop(cause_of_node(concerned), None)
            if entries:
                planned[cause_of_node(concerned)] = entries
        assert planned == plan(ClusterView(CONFIG, nodes)).by_cause
