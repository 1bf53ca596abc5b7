"""Every profile in every family over every underlay where it makes sense.

Each is a lab of three nodes with a pod or two: all pairs reach each other, with the TTL of the
path; on nodes and in pods it looks as a user of that system expects; and a trace of a packet from
node to node, and its doctor, find nothing wrong.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from podwire.errors import PodwireError
from podwire.lab import Lab

from .commands import Command
from .looks import LAYER_2, LAYER_3, USER_SPACE, Look, amiss, unreached

pytestmark = [pytest.mark.root, pytest.mark.slow]

FAMILIES = ("ipv4", "ipv6", "dual")
#: Bytes that VXLAN and UDP add, by family; an underlay of both counts as IPv6.
VXLAN, UDP = {"ipv4": 50, "ipv6": 70, "dual": 70}, {"ipv4": 28, "ipv6": 48, "dual": 48}


@dataclass(frozen=True)
class Case:
    """A lab's options, with the name of the fabric."""

    name: str
    family: str
    underlay: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}-{self.family}-{self.underlay}"


#: By name: the options, and the underlays that it works over.
FABRICS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "flannel-vxlan": ({"profile": "flannel-vxlan"}, ("l2", "routed")),
    "flannel-vxlan-direct": ({"profile": "flannel-vxlan", "cross_subnet": True}, ("routed",)),
    "flannel-host-gw": ({"profile": "flannel-host-gw"}, ("l2",)),
    "flannel-udp": ({"profile": "flannel-udp"}, ("l2", "routed")),
    "calico": ({"profile": "calico"}, ("l2",)),
    "calico-vxlan": ({"profile": "calico-vxlan"}, ("l2", "routed")),
    "calico-cross": ({"profile": "calico-vxlan", "cross_subnet": True}, ("routed",)),
    "weave": ({"profile": "weave"}, ("l2", "routed")),
    "auto": ({"transport": "auto"}, ("l2", "routed")),
    "routed-subnets": ({"wiring": "routed", "transport": "auto"}, ("routed",)),
}
CASES = [
    Case(name, family, underlay, options)
    for (name, (options, underlays)), family in itertools.product(FABRICS.items(), FAMILIES)
    for underlay in underlays
]


def look(case: Case) -> Look:
    versions = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}[case.family]
    over = {version: 1500 - {4: 50, 6: 70}[version] for version in versions}
    flannel = {4: "flannel.1", 6: "flannel-v6.1"}
    calico = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
    match case.name:
        case "flannel-vxlan" | "flannel-vxlan-direct" | "auto":
            mtu = 1500 - VXLAN[case.family]
            devices: dict[str, int | None] = {flannel[one]: over[one] for one in versions}
            if case.name == "auto":
                devices["flannel0"] = None
            return Look(mtu, LAYER_3, "veth", {"cni0": mtu, **devices})
        case "flannel-host-gw":
            return Look(1500, LAYER_3, "veth", {"cni0": 1500})
        case "flannel-udp":
            mtu = 1500 - UDP[case.family]
            return Look(mtu, USER_SPACE, "veth", {"cni0": mtu, "flannel0": mtu})
        case "calico" | "calico-vxlan" | "calico-cross":
            mtu = 1430 if case.name != "calico" and 6 in versions else 1450
            tunnels = {calico[one]: over[one] for one in versions}
            return Look(
                mtu,
                LAYER_3,
                "cali",
                {} if case.name == "calico" else dict(tunnels),
                same_node_ttl=63,
                prefix_len={4: 32, 6: 128},
                routed=True,
                routes=calico_routes(versions),
            )
        case "routed-subnets":
            mtu = 1500 - VXLAN[case.family]
            return Look(
                mtu,
                LAYER_3,
                "veth",
                {"flannel0": None},
                same_node_ttl=63,
                prefix_len={4: 32, 6: 128},
                routed=True,
            )
        case "weave":
            return Look(1376, LAYER_2, "vethwepl", {"weave": 1376}, prefix_len={4: 12, 6: 64})
    raise AssertionError(case.name)


def calico_routes(versions: tuple[int, ...]) -> dict[int, str]:
    """A blackhole a block, as Calico's own nodes have."""
    patterns = {
        4: r"^blackhole 172\.31\.\d+\.\d+/26 proto (80|bird)",
        6: r"^blackhole fd00:172:31:\S*/122 .*proto (80|bird)",
    }
    return {version: patterns[version] for version in versions}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fabric(case: Case) -> None:
    with Lab(nodes=3, family=case.family, underlay=case.underlay, **case.options) as lab:
        pods = {name: lab.run(name, node=f"node{name[1]}") for name in ("a1", "b1", "a2", "a3")}
        for pod in pods.values():
            pod.wait_ready()
        wanted = look(case)
        assert unreached(lab, pods, wanted, {}) == []
        assert amiss(lab, pods, wanted) == []
        podwire = Command(lab.name)
        for source, target in (("a1", "a2"), ("a1", "b1"), ("a2", "node1")):
            for family in {"ipv4": "4", "ipv6": "6", "dual": "46"}[case.family]:
                traced = json.loads(
                    podwire.ok("trace", source, target, "--family", family, "-o", "json")
                )
                assert [one["outcome"] for one in traced["rounds"]] == ["replied"], traced[
                    "verdict"
                ]


@pytest.mark.parametrize("profile", ["flannel-host-gw", "calico"])
def test_plain_routes_say_who_is_behind_a_router(profile: str) -> None:
    with Lab(nodes=2, profile=profile, underlay="routed") as lab:
        status = Command(lab.name).run("status")
        assert status.returncode == 1
        assert "node2 at 172.18.2.12 is no layer-2 neighbour" in status.stdout


@pytest.mark.parametrize(
    "options",
    [
        {"ipam": "blocks", "wiring": "bridge"},
        {"ipam": "cluster-range", "transport": "vxlan"},
        {"profile": "weave", "wiring": "routed"},
        {"profile": "flannel-host-gw", "encrypt": True},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(PodwireError):
        Lab(nodes=2, **options)
