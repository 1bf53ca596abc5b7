"""Results as values: the shape of each version, and merging into a chain; no root."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from podwire.cni import results
from podwire.cni.types import Dns, NetConf, PrevResult
from podwire.model.cluster import Attachment
from podwire.model.state import Bridge, Link, Route, Veth, Why

ATTACHMENT = Attachment(
    container_id="c1",
    ifname="eth0",
    netns="/run/netns/x",
    host_ifname="veth1",
    mac=b"\x0a\x58\x0a\xf4\x01\x02",
    ips=(ip_interface("10.244.1.2/24"), ip_interface("fd00::2/64")),
    gateways=(ip_address("10.244.1.1"), ip_address("fd00::1")),
    mtu=1450,
)
ROUTES = [
    Route(dst=ip_network("0.0.0.0/0"), dev="eth0", via=ip_address("10.244.1.1"), why=Why("", "")),
    Route(dst=ip_network("::/0"), dev="eth0", via=ip_address("fd00::1"), why=Why("", "")),
]
WHY = Why("", "")
LINKS = [
    Link(name="cni0", kind=Bridge(), mac=b"\x0a\x58\x0a\xf4\x01\x01", why=WHY),
    Link(name="veth1", kind=Veth(peer="eth0", peer_mac=ATTACHMENT.mac), why=WHY),
]


def result(
    version: str,
    prev: PrevResult | None = None,
    dns: Dns | None = None,
    *,
    node: list[Link] = LINKS,
    routes: list[Route] = ROUTES,
) -> dict[str, Any]:
    conf = NetConf(cni_version=version, name="n", type="podwire", prev_result=prev, dns=dns)
    answer: dict[str, Any] = json.loads(
        results.add_result(version, conf, ATTACHMENT, node=node, routes=routes)
    )
    return answer


@pytest.mark.parametrize(
    ("version", "family", "mtu"),
    [
        ("0.3.1", True, False),
        ("0.4.0", True, False),
        ("1.0.0", False, False),
        ("1.1.0", False, True),
    ],
)
def test_what_each_version_has(version: str, family: bool, mtu: bool) -> None:
    answer = result(version)
    assert answer["cniVersion"] == version
    assert [entry.get("version") for entry in answer["ips"]] == (
        ["4", "6"] if family else [None, None]
    )
    assert all(("mtu" in interface) is mtu for interface in answer["interfaces"])
    assert [entry["interface"] for entry in answer["ips"]] == [2, 2]
    assert answer["routes"] == [
        {"dst": "0.0.0.0/0", "gw": "10.244.1.1"},
        {"dst": "::/0", "gw": "fd00::1"},
    ]


@pytest.mark.parametrize(("version", "scope"), [("1.0.0", {}), ("1.1.0", {"scope": 253})])
def test_a_routed_pod_has_no_bridge_and_a_gateway_on_its_link(
    version: str, scope: dict[str, int]
) -> None:
    gateway = ip_address("169.254.1.1")
    routes = [
        Route(dst=ip_network(gateway), dev="eth0", via=None, why=WHY),
        Route(dst=ip_network("0.0.0.0/0"), dev="eth0", via=gateway, why=WHY),
    ]
    port = Link(
        name="cali1", kind=Veth(peer="eth0", peer_mac=ATTACHMENT.mac), mac=b"\xee" * 6, why=WHY
    )
    answer = result(version, node=[port], routes=routes)
    host, pod = answer["interfaces"]
    assert (host["name"], host["mac"], pod["name"]) == ("cali1", "ee:ee:ee:ee:ee:ee", "eth0")
    assert {entry["interface"] for entry in answer["ips"]} == {1}
    assert answer["routes"] == [
        {"dst": "169.254.1.1/32", **scope},
        {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
    ]


def test_the_entries_of_a_chain_are_passed_on_as_they_came() -> None:
    prev = PrevResult(
        interfaces=[{"name": "a", "pciID": "0:1"}, {"name": "b"}],
        ips=[{"version": "6", "address": "fd01::1/128", "interface": 1}],
        routes=[{"dst": "fd01::/64", "table": 7}],
    )
    answer = result("0.4.0", prev)
    assert answer["interfaces"][:2] == prev.interfaces
    assert answer["ips"][0] == {"version": "6", "address": "fd01::1/128", "interface": 1}
    assert [entry["interface"] for entry in answer["ips"]] == [1, 4, 4]
    assert answer["routes"][0] == {"dst": "fd01::/64", "table": 7}


@pytest.mark.parametrize(
    ("prev", "own", "expected"),
    [
        (None, None, {}),
        (None, Dns(domain="own"), {"domain": "own"}),
        (Dns(), Dns(domain="own"), {"domain": "own"}),
        (Dns(domain="prev"), Dns(domain="own"), {"domain": "prev"}),
    ],
)
def test_dns_of_the_chain_comes_first(
    prev: Dns | None, own: Dns | None, expected: dict[str, Any]
) -> None:
    assert result("1.0.0", PrevResult(dns=prev), own)["dns"] == expected


def test_a_result_agrees_with_the_attachment_that_it_is_of() -> None:
    answer = result("1.1.0")
    prev = PrevResult(interfaces=answer["interfaces"], ips=answer["ips"])
    assert results.disagreements(prev, ATTACHMENT) == []


def test_a_result_that_lacks_something() -> None:
    assert results.disagreements(PrevResult(), ATTACHMENT) == [
        "prevResult has no interface eth0 in a sandbox",
        "prevResult does not list the address 10.244.1.2/24 that eth0 holds",
        "prevResult does not list the address fd00::2/64 that eth0 holds",
    ]
