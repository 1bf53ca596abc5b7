"""The way to a peer in words."""

from __future__ import annotations

import msgspec
import pytest

from podwire.plan.paths import over, paths

from .fabrics import config, peer, subnet


@pytest.mark.parametrize("profile", ["flannel-udp", "weave"])
def test_what_has_one_tunnel_takes_both_families_by_it(profile: str) -> None:
    of = config(profile, (4, 6))
    found = paths(of, peer(of))
    assert [(one.version, one.via) for one in found] == [(4, "172.18.0.12"), (6, "172.18.0.12")]
    assert [over(one.version, one.via) for one in found] == ["", " over IPv4"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "the transport of all peers is vxlan; node1 has no IPv4 address on the underlay"),
        ({"cross_subnet": True}, "node1 has no IPv4 address on the underlay"),
    ],
)
def test_what_the_underlay_has_no_family_for_goes_over_the_other(
    options: dict[str, bool], reason: str
) -> None:
    both, alone = (config("calico-vxlan", versions, **options) for versions in ((4, 6), (6,)))
    own = msgspec.structs.replace(alone.lease, subnets=both.lease.subnets)
    of = msgspec.structs.replace(alone, network=both.network, lease=own)
    node = peer(of, subnets=tuple(subnet(of.fabric, 2, version) for version in (4, 6)))
    ipv4, ipv6 = paths(of, node)
    assert (ipv4.kind, ipv4.via, ipv4.reason) == ("vxlan", "fd00:172:18::2", reason)
    assert [over(one.version, one.via) for one in (ipv4, ipv6)] == [" over IPv6", ""]
