"""From what the store and the underlay say to this node's configuration, as plain values."""

from __future__ import annotations

import re
from contextlib import nullcontext
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from podwire.agent.fabrics import FabricOptions
from podwire.agent.lease import (
    check_mtu,
    check_subnets,
    network_config,
    random_mac,
    relevant,
    wanted_lease,
)
from podwire.cluster.source import Own
from podwire.errors import InputError, PodwireError
from podwire.model.cluster import Lease, NetworkConfig, Node, Underlay
from podwire.model.state import IPNetwork

NETWORK = (ip_network("10.244.0.0/16"),)
BOTH = (*NETWORK, ip_network("fd00:244::/48"))
UNDERLAY = Underlay("eth0", ip_address("172.18.0.11"), 1500)
DUAL = msgspec.structs.replace(UNDERLAY, ip6=ip_address("fd00:172:18::11"))
OF_IPV6 = Underlay("eth0", ip_address("fd00:172:18::11"), 1500)
KERNELS, KERNELS6 = bytes.fromhex("020000000001"), bytes.fromhex("020000000006")
PUBLISHED = bytes.fromhex("02000000000f")
MACS = {4: KERNELS, 6: KERNELS6}


def own(lease: Lease | None = None, *public_ips: str) -> Own:
    return Own(Node("node1", lease=lease), tuple(map(ip_address, public_ips)))


def wanted(underlay: Underlay = UNDERLAY, about: Own | None = None, **options: Any) -> Lease:
    return wanted_lease(FabricOptions(**options).fabric(), about or own(), underlay, MACS)


def config(underlay: Underlay = UNDERLAY, **options: Any) -> NetworkConfig:
    fabric = FabricOptions(**options).fabric()
    lease = msgspec.structs.replace(wanted(underlay, **options), subnets=(NETWORK[0],))
    return network_config("node1", fabric, NETWORK, lease, underlay)


def test_a_lease_is_reached_at_the_underlays_address_and_the_store_says_which_subnets() -> None:
    assert wanted() == Lease(
        subnets=(), backend="vxlan", public_ip=UNDERLAY.ip, vni=1, vtep_mac=KERNELS
    )


def test_both_families_of_the_underlay_have_a_vtep_each() -> None:
    found = wanted(DUAL)
    assert (found.public_ip, found.vtep_mac) == (DUAL.ip, KERNELS)
    assert (found.public_ip6, found.vtep_mac6) == (DUAL.ip6, KERNELS6)
    alone = wanted(OF_IPV6)
    assert (alone.public_ip, alone.vtep_mac) == (OF_IPV6.ip, KERNELS6)
    assert (alone.public_ip6, alone.vtep_mac6) == (None, None)


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({"profile": "flannel-host-gw"}, "host-gw"),
        ({"profile": "flannel-udp"}, "udp"),
        ({"profile": "calico"}, "host-gw"),
        ({"transport": "auto"}, "auto"),
        ({"profile": "weave"}, "l2-vxlan"),
    ],
)
def test_each_transport_is_published_by_flannels_word(
    options: dict[str, Any], backend: str
) -> None:
    found = wanted(**options)
    assert found.backend == backend
    assert (found.vtep_mac is None) == (backend in ("host-gw", "udp")) == (found.vni == 0)


def test_numbers_of_the_options_are_the_devices() -> None:
    found = config(DUAL, vni=7, vxlan_port=4789)
    assert (found.vxlan_dev, found.vxlan_port) == ("flannel.7", 4789)
    assert found.fabric.vxlan_dev6 == "flannel-v6.7"
    assert found.lease.vni == 7
    assert config(vni=9_999_999).fabric.vxlan_dev6 == "flan6.9999999"
    assert config(profile="weave", vxlan_port=7000).vxlan_dev == "vxlan-7000"
    assert config(profile="calico-vxlan", vni=7).vxlan_dev == "vxlan.calico"


