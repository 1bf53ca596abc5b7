"""What a lab is made with: which choices fit, what they mean, and where nodes are."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from podwire.errors import InputError
from podwire.lab import addressing
from podwire.lab.etcd import flannel_config
from podwire.lab.registry import LabRecord, NodeRecord
from podwire.lab.shape import Shape, check_room, shape
from podwire.lab.shape_change import changed, differences


def addresses(layout: addressing.Layout, versions: tuple[int, ...], index: int) -> list[str]:
    return [str(one) for one in addressing.addresses(layout, versions, index)]


@pytest.mark.parametrize(
    ("layout", "versions", "index", "expected"),
    [
        ("l2", (4,), 1, ["172.18.0.11/16"]),
        ("l2", (4, 6), 3, ["172.18.0.13/16", "fd00:172:18::13/64"]),
        ("l2", (6,), 100, ["fd00:172:18::110/64"]),
        ("routed", (4, 6), 1, ["172.18.1.11/24", "fd00:172:18:1::11/64"]),
        ("routed", (4, 6), 2, ["172.18.2.12/24", "fd00:172:18:2::12/64"]),
        ("routed", (4,), 3, ["172.18.1.13/24"]),
    ],
)
def test_addresses_of_nodes(
    layout: addressing.Layout, versions: tuple[int, ...], index: int, expected: list[str]
) -> None:
    assert addresses(layout, versions, index) == expected


@pytest.mark.parametrize("layout", ["l2", "routed"])
def test_addresses_and_macs_of_nodes_are_all_different(layout: addressing.Layout) -> None:
    numbers = range(1, 101)
    assert len({tuple(addresses(layout, (4, 6), n)) for n in numbers}) == 100
    assert len({addressing.mac(layout, n) for n in numbers}) == 100
    assert addressing.mac("l2", 1) == "02:00:ac:12:00:0b"


def test_a_node_that_moved_has_its_new_address_and_keeps_the_other_family() -> None:
    record = LabRecord("", "x", 0.0, (NodeRecord("node2", 2, ("172.18.0.99",)),))
    dual = msgspec.structs.replace(record, shape=Shape(family="dual"))
    assert record.ips(record.nodes[0]) == ("172.18.0.99",)
    assert dual.ips(record.nodes[0]) == ("172.18.0.99", "fd00:172:18::12")
    assert dual.mac(record.nodes[0]) == addressing.mac("l2", 2)


@pytest.mark.parametrize(
    "given",
    [
        *("nonsense", "10.0.0.1", "172.18.0.1", "172.18.0.0", "172.18.255.255", "fd00::1"),
        "172.18.0.98 172.18.0.99",
    ],
)
def test_addresses_that_no_node_can_have_are_refused(given: str) -> None:
    with pytest.raises(InputError) as refused:
        addressing.readdressed("l2", (4, 6), 1, tuple(given.split()))
    assert refused.value.field == "address"


def test_choices_become_the_agents_options() -> None:
    made = shape(
        profile="calico-vxlan",
        cross_subnet=True,
        anti_spoofing=False,
        vni=7,
        block_len=28,
        family="dual",
        agent_options=("--no-masquerade",),
    )
    words = made.agent_arguments()
    assert words[:2] == ("--network", "172.31.0.0/16,fd00:172:31::/48")
    assert words[-1] == "--no-masquerade"
    for pair in (("--profile", "calico-vxlan"), ("--vni", "7"), ("--block-size", "28")):
        assert pair in pairwise(words)
    assert {"--cross-subnet", "--no-anti-spoofing"} < set(words)


def test_the_family_follows_from_the_network_and_the_other_way_round() -> None:
    assert shape(network="fd00:1::/48,10.1.0.0/16").family == "dual"
    assert shape(network="fd00:1::/48").versions == (6,)
    assert [str(one) for one in shape(family="ipv6").network] == ["fd00:10:244::/48"]
    both = shape(family="dual", underlay_family="ipv6")
    assert (both.versions, both.underlay_versions) == ((4, 6), (6,))


def test_only_a_network_of_node_subnets_in_the_api_gives_nodes_cidrs() -> None:
    assert shape().subnets_of == shape().network
    assert shape(profile="calico").subnets_of == ()
    assert shape(store="etcd").subnets_of == ()


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"profile": "cilium"}, "is none of flannel-vxlan"),
        ({"transport": "l2-vxlan", "ipam": "blocks"}, "makes no sense"),
        ({"profile": "flannel-host-gw", "cross_subnet": True}, "cross-subnet"),
        ({"encrypt": True}, "only the udp transport encrypts"),
        ({"network": "10.244.0.0/16", "family": "dual"}, "is not of family dual"),
        ({"network": "10.1.0.0/16,10.2.0.0/16"}, "two networks of one family"),
        ({"network": "10.1.0.1/16"}, "has host bits set"),
        ({"network": "172.16.0.0/12"}, "overlaps the underlay"),
        ({"network": "127.0.0.0/8"}, "can't be a pod network: its addresses are loopback"),
        ({"mtu": 1000, "family": "dual"}, "less than the 1280 bytes that IPv6 needs"),
        ({"network": "10.0.0.0/25"}, "too small for node-subnet"),
        ({"network": "10.0.0.0/7"}, "too large to be cut"),
        ({"profile": "calico", "network": "10.0.0.0/27"}, "too small for blocks"),
        ({"family": "ipv5"}, "is none of ipv4, ipv6, dual"),
        ({"underlay": "wireless"}, "is none of l2, routed"),
        ({"store": "redis"}, "is none of kube, etcd"),
        ({"node_grace_s": 0.0}, "not between 1 and 3600"),
        ({"profile": "flannel-udp", "vni": 7}, "vni: 7 changes nothing"),
        ({"profile": "calico", "block_len6": 124}, "block-size: 124 changes nothing"),
        ({"mtu": "big"}, "Expected `int"),
        ({"colour": "blue"}, "has no option 'colour'"),
    ],
)
def test_senseless_choices_are_refused(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        shape(**choices)


def test_a_network_has_to_have_a_subnet_for_each_node() -> None:
    check_room(shape(network="10.1.0.0/22"), 4)
    check_room(shape(profile="calico", network="10.1.0.0/24"), 100)
    with pytest.raises(InputError, match="has no /24 for 5 nodes"):
        check_room(shape(network="10.1.0.0/22"), 5)


def test_another_profile_gives_up_the_old_ones_choices_and_finds_its_network_again() -> None:
    first = shape(vni=9, network="10.9.0.0/16")
    calico = changed(first, {"profile": "calico"})
    assert [str(one) for one in calico.network] == ["172.31.0.0/16"]
    assert calico.resolved.vni == 4096
    back = changed(calico, {"profile": "flannel-host-gw"})
    assert [str(one) for one in back.network] == ["10.9.0.0/16"]
    assert first.pod_network == back.pod_network != calico.pod_network


def test_choices_without_a_profile_change_the_one_that_there_is() -> None:
    flannel, calico = shape(mtu=1400), shape(profile="calico")
    assert changed(flannel, {"transport": "direct"}).fabric == {
        "profile": "flannel-host-gw",
        "mtu": 1400,
    }
    assert changed(calico, {"transport": "vxlan"}).resolved.vxlan_dev == "vxlan.calico"
    crossing = changed(calico, {"transport": "vxlan", "cross_subnet": True})
    assert changed(crossing, {"cross_subnet": False}).resolved.transport == "vxlan"
    routed = changed(shape(), {"wiring": "routed"}).resolved
    assert (routed.profile, routed.ipam, routed.transport) == ("custom", "node-subnet", "vxlan")
    with pytest.raises(InputError, match="makes no sense"):
        changed(flannel, {"ipam": "blocks"})


def test_a_choice_waits_for_a_transport_that_has_it() -> None:
    udp = changed(shape(vni=7), {"transport": "udp"})
    assert "--vni" not in udp.agent_arguments()
    back = changed(udp, {"transport": "vxlan"})
    assert ("--vni", "7") in pairwise(back.agent_arguments())
    with pytest.raises(InputError, match="this is udp") as refused:
        changed(udp, {"vni": 8})
    assert refused.value.field == "vni"


def test_differences_are_named() -> None:
    assert differences(shape(), shape()) == []
    assert differences(shape(), shape(profile="weave")) == [
        "profile weave, not flannel-vxlan",
        "network 10.32.0.0/12, not 10.244.0.0/16",
    ]
    assert differences(shape(), shape(vni=5, underlay="routed")) == [
        "vni 5, not 1",
        "underlay routed, not l2",
    ]
    assert differences(shape(), shape(profile="flannel-vxlan", family="ipv4")) == []
    assert differences(shape(), shape(profile="flannel-udp", mtu=1300)) == [
        "profile flannel-udp, not flannel-vxlan",
        "mtu 1300, not none",
    ]


def test_records_of_older_labs_can_still_be_read() -> None:
    old = {
        "id": "1",
        "name": "x",
        "created": 1.0,
        "nodes": [{"name": "node1", "index": 1}],
        "cluster_cidr": "10.244.0.0/16",
        "api_port": 1234,
    }
    record = msgspec.json.decode(json.dumps(old), type=LabRecord)
    assert record.shape == shape()
    assert record.ips(record.nodes[0]) == ("172.18.0.11",)
    assert not record.faults


def test_records_are_read_as_they_were_written() -> None:
    record = LabRecord("1", "x", 1.0, (NodeRecord("node1", 1),), shape=shape(mtu=1400, gbp=True))
    assert msgspec.json.decode(msgspec.json.encode(record), type=LabRecord) == record


def test_flannels_configuration_says_the_same() -> None:
    made = shape(cross_subnet=True, vni=3, family="dual", store="etcd")
    assert json.loads(flannel_config(made)) == {
        "EnableIPv4": True,
        "Network": "10.244.0.0/16",
        "SubnetLen": 24,
        "EnableIPv6": True,
        "IPv6Network": "fd00:10:244::/48",
        "IPv6SubnetLen": 64,
        "Backend": {"Type": "vxlan", "VNI": 3, "Port": 8472, "DirectRouting": True},
    }
    host_gw = json.loads(flannel_config(shape(profile="flannel-host-gw")))
    assert host_gw["Backend"] == {"Type": "host-gw"}
    udp = json.loads(flannel_config(shape(profile="flannel-udp", mtu=1400)))
    assert udp["Backend"] == {"Type": "udp", "Port": 8285, "MTU": 1400}


def test_agents_options_wait_for_a_fabric_where_they_change_something() -> None:
    words = ("--probe-interval", "0.2", "--guard=ebpf", "--log-level", "debug")
    auto = shape(transport="auto", agent_options=words)
    assert auto.agent_arguments()[-5:] == words
    direct = msgspec.structs.replace(auto, fabric={"transport": "direct", "anti_spoofing": False})
    assert direct.agent_arguments()[-3:] == ("--no-anti-spoofing", "--log-level", "debug")
    with pytest.raises(InputError, match="it takes the transport auto") as refused:
        shape(agent_options=words)
    assert refused.value.field == "probe-interval"
    with pytest.raises(InputError, match="it takes anti-spoofing"):
        shape(anti_spoofing=False, agent_options=("--guard", "nftables"))
