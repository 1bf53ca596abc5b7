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
    PUBLIC_KEY,
    RANGES,
    SUBNETS,
    NodeObject,
    differs,
    lease_annotations,
    network_available,
    node_from_object,
    public_ip_overwrites,
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


#: What flanneld writes where the underlay and the pods have both families.
DUAL = FLANNELS | {
    "flannel.alpha.coreos.com/backend-v6-data": '{"VNI":1,"VtepMAC":"0a:00:00:00:00:06"}',
    "flannel.alpha.coreos.com/public-ipv6": "fd00:172:18::12",
}


def test_both_families_of_the_underlay_are_read_and_written_as_flannel_does() -> None:
    lease = msgspec.structs.replace(
        LEASE, public_ip6=ip_address("fd00:172:18::12"), vtep_mac6=bytes.fromhex("0a0000000006")
    )
    assert node_from_object(node(DUAL))[0].lease == lease
    assert lease_annotations(lease) == DUAL


#: What Flannel publishes of a family that a node has not, or had.
ABSENT = {PUBLIC_IP: "0.0.0.0", BACKEND_DATA: "null"}  # noqa: S104


@pytest.mark.parametrize("nothing", [{}, ABSENT])
def test_a_node_of_an_underlay_of_ipv6_alone(nothing: dict[str, str]) -> None:
    only = {key: value for key, value in DUAL.items() if key not in (PUBLIC_IP, BACKEND_DATA)}
    found, problems = node_from_object(node(only | nothing))
    assert problems == []
    assert found.lease is not None
    assert (found.lease.public_ip, found.lease.public_ip6) == (ip_address("fd00:172:18::12"), None)
    assert found.lease.vtep_mac == bytes.fromhex("0a0000000006")
    assert lease_annotations(found.lease) == only


@pytest.mark.parametrize("backend", ["", None])
def test_a_lease_of_flannels_udp_backend_has_no_type(backend: str | None) -> None:
    annotations = {MANAGED: "true", PUBLIC_IP: "172.18.0.12", BACKEND_DATA: "null"}
    if backend is not None:
        annotations[BACKEND_TYPE] = backend
    found, problems = node_from_object(node(annotations))
    assert (found.lease, problems) == (Lease(LEASE.subnets, "udp", LEASE.public_ip), [])


def test_a_key_travels_in_base64() -> None:
    lease = Lease(LEASE.subnets, "udp", LEASE.public_ip, public_key=bytes(range(32)))
    assert node_from_object(node(lease_annotations(lease)))[0].lease == lease
    for text in ("", "?", "AAAA"):
        found, (problem,) = node_from_object(node(lease_annotations(lease) | {PUBLIC_KEY: text}))
        assert found.lease is None
        assert "podwire.io/public-key" in problem


@pytest.mark.parametrize("backend", ["vxlan", "l2-vxlan"])
@pytest.mark.parametrize("texts", [("172.31.0.64/26", "172.31.9.9/32", "fd00::/122"), ()])
def test_subnets_that_are_no_podcidrs_stand_in_an_annotation(
    backend: str, texts: tuple[str, ...]
) -> None:
    subnets = tuple(map(ip_network, texts))
    lease = msgspec.structs.replace(LEASE, subnets=subnets, backend=backend)
    written = lease_annotations(lease, LEASE.subnets)
    assert written[RANGES if backend == "l2-vxlan" else SUBNETS] == ",".join(texts)
    assert node_from_object(node(written))[0].lease == lease
    assert lease_annotations(LEASE, LEASE.subnets) == FLANNELS


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
        ({PUBLIC_IP: "fd00::1"}, "not an IPv4 address"),
        ({PUBLIC_IPV6: "172.18.0.12"}, "not an IPv6 address"),
        ({PUBLIC_IPV6: "fd00::1"}, "backend-v6-data"),
        ({PUBLIC_IPV6: "ff02::1"}, "public-ipv6"),
        ({SUBNETS: "172.31.0.64/26,?"}, "podwire.io/subnets"),
        ({BACKEND_DATA: ""}, "backend-data"),
        ({BACKEND_DATA: "null"}, "backend-data"),
        ({BACKEND_DATA: '{"x": ' + "[" * 5000 + "]" * 5000 + "}"}, "backend-data"),
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


def test_what_is_left_of_another_lease_is_removed() -> None:
    others = {BACKEND_V6_DATA: "null", PUBLIC_IPV6: "fd00::1", SUBNETS: "10.0.0.0/26", "mine": "1"}
    assert differs(node(FLANNELS | others), FLANNELS) == dict.fromkeys(
        (BACKEND_V6_DATA, PUBLIC_IPV6, SUBNETS)
    )


def test_an_overwritten_public_ip() -> None:
    assert public_ip_overwrites(node(None)) == ()
    assert public_ip_overwrites(node({PUBLIC_IP_OVERWRITE: ""})) == ()
    both = node({PUBLIC_IP_OVERWRITE: "203.0.113.7", PUBLIC_IPV6_OVERWRITE: "2001:db8::7"})
    assert public_ip_overwrites(both) == (ip_address("203.0.113.7"), ip_address("2001:db8::7"))


@pytest.mark.parametrize("text", ["node2", "2001:db8::7", "127.0.0.1"])
def test_an_overwrite_that_is_no_address_of_a_node_is_refused(text: str) -> None:
    with pytest.raises(InputError) as refused:
        public_ip_overwrites(node({PUBLIC_IP_OVERWRITE: text}))
    assert refused.value.field == f"metadata.annotations[{PUBLIC_IP_OVERWRITE}]"
    assert refused.value.remedy is not None


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
    | st.sampled_from(
        [
            "true",
            "vxlan",
            "host-gw",
            "udp",
            "null",
            "10.244.1.0/24",
            "fe80::1%eth0",
            "10.1.0.0/26,",
            "QUJD",
        ]
    )
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
    if found.lease is not None and found.lease.backend == "vxlan":
        assert all(len(one.vtep_mac or b"") == 6 for one in found.lease.endpoints)


@given(
    st.ip_addresses(network="172.16.0.0/12") | st.ip_addresses(network="fd00::/8"),
    st.binary(min_size=6, max_size=6).filter(lambda mac: not mac[0] & 1 and any(mac)),
    st.integers(1, 2**24 - 1),
)
def test_what_is_published_is_what_peers_read(ip: Any, mac: bytes, vni: int) -> None:
    lease = Lease(LEASE.subnets, "vxlan", ip, vni=vni, vtep_mac=mac)
    found, problems = node_from_object(node(lease_annotations(lease)))
    assert (found.lease, problems) == (lease, [])
