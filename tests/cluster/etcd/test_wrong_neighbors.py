"""Whatever neighbours write into the store: at most they themselves are not reached."""

from __future__ import annotations

import json
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.cluster.etcd import values
from podwire.cluster.etcd.directory import Directory, Entry, read_entry
from podwire.cluster.etcd.layout import Layout
from podwire.cluster.etcd.messages import KeyValue
from podwire.errors import InputError
from podwire.model.cluster import ClusterView, Lease, NetworkConfig, Node, Underlay
from podwire.plan.claims import Claims
from podwire.plan.node import cause_of_node, objections, plan
from podwire.plan.profiles import PROFILES
from podwire.plan.transport import transport_of

LAYOUT = Layout("/net")
NETWORK = IPv4Network("10.5.0.0/16")
OWN_IP, GOOD_IP = ip_address("172.18.0.11"), ip_address("172.18.0.12")
OWN_MAC, GOOD_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
FABRICS = ["flannel-vxlan", "flannel-host-gw", "flannel-udp"]


def config(profile: str) -> NetworkConfig:
    fabric = PROFILES[profile]
    lease = Lease(
        (ip_network("10.5.1.0/24"),),
        transport_of(fabric).BACKEND,
        OWN_IP,
        vni=1 if fabric.uses_vxlan else 0,
        vtep_mac=OWN_MAC if fabric.uses_vxlan else None,
    )
    underlay = Underlay("eth0", OWN_IP, 1500, on_link=(ip_network("172.18.0.0/16"),))
    return NetworkConfig(
        node="node1", network=(NETWORK,), lease=lease, underlay=underlay, mtu=1450, fabric=fabric
    )


def good(backend: str) -> Entry:
    """A neighbour in order, which was there before."""
    mac = GOOD_MAC if backend == "vxlan" else None
    lease = Lease((ip_network("10.5.2.0/24"),), backend, GOOD_IP, vni=1, vtep_mac=mac)
    value = values.encode(lease, "good")
    found = read_entry(LAYOUT, KeyValue(LAYOUT.subnet("10.5.2.0-24"), value, 1))
    assert found is not None
    return found


#: Right and wrong ones alike: the node's own, the good neighbour's, and none that there can be.
_KEYS = st.sampled_from(
    [
        *("10.5.1.0-24", "10.5.2.0-25", "10.5.2.7-32", "10.5.0.0-17", "10.5.0.0-16", "0.0.0.0-0"),
        *("10.5.3.0-24", "10.5.3.0-24&fd00::-64", "192.0.2.0-24", "10.5.3.1-24", "x", ""),
    ]
)
_IPS = st.sampled_from(
    [
        *("172.18.0.13", "172.18.0.12", "172.18.0.11", "10.5.2.2", "203.0.113.1", "0.0.0.0"),  # noqa: S104
        *("255.255.255.255", "172.18.255.255", "fd00::13", "::ffff:172.18.0.11", "x", "", 5, None),
    ]
)
_MACS = st.sampled_from(
    [
        *("02:00:00:00:00:03", "02:00:00:00:00:02", "02:00:00:00:00:01", "00:00:00:00:00:00"),
        *("01:00:5e:00:00:01", "02:00:00:00:00", "x", 5, None),
    ]
)
_DATA = st.none() | st.fixed_dictionaries(
    {}, optional={"VNI": st.sampled_from([1, 2, -1, 2**40, "1", 1.5, None]), "VtepMAC": _MACS}
)
_VALUES = st.fixed_dictionaries(
    {"PublicIP": _IPS},
    optional={
        "PublicIPv6": _IPS,
        "BackendType": st.sampled_from(["vxlan", "host-gw", "udp", "auto", "wireguard", "", 5]),
        "BackendData": _DATA,
        "BackendV6Data": _DATA | st.lists(st.integers(), max_size=1),
        "PodwireNode": st.sampled_from(["good", "node1", "node2", "../x", ""]),
    },
)


def read(key: str, value: Any) -> Entry | None:
    try:
        data = json.dumps(value).encode()
        return read_entry(LAYOUT, KeyValue(LAYOUT.subnet(key), data, 2, 2))
    except InputError as error:
        assert key in str(error.field)
        return None


@pytest.mark.parametrize("profile", FABRICS)
@settings(max_examples=30)
@given(st.lists(st.tuples(_KEYS, _VALUES), min_size=1, max_size=3, unique_by=lambda one: one[0]))
def test_a_good_neighbour_is_reached_as_before(
    profile: str, wrong: list[tuple[str, dict[str, Any]]]
) -> None:
    here = config(profile)
    neighbor = good(transport_of(here.fabric).BACKEND)
    directory = Directory("node1")
    directory.sync([neighbor])
    directory.own_is_at(LAYOUT.subnet("10.5.1.0-24"))
    before = plan(ClusterView(here, dict(directory.nodes))).by_cause
    for key, value in wrong:
        if LAYOUT.subnet(key) != LAYOUT.subnet("10.5.1.0-24") and (entry := read(key, value)):
            directory.put(entry)
    nodes = dict(directory.nodes)
    assert nodes["good"].lease == neighbor.lease
    now = plan(ClusterView(here, nodes)).by_cause
    for cause in (cause_of_node("good"), cause_of_node("node1")):
        assert now.get(cause) == before.get(cause)
    claims = Claims(node for name, node in nodes.items() if name != "node1")
    assert objections(here, nodes["good"], claims) == []
    for name, node in nodes.items():
        if name not in ("good", "node1") and not objections(here, node, claims):
            _is_harmless(node)


def _is_harmless(node: Node) -> None:
    """What a neighbour gets is in the network, and nobody else's."""
    assert node.lease is not None
    for subnet in node.lease.subnets:
        assert isinstance(subnet, IPv4Network)
        assert subnet.subnet_of(NETWORK)
        for other in ("10.5.1.0/24", "10.5.2.0/24"):
            assert not subnet.overlaps(ip_network(other))
    assert OWN_IP not in {one.ip for one in node.lease.endpoints}
