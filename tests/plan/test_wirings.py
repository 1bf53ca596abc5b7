"""Both wirings: what the node and the pod hold for a pod, and what a pod may send."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import msgspec
import pytest
from msgspec import structs

from podwire.model.cluster import Underlay
from podwire.model.state import Blackhole, Link, NftElement, PortGuard, Route, link_local
from podwire.plan import isolation, spoofing
from podwire.plan.wiring import bridge, plan_attachment, routed

from .fabrics import attachment, config, lines


def test_a_routed_pod_is_a_network_of_its_own() -> None:
    of = config("calico", (4, 6))
    plan = plan_attachment(of, attachment(of, "172.31.1.70", "fd00:172:31::1:5"))
    assert lines(plan.pod) == [
        "172.31.1.70/32 dev eth0",
        "169.254.1.1/32 dev eth0",
        "0.0.0.0/0 via 169.254.1.1 dev eth0",
        "fd00:172:31::1:5/128 dev eth0",
        "::/0 via fe80::ecee:eeff:feee:eeee dev eth0",
    ]
    assert lines(plan.host)[:6] == [
        "veth1 veth to eth0 mtu 1450 address ee:ee:ee:ee:ee:ee",
        "net.ipv6.conf.veth1.accept_ra = 0",
        "net.ipv4.conf.veth1.proxy_arp = 1",
        "net.ipv4.neigh.veth1.proxy_delay = 0",
        "172.31.1.70/32 dev veth1",
        "fd00:172:31::1:5/128 dev veth1",
    ]
    assert plan.port.master is None
    assert plan.port.link_local


def test_a_routed_nodes_own_blocks_are_blackholes() -> None:
    of = config("calico")
    holes = [one for one in routed.plan_node(of) if isinstance(one, Blackhole)]
    assert [(str(hole.dst), hole.protocol) for hole in holes] == [("172.31.1.64/26", 80)]


def test_a_node_without_ipv4_has_a_way_to_its_ipv4_pods_gateway() -> None:
    """Which proxy ARP needs; elsewhere the default route is one."""
    of = config("calico-vxlan", (4, 6))
    over_ipv6 = Underlay("eth0", ip_address("fd00:172:18::1"), 1500)
    only_ipv6 = msgspec.structs.replace(of, underlay=over_ipv6)
    assert "169.254.1.1/32 dev lo" in lines(routed.plan_node(only_ipv6))
    assert "169.254.1.1/32 dev lo" not in lines(routed.plan_node(of))


def test_a_bridge_pod_of_both_families() -> None:
    of = config("flannel-vxlan", (4, 6))
    plan = plan_attachment(of, attachment(of, "10.244.1.5", "fd00:10:244:1::5"))
    assert lines(plan.pod) == [
        "10.244.1.5/24 dev eth0",
        "0.0.0.0/0 via 10.244.1.1 dev eth0",
        "10.244.0.0/16 via 10.244.1.1 dev eth0",
        "fd00:10:244:1::5/64 dev eth0",
        "::/0 via fd00:10:244:1::1 dev eth0",
        "fd00:10:244::/48 via fd00:10:244:1::1 dev eth0",
    ]
    assert plan.port.hairpin
    assert plan.port.master == "cni0"


def test_in_one_segment_the_whole_network_is_on_link() -> None:
    of = config("weave")
    plan = plan_attachment(of, attachment(of, "10.32.0.8"))
    assert lines(plan.pod) == ["10.32.0.8/12 dev eth0", "0.0.0.0/0 via 10.32.0.1 dev eth0"]
    own = lines(bridge.plan_node(of))
    assert "10.32.0.1/12 dev weave" in own
    assert "net.ipv6.conf.weave.accept_ra = 0" in own


def test_bridge_options() -> None:
    of = config("flannel-vxlan", hairpin=False, promiscuous=True)
    link = bridge.plan_node(of)[0]
    assert isinstance(link, Link)
    assert link.promiscuous
    assert plan_attachment(of, attachment(of, "10.244.1.5")).port.hairpin is False


def elements(*entries: object) -> set[tuple[str, ...]]:
    return {
        (one.family, one.set, *(str(part) for part in one.key[1:]))
        for one in entries
        if isinstance(one, NftElement)
    }


def test_a_port_of_a_bridge_is_bound_to_mac_and_addresses() -> None:
    of = config("flannel-vxlan", (4, 6))
    one = attachment(of, "10.244.1.5", "fd00:10:244:1::5")
    mac, own = str(one.mac), str(link_local(one.mac))
    assert own == "fe80::858:aff:fef4:105"
    assert elements(*spoofing.plan_attachment(of, one)) == {
        ("bridge", "guarded"),
        ("bridge", "bindings4", mac, "10.244.1.5"),
        ("bridge", "bindings4", mac, str(IPv4Address(0))),
        ("bridge", "bindings6", mac, "fd00:10:244:1::5"),
        ("bridge", "bindings6", mac, own),
        ("bridge", "bindings6", mac, "::"),
        ("bridge", "nd_targets", "fd00:10:244:1::5"),
        ("bridge", "nd_targets", own),
    }
    (table,) = spoofing.plan_bridge_table(of)
    assert {one.name for one in table.open_sets} == {
        "guarded",
        "bindings4",
        "bindings6",
        "nd_targets",
    }
    assert spoofing.plan_chains(of) == ()


@pytest.mark.parametrize(("profile", "frames"), [("flannel-vxlan", True), ("calico", False)])
def test_a_program_at_the_port_takes_the_place_of_all_that(profile: str, frames: bool) -> None:
    of = structs.replace(config(profile), guard="ebpf")
    ip = "172.31.1.70" if profile == "calico" else "10.244.1.5"
    one = attachment(of, ip)
    (guard,) = spoofing.plan_attachment(of, one)
    assert isinstance(guard, PortGuard)
    assert (guard.dev, guard.mac, guard.frames) == (one.host_ifname, one.mac, frames)
    assert [str(own) for own in guard.ips] == [ip]
    assert not (*spoofing.plan_bridge_table(of), *spoofing.plan_chains(of))
    assert not (*spoofing.open_sets(of), *spoofing.counters(of))
    counted = {counter.name for counter in spoofing.counted_at_ports(of)}
    assert counted >= {"spoofed_ip", "spoofed_ra", "other_frames"}
    assert spoofing.plan_attachment(of, structs.replace(one, may_spoof=True)) == ()
    free = structs.replace(of, fabric=structs.replace(of.fabric, anti_spoofing=False))
    assert not (*spoofing.plan_attachment(free, one), *spoofing.counted_at_ports(free))


def test_a_routed_pod_is_bound_to_its_addresses() -> None:
    of = config("calico")
    assert elements(*spoofing.plan_attachment(of, attachment(of, "172.31.1.70"))) == {
        ("inet", "guarded"),
        ("inet", "bindings4", "172.31.1.70"),
        ("inet", "bindings6", "fe80::858:aff:fef4:105"),
        ("inet", "bindings6", "::"),
    }
    assert {one.name: one.type for one in spoofing.open_sets(of)} == {
        "guarded": "ifname",
        "bindings4": "ifname . ipv4_addr",
        "bindings6": "ifname . ipv6_addr",
    }
    assert spoofing.plan_bridge_table(of) == ()
    assert {
        chain.name: [rule.text for rule in chain.rules] for chain in spoofing.plan_chains(of)
    } == {
        "from_pods": ["iifgroup 7077 fib saddr . iif oif 0 goto strange_source"],
        "strange_source": [
            "iifname . ip saddr @bindings4 accept",
            "iifname @guarded ip6 saddr :: meta l4proto != ipv6-icmp"
            ' counter name "spoofed_ip" drop',
            "iifname . ip6 saddr @bindings6 accept",
            'iifname @guarded counter name "spoofed_ip" drop',
        ],
        "no_routers": [
            "iifgroup 7077 iifname @guarded icmpv6 type { nd-router-advert, nd-redirect }"
            ' counter name "spoofed_ra" drop'
        ],
    }


def test_who_may_spoof_is_not_looked_at() -> None:
    of = config("calico")
    assert spoofing.plan_attachment(of, attachment(of, "172.31.1.70", may_spoof=True)) == ()
    off = config("calico", anti_spoofing=False)
    assert spoofing.plan_attachment(off, attachment(off, "172.31.1.70")) == ()
    assert spoofing.plan_chains(off) == () == spoofing.plan_bridge_table(off)


def test_pods_apart_from_their_node() -> None:
    assert isolation.plan_chains(config("calico")) == ()
    chains = isolation.plan_chains(config("flannel-vxlan", isolate_host=True))
    assert {chain.name: chain.rules[-1].text for chain in chains} == {
        "isolate_input": 'iifname "cni0" counter name "isolated" drop',
        "isolate_output": 'oifname "cni0" counter name "isolated" drop',
    }
    # Whatever a pod may send, it is a pod.
    for anti_spoofing in (True, False):
        of = config("calico", isolate_host=True, anti_spoofing=anti_spoofing)
        assert {chain.name: chain.rules[-1].text for chain in isolation.plan_chains(of)} == {
            "isolate_input": 'iifgroup 7077 iifname "cali*" counter name "isolated" drop',
            "isolate_output": 'oifgroup 7077 oifname "cali*" counter name "isolated" drop',
        }


def test_a_link_local_address_is_made_of_the_mac() -> None:
    assert link_local(routed.HOST_MAC) == ip_address("fe80::ecee:eeff:feee:eeee")


def test_a_pods_route_is_the_profiles() -> None:
    of = config("calico")
    routes = [
        one
        for one in plan_attachment(of, attachment(of, "172.31.1.70")).host
        if isinstance(one, Route)
    ]
    assert [(str(one.dst), one.dev, one.protocol) for one in routes] == [
        ("172.31.1.70/32", "veth1", 80)
    ]
