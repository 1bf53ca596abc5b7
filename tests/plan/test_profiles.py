"""Names for points of the space of fabrics, and points that make no sense."""

from __future__ import annotations

import itertools

import pytest

from podwire.errors import InputError
from podwire.plan.profiles import CUSTOM, PROFILES, default_network, fabric

SENSE = {
    *(
        ("node-subnet", w, t)
        for w in ("bridge", "routed")
        for t in ("direct", "vxlan", "udp", "auto")
    ),
    *(("blocks", "routed", t) for t in ("direct", "vxlan", "udp", "auto")),
    ("cluster-range", "bridge", "l2-vxlan"),
}


@pytest.mark.parametrize(
    "point",
    list(
        itertools.product(
            ("node-subnet", "blocks", "cluster-range"),
            ("bridge", "routed"),
            ("direct", "vxlan", "l2-vxlan", "udp", "auto"),
        )
    ),
)
def test_a_point_makes_sense_or_is_refused_with_the_reason(point: tuple[str, str, str]) -> None:
    ipam, wiring, transport = point
    if point in SENSE:
        made = fabric(ipam=ipam, wiring=wiring, transport=transport)
        assert (made.ipam, made.wiring, made.transport) == point
        return
    with pytest.raises(InputError, match="makes no sense: ") as refused:
        fabric(ipam=ipam, wiring=wiring, transport=transport)
    assert "flannel-vxlan" in str(refused.value.remedy)


def test_two_tunnels_do_not_share_a_port() -> None:
    with pytest.raises(InputError, match="can't both have UDP port 8472"):
        fabric(transport="auto", udp_port=8472)
    assert fabric(transport="udp", udp_port=8472).udp_port == 8472


def test_parts_that_are_a_profile_have_its_name() -> None:
    assert fabric(transport="direct").profile == "flannel-host-gw"
    assert fabric(ipam="blocks").profile == "calico"
    assert fabric(ipam="cluster-range").vxlan_dev == "vxlan-6784"
    assert fabric() == PROFILES["flannel-vxlan"]


def test_a_profile_with_another_part_is_custom_and_keeps_the_names() -> None:
    made = fabric("calico", transport="auto")
    assert (made.profile, made.port_prefix, made.route_protocol) == (CUSTOM, "cali", 80)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"profile": "cilium"}, "'cilium' is none of flannel-vxlan"),
        ({"transport": "geneve"}, "'geneve' is none of direct"),
        ({"transport": "udp", "cross_subnet": True}, "cross-subnet is about when"),
        ({"vni": 10_000_000}, r"flannel\.10000000, and names have 15 characters"),
        ({"transport": "vxlan", "encrypt": True}, "only the udp transport encrypts"),
    ],
)
def test_what_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        fabric(**given)  # type: ignore[arg-type]


def test_each_profile_has_its_own_network() -> None:
    assert [str(net) for net in default_network(fabric("calico"))] == ["172.31.0.0/16"]
    assert [str(net) for net in default_network(fabric("weave"), (4, 6))] == [
        "10.32.0.0/12",
        "fd00:10:32::/64",
    ]
