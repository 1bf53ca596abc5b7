"""Each transport's entries for a peer, in iproute2's words."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec
import pytest

from podwire.model.cluster import NetworkConfig, PodPlace, Underlay
from podwire.model.state import FdbEntry, Link, Neighbor, PortFdbEntry, Route, Sysctl
from podwire.plan import guard
from podwire.plan.node import objections, plan_peer, plan_pod, pod_mtu, unreached
from podwire.plan.paths import paths
from podwire.plan.profiles import PROFILES, fabric
from podwire.plan.transport import auto, l2_vxlan, transport_of, udp

from .fabrics import behind_a_router, config, lines, peer


def reach(of: NetworkConfig, *, blocked: bool = False, routed: bool = False) -> list[str]:
    node = behind_a_router(of) if routed else peer(of)
    assert objections(of, node) == []
    if of.fabric.transport == "auto":
        return lines(auto.plan_peer(of, node, blocked=blocked))
    return lines(transport_of(of.fabric).plan_peer(of, node))


def test_direct_is_a_route_via_the_node() -> None:
    assert reach(config("flannel-host-gw")) == ["10.244.2.0/24 via 172.18.0.12 dev eth0"]
    assert reach(config("flannel-host-gw", (6,))) == [
        "fd00:10:244:2::/64 via fd00:172:18::2 dev eth0"
    ]


def test_direct_refuses_who_is_behind_a_router_by_name() -> None:
    of = config("flannel-host-gw", (4, 6))
    found = objections(of, behind_a_router(of))
    assert [text.split(":")[0] for text in found] == [
        "node node2 at 192.0.2.2 is no layer-2 neighbour",
        "node node2 at 2001",
    ]
    assert "172.18.0.0/16" in found[0]
    assert plan_peer(of, behind_a_router(of)) == ()


def test_direct_reaches_by_one_family_who_has_lost_the_other() -> None:
    of = config("flannel-host-gw", (4, 6))
    node = peer(of)
    assert node.lease is not None and unreached(of, node) == []
    lost = msgspec.structs.replace(node, lease=msgspec.structs.replace(node.lease, public_ip6=None))
    assert objections(of, lost) == []
    assert unreached(of, lost) == ["node node2 has no IPv6 address to route its pods' through"]
    assert reach(of)[:1] == lines(plan_peer(of, lost)) == ["10.244.2.0/24 via 172.18.0.12 dev eth0"]
    assert [path.version for path in paths(of, lost)] == [4]
    # So does this node, when it is the one that has lost it.
    alone = msgspec.structs.replace(
        of,
        underlay=msgspec.structs.replace(
            of.underlay, on_link=tuple(net for net in of.underlay.on_link if net.version == 4)
        ),
    )
    assert lines(plan_peer(alone, node)) == ["10.244.2.0/24 via 172.18.0.12 dev eth0"]
    assert "no layer-2 neighbour" in unreached(alone, node)[0]


def test_calicos_routes_are_calicos() -> None:
    (route,) = transport_of(fabric("calico")).plan_peer(config("calico"), peer(config("calico")))
    assert isinstance(route, Route)
    assert (route.protocol, route.onlink, str(route.via), route.dev) == (
        80,
        True,
        "172.18.0.12",
        "eth0",
    )


def test_vxlan_of_both_families_has_a_device_over_each() -> None:
    of = config("flannel-vxlan", (4, 6))
    assert reach(of) == [
        "10.244.2.0 lladdr 02:00:00:00:04:02 dev flannel.1",
        "fd00:10:244:2:: lladdr 02:00:00:00:06:02 dev flannel-v6.1",
        "02:00:00:00:04:02 dst 172.18.0.12 dev flannel.1",
        "02:00:00:00:06:02 dst fd00:172:18::2 dev flannel-v6.1",
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
        "fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 onlink",
    ]
    assert lines(transport_of(of.fabric).plan_node(of)) == [
        "flannel.1 vxlan id 1 local 172.18.0.11 dev eth0 dstport 8472 mtu 1450"
        " address 02:00:00:00:04:01",
        "10.244.1.0/32 dev flannel.1",
        "flannel-v6.1 vxlan id 1 local fd00:172:18::1 dev eth0 dstport 8472 mtu 1430"
        " address 02:00:00:00:06:01",
        "fd00:10:244:1::/128 dev flannel-v6.1",
    ]


@pytest.mark.parametrize("transport", ["vxlan", "udp", "auto"])
def test_a_borrowed_address_is_no_device_s(transport: str) -> None:
    """Where no block was free for a node: all that it has are addresses of its pods."""
    of = config("calico", transport=transport)
    borrowed = (ip_network("172.31.7.2/32"), ip_network("172.31.7.3/32"))
    late = msgspec.structs.replace(of, lease=msgspec.structs.replace(of.lease, subnets=borrowed))
    assert not any("172.31." in line for line in lines(transport_of(of.fabric).plan_node(late)))
    node = peer(of)
    assert node.lease is not None
    node = msgspec.structs.replace(
        node, lease=msgspec.structs.replace(node.lease, subnets=borrowed)
    )
    routes = [one.dst for one in plan_peer(of, node) if isinstance(one, Route)]
    assert len(routes) == len(set(routes)) == (0 if transport == "udp" else 2)


def test_a_peer_with_one_family_of_the_underlay_carries_both() -> None:
    of = config("flannel-vxlan", (4, 6))
    node = peer(of, public_ip6=None, vtep_mac6=None)
    assert objections(of, node) == []
    assert "fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel.1 onlink" in lines(
        plan_peer(of, node)
    )


def test_several_blocks_go_through_one_vtep() -> None:
    of = config("calico-vxlan")
    blocks = tuple(map(ip_network, ("172.31.2.64/26", "172.31.9.0/26", "172.31.1.70/32")))
    node = peer(of, subnets=blocks)
    assert objections(of, node) == []
    routes = [one for one in plan_peer(of, node) if isinstance(one, Route)]
    assert {str(route.via) for route in routes} == {"172.31.2.64"}
    assert [str(route.dst) for route in routes] == [str(block) for block in blocks]


def test_a_whole_block_of_ours_is_not_anothers() -> None:
    of = config("calico-vxlan")
    (text,) = objections(of, peer(of, subnets=of.lease.subnets))
    assert "overlaps this node's own" in text


def test_cross_subnet_encapsulates_behind_a_router_only() -> None:
    of = config("calico-vxlan", cross_subnet=True)
    assert reach(of) == ["172.31.2.64/26 via 172.18.0.12 dev eth0 onlink"]
    assert reach(of, routed=True)[-1] == "172.31.2.64/26 via 172.31.2.64 dev vxlan.calico onlink"
    assert [one.kind for one in paths(of, behind_a_router(of))] == ["vxlan"]
    assert [one.kind for one in paths(of, peer(of))] == ["direct"]


def test_auto_takes_what_works() -> None:
    of = config("flannel-vxlan", transport="auto")
    vtep = "10.244.2.0 lladdr 02:00:00:00:04:02 dev flannel.1"
    near, far, blocked = reach(of), reach(of, routed=True), reach(of, routed=True, blocked=True)
    assert near[-1] == "10.244.2.0/24 via 172.18.0.12 dev eth0"
    assert far[-1] == "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"
    assert blocked[-1] == "10.244.2.0/24 dev flannel0 src 10.244.1.0"
    for lines_ in (near, far, blocked):
        assert len(lines_) == 3
        assert lines_[0] == vtep
        assert lines_[1].startswith("02:00:00:00:04:02 dst ")
    (way,) = paths(of, behind_a_router(of), blocked=True)
    assert (way.kind, way.reason) == ("udp", "VXLAN does not get through to node2")


def test_auto_takes_packets_by_either_tunnel() -> None:
    found = auto.plan_node(config("flannel-vxlan", transport="auto"))
    assert {one.key: one.value for one in found if isinstance(one, Sysctl)} == {
        "net/ipv4/conf/flannel.1/rp_filter": "2",
        "net/ipv4/conf/flannel0/rp_filter": "2",
    }


def test_auto_never_moves_a_node_without_the_tunnel_to_it() -> None:
    of = config("flannel-vxlan", transport="auto")
    node = behind_a_router(of)
    assert node.lease is not None
    flannel = msgspec.structs.replace(
        node, lease=msgspec.structs.replace(node.lease, backend="vxlan")
    )
    assert objections(of, flannel) == []
    assert [one.kind for one in paths(of, flannel, blocked=True)] == ["vxlan"]


def test_udp_has_flannels_device_and_no_entry_a_peer() -> None:
    of = config("flannel-udp", (4, 6))
    assert lines(udp.plan_node(of)) == [
        "flannel0 tun mtu 1452",
        "10.244.1.0/16 dev flannel0",
        "fd00:10:244:1::/48 dev flannel0",
    ]
    assert udp.plan_peer(of, peer(of)) == ()


def test_encryption_takes_a_key_of_both() -> None:
    of = config("flannel-udp", encrypt=True)
    assert "has published no key" in objections(of, peer(of))[0]
    assert objections(of, peer(of, public_key=bytes(32))) == []
    bare = config("flannel-udp")
    assert "encrypts its tunnel" in objections(bare, peer(bare, public_key=bytes(32)))[0]


def test_one_segment_floods_to_every_peer_and_knows_pods() -> None:
    of = config("weave")
    assert reach(of) == ["00:00:00:00:00:00 dst 172.18.0.12 dev vxlan-6784"]
    place = PodPlace("default/b", "node2", (ip_address("10.33.0.7"),))
    entries = plan_pod(of, place, peer(of))
    mac = bytes.fromhex("0a580a210007")
    assert [type(one) for one in entries] == [FdbEntry, PortFdbEntry, Neighbor]
    assert lines(entries) == [
        "0a:58:0a:21:00:07 dst 172.18.0.12 dev vxlan-6784",
        "0a:58:0a:21:00:07 dev vxlan-6784 master",
        "10.33.0.7 lladdr 0a:58:0a:21:00:07 dev weave",
    ]
    assert {one.why.object for one in entries} == {"Pod/default/b"}
    assert all(getattr(one, "mac", mac) == mac for one in entries)
    own = msgspec.structs.replace(place, node="node1")
    assert plan_pod(of, own, peer(of)) == () == plan_pod(of, place, None)
    (port,) = l2_vxlan.plan_node(of)
    assert isinstance(port, Link)
    assert (port.master, port.neigh_suppress, port.name) == ("weave", True, "vxlan-6784")


@pytest.mark.parametrize(
    ("profile", "options", "ipv4", "ipv6"),
    [
        ("flannel-vxlan", {}, 1450, 1430),
        ("flannel-host-gw", {}, 1500, 1500),
        ("flannel-udp", {}, 1472, 1452),
        ("flannel-udp", {"encrypt": True}, 1440, 1420),
        ("flannel-vxlan", {"transport": "auto"}, 1450, 1430),
        ("calico", {}, 1450, 1450),
        ("calico-vxlan", {}, 1450, 1430),
        ("weave", {}, 1376, 1376),
    ],
)
def test_pods_mtu(profile: str, options: dict[str, object], ipv4: int, ipv6: int) -> None:
    made = fabric(profile, **options)  # type: ignore[arg-type]
    over4 = Underlay("eth0", ip_address("172.18.0.11"), 1500)
    over6 = Underlay("eth0", ip_address("fd00::1"), 1500)
    both = Underlay("eth0", ip_address("172.18.0.11"), 1500, ip_address("fd00::1"))
    assert [pod_mtu(made, one) for one in (over4, over6, both)] == [ipv4, ipv6, ipv6]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("versions", [(4,), (6,), (4, 6)])
def test_every_profile_reaches_every_family(profile: str, versions: tuple[int, ...]) -> None:
    of = config(profile, versions)
    node = peer(of)
    assert objections(of, node) == []
    assert [one.version for one in paths(of, node)] == list(versions)
    # A peer of another backend is left out, with the reason.
    other = peer(of, backend="other")
    assert "has backend other" in objections(of, other)[0]


def test_tunnel_packets_come_from_nodes() -> None:
    of = config("flannel-vxlan", (4, 6))
    node = msgspec.structs.replace(peer(of), internal_ips=(ip_address("192.0.2.9"),))
    assert lines(guard.plan_peer(of, node)) == [
        "inet podwire peers4 { 172.18.0.12 }",
        "inet podwire peers6 { fd00:172:18::2 }",
        "inet podwire peers4 { 192.0.2.9 }",
    ]
    inbound, guarding, outbound = guard.plan_chains(of)
    assert [rule.text for rule in inbound.rules] == ['iifname "eth0" udp dport 8472 notrack']
    # Not where packets are forwarded: between pods that port is theirs.
    assert guarding.hook is not None and guarding.hook.hook == "input"
    assert [rule.text for rule in guarding.rules] == [
        'udp dport 8472 ip saddr != @peers4 counter name "vxlan_stranger" drop',
        'udp dport 8472 ip6 saddr != @peers6 counter name "vxlan_stranger" drop',
    ]
    assert [rule.text for rule in outbound.rules] == ["udp dport 8472 notrack"]
    assert guard.plan_chains(config("flannel-host-gw")) == ()
