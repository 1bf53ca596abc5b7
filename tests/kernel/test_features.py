"""The kernel's features are tried out, and nothing remains of the attempt."""

from __future__ import annotations

import errno

import pytest

from podwire.errors import KernelError
from podwire.kernel import ethtool, features
from podwire.plan.profiles import fabric

from ..conftest import Namespace

pytestmark = pytest.mark.root


def test_this_machine_has_what_the_network_and_tracing_take(inside: Namespace) -> None:
    found = [*features.network_features(), *features.trace_features()]
    assert [one.name for one in found if one.missing] == []
    assert {"bridge", "veth", "vxlan", "nftables NAT", "drop reasons"} <= {
        one.name for one in found
    }


def test_each_fabric_takes_its_own_links(inside: Namespace) -> None:
    gbp = features.network_features(fabric("flannel-vxlan", transport="auto", gbp=True))
    assert [one.name for one in gbp if one.missing] == []
    links = {"veth", "bridge", "vxlan", "vxlan with GBP", "tun"}
    assert {one.name for one in gbp} & links == links
    routed = features.network_features(fabric("calico"))
    assert {one.name for one in routed} & links == {"veth"}


def test_nothing_is_left_of_the_attempt(inside: Namespace) -> None:
    before = inside.run("ip -br link; nft list ruleset")
    features.network_features()
    features.trace_features()
    assert inside.run("ip -br link; nft list ruleset") == before


def test_drivers_and_their_features(inside: Namespace) -> None:
    inside.run("ip link add wire0 type veth peer name wire1")
    inside.run("ip link add vx type vxlan id 1 dev wire0 dstport 8472")
    assert [ethtool.driver(name) for name in ("lo", "wire0", "vx")] == ["", "veth", "vxlan"]
    assert "tx-checksum-ip-generic" in ethtool.active_features("vx")
    assert "tx-udp_tnl-segmentation" in ethtool.active_features("wire0")
    assert "tx-udp_tnl-segmentation" not in ethtool.active_features("vx")


def test_a_device_that_is_not_there(inside: Namespace) -> None:
    with pytest.raises(KernelError, match="ethtool nothing: No such device") as found:
        ethtool.driver("nothing")
    assert found.value.errno == errno.ENODEV
