"""Flannel's configuration: its defaults and what it refuses."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.cluster.etcd.network import FlannelConfig, SubnetRange, parse_config
from podwire.cluster.source import BackendOptions
from podwire.errors import InputError

SIX = {"EnableIPv6": True, "EnableIPv4": False}


def parse(document: Any) -> FlannelConfig:
    return parse_config(json.dumps(document).encode(), "/config")


def bounds(one: SubnetRange) -> tuple[int, str, str]:
    return one.subnet_len, str(one.first), str(one.last)


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"Network": "10.5.0.0/16"}, (24, "10.5.1.0", "10.5.255.0")),
        ({"Network": "10.0.0.0/8", "SubnetLen": 20}, (20, "10.0.16.0", "10.255.240.0")),
        ({"Network": "10.5.0.0/22"}, (24, "10.5.1.0", "10.5.3.0")),
        ({"Network": "10.5.0.0/23"}, (25, "10.5.0.128", "10.5.1.128")),
        ({"Network": "10.5.0.0/28"}, (30, "10.5.0.4", "10.5.0.12")),
        (
            {"network": "10.5.7.7/16", "SUBNETMIN": "10.5.10.0", "SubnetMax": "10.5.20.0"},
            (24, "10.5.10.0", "10.5.20.0"),
        ),
        ({"Network": "10.5.0.0/16", "SubnetMin": None}, (24, "10.5.1.0", "10.5.255.0")),
        ({**SIX, "IPv6Network": "fd00:5::/48"}, (64, "fd00:5:0:1::", "fd00:5:0:ffff::")),
        ({**SIX, "IPv6Network": "fd00:5::/64"}, (66, "fd00:5:0:0:4000::", "fd00:5:0:0:c000::")),
        (
            {**SIX, "IPv6Network": "fd00:5::/48", "IPv6SubnetMin": "fd00:5:0:a::"},
            (64, "fd00:5:0:a::", "fd00:5:0:ffff::"),
        ),
    ],
)
def test_what_is_leased(document: dict[str, Any], wanted: tuple[int, str, str]) -> None:
    (found,) = parse(document).ranges
    assert bounds(found) == wanted


def test_both_families() -> None:
    config = parse({"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00::/48"})
    assert config.stored.networks == (ip_network("10.5.0.0/16"), ip_network("fd00::/48"))


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "Expected `object`"),
        ({}, "Network: is missing"),
        ({"Network": 5}, "Network: Expected `str`"),
        ({"Network": "10.5.0.0"}, "Network: 10.5.0.0/32 is too small"),
        ({"Network": "ten"}, "Network: 'ten' is not a CIDR"),
        ({"Network": "fd00::/48"}, "Network: fd00::/48 is not an IPv4 CIDR"),
        ({"Network": "127.0.0.0/8"}, "Network: 127.0.0.0/8 can't be a pod network"),
        ({"Network": "10.5.0.0/29"}, "Network: 10.5.0.0/29 is too small; at most /28"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 31}, "SubnetLen: 31 is too long"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 17}, "less than four subnets"),
        ({"Network": "10.5.0.0/16", "SubnetLen": "24"}, "SubnetLen: Expected `int`"),
        ({"Network": "10.5.0.0/16", "SubnetMin": "10.6.0.0"}, "SubnetMin: 10.6.0.0 is not in"),
        ({"Network": "10.5.0.0/16", "SubnetMin": "10.5.0.1"}, "SubnetMin: 10.5.0.1 is not where"),
        ({"Network": "10.5.0.0/16", "SubnetMax": "10.5.9.1"}, "SubnetMax: 10.5.9.1 is not where"),
        ({"Network": "10.5.0.0/16", "SubnetMax": "fd00::"}, "'fd00::' is not an IPv4 address"),
        (
            {"Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"},
            "10.5.9.0 is after SubnetMax 10.5.8.0",
        ),
        ({"Network": "10.5.0.0/16", "EnableIPv4": False}, "neither IPv4 nor IPv6"),
        ({"Network": "10.5.0.0/16", "EnableIPv6": True}, "IPv6Network: is missing"),
        ({**SIX, "IPv6Network": "fd00::/125"}, "IPv6Network: fd00::/125 is too small"),
        ({**SIX, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 127}, "IPv6SubnetLen: 127"),
        ({"Network": "10.5.0.0/16", "Backend": {}}, "Backend: Type: is missing"),
        ({"Network": "10.5.0.0/16", "Backend": "vxlan"}, "Backend: Expected `object`"),
        (
            {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 0}},
            "Backend: VNI: 0 is not between 1 and 16777215",
        ),
        (
            {"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 65536}},
            "Backend: Port: 65536",
        ),
    ],
)
def test_what_is_refused(document: Any, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(document)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("/config: ")


def test_a_backend_and_its_options() -> None:
    network = {"Network": "10.5.0.0/16"}
    assert parse(network).backend == BackendOptions(type="udp")
    options = {"Type": "VXLAN", "VNI": 7, "Port": 0, "Directrouting": True, "GBP": True}
    found = parse({**network, "Backend": {**options, "MTU": 1400, "MacPrefix": "0E-2A"}}).backend
    assert found == BackendOptions(type="vxlan", vni=7, direct_routing=True, gbp=True, mtu=1350)
    port = parse({**network, "Backend": {"Type": "udp", "Port": 7890}}).backend
    assert (port.type, port.port) == ("udp", 7890)


def test_what_a_range_allows() -> None:
    (found,) = parse({"Network": "10.5.0.0/16"}).ranges
    assert found.first == ip_address("10.5.1.0")
    assert found.allows(ip_network("10.5.1.0/24"))
    assert found.allows(ip_network("10.5.255.0/24"))
    assert not found.allows(ip_network("10.5.0.0/24"))
    assert not found.allows(ip_network("10.5.2.0/25"))
    assert not found.allows(ip_network("fd00::/64"))


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_garbage_is_refused_as_such(document: bytes) -> None:
    with pytest.raises(InputError):
        parse_config(document, "/config")
