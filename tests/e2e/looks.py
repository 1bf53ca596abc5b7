"""What a user of each system finds on its nodes and in its pods: how each fabric looks.

What lives here: a `Look`, which is what is expected of one fabric over one underlay, and `Seen`,
which is what there is. What does not: comparing them, which is done for pods (`pod_looks`), nodes
(`node_looks`) and packets (`ways`), and gives one sentence for each thing that is not so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from podwire.lab import Lab

from .places import Entry, Place, State

#: The gateway of routed pods, which no interface has, and the MAC that answers for it.
NOBODY = {4: "169.254.1.1", 6: "fe80::ecee:eeff:feee:eeee"}
NOBODYS_MAC = "ee:ee:ee:ee:ee:ee"


@dataclass(frozen=True)
class Look:
    """One fabric over one underlay. All MTUs are those of its devices in bytes.

    `near` is how packets travel to a node on the same link, `far` to one behind a router: "direct",
    "vxlan" or "udp". `bridge` is None where pods are routed, `port_prefix` begins the names of
    their host ends. `vxlan_devs` and `vxlan_mtus` are by IP version of the underlay; `protocol` is
    what ip(8) says of routes to peers, and `onlink` whether it says so of plain ones.
    """

    near: str
    far: str
    mtu: int
    bridge: str | None
    port_prefix: str
    vxlan_devs: Mapping[int, str] = field(default_factory=dict)
    vxlan_mtus: Mapping[int, int] = field(default_factory=dict)
    vni: int = 1
    port: int = 8472
    learning: bool = False
    gbp: bool = False
    udp_dev: str | None = None
    udp_mtu: int = 0
    is_one_segment: bool = False
    prefix_len: Mapping[int, int] = field(default_factory=lambda: {4: 24, 6: 64})
    blocks: Mapping[int, int] | None = None
    protocol: str = "112"
    onlink: bool = False
    backend: str = "vxlan"

    @property
    def routed(self) -> bool:
        return self.bridge is None

    def carrier(self, one: Place, other: Place, underlay: str) -> str:
        """How packets travel between two nodes; those of even numbers are behind the router."""
        behind = {int(place.node.removeprefix("node")) % 2 for place in (one, other)}
        return self.far if underlay == "routed" and len(behind) == 2 else self.near

    def ttl(self, carrier: str) -> int:
        """Of a packet between pods of two nodes: 64, less what each that routes it takes off."""
        if self.is_one_segment:
            return 64
        # Both ends of the UDP tunnel take one off too, as Flannel's do.
        return 60 if carrier == "udp" else 62

    @property
    def ttl_on_node(self) -> int:
        """Of a packet between pods of one node."""
        return 63 if self.routed else 64


@dataclass(frozen=True)
class Lease:
    """What a node has told of itself: its subnets, blocks or ranges, its Node object, and the lines
    of subnet.env, name and value."""

    subnets: tuple[str, ...]
    node: Mapping[str, Any]
    environment: Mapping[str, str]

    @classmethod
    def of(cls, lab: Lab, name: str) -> Lease:
        node, disk = lab.node_object(name), Path(f"/proc/{lab.node(name).pid}/root")
        text = (disk / "run/flannel/subnet.env").read_text()
        environment = dict(line.split("=", 1) for line in text.splitlines())
        annotations = node["metadata"].get("annotations", {})
        text = annotations.get("podwire.io/subnets") or annotations.get("podwire.io/ranges")
        subnets = text.split(",") if text else node["spec"]["podCIDRs"]
        return cls(tuple(subnets), node, environment)

    @property
    def annotations(self) -> Mapping[str, str]:
        prefix = "flannel.alpha.coreos.com/"
        found = self.node["metadata"]["annotations"].items()
        return {key.removeprefix(prefix): text for key, text in found if key.startswith(prefix)}


@dataclass(frozen=True)
class Seen:
    """All of a lab, read once."""

    look: Look
    underlay: str
    places: Sequence[Place]
    states: Mapping[str, State]
    leases: Mapping[str, Lease]

    @property
    def nodes(self) -> list[Place]:
        return [place for place in self.places if place.is_node]

    @property
    def pods(self) -> list[Place]:
        return [place for place in self.places if not place.is_node]

    def port(self, pod: Place) -> Entry:
        """The other end of a pod's link."""
        index = self.states[pod.name].links["eth0"]["link_index"]
        links = self.states[pod.node].links.values()
        return next(one for one in links if one["ifindex"] == index)

    def subnets(self, node: Place, version: int) -> list[str]:
        subnets = self.leases[node.name].subnets
        return [one for one in subnets if ip_network(one).version == version]


def differs(what: str, found: object, expected: object) -> Iterator[str]:
    if found != expected:
        yield f"{what} is {found!r}, not {expected!r}"


def holds(entries: Sequence[Entry], **expected: object) -> bool:
    """Whether there is an entry with all these fields."""
    return any(all(one.get(key) == value for key, value in expected.items()) for one in entries)
