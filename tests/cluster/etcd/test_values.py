"""Flannel's keys and values, letter for letter."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.cluster.etcd.values import decode, encode, format_subnets, parse_subnets
from podwire.errors import InputError
from podwire.model.cluster import Lease

FOUR, SIX = ip_network("10.5.34.0/24"), ip_network("fd00:5:34::/64")
IP4, IP6 = ip_address("192.168.64.3"), ip_address("fd00::3")
MAC, MAC6 = bytes.fromhex("c6d2326f8f44"), bytes.fromhex("c6d2326f8f46")


@pytest.mark.parametrize(
    ("subnets", "name"),
    [
        ((FOUR,), "10.5.34.0-24"),
        ((FOUR, SIX), "10.5.34.0-24&fd00:5:34::-64"),
        ((SIX,), "0.0.0.0-0&fd00:5:34::-64"),
    ],
)
def test_keys(subnets: tuple[object, ...], name: str) -> None:
    assert format_subnets(subnets) == name  # type: ignore[arg-type]
    assert parse_subnets(name) == subnets


@pytest.mark.parametrize(
    "name",
    [
        *("", "x", "10.5.34.0/24", "10.5.34.1-24", "10.5.34.0-33", "10.5.34.0-24&"),
        *("10.5.34.0-24&fd00::1-64", "10.5.34.0-24&fd00::-129", "10.5.34.0-24&:::-64"),
        *("1.2.3.999-8", "١.2.3.0-24"),
    ],
)
def test_wrong_keys(name: str) -> None:
    with pytest.raises(InputError):
        parse_subnets(name)


@pytest.mark.parametrize(
    ("lease", "value"),
    [
        (
            Lease((FOUR,), "vxlan", IP4, vni=1, vtep_mac=MAC),
            '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
            '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}',
        ),
        (
            Lease((FOUR, SIX), "vxlan", IP4, 1, MAC, public_ip6=IP6, vtep_mac6=MAC6),
            '{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan",'
            '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},'
            '"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:46"}}',
        ),
        (
            Lease((SIX,), "vxlan", IP6, 1, MAC6),
            '{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::3","BackendType":"vxlan",'
            '"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:46"}}',
        ),
        (
            Lease((FOUR,), "host-gw", IP4),
            '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
        ),
        (Lease((FOUR,), "udp", IP4), '{"PublicIP":"192.168.64.3","PublicIPv6":null}'),
    ],
)
def test_values_are_as_flannel_writes_them(lease: Lease, value: str) -> None:
    assert encode(lease, "").decode() == value
    found = decode(value.encode(), lease.subnets)
    assert (found.node, found.lease) == ("", lease)


def test_what_we_add_is_passed_over_by_flannel_and_read_by_us() -> None:
    lease = Lease((FOUR,), "udp", IP4, public_key=bytes(range(32)))
    value = encode(lease, "node1", with_subnets=True)
    added = set(json.loads(value)) - {"PublicIP", "PublicIPv6"}
    assert added == {"PodwireNode", "PodwirePublicKey", "PodwireSubnets"}
    assert decode(value, None).lease == lease
    assert decode(value, None).node == "node1"


def test_other_backends_are_read_as_far_as_they_are_understood() -> None:
    value = b'{"PublicIP":"10.0.0.9","BackendType":"wireguard","BackendData":{"PublicKey":"x"}}'
    assert decode(value, (FOUR,)).lease == Lease((FOUR,), "wireguard", ip_address("10.0.0.9"))


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("[]", "value"),
        ('{"PublicIP":5}', "value"),
        ('{"BackendData":' + '{"a":' * 5000 + "1" + "}" * 5001, "value"),
        ("{}", "PublicIP"),
        ('{"PublicIP":"x"}', "PublicIP"),
        ('{"PublicIP":"224.0.0.1"}', "PublicIP"),
        ('{"PublicIP":"127.0.0.1"}', "PublicIP"),
        ('{"PublicIP":"255.255.255.255"}', "PublicIP"),
        ('{"PublicIP":"fd00::1"}', "PublicIP"),
        ('{"PublicIP":"10.0.0.1","PublicIPv6":"10.0.0.1"}', "PublicIPv6"),
        ('{"PublicIP":"10.0.0.1","BackendType":"vxlan"}', "BackendData.VtepMAC"),
        (
            '{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":{"VNI":"1"}}',
            "BackendData",
        ),
        (
            '{"PublicIP":"10.0.0.1","BackendType":"vxlan",'
            '"BackendData":{"VNI":1,"VtepMAC":"01:00:00:00:00:00"}}',
            "BackendData.VtepMAC",
        ),
        ('{"PublicIP":"10.0.0.1","PodwireNode":"../x"}', "PodwireNode"),
        ('{"PublicIP":"10.0.0.1","PodwirePublicKey":"AAAA"}', "PodwirePublicKey"),
        ('{"PublicIP":"10.0.0.1","PodwireSubnets":["x"]}', "PodwireSubnets"),
    ],
)
def test_wrong_values_name_the_field(value: str, field: str) -> None:
    with pytest.raises(InputError) as caught:
        decode(value.encode(), None)
    assert caught.value.field == field


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_NAMES = ["PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "PodwireNode"]


@settings(max_examples=100)
@given(
    st.binary(max_size=30)
    | st.dictionaries(st.sampled_from(_NAMES), _JSON).map(lambda one: json.dumps(one).encode())
)
def test_whatever_stands_there_is_no_more_than_wrong(value: bytes) -> None:
    try:
        decode(value, (FOUR,))
    except InputError:
        return
