"""Every profile in every family over every underlay where it makes sense.

Each is a lab of nodes with a pod or two: all pairs reach each other, with the TTL of the path and
without NAT; on nodes, in pods and on the wire it looks as a user of that system expects; a trace
from node to node has every hop, and the doctor finds nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from podwire.lab import Lab

from .commands import Command
from .echoes import Echoes
from .groups import ALL, GROUP, GROUP6, hearers
from .looks import Lease, Look, Seen
from .node_looks import nodes_amiss
from .places import Place, places
from .pod_looks import pods_amiss
from .questions import carried
from .ways import everybody, too_small, unanswered, unlike, unmasked, unreached

pytestmark = [pytest.mark.root, pytest.mark.slow]

_VERSIONS: Mapping[str, tuple[int, ...]] = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}
#: Bytes that VXLAN and UDP add, by the version of the underlay; of both, the larger one counts.
_VXLAN, _UDP = {4: 50, 6: 70}, {4: 28, 6: 48}


@dataclass(frozen=True)
class Case:
    """A lab's options, with the name of the fabric."""

    name: str
    family: str
    underlay: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def versions(self) -> tuple[int, ...]:
        return _VERSIONS[self.family]

    @property
    def nodes(self) -> int:
        """Three where two of them are neighbours and one is not, and for both families: what
        more peers than one change does not depend on the family."""
        return 3 if self.underlay == "routed" or self.family == "dual" else 2

    def __str__(self) -> str:
        return f"{self.name}-{self.family}-{self.underlay}"


#: On a machine that has much else to do.
_PATIENCE_S = 120.0

#: All that Flannel's VXLAN backend can be told, otherwise than it is by default.
BACKEND_OPTIONS: Mapping[str, Any] = {
    "cross_subnet": True,
    "vni": 77,
    "vxlan_port": 9999,
    "learning": True,
    "gbp": True,
    "mtu": 1300,
}

#: By name: the options, and the underlays that it works over.
FABRICS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "flannel-vxlan": ({"profile": "flannel-vxlan"}, ("l2", "routed")),
    "flannel-vxlan-direct": ({"profile": "flannel-vxlan", **BACKEND_OPTIONS}, ("routed",)),
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
    for (name, (options, underlays)), family in itertools.product(FABRICS.items(), _VERSIONS)
    for underlay in underlays
]


