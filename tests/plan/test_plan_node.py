"""Plans as plain values: a view in, entries out, compared whole."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address, ip_interface, ip_network

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from podwire.model.cluster import Attachment, ClusterView, Lease, NetworkConfig, Node, Underlay
from podwire.model.describe import describe
from podwire.model.state import (
    Address,
    Bridge,
    Entry,
    FdbEntry,
    Link,
    Neighbor,
    NftTable,
    Route,
    Sysctl,
    Veth,
    Vxlan,
    Why,
)
from podwire.plan.node import objections, plan, plan_peer, plan_self, plan_tables
from podwire.plan.wiring.bridge import plan_attachment

WHY = Why("", "")
MAC1, MAC2 = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def lease(number: int, *, mac: bytes | None = None) -> Lease:
    return Lease(
        subnets=(ip_network(f"10.244.{number}.0/24"),),
        backend="vxlan",
        public_ip=ip_address(f"172.18.0.{10 + number}"),
        vni=1,
        vtep_mac=mac or b"\x02\0\0\0\0" + bytes([number]),
    )


CONFIG = NetworkConfig(
    node="node1",
    network=(ip_network("10.244.0.0/16"),),
    lease=lease(1),
    underlay=Underlay("eth0", ip_address("172.18.0.11"), 1500),
    mtu=1450,
)
NODE2 = Node("node2", lease=lease(2))


def bare(entries: tuple[Entry, ...]) -> list[Entry]:
    """Entries without their why, which is asserted on its own."""
    return [msgspec.structs.replace(entry, why=WHY) for entry in entries]


def test_a_peer_is_a_neighbor_a_route_and_an_fdb_entry() -> None:
    base = ip_address("10.244.2.0")
    guard, *entries = plan_peer(CONFIG, NODE2)
    assert describe(guard) == "inet podwire peers4 { 172.18.0.12 }"
    assert bare(tuple(entries)) == [
        Neighbor(dev="flannel.1", ip=base, mac=MAC2, why=WHY),
        FdbEntry(dev="flannel.1", mac=MAC2, dst=ip_address("172.18.0.12"), why=WHY),
        Route(dst=ip_network("10.244.2.0/24"), via=base, dev="flannel.1", onlink=True, why=WHY),
    ]


def test_every_entry_says_who_asked_for_it() -> None:
    whys = {describe(entry): str(entry.why) for entry in plan_peer(CONFIG, NODE2)}
    assert whys == {
        "inet podwire peers4 { 172.18.0.12 }": "Node/node2 has 172.18.0.12",
        "10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1": "Node/node2 leases 10.244.2.0/24",
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink": "Node/node2 leases 10.244.2.0/24",
        "02:00:00:00:00:02 dst 172.18.0.12 dev flannel.1": ("Node/node2 is reached at 172.18.0.12"),
    }


def test_own_entries_are_flannels() -> None:
    *own, table, bridge_table = bare(plan_self(CONFIG))
    assert isinstance(bridge_table, NftTable)
    assert bridge_table.family == "bridge"
    assert own == [
        Link(
            name="cni0",
            kind=Bridge(),
            mtu=1450,
            mac=bytes.fromhex("0a580af40101"),
            alias="podwire pods of node1",
            why=WHY,
        ),
        Sysctl(key="net/ipv6/conf/cni0/accept_ra", value="0", why=WHY),
        Address(dev="cni0", ip=ip_interface("10.244.1.1/24"), why=WHY),
        Sysctl(key="net/ipv4/ip_forward", value="1", why=WHY),
        Link(
            name="flannel.1",
            kind=Vxlan(vni=1, port=8472, local=ip_address("172.18.0.11"), dev="eth0"),
            mtu=1450,
            mac=MAC1,
            alias="podwire VTEP of node1",
            why=WHY,
        ),
        Address(dev="flannel.1", ip=ip_interface("10.244.1.0/32"), why=WHY),
    ]
    assert isinstance(table, NftTable)
    assert {chain.name: [rule.text for rule in chain.rules] for chain in table.chains} == {
        "tunnel_in": ['iifname "eth0" udp dport 8472 notrack'],
        "tunnel_guard": ['udp dport 8472 ip saddr != @peers4 counter name "vxlan_stranger" drop'],
        "tunnel_out": ["udp dport 8472 notrack"],
        "postrouting": [
            "ip saddr @cluster4 ip daddr != @cluster4 ip daddr != 224.0.0.0/4"
            " masquerade fully-random"
        ],
    }


def test_without_masquerade_nothing_is_translated() -> None:
    table, _ = plan_tables(msgspec.structs.replace(CONFIG, masquerade=False))
    assert [chain.name for chain in table.chains] == ["tunnel_in", "tunnel_guard", "tunnel_out"]
    assert table.sets == ()


def test_a_pod_gets_its_address_a_default_route_and_the_network() -> None:
    attachment = Attachment(
        container_id="c1",
        ifname="eth0",
        netns="/run/netns/c1",
        host_ifname="veth1",
        mac=MAC1,
        ips=(ip_interface("10.244.1.5/24"),),
        gateways=(ip_address("10.244.1.1"),),
        pod="default/a",
    )
    planned = plan_attachment(CONFIG, attachment)
    gateway = ip_address("10.244.1.1")
    assert planned.port.master == "cni0"
    assert planned.port.kind == Veth(peer="eth0", peer_mac=MAC1)
    assert str(planned.port.why) == "Pod/default/a has 10.244.1.5"
    assert bare(planned.pod) == [
        Address(dev="eth0", ip=ip_interface("10.244.1.5/24"), why=WHY),
        Route(dst=ip_network("0.0.0.0/0"), via=gateway, dev="eth0", why=WHY),
        Route(dst=ip_network("10.244.0.0/16"), via=gateway, dev="eth0", why=WHY),
    ]


def test_nodes_without_a_usable_lease_are_left_out() -> None:
    other_vni = msgspec.structs.replace(lease(3), vni=2)
    host_gw = msgspec.structs.replace(lease(4), backend="host-gw")
    no_mac = msgspec.structs.replace(lease(5), vtep_mac=None)
    for node in (
        Node("new"),
        Node("n3", lease=other_vni),
        Node("n4", lease=host_gw),
        Node("n5", lease=no_mac),
    ):
        assert plan_peer(CONFIG, node) == ()


def test_a_lease_that_would_take_others_traffic_is_not_believed() -> None:
    def claims(subnet: str, ip: str = "172.18.0.99") -> Node:
        claimed = msgspec.structs.replace(
            lease(2), subnets=(ip_network(subnet),), public_ip=ip_address(ip)
        )
        return Node("evil", lease=claimed)

    for subnet in ("0.0.0.0/0", "8.8.8.0/24", "10.244.1.0/24", "10.244.1.128/25", "fd00::/64"):
        assert objections(CONFIG, claims(subnet)), subnet
        assert plan_peer(CONFIG, claims(subnet)) == ()
    assert objections(CONFIG, claims("10.244.7.0/24", "172.18.0.11"))
    assert not objections(CONFIG, claims("10.244.7.0/24"))


def test_ten_thousand_nodes_are_planned() -> None:
    base = int(ip_address("10.0.0.0"))
    config = msgspec.structs.replace(CONFIG, network=(ip_network("10.0.0.0/8"),))
    nodes = {
        f"n{number}": Node(
            f"n{number}",
            lease=Lease(
                subnets=(IPv4Network((base + 256 * number, 24)),),
                backend="vxlan",
                public_ip=IPv4Address(0xAC130000 + number),
                vni=1,
                vtep_mac=b"\x02\x01" + number.to_bytes(4, "big"),
            ),
        )
        for number in range(10_000)
    }
    desired = plan(ClusterView(config, nodes))
    entries = list(desired.entries())
    routes = {entry.dst for entry in entries if isinstance(entry, Route)}
    assert len(entries) == 4 * 10_000 + len(plan_self(config))
    assert len(routes) == 10_000
    assert len(desired.by_cause) == 10_001


@given(st.sets(st.integers(2, 240), max_size=40))
def test_each_peer_is_planned_as_if_it_were_alone(numbers: set[int]) -> None:
    nodes = {f"n{number}": Node(f"n{number}", lease=lease(number)) for number in numbers}
    desired = plan(ClusterView(CONFIG, nodes))
    for name, node in nodes.items():
        assert desired.by_cause[f"Node/{name}"] == plan_peer(CONFIG, node)
    assert len(desired.by_cause) == len(numbers) + 1
