"""Leases on Node objects: read, written, and whatever stands there instead."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.cluster.nodes import (
    BACKEND_DATA,
    BACKEND_TYPE,
    BACKEND_V6_DATA,
    MANAGED,
    PUBLIC_IP,
    PUBLIC_IP_OVERWRITE,
    PUBLIC_IPV6,
    PUBLIC_IPV6_OVERWRITE,
    NodeObject,
    differs,
    lease_annotations,
    network_available,
    node_from_object,
    public_ip_overwrite,
    published_vtep_mac,
)
from podwire.errors import InputError
from podwire.model.cluster import Lease, Node
from podwire.model.state import format_mac

#: What flanneld --kube-subnet-mgr writes, letter by letter.
FLANNELS = {
    "flannel.alpha.coreos.com/backend-data": '{"VNI":1,"VtepMAC":"d6:2f:4b:4e:5a:11"}',
    "flannel.alpha.coreos.com/backend-type": "vxlan",
    "flannel.alpha.coreos.com/kube-subnet-manager": "true",
    "flannel.alpha.coreos.com/public-ip": "172.18.0.12",
}
LEASE = Lease(
    subnets=(ip_network("10.244.1.0/24"),),
    backend="vxlan",
    public_ip=ip_address("172.18.0.12"),
    vni=1,
    vtep_mac=bytes.fromhex("d62f4b4e5a11"),
)


def node(annotations: dict[str, str] | None = None, **more: Any) -> NodeObject:
    obj = {
        "metadata": {"name": "node2", "annotations": annotations},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "172.18.0.12"},
                {"type": "ExternalIP", "address": "203.0.113.7"},
                {"type": "Hostname", "address": "node2"},
            ]
        },
        **more,
    }
    return msgspec.json.decode(json.dumps(obj), type=NodeObject)


def test_a_lease_of_flannel_is_read() -> None:
    assert node_from_object(node(FLANNELS)) == (
        Node(
            name="node2",
            pod_cidrs=(ip_network("10.244.1.0/24"),),
            internal_ips=(ip_address("172.18.0.12"),),
            lease=LEASE,
        ),
        [],
    )


def test_a_lease_is_written_as_flannel_does() -> None:
    assert lease_annotations(LEASE) == FLANNELS


def test_a_backend_without_data_writes_null() -> None:
    lease = msgspec.structs.replace(LEASE, backend="host-gw", vtep_mac=None)
    assert lease_annotations(lease)[BACKEND_DATA] == "null"
    assert node_from_object(node(lease_annotations(lease)))[0].lease == Lease(
        LEASE.subnets, "host-gw", LEASE.public_ip
    )


def test_a_node_that_nobody_manages_has_no_lease_and_no_problem() -> None:
    for unmanaged in (None, {}, FLANNELS | {MANAGED: "false"}):
        found, problems = node_from_object(node(unmanaged))
        assert (found.lease, problems) == (None, [])


def test_podcidr_alone_counts_where_podcidrs_is_missing() -> None:
    found, _ = node_from_object(node(spec={"podCIDR": "10.244.9.0/24"}))
    assert found.pod_cidrs == (ip_network("10.244.9.0/24"),)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({PUBLIC_IP: "172.18.0"}, "public-ip"),
        ({PUBLIC_IP: ""}, "public-ip"),
        ({BACKEND_DATA: ""}, "backend-data"),
        ({BACKEND_DATA: "null"}, "backend-data"),
        ({BACKEND_DATA: '{"VNI": "one", "VtepMAC": "d6:2f:4b:4e:5a:11"}'}, "VNI"),
        ({BACKEND_DATA: '{"VNI": 1}'}, "VtepMAC"),
        ({BACKEND_DATA: '{"VNI": 1, "VtepMAC": "d6:2f:4b:4e:5a"}'}, "VtepMAC"),
        ({BACKEND_DATA: '{"VNI": 1, "VtepMAC": "d6:2f:4b:4e:5a:zz"}'}, "VtepMAC"),
        ({BACKEND_DATA: '{"VNI": 1, "VtepMAC": "d6:2f:4b:4e:5a:+1"}'}, "VtepMAC"),
        ({BACKEND_DATA: '{"VNI": 1, "VtepMAC": "00:00:00:00:00:00"}'}, "VtepMAC"),
        ({BACKEND_DATA: '{"VNI": 1, "VtepMAC": "01:00:5e:00:00:01"}'}, "VtepMAC"),
        ({PUBLIC_IP: "::0"}, "public-ip"),
        ({PUBLIC_IP: "127.0.0.1"}, "public-ip"),
        ({PUBLIC_IP: "ff02::1"}, "public-ip"),
    ],
)
def test_a_broken_annotation_costs_the_lease_and_is_named(
    broken: dict[str, str], says: str
) -> None:
    found, (problem,) = node_from_object(node(FLANNELS | broken))
    assert found.lease is None
    assert found.pod_cidrs == LEASE.subnets
    assert says in problem


def test_a_broken_cidr_or_address_is_left_out_and_named() -> None:
    found, problems = node_from_object(
        node(
            spec={"podCIDRs": ["10.244.1.0/24", "10.244.1.5/24", "pods"]},
            status={"addresses": [{"type": "InternalIP", "address": "here"}]},
        )
    )
    assert (found.pod_cidrs, found.internal_ips) == (LEASE.subnets, ())
    assert [problem.partition(":")[0] for problem in problems] == [
        "spec.podCIDRs[1]",
        "spec.podCIDRs[2]",
        "status.addresses[0]",
    ]


def test_only_what_differs_is_to_be_patched() -> None:
    assert differs(node(FLANNELS), FLANNELS) == {}
    assert differs(node(FLANNELS | {PUBLIC_IP: "1.2.3.4"}), FLANNELS) == {PUBLIC_IP: "172.18.0.12"}
    assert differs(node(None), FLANNELS) == FLANNELS


def test_the_published_mac() -> None:
    assert published_vtep_mac(node(FLANNELS)) == LEASE.vtep_mac
    assert published_vtep_mac(node(None)) is None
    assert published_vtep_mac(node({BACKEND_DATA: "null"})) is None


def test_an_overwritten_public_ip() -> None:
    assert public_ip_overwrite(node(None)) is None
    assert public_ip_overwrite(node({PUBLIC_IP_OVERWRITE: ""})) is None
    given_one = node({PUBLIC_IP_OVERWRITE: "203.0.113.7"})
    assert public_ip_overwrite(given_one) == ip_address("203.0.113.7")
    with pytest.raises(InputError) as refused:
        public_ip_overwrite(node({PUBLIC_IP_OVERWRITE: "node2"}))
    assert refused.value.field == f"metadata.annotations[{PUBLIC_IP_OVERWRITE}]"


def test_the_condition_says_that_the_network_is_available() -> None:
    condition = network_available("2026-01-31T12:00:00Z")
    assert (condition["type"], condition["status"]) == ("NetworkUnavailable", "False")


KEYS = [
    MANAGED,
    BACKEND_TYPE,
    BACKEND_DATA,
    BACKEND_V6_DATA,
    PUBLIC_IP,
    PUBLIC_IPV6,
    PUBLIC_IP_OVERWRITE,
    PUBLIC_IPV6_OVERWRITE,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
DATA = st.fixed_dictionaries(
    {}, optional={"VNI": JSON | st.integers(0, 2**24), "VtepMAC": JSON | st.text(max_size=20)}
)
TEXTS = (
    st.text(max_size=40)
    | st.sampled_from(["true", "vxlan", "host-gw", "udp", "null", "10.244.1.0/24", "fe80::1%eth0"])
    | (JSON | DATA).map(json.dumps)
    | st.ip_addresses().map(str)
    | st.binary(min_size=6, max_size=6).map(format_mac)
)


@given(
    annotations=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=10), TEXTS),
    cidrs=st.lists(TEXTS, max_size=3),
    addresses=st.lists(st.tuples(st.sampled_from(["InternalIP", "Hostname", ""]), TEXTS)),
)
def test_whatever_stands_on_a_node_its_reader_never_fails(
    annotations: dict[str, str], cidrs: list[str], addresses: list[tuple[str, str]]
) -> None:
    obj = node(
        annotations,
        spec={"podCIDRs": cidrs},
        status={"addresses": [{"type": kind, "address": text} for kind, text in addresses]},
    )
    found, problems = node_from_object(obj)
    assert found.name == "node2"
    assert all(isinstance(problem, str) and problem for problem in problems)
    assert len(found.pod_cidrs) + len(found.internal_ips) + len(problems) >= len(cidrs)
    mac = published_vtep_mac(obj)
    assert mac is None or len(mac) == 6
    if found.lease is not None and found.lease.backend == "vxlan":
        assert found.lease.vtep_mac == mac


@given(
    st.ip_addresses(network="172.16.0.0/12") | st.ip_addresses(network="fd00::/8"),
    st.binary(min_size=6, max_size=6).filter(lambda mac: not mac[0] & 1 and any(mac)),
    st.integers(1, 2**24 - 1),
)
def test_what_is_published_is_what_peers_read(ip: Any, mac: bytes, vni: int) -> None:
    lease = Lease(LEASE.subnets, "vxlan", ip, vni=vni, vtep_mac=mac)
    found, problems = node_from_object(node(lease_annotations(lease)))
    assert (found.lease, problems) == (lease, [])
