"""A cluster of two nodes as a trace sees it, and the frames of packets that cross it.

    pod1 eth0 ─ vethpod1 ┐                                        ┌ vethpod2 ─ eth0 pod2
    pod3 eth0 ─ vethpod3 ┴ cni0 · flannel.1 · eth0  ═  eth0 · flannel.1 · cni0
              node1                                       node2

A `Step` is one sighting; `frames` gives steps their times. Walks are generators of steps, so a
test cuts one short where its packet dies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from podwire.model.probe import Probe, ProbeMatch
from podwire.trace.evidence import Evidence, Facts, NodeFacts, PodFacts
from podwire.trace.model import Endpoint, Interface, Place
from podwire.trace.records import Frame

from . import packets

IDENT = 4711
PORT = 8080
START_NS = 1_700_000_000_000_000_000

NODE1, NODE2, POD1, POD2, POD3 = range(5)
_PODS = {POD1: ("pod1", NODE1, 2), POD2: ("pod2", NODE2, 2), POD3: ("pod3", NODE1, 3)}
_CNI, _FLANNEL, _UNDERLAY, _PORT = 3, 4, 2, 10  # interface indices

#: A packet from its IP header on, with the given TTL.
Build = Callable[[int], bytes]


class Step(NamedTuple):
    place: int
    ifindex: int
    outgoing: bool
    frame: bytes


class Cluster:
    """Its addresses and places; `version` is of the pods' addresses, nodes have IPv4."""

    def __init__(self, version: int = 4, *, one_clock: bool = True) -> None:
        self.version = version
        self.one_clock = one_clock
        self.network = "10.244.0.0/16" if version == 4 else "fd00:244::/48"

    def subnet(self, node: int) -> str:
        return f"10.244.{node + 1}.0/24" if self.version == 4 else f"fd00:244:0:{node + 1}::/64"

    def ip(self, node: int, host: int) -> str:
        if self.version == 4:
            return f"10.244.{node + 1}.{host}"
        return f"fd00:244:0:{node + 1}::{host:x}" if host else f"fd00:244:0:{node + 1}::"

    def pod_ip(self, pod: int) -> str:
        _, node, host = _PODS[pod]
        return self.ip(node, host)

    def node_ip(self, node: int) -> str:
        return f"172.18.0.{11 + node}"

    def mac(self, what: str, place: int) -> str:
        kinds = {"cni": 1, "vtep": 2, "underlay": 3, "pod": 4, "port": 5}
        return f"0a:00:00:00:{kinds[what]:02x}:{place:02x}"

    @property
    def places(self) -> tuple[Place, ...]:
        nodes = tuple(self._node(node) for node in (NODE1, NODE2))
        return nodes + tuple(self._pod(pod) for pod in (POD1, POD2, POD3))

    def _clock(self, node: int) -> str:
        return "one" if self.one_clock else f"clock{node}"

    def _node(self, node: int) -> Place:
        length = 24 if self.version == 4 else 64
        interfaces = [
            Interface(index=1, name="lo", kind="loopback", mac="00:00:00:00:00:00"),
            Interface(
                index=_UNDERLAY,
                name="eth0",
                kind="device",
                mac=self.mac("underlay", node),
                mtu=1500,
                addresses=(f"{self.node_ip(node)}/16",),
                underlay=True,
            ),
            Interface(
                index=_CNI,
                name="cni0",
                kind="bridge",
                mac=self.mac("cni", node),
                mtu=1450,
                addresses=(f"{self.ip(node, 1)}/{length}",),
            ),
            Interface(
                index=_FLANNEL,
                name="flannel.1",
                kind="vxlan",
                mac=self.mac("vtep", node),
                mtu=1450,
                addresses=(f"{self.ip(node, 0)}/{32 if self.version == 4 else 128}",),
                vni=1,
                port=8472,
            ),
        ]
        interfaces += [
            Interface(
                index=_PORT + pod,
                name=f"veth{name}",
                kind="veth",
                mac=self.mac("port", pod),
                mtu=1450,
                master=_CNI,
                peer=2,
                peer_place=pod,
            )
            for pod, (name, where, _) in _PODS.items()
            if where == node
        ]
        return Place(node=f"node{node + 1}", clock=self._clock(node), interfaces=tuple(interfaces))

    def _pod(self, pod: int) -> Place:
        name, node, _ = _PODS[pod]
        length = 24 if self.version == 4 else 64
        eth0 = Interface(
            index=2,
            name="eth0",
            kind="veth",
            mac=self.mac("pod", pod),
            mtu=1450,
            peer=_PORT + pod,
            peer_place=node,
            addresses=(f"{self.pod_ip(pod)}/{length}",),
        )
        return Place(
            node=f"node{node + 1}",
            pod=f"default/{name}",
            clock=self._clock(node),
            interfaces=(eth0,),
        )

    def endpoint(self, place: int) -> Endpoint:
        if place in (NODE1, NODE2):
            name = f"node{place + 1}"
            return Endpoint(kind="node", ip=self.node_ip(place), name=name, node=name)
        name, node, _ = _PODS[place]
        return Endpoint(
            kind="pod", ip=self.pod_ip(place), name=f"default/{name}", node=f"node{node + 1}"
        )

    @property
    def facts(self) -> Facts:
        return Facts(
            network=(self.network,),
            nodes=tuple(
                NodeFacts(
                    name=f"node{node + 1}", ips=(self.node_ip(node),), subnets=(self.subnet(node),)
                )
                for node in (NODE1, NODE2)
            ),
            pods=tuple(
                PodFacts(name=f"default/{name}", node=f"node{node + 1}", ips=(self.pod_ip(pod),))
                for pod, (name, node, _) in _PODS.items()
            ),
        )

    # --- walks --------------------------------------------------------------------------------

    def leave_pod(self, pod: int, build: Build, *, to: str | None = None) -> Iterator[Step]:
        """From a pod to its bridge; `to` is the MAC of somebody else than the gateway."""
        node = _PODS[pod][1]
        frame = packets.ethernet(self.mac("pod", pod), to or self.mac("cni", node), build(64))
        yield Step(pod, 2, True, frame)
        yield Step(node, _PORT + pod, False, frame)
        if to is None:
            yield Step(node, _CNI, False, frame)

    def cross(self, node: int, other: int, build: Build, ttl: int) -> Iterator[Step]:
        """Through the tunnel."""
        frame = packets.ethernet(self.mac("vtep", node), self.mac("vtep", other), build(ttl))
        yield Step(node, _FLANNEL, True, frame)
        outer = packets.vxlan(
            (self.node_ip(node), self.node_ip(other)),
            (self.mac("underlay", node), self.mac("underlay", other)),
            frame,
        )
        yield Step(node, _UNDERLAY, True, outer)
        yield Step(other, _UNDERLAY, False, outer)
        yield Step(other, _FLANNEL, False, frame)

    def enter_pod(self, pod: int, build: Build, ttl: int) -> Iterator[Step]:
        """From the node's routing to a pod."""
        node = _PODS[pod][1]
        frame = packets.ethernet(self.mac("cni", node), self.mac("pod", pod), build(ttl))
        yield Step(node, _CNI, True, frame)
        yield Step(node, _PORT + pod, True, frame)
        yield Step(pod, 2, False, frame)

    def switched(self, pod: int, other: int, build: Build) -> Iterator[Step]:
        """From a pod to another on its node."""
        node = _PODS[pod][1]
        yield from self.leave_pod(pod, build, to=self.mac("pod", other))
        frame = packets.ethernet(self.mac("pod", pod), self.mac("pod", other), build(64))
        yield Step(node, _PORT + other, True, frame)
        yield Step(other, 2, False, frame)

    def pod_to_pod(self, pod: int, other: int, build: Build) -> list[Step]:
        node, there = _PODS[pod][1], _PODS[other][1]
        if node == there:
            return list(self.switched(pod, other, build))
        return [
            *self.leave_pod(pod, build),
            *self.cross(node, there, build, 63),
            *self.enter_pod(other, build, 62),
        ]

    def node_to_pod(self, node: int, pod: int, build: Build) -> list[Step]:
        there = _PODS[pod][1]
        if node == there:
            return list(self.enter_pod(pod, build, 64))
        return [*self.cross(node, there, build, 64), *self.enter_pod(pod, build, 63)]

    def pod_to_node(self, pod: int, node: int, build: Build) -> list[Step]:
        here = _PODS[pod][1]
        steps = list(self.leave_pod(pod, build))
        return steps if node == here else [*steps, *self.cross(here, node, build, 63)]

    def underlay(self, node: int, outgoing: bool, packet: bytes) -> Step:
        """At a node's underlay interface, to or from the gateway there."""
        ends = (self.mac("underlay", node), "02:00:ac:12:00:01")
        frame = packets.ethernet(*(ends if outgoing else ends[::-1]), packet)
        return Step(node, _UNDERLAY, outgoing, frame)

    # --- probes -------------------------------------------------------------------------------

    def request(self, source: str, target: str, number: int = 1, *, size: int = 56) -> Build:
        return lambda ttl: packets.echo(source, target, IDENT, number, ttl=ttl, size=size)

    def reply(self, source: str, target: str, number: int = 1) -> Build:
        """From the target back to the source."""
        return lambda ttl: packets.echo(target, source, IDENT, number, reply=True, ttl=ttl)

    def segment(
        self, ends: tuple[str, str], ports: tuple[int, int], flags: str, number: int, ack: int = 0
    ) -> Build:
        return lambda ttl: packets.tcp(
            *ends, ports, flags, sequence=number, acknowledgement=ack, ttl=ttl
        )

    def datagram(self, ends: tuple[str, str], ports: tuple[int, int], payload: bytes) -> Build:
        return lambda ttl: packets.udp(*ends, ports, payload, ttl=ttl)

    def evidence(
        self, source: int, target: int | Endpoint, frames: Sequence[Frame], **more: object
    ) -> Evidence:
        """Of an ICMP probe; `more` replaces what it is made of."""
        start = self.endpoint(source)
        end = self.endpoint(target) if isinstance(target, int) else target
        nodes = [(self.node_ip(n), self.ip(n, 0), self.ip(n, 1)) for n in (NODE1, NODE2)]
        neighbors = (start.ip, end.ip, *(ip for ips in nodes for ip in ips))
        fields: dict[str, object] = {
            "started": "2026-01-01T00:00:00Z",
            "source": start,
            "target": end,
            "probe": Probe(target=end.ip),
            "match": ProbeMatch(
                protocol="icmp", source=start.ip, target=end.ip, ident=IDENT, neighbors=neighbors
            ),
            "places": self.places,
            "frames": tuple(frames),
            "facts": self.facts,
        }
        return Evidence(**{**fields, **more})  # type: ignore[arg-type]


def frames(
    steps: Iterable[Step], *, start_ns: int = START_NS, every_ns: int = 10_000
) -> list[Frame]:
    """The steps one after the other."""
    return [
        Frame(
            place=step.place,
            ifindex=step.ifindex,
            outgoing=step.outgoing,
            time_ns=start_ns + number * every_ns,
            length=len(step.frame),
            link_type=packets.ETHERNET,
            data=step.frame,
        )
        for number, step in enumerate(steps)
    ]


def spots(cluster: Cluster, steps: Iterable[Step]) -> list[str]:
    """Steps as `node1 cni0 in`."""
    return [spot(cluster, step.place, step.ifindex, step.outgoing) for step in steps]


def spot(cluster: Cluster, place: int, ifindex: int, outgoing: bool) -> str:
    where = cluster.places[place]
    name = next(one.name for one in where.interfaces if one.index == ifindex)
    return f"{where.name} {name} {'out' if outgoing else 'in'}"
