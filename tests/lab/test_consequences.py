"""What another pod network means for a running lab, as sentences."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podwire.errors import InputError, LabError
from podwire.lab.consequences import check_reachable, consequences, out_of_reach, remade
from podwire.lab.faults import Faults
from podwire.lab.registry import LabRecord, NodeRecord
from podwire.lab.shape import shape
from podwire.lab.shape_change import changed

PODS = [f"default/pod{number}" for number in range(1, 7)]


@pytest.mark.parametrize(
    ("before", "change", "network", "says"),
    [
        ({}, {"profile": "flannel-host-gw"}, None, ["do not reach", "go on running"]),
        ({}, {"hairpin": False}, None, ["go on running"]),
        ({}, {"wiring": "routed"}, None, ["go on running", "(bridge to routed)"]),
        (
            {"profile": "flannel-host-gw", "family": "dual"},
            {"profile": "flannel-vxlan"},
            None,
            ["do not reach", "go on running", "larger MTU than the 1430 that fits"],
        ),
        (
            {"profile": "flannel-host-gw"},
            {"profile": "calico"},
            "10.244.0.0/16",
            ["with their addresses where no other node"],
        ),
        (
            {},
            {"profile": "weave"},
            None,
            [
                "do not reach",
                "with other addresses: default/pod1, default/pod2, default/pod3, default/pod4"
                " and 2 more",
            ],
        ),
    ],
)
def test_each_change_has_its_sentences(
    before: dict[str, Any], change: dict[str, Any], network: str | None, says: list[str]
) -> None:
    was = shape(**before)
    found = consequences(was, changed(was, change, network), PODS)
    assert len(found) == len(says), found
    assert all(word in sentence for word, sentence in zip(says, found, strict=True)), found


def test_without_pods_nothing_is_said_of_them() -> None:
    was, after = shape(), shape(profile="weave")
    assert consequences(was, after, [])[-1] == "No pod runs in the pod network."
    assert remade(was, after)
    assert not remade(was, changed(was, {"wiring": "routed"}))


def test_an_ipam_keeps_the_network_that_it_had() -> None:
    calico = changed(shape(), {"profile": "calico"}, "10.244.0.0/16")
    assert [str(one) for one in calico.network] == ["10.244.0.0/16"]
    back = changed(calico, {"profile": "flannel-udp"}, "10.244.0.0/16")
    with pytest.raises(InputError, match=r"has 10\.244\.0\.0/16 for blocks, which its nodes keep"):
        changed(back, {"profile": "calico-vxlan"}, "10.9.0.0/16")


@pytest.mark.parametrize(
    ("faults", "who"),
    [
        (Faults(dead=("api", "etcd")), "api is dead, etcd is dead"),
        (Faults(no_api=("node1",)), "node1 is without the API"),
        (Faults(dead=("node1",)), None),
    ],
)
def test_agents_need_the_api_and_the_store(faults: Faults, who: str | None) -> None:
    record = LabRecord("1", "x", 1.0, (NodeRecord("node1", 1),), shape=shape())
    record = msgspec.structs.replace(record, faults=faults)
    if who is None:
        check_reachable(record)
        return
    with pytest.raises(LabError, match=who):
        check_reachable(record)


def test_nodes_behind_a_router_are_told_of() -> None:
    assert out_of_reach(shape(profile="calico")) is None
    assert out_of_reach(shape(profile="calico-vxlan", underlay="routed")) is None
    assert "auto" in (out_of_reach(shape(profile="calico", underlay="routed")) or "")
