"""What a change of fabric interrupts, as sentences."""

from __future__ import annotations

import msgspec
import pytest

from podwire.plan.change import given_up, interruptions
from podwire.plan.profiles import PROFILES, fabric

VXLAN = PROFILES["flannel-vxlan"]


@pytest.mark.parametrize("profile", PROFILES)
def test_no_change_interrupts_nothing(profile: str) -> None:
    assert interruptions(PROFILES[profile], PROFILES[profile]) == []


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (PROFILES["flannel-host-gw"], ["do not reach each other"]),
        (PROFILES["flannel-udp"], ["do not reach each other"]),
        (fabric(vni=7), ["do not reach each other"]),
        (fabric(cross_subnet=True), []),
        (fabric(hairpin=False), []),
        (PROFILES["calico"], ["do not reach each other", "can't must be recreated", "made anew"]),
        (
            fabric(ipam="node-subnet", wiring="routed", transport="vxlan"),
            ["made anew (bridge to routed)"],
        ),
    ],
)
def test_each_part_has_its_sentence(after: msgspec.Struct, says: list[str]) -> None:
    found = interruptions(VXLAN, after)  # type: ignore[arg-type]
    assert len(found) == len(says)
    assert all(word in sentence for word, sentence in zip(says, found, strict=True))


def test_less_room_the_tunnels_end_and_another_network_are_told() -> None:
    (_, smaller) = interruptions(PROFILES["flannel-udp"], fabric(transport="auto"))
    assert "recreate them" in smaller
    assert "process ends" in interruptions(PROFILES["flannel-udp"], PROFILES["flannel-host-gw"])[-1]
    (recreate,) = interruptions(VXLAN, VXLAN, other_network=True)
    assert "must be recreated" in recreate


def test_what_only_auto_sets_on_devices_that_stay_is_given_up() -> None:
    auto = fabric(transport="auto")
    keys = given_up(auto, VXLAN)
    assert {"net/ipv4/conf/flannel.1/rp_filter", "net/ipv4/conf/flannel0/rp_filter"} <= set(keys)
    assert given_up(auto, fabric(transport="auto", vni=7)) == given_up(VXLAN, auto) == ()