@pytest.mark.parametrize(
    ("underlay", "options", "mtu"),
    [
        (UNDERLAY, {}, 1450),
        (msgspec.structs.replace(UNDERLAY, mtu=9000), {}, 8950),
        (OF_IPV6, {}, 1430),
        (DUAL, {}, 1430),
        (UNDERLAY, {"mtu": 1400}, 1400),
        (UNDERLAY, {"profile": "flannel-host-gw"}, 1500),
        (UNDERLAY, {"profile": "flannel-udp"}, 1472),
        (UNDERLAY, {"profile": "flannel-udp", "encrypt": True}, 1440),
        (UNDERLAY, {"transport": "auto"}, 1450),
    ],
)
def test_the_pods_mtu_leaves_room_for_the_encapsulation(
    underlay: Underlay, options: dict[str, Any], mtu: int
) -> None:
    assert config(underlay, **options).mtu == mtu


@pytest.mark.parametrize(
    ("networks", "mtu", "options", "says"),
    [
        (BOTH, 1500, {"mtu": 1200}, "--mtu: 1200 bytes are too few for IPv6, which needs 1280"),
        (BOTH, 1320, {}, "raise it to 1350"),
        (BOTH, 1320, {"profile": "flannel-host-gw"}, None),
        (NETWORK, 1320, {"mtu": 1200}, None),
        (NETWORK, 600, {}, "leaves pods 550, and IPv4 needs 576"),
    ],
)
def test_an_mtu_that_a_family_cannot_have_is_refused(
    networks: tuple[IPNetwork, ...], mtu: int, options: dict[str, Any], says: str | None
) -> None:
    underlay = msgspec.structs.replace(DUAL if networks == BOTH else UNDERLAY, mtu=mtu)
    with nullcontext() if says is None else pytest.raises(InputError, match=re.escape(says)):
        check_mtu(FabricOptions(**options).fabric(), networks, underlay)


def test_an_underlay_of_ipv6_is_of_no_concern_to_pods_without() -> None:
    assert relevant(DUAL, NETWORK) == UNDERLAY
    assert relevant(DUAL, BOTH) == DUAL
    assert relevant(OF_IPV6, NETWORK) == OF_IPV6


@pytest.mark.parametrize("subnet", ["10.245.1.0/24", "10.0.0.0/8", "fd00:244:0:1::/64"])
def test_a_subnet_outside_of_the_network_is_refused(subnet: str) -> None:
    with pytest.raises(InputError) as refused:
        check_subnets("node1", NETWORK, (ip_network("10.244.1.0/24"), ip_network(subnet)))
    assert refused.value.field == "spec.podCIDR"
    assert subnet in refused.value.message
    assert "--network" in (refused.value.remedy or "")


def test_a_family_that_a_node_has_no_subnet_of_is_told() -> None:
    subnets = (ip_network("10.244.1.0/24"), ip_network("fd00:244:0:1::/64"))
    check_subnets("node1", BOTH, subnets)
    with pytest.raises(PodwireError, match="no subnet of IPv6, which the cluster network fd00"):
        check_subnets("node1", BOTH, subnets[:1])


def test_the_published_mac_wins_over_the_kernels_which_wins_over_a_new_one() -> None:
    lease = Lease((), "vxlan", UNDERLAY.ip, vni=1, vtep_mac=PUBLISHED)
    assert wanted(about=own(lease)).vtep_mac == PUBLISHED
    assert wanted(DUAL, own(lease)).vtep_mac6 == KERNELS6
    assert wanted().vtep_mac == KERNELS
    made = wanted_lease(FabricOptions().fabric(), own(), UNDERLAY, {}).vtep_mac
    assert made not in (None, KERNELS, PUBLISHED)
    # What is at another address may be another node of the same name.
    elsewhere = msgspec.structs.replace(lease, public_ip=ip_address("172.18.0.99"))
    assert wanted(about=own(elsewhere)).vtep_mac == KERNELS


def test_an_administrators_public_ip_wins_over_the_underlays() -> None:
    found = wanted(DUAL, own(None, "203.0.113.7", "2001:db8::7"))
    assert [str(one.ip) for one in found.endpoints] == ["203.0.113.7", "2001:db8::7"]
    with pytest.raises(InputError, match="another family") as refused:
        wanted(UNDERLAY, own(None, "2001:db8::7"))
    assert refused.value.field == "public-ip-overwrite"


def test_a_random_mac_is_local_unicast_and_another_each_time() -> None:
    macs = {random_mac() for _ in range(50)}
    assert len(macs) == 50
    assert all(len(mac) == 6 and mac[0] & 0b11 == 0b10 for mac in macs)
