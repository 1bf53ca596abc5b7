"""From a Node object and the underlay to this node's configuration, as plain values."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from podwire.agent.config import AgentConfig, parse_network
from podwire.agent.lease import node_config, random_mac
from podwire.cluster.nodes import (
    BACKEND_DATA,
    MANAGED,
    PUBLIC_IP_OVERWRITE,
    NodeObject,
    lease_annotations,
)
from podwire.errors import InputError
from podwire.model.cluster import Lease, NetworkConfig, Underlay

CONFIG = AgentConfig(node_name="node1", network=parse_network("10.244.0.0/16"))
UNDERLAY = Underlay("eth0", ip_address("172.18.0.11"), 1500)
KERNELS, PUBLISHED = bytes.fromhex("020000000001"), bytes.fromhex("02000000000f")


def node(cidrs: list[str] | None = None, **annotations: str) -> NodeObject:
    spec = {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {}
    obj = {"metadata": {"name": "node1", "annotations": annotations}, "spec": spec}
    return msgspec.convert(obj, NodeObject)


def leased(obj: NodeObject, config: AgentConfig = CONFIG, **more: Any) -> NetworkConfig:
    options = {"underlay": UNDERLAY, "vtep_mac": KERNELS, **more}
    found = node_config(config, obj, options["underlay"], options["vtep_mac"])
    assert isinstance(found, NetworkConfig), found
    return found


def test_a_lease_is_the_nodes_cidr_reached_at_its_underlay_address() -> None:
    assert leased(node(["10.244.1.0/24"])) == NetworkConfig(
        node="node1",
        network=(ip_network("10.244.0.0/16"),),
        lease=Lease(
            subnets=(ip_network("10.244.1.0/24"),),
            backend="vxlan",
            public_ip=ip_address("172.18.0.11"),
            vni=1,
            vtep_mac=KERNELS,
        ),
        underlay=UNDERLAY,
        mtu=1450,
    )


def test_numbers_of_the_configuration_are_the_devices() -> None:
    config = msgspec.structs.replace(CONFIG, vni=7, vxlan_port=4789, masquerade=False)
    found = leased(node(["10.244.1.0/24"]), config)
    assert (found.vxlan_dev, found.vxlan_port, found.masquerade) == ("flannel.7", 4789, False)
    assert found.lease.vni == 7


@pytest.mark.parametrize(
    ("address", "underlay_mtu", "mtu"),
    [("172.18.0.11", 1500, 1450), ("172.18.0.11", 9000, 8950), ("fd00::11", 1500, 1430)],
)
def test_the_pods_mtu_leaves_room_for_the_encapsulation(
    address: str, underlay_mtu: int, mtu: int
) -> None:
    underlay = Underlay("eth0", ip_address(address), underlay_mtu)
    assert leased(node(["10.244.1.0/24"]), underlay=underlay).mtu == mtu


def test_two_families_are_one_lease() -> None:
    config = msgspec.structs.replace(CONFIG, network=parse_network("10.244.0.0/16,fd00:244::/48"))
    cidrs = ["10.244.1.0/24", "fd00:244:0:1::/64"]
    assert leased(node(cidrs), config).lease.subnets == tuple(map(ip_network, cidrs))


def test_a_node_without_a_cidr_is_told_what_it_waits_for() -> None:
    reason = node_config(CONFIG, node(), UNDERLAY, KERNELS)
    assert isinstance(reason, str)
    assert "node1 has no spec.podCIDR" in reason
    assert "--allocate-node-cidrs" in reason


@pytest.mark.parametrize(
    "cidrs", [["10.245.1.0/24"], ["10.0.0.0/8"], ["10.244.1.0/24", "fd00:244:0:1::/64"]]
)
def test_a_cidr_outside_of_the_network_is_refused(cidrs: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        node_config(CONFIG, node(cidrs), UNDERLAY, KERNELS)
    assert refused.value.field == "spec.podCIDR"
    assert cidrs[-1] in refused.value.message
    assert "--network" in (refused.value.remedy or "")


def test_the_published_mac_wins_over_the_kernels_which_wins_over_a_new_one() -> None:
    lease = Lease((), "vxlan", ip_address("172.18.0.11"), vni=1, vtep_mac=PUBLISHED)
    published = node(["10.244.1.0/24"], **lease_annotations(lease))
    assert leased(published).lease.vtep_mac == PUBLISHED
    assert leased(node(["10.244.1.0/24"])).lease.vtep_mac == KERNELS
    made = leased(node(["10.244.1.0/24"]), vtep_mac=None).lease.vtep_mac
    assert made is not None
    assert made not in (KERNELS, PUBLISHED)


@pytest.mark.parametrize("data", ["", "null", "{", '{"VNI": 1, "VtepMAC": "ours"}'])
def test_a_published_mac_that_is_none_is_passed_over(data: str) -> None:
    damaged = node(["10.244.1.0/24"], **{MANAGED: "true", BACKEND_DATA: data})
    assert leased(damaged).lease.vtep_mac == KERNELS


def test_an_administrators_public_ip_wins_over_the_underlays() -> None:
    found = leased(node(["10.244.1.0/24"], **{PUBLIC_IP_OVERWRITE: "203.0.113.7"}))
    assert found.lease.public_ip == ip_address("203.0.113.7")
    assert found.underlay.ip == ip_address("172.18.0.11")
    with pytest.raises(InputError, match="public-ip-overwrite"):
        leased(node(["10.244.1.0/24"], **{PUBLIC_IP_OVERWRITE: "here"}))


def test_a_random_mac_is_local_unicast_and_another_each_time() -> None:
    macs = {random_mac() for _ in range(50)}
    assert len(macs) == 50
    assert all(len(mac) == 6 and mac[0] & 0b11 == 0b10 for mac in macs)
