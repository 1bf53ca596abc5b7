"""The index over what is wanted: found by what a packet has, or a person asks for."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.kernel import nft
from podwire.model.cluster import Attachment, ClusterView, Lease, NetworkConfig, Node, Underlay
from podwire.model.state import Entry, Route, Why
from podwire.plan.node import plan
from podwire.trace.intent import Intent

WHY = Why("Node/x", "wants it")


def lease(number: int) -> Lease:
    return Lease(
        subnets=(ip_network(f"10.244.{number}.0/24"), ip_network(f"fd00:244:{number}::/64")),
        backend="vxlan",
        public_ip=ip_address(f"172.18.0.{10 + number}"),
        vni=1,
        vtep_mac=b"\x02\0\0\0\0" + bytes([number]),
    )


CONFIG = NetworkConfig(
    node="node1",
    network=(ip_network("10.244.0.0/16"), ip_network("fd00:244::/32")),
    lease=lease(1),
    underlay=Underlay("eth0", ip_address("172.18.0.11"), 1500),
    mtu=1450,
)
NODES = {f"node{number}": Node(f"node{number}", lease=lease(number)) for number in (1, 2, 3)}
POD = Attachment(
    container_id="c1",
    ifname="eth0",
    netns="/run/netns/c1",
    host_ifname="vethc1",
    mac=bytes.fromhex("0a580af40105"),
    ips=(ip_interface("10.244.1.5/24"), ip_interface("fd00:244:1::5/64")),
    gateways=(ip_address("10.244.1.1"), ip_address("fd00:244:1::1")),
    pod="default/c",
)
INTENT = Intent(plan(ClusterView(CONFIG, NODES), [POD]).by_cause, config=CONFIG, attachments=[POD])


def test_a_packet_to_another_nodes_pod_finds_its_entries() -> None:
    for text, base in (("10.244.2.7", "10.244.2.0"), ("fd00:244:2::7", "fd00:244:2::")):
        route = INTENT.route(ip_address(text))
        assert route is not None
        assert (route.dev, str(route.via)) == ("flannel.1", base)
        neighbor = INTENT.neighbor(route.dev, ip_address(base))
        assert neighbor is not None
        fdb = INTENT.fdb(neighbor.dev, neighbor.mac)
        assert fdb is not None
        assert str(fdb.dst) == "172.18.0.12"
        assert INTENT.neighbors_with(neighbor.mac)[0].dev == "flannel.1"
        assert INTENT.fdb_to(fdb.dst) == [fdb]


def test_what_is_on_the_link_or_ones_own_is_an_address() -> None:
    for own, other in (("10.244.1.1", "10.244.1.9"), ("fd00:244:1::1", "fd00:244:1::9")):
        address = INTENT.address(ip_address(own))
        assert address is not None
        assert address.dev == "cni0"
        assert INTENT.way(ip_address(other)) == address
        assert INTENT.route(ip_address(other)) is None
        assert INTENT.address(ip_address(other)) is None
    vtep = INTENT.way(ip_address("10.244.1.0"))
    assert vtep is not None
    assert vtep.dev == "flannel.1"


def test_what_nobody_wants_is_not_found() -> None:
    assert INTENT.way(ip_address("192.0.2.1")) is None
    assert INTENT.way(ip_address("10.244.9.1")) is None
    assert INTENT.neighbor("eth0", ip_address("10.244.2.0")) is None
    assert INTENT.fdb("flannel.1", b"\x02\0\0\0\0\x09") is None
    assert INTENT.link("eth0") is None
    assert INTENT.sysctl("net/ipv4/conf/all/rp_filter") is None
    assert INTENT.prefix(ip_network("10.244.0.0/16")) is None
    assert INTENT.pod_at(ip_address("10.244.1.6")) is None


def test_links_sysctls_and_all_of_a_kind() -> None:
    assert INTENT.sysctl("net/ipv4/ip_forward") is not None
    assert [link.name for link in INTENT.tunnels()] == ["flannel.1"]
    assert {str(one.ip) for one in INTENT.addresses_of("cni0")} == {
        "10.244.1.1/24",
        "fd00:244:1::1/64",
    }
    assert all(INTENT.link(name) is not None for name in ("flannel.1", "cni0", "vethc1"))


def test_a_rule_is_found_as_it_was_written_and_as_the_kernel_prints_it() -> None:
    (rule,) = INTENT.nft_rules("podwire", "tunnel_out")
    table = INTENT.nft_table("podwire")
    assert table is not None
    digest = nft.wanted_state(table).chains["tunnel_out"][1][0]
    for text in (rule.text, f'meta l4proto udp th dport 8472 notrack comment "{digest}"'):
        assert INTENT.nft_rule("podwire", "tunnel_out", text) is rule
    assert INTENT.nft_rule("podwire", "tunnel_in", rule.text) is None
    assert INTENT.nft_rule("podwire", "nowhere", rule.text) is None
    assert INTENT.nft_rule("filter", "tunnel_out", rule.text) is None


def test_a_pod_is_found_by_address_port_and_name() -> None:
    for text in ("10.244.1.5", "fd00:244:1::5"):
        assert INTENT.pod_at(ip_address(text)) is POD
    assert INTENT.pod_at_port("vethc1") is POD
    assert INTENT.pod("default/c") is POD


def test_inside_of_a_pod_everything_leads_to_the_gateway() -> None:
    inside = INTENT.of_pod("default/c")
    assert inside.address(ip_address("10.244.1.5")) is not None
    for text, gateway in (("192.0.2.1", "10.244.1.1"), ("fd00:244:2::7", "fd00:244:1::1")):
        route = inside.route(ip_address(text))
        assert route is not None
        assert str(route.via) == gateway
        assert route.why.object == "Pod/default/c"
    neighbor = inside.way(ip_address("10.244.1.9"))
    assert neighbor is inside.address(ip_address("10.244.1.5"))
    link = inside.link("eth0")
    assert link is not None
    assert (link.mac, link.mtu) == (POD.mac, 1450)
    assert INTENT.of_pod("default/unknown").link("eth0") is None


def test_of_two_causes_the_first_by_name_is_right() -> None:
    network = ip_network("10.1.0.0/16")
    first, second = (Route(dst=network, dev=dev, why=WHY) for dev in ("a", "b"))
    causes: dict[str, tuple[Entry, ...]] = {"Node/2": (second,), "Node/1": (first,)}
    assert Intent(causes).way(network[9]) is first


_PREFIXES = st.integers(0, 32).flatmap(
    lambda length: st.integers(0, 2**length - 1).map(
        lambda number: ip_network((number << (32 - length) if length else 0, length))
    )
)


@settings(max_examples=40)
@given(st.lists(_PREFIXES, min_size=1, max_size=12, unique=True), st.integers(0, 2**32 - 1))
def test_the_longest_prefix_wins(prefixes: list[object], number: int) -> None:
    routes = [Route(dst=one, dev="a", why=WHY) for one in prefixes]  # type: ignore[arg-type]
    address = ip_address(number)
    matching = [one for one in routes if address in one.dst]
    found = Intent({"Node/1": tuple(routes)}).way(address)
    assert found == max(matching, key=lambda one: one.dst.prefixlen, default=None)