def look(case: Case) -> Look:
    """What REFERENCE calls usual for a fabric."""
    versions = case.versions
    in_vxlan, in_udp = (
        1500 - max(_VXLAN[v] for v in versions),
        1500 - max(_UDP[v] for v in versions),
    )
    flannel: dict[str, Any] = {
        "vxlan_devs": {v: {4: "flannel.1", 6: "flannel-v6.1"}[v] for v in versions},
        "vxlan_mtus": {v: 1500 - _VXLAN[v] for v in versions},
    }
    calico: dict[str, Any] = {
        "bridge": None,
        "port_prefix": "cali",
        "prefix_len": {4: 32, 6: 128},
        "blocks": {4: 26, 6: 122},
        "protocol": "80",
        "onlink": True,
    }
    calico_vxlan: dict[str, Any] = calico | {
        "vxlan_devs": {v: {4: "vxlan.calico", 6: "vxlan-v6.calico"}[v] for v in versions},
        "vxlan_mtus": {v: 1500 - _VXLAN[v] for v in versions},
        "vni": 4096,
        "port": 4789,
    }
    auto: dict[str, Any] = flannel | {"udp_dev": "flannel0", "udp_mtu": in_vxlan, "backend": "auto"}
    match case.name:
        case "flannel-vxlan":
            return Look("vxlan", "vxlan", in_vxlan, "cni0", "veth", **flannel)
        case "flannel-vxlan-direct":
            told: dict[str, Any] = {
                "vxlan_devs": {v: {4: "flannel.77", 6: "flannel-v6.77"}[v] for v in versions},
                # With two of them each has its underlay's.
                "vxlan_mtus": flannel["vxlan_mtus"] if len(versions) == 2 else {versions[0]: 1300},
                "vni": 77,
                "port": 9999,
                "learning": True,
                "gbp": True,
            }
            return Look("direct", "vxlan", 1300, "cni0", "veth", **told)
        case "flannel-host-gw":
            return Look("direct", "direct", 1500, "cni0", "veth", backend="host-gw")
        case "flannel-udp":
            udp: dict[str, Any] = {"udp_dev": "flannel0", "udp_mtu": in_udp, "backend": "udp"}
            return Look("udp", "udp", in_udp, "cni0", "veth", **udp)
        case "calico":
            return Look("direct", "direct", 1450, backend="host-gw", **calico)
        case "calico-vxlan":
            return Look("vxlan", "vxlan", in_vxlan, **calico_vxlan)
        case "calico-cross":
            return Look("direct", "vxlan", in_vxlan, **calico_vxlan)
        case "weave":
            # One segment, and so one tunnel to each peer.
            over = versions[0]
            weave: dict[str, Any] = {
                "vxlan_devs": {over: {4: "vxlan-6784", 6: "vxlan-v6-6784"}[over]},
                "vxlan_mtus": {over: 1500 - _VXLAN[over]},
                "vni": 6784,
                "port": 6784,
                "learning": True,
                "is_one_segment": True,
                "prefix_len": {4: 12, 6: 64},
                "backend": "l2-vxlan",
            }
            return Look("vxlan", "vxlan", 1376, "weave", "vethwepl", **weave)
        case "auto":
            return Look("direct", "vxlan", in_vxlan, "cni0", "veth", **auto)
        case "routed-subnets":
            routed: dict[str, Any] = {"prefix_len": {4: 32, 6: 128}, "onlink": True}
            return Look("direct", "vxlan", in_vxlan, None, "veth", **routed, **auto)
    raise AssertionError(case.name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fabric(case: Case) -> None:
    with Lab(nodes=case.nodes, family=case.family, underlay=case.underlay, **case.options) as lab:
        names = ["a1", "b1", "a2", "a3"][: case.nodes + 1]
        pods = [lab.run(name, node=f"node{name[1]}") for name in names]
        for pod in pods:
            pod.wait_ready(_PATIENCE_S)
        here = places(lab, pods)
        a1, b1, a2, *_ = them = here[case.nodes :]
        leases = {node.name: Lease.of(lab, node.name) for node in lab.nodes}
        with Echoes(here) as echoes:
            answers = everybody(echoes, here)
            states = {place.name: place.read() for place in here}
            seen = Seen(look(case), case.underlay, here, states, leases)
            assert_nothing(unreached(seen, answers))
            assert_nothing(nodes_amiss(seen))
            assert_nothing(pods_amiss(seen))
            assert_nothing(unlike(seen, echoes, a1))
            assert_nothing(too_small(seen, echoes, a1))
            assert_nothing(unmasked(seen, echoes, b1))
            if seen.look.far == "udp":
                assert_nothing(unanswered(seen, echoes, b1))
            if seen.look.is_one_segment:
                assert_nothing(carried(seen, echoes, a1))
        if seen.look.is_one_segment:
            for version in case.versions:
                for target in {4: (GROUP, ALL), 6: (GROUP6,)}[version]:
                    assert hearers(a1, them[1:], target) == set(names[1:])
        podwire = Command(lab.name)
        for version in case.versions:
            assert_nothing(untraced(podwire, seen, a1, a2, version))
        if case.family == "dual":  # where everything is that the others have
            podwire.ok("doctor")


def assert_nothing(problems: list[str]) -> None:
    assert not problems, "\n".join(problems)


def untraced(podwire: Command, seen: Seen, pod: Place, other: Place, version: int) -> list[str]:
    """What a trace between pods of two nodes has otherwise than the packet's path is."""
    words = ("trace", pod.name, other.name, "--family", str(version), "-o", "json")
    traced = json.loads(podwire.ok(*words))
    (told,) = traced["rounds"]
    problems = [] if told["outcome"] == "replied" else [traced["verdict"]]
    names = {f"default/{one.name}": one.name for one in seen.pods}
    for title, one, two in (("request", pod, other), ("reply", other, pod)):
        hops = [
            (names.get(place["pod"], place["node"]), hop["interface"], hop["direction"])
            for hop in told[title]["hops"]
            for place in [traced["places"][hop["place"]]]
        ]
        expected = list(path(seen, one, two, version))
        if hops != expected:
            problems.append(f"the {title} takes {hops}, not {expected}")
    return problems


def path(seen: Seen, pod: Place, other: Place, version: int) -> Iterator[tuple[str, str, str]]:
    """The interfaces that a packet between pods of two nodes crosses: where, which, out or in."""
    look = seen.look
    inside = [look.bridge] if look.bridge and not look.is_one_segment else []
    carrier = look.carrier(pod, other, seen.underlay)
    tunnel = look.udp_dev if carrier == "udp" else None
    if carrier == "vxlan":
        (tunnel,) = look.vxlan_devs.values() if look.is_one_segment else [look.vxlan_devs[version]]
    yield pod.name, "eth0", "out"
    for name in (seen.port(pod)["ifname"], *inside):
        yield pod.node, name, "in"
    for name in (*([tunnel] if tunnel else []), "eth0"):
        yield pod.node, name, "out"
    for name in ("eth0", *([tunnel] if tunnel else [])):
        yield other.node, name, "in"
    for name in (*inside, seen.port(other)["ifname"]):
        yield other.node, name, "out"
    yield other.name, "eth0", "in"


@pytest.mark.parametrize("profile", ["calico-vxlan", "flannel-udp"])
def test_both_families_over_an_underlay_of_ipv6(profile: str) -> None:
    with Lab(nodes=2, family="dual", underlay_family="ipv6", profile=profile) as lab:
        pods = [lab.run(name, node=f"node{name[1]}") for name in ("a1", "b1", "a2")]
        for pod in pods:
            pod.wait_ready(_PATIENCE_S)
        here = places(lab, pods)
        mtu = here[-1].read().links["eth0"]["mtu"]
        with Echoes(here) as echoes:
            answers = everybody(echoes, here[2:])
            assert {key for key, echo in answers.items() if not echo.replied} == set()
            whole = echoes.ask([(here[2], ip) for ip in here[-1].ips], size=mtu)
            assert all(echo.replied for echo in whole.values()), whole


def test_plain_routes_say_who_is_behind_a_router() -> None:
    with Lab(nodes=2, profile="flannel-host-gw", underlay="routed") as lab:
        status = Command(lab.name).run("status")
        assert status.returncode == 1
        assert "node2 at 172.18.2.12 is no layer-2 neighbour" in status.stdout
