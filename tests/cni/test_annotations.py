"""What pods ask for by annotation, and how a wrong one is refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from podwire.cni.annotations import parse
from podwire.cni.types import CniError
from podwire.ipam.allocator import Wish


@pytest.mark.parametrize("text", ["10.0.0.9, fd00::9", '["10.0.0.9", "fd00::9"]'])
def test_addresses_as_a_comma_list_or_in_json(text: str) -> None:
    wish = parse({"podwire.io/ips": text}, calico=False).wish
    assert wish.ips == (ip_address("10.0.0.9"), ip_address("fd00::9"))
    assert wish.ips_field == "metadata.annotations[podwire.io/ips]"


def test_nothing_asked_for() -> None:
    assert parse({"a": "b"}, calico=True).wish == Wish(
        pools_field="metadata.annotations[podwire.io/pools]"
    )


def test_what_the_runtime_asked_for_comes_along() -> None:
    ip = ip_address("10.0.0.9")
    assert parse({"podwire.io/ips": "10.0.0.9"}, calico=False, ips=(ip,)).wish.ips == (ip,)


def test_annotations_of_calico_count_where_it_is_at_home() -> None:
    theirs = {
        "cni.projectcalico.org/ipAddrs": '["10.0.0.9"]',
        "cni.projectcalico.org/ipv4pools": '["east"]',
        "cni.projectcalico.org/ipv6pools": '["east6"]',
    }
    wish = parse(theirs, calico=True).wish
    assert (wish.ips, wish.pools) == ((ip_address("10.0.0.9"),), ("east", "east6"))
    assert parse(theirs, calico=False).wish.pools == ()
    ours = {"podwire.io/ips": "10.0.0.1", "podwire.io/pools": "west"}
    wish = parse({**theirs, **ours}, calico=True).wish
    assert (wish.ips, wish.pools) == ((ip_address("10.0.0.1"),), ("west",))


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("podwire.io/ips", "10.0.0.300", "an IP address"),
        ("podwire.io/ips", "10.0.0.3/24", "an IP address"),
        ("podwire.io/ips", "", "a list"),
        ("podwire.io/ips", '["10.0.0.3"', "a list"),
        ("podwire.io/ips", "[]", "a list"),
        ("podwire.io/ips", "[" * 5000, "a list"),
        ("podwire.io/pools", "[1]", "a list"),
        ("podwire.io/anti-spoofing", "no", '"on" or "off"'),
        ("cni.projectcalico.org/ipAddrs", "[[]]", "a list"),
    ],
)
def test_wrong_ones_are_refused(key: str, text: str, expected: str) -> None:
    with pytest.raises(CniError) as caught:
        parse({key: text}, calico=True)
    assert caught.value.code == 101
    assert caught.value.message.startswith(f"metadata.annotations[{key}]: ")
    assert expected in caught.value.message
    assert key in caught.value.details


def test_anti_spoofing_is_on_unless_it_is_off() -> None:
    assert not parse({}, calico=False).may_spoof
    assert not parse({"podwire.io/anti-spoofing": "on"}, calico=False).may_spoof
    assert parse({"podwire.io/anti-spoofing": "off"}, calico=False).may_spoof
