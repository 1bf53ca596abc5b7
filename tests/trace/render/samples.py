"""Traces as real runs give them, for what renders them: the demo's two pods and what can go wrong.

Names, addresses and sizes are those of a lab of three nodes in the default profile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from podwire.model.probe import Probe
from podwire.model.state import Why
from podwire.trace.model import (
    Cause,
    Change,
    Decision,
    Endpoint,
    Ethernet,
    Finding,
    Header,
    Hop,
    Icmp,
    Interface,
    Ip,
    Outcome,
    Packet,
    Path,
    Payload,
    Place,
    Problem,
    Round,
    Tcp,
    Trace,
    Udp,
    Vxlan,
)

STARTED = "2026-11-21T03:37:33.783Z"
_T0 = 1_795_232_253_783_000_000

POD1, POD2, POD3 = "10.244.1.2", "10.244.2.2", "10.244.1.3"
NODE1, NODE2 = "172.18.0.11", "172.18.0.12"
OUTSIDE = "192.0.2.80"

_POD1_MAC, _POD2_MAC, _POD3_MAC = "0a:58:0a:f4:01:02", "0a:58:0a:f4:02:02", "0a:58:0a:f4:01:03"
_GW1, _GW2 = "0a:58:0a:f4:01:01", "0a:58:0a:f4:02:01"
_VTEP1, _VTEP2 = "2a:2a:0c:09:80:04", "6e:3d:4e:35:ad:0b"
_NIC1, _NIC2, _ROUTER = "02:00:ac:12:00:0b", "02:00:ac:12:00:0c", "02:00:ac:12:00:01"

_VETH1, _VETH2, _VETH3 = "veth95dcb0817dc", "veth0c3fa9d1e22", "vethfb26feedfcc"

NODE2_LEASES = Why("Node/node2", "leases 10.244.2.0/24")
NODE1_LEASES = Why("Node/node1", "leases 10.244.1.0/24")
NODE2_REACHED = Why("Node/node2", "is reached at 172.18.0.12")
NODE1_REACHED = Why("Node/node1", "is reached at 172.18.0.11")
NODE1_TRANSLATES = Why("Node/node1", "filters and translates for its pods")
POD1_HAS = Why("Pod/default/pod1", "has 10.244.1.2")
POD2_HAS = Why("Pod/default/pod2", "has 10.244.2.2")
POD3_HAS = Why("Pod/default/pod3", "has 10.244.1.3")


def _node(number: int, clock: str, veths: Iterable[tuple[str, int]]) -> Place:
    ip, vtep, nic, gateway = (
        (NODE1, _VTEP1, _NIC1, _GW1) if number == 1 else (NODE2, _VTEP2, _NIC2, _GW2)
    )
    base = f"10.244.{number}"
    return Place(
        node=f"node{number}",
        clock=clock,
        interfaces=(
            Interface(index=1, name="lo", kind="loopback", mtu=65536, addresses=("127.0.0.1/8",)),
            Interface(
                index=2,
                name="eth0",
                kind="veth",
                mac=nic,
                mtu=1500,
                addresses=(f"{ip}/16",),
                underlay=True,
            ),
            Interface(
                index=3,
                name="cni0",
                kind="bridge",
                mac=gateway,
                mtu=1450,
                addresses=(f"{base}.1/24",),
            ),
            Interface(
                index=4,
                name="flannel.1",
                kind="vxlan",
                mac=vtep,
                mtu=1450,
                addresses=(f"{base}.0/32",),
                vni=1,
                port=8472,
            ),
            *(
                Interface(
                    index=5 + at,
                    name=name,
                    kind="veth",
                    mac=f"02:d3:c7:dd:99:{0x8B + at:02x}",
                    mtu=1450,
                    master=3,
                    peer=2,
                    peer_place=place,
                )
                for at, (name, place) in enumerate(veths)
            ),
        ),
    )


def _pod(node: str, name: str, clock: str, mac: str, ip: str, peer: int, peer_place: int) -> Place:
    return Place(
        node=node,
        pod=name,
        clock=clock,
        interfaces=(
            Interface(index=1, name="lo", kind="loopback", mtu=65536, addresses=("127.0.0.1/8",)),
            Interface(
                index=2,
                name="eth0",
                kind="veth",
                mac=mac,
                mtu=1450,
                peer=peer,
                peer_place=peer_place,
                addresses=(f"{ip}/24",),
            ),
        ),
    )


_BOOT = "5b8f6a0e"
#: pod1 and node1, node2 and pod2.
ACROSS = (
    _pod("node1", "default/pod1", _BOOT, _POD1_MAC, POD1, 5, 1),
    _node(1, _BOOT, ((_VETH1, 0),)),
    _node(2, _BOOT, ((_VETH2, 3),)),
    _pod("node2", "default/pod2", _BOOT, _POD2_MAC, POD2, 5, 2),
)
#: pod1 and pod3 on node1.
LOCAL = (
    _pod("node1", "default/pod1", _BOOT, _POD1_MAC, POD1, 5, 1),
    _node(1, _BOOT, ((_VETH1, 0), (_VETH3, 2))),
    _pod("node1", "default/pod3", _BOOT, _POD3_MAC, POD3, 6, 1),
)

FROM_POD1 = Endpoint(kind="pod", ip=POD1, name="default/pod1", node="node1")
TO_POD2 = Endpoint(kind="pod", ip=POD2, name="default/pod2", node="node2")


# --- packets ----------------------------------------------------------------------------------


def _ip(source: str, target: str, ttl: int, length: int, protocol: int = 1) -> Ip:
    return Ip(
        version=4,
        source=source,
        target=target,
        ttl=ttl,
        protocol=protocol,
        length=length,
        id=40961,
        dont_fragment=True,
    )


@dataclass(frozen=True)
class Flow:
    """What stays the same on the way: the addresses and what is above IP, `length` of the IP."""

    source: str = POD1
    target: str = POD2
    length: int = 84
    upper: tuple[Header, ...] = (
        Icmp(type=8, code=0, id=7, sequence=1),
        Payload(length=56, data="706f647700070001"),
    )
    protocol: int = 1

    def packet(self, macs: tuple[str, str], ttl: int) -> Packet:
        return Packet(
            size=14 + self.length,
            headers=(
                Ethernet(*macs, 0x0800),
                _ip(self.source, self.target, ttl, self.length, self.protocol),
                *self.upper,
            ),
        )

    def tunnelled(self, macs: tuple[str, str], ttl: int, outer: tuple[str, str]) -> Packet:
        """The same in VXLAN between two nodes, `outer` by IP."""
        inner = self.packet(macs, ttl)
        nics = {NODE1: _NIC1, NODE2: _NIC2}
        return Packet(
            size=inner.size + 50,
            headers=(
                Ethernet(nics[outer[0]], nics[outer[1]], 0x0800),
                msgspec.structs.replace(_ip(*outer, 64, inner.size + 36, 17), dont_fragment=False),
                Udp(54272, 8472, inner.size + 16),
                Vxlan(1),
                *inner.headers,
            ),
        )

    def answer(self) -> Flow:
        upper: tuple[Header, ...] = self.upper
        if isinstance(upper[0], Icmp):
            upper = (msgspec.structs.replace(upper[0], type=0), *upper[1:])
        elif isinstance(upper[0], Udp):
            upper = (Udp(upper[0].target_port, upper[0].source_port, upper[0].length), *upper[1:])
        elif isinstance(upper[0], Tcp):
            first = upper[0]
            upper = (Tcp(first.target_port, first.source_port, 99, 1001, "S."), *upper[1:])
        return Flow(self.target, self.source, self.length, upper, self.protocol)


def tcp(source: str = POD1, target: str = POD2, port: int = 80, flags: str = "S") -> Flow:
    return Flow(source, target, 60, (Tcp(40001, port, 1000, 0, flags),), 6)


# --- hops -------------------------------------------------------------------------------------


@dataclass
class Way:
    """Collects the hops of a path, numbers and times them."""

    places: tuple[Place, ...]
    number: int = 1
    at_ns: int = _T0
    hops: list[Hop] = field(default_factory=list)

    def hop(
        self,
        place: int,
        interface: str,
        direction: Literal["in", "out"],
        us: float | None,
        packet: Packet,
        *decisions: Decision,
        changes: tuple[Change, ...] = (),
    ) -> None:
        self.at_ns += round((us if us is not None else 20) * 1000)
        kind = next(i.kind for i in self.places[place].interfaces if i.name == interface)
        self.hops.append(
            Hop(
                number=self.number,
                place=place,
                interface=interface,
                interface_kind=kind,
                direction=direction,
                time_ns=self.at_ns,
                since_us=us if self.hops else None,
                packet=packet,
                changes=changes,
                decisions=decisions,
            )
        )
        self.number += 1

    def path(self, arrived: bool = True) -> Path:
        return Path(tuple(self.hops), arrived)

    def back(self) -> Way:
        return Way(self.places, self.number, self.at_ns + 9000)


def _ttl(before: int) -> Change:
    return Change("ttl", f"TTL {before} → {before - 1}")


def _macs(source: str, target: str) -> Change:
    return Change("mac", f"MACs {source} → {target}")


def _in_vxlan(size: int) -> Change:
    return Change("encapsulated", f"in VXLAN (VNI 1), {size} → {size + 50} bytes")


def _out_of_vxlan(size: int) -> Change:
    return Change("decapsulated", f"out of VXLAN, {size} → {size - 50} bytes")


def _out_of_pod1(way: Way, flow: Flow) -> None:
    """Hops 1 to 3: pod1, its veth, the bridge that the node routes from."""
    packet = flow.packet((_POD1_MAC, _GW1), 64)
    way.hop(
        0,
        "eth0",
        "out",
        None,
        packet,
        Decision(
            kind="route",
            text="10.244.0.0/16 via 10.244.1.1 dev eth0",
            command=f"ip route get {flow.target}",
            why=POD1_HAS,
        ),
        Decision(kind="neigh", text=f"10.244.1.1 lladdr {_GW1} REACHABLE dev eth0"),
        Decision(kind="pair", text=f"{_VETH1} on node1", why=POD1_HAS),
    )
    way.hop(
        1,
        _VETH1,
        "in",
        1.5,
        packet,
        Decision(kind="bridge", text=f"port of cni0; {_GW1} is the bridge's own MAC"),
    )


def route_to_node2() -> tuple[Decision, Decision]:
    return (
        Decision(
            kind="route",
            text="10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
            command="ip route get 10.244.2.2 from 10.244.1.2 iif cni0",
            why=NODE2_LEASES,
        ),
        Decision(
            kind="neigh",
            text=f"10.244.2.0 lladdr {_VTEP2} dev flannel.1 PERMANENT",
            command="ip neigh show 10.244.2.0 dev flannel.1",
            why=NODE2_LEASES,
        ),
    )


def _request_to_node2(way: Way, flow: Flow) -> None:
    """Hops 1 to 5: until the packet has left node1."""
    _out_of_pod1(way, flow)
    way.hop(1, "cni0", "in", 0.9, flow.packet((_POD1_MAC, _GW1), 64), *route_to_node2())
    way.hop(
        1,
        "flannel.1",
        "out",
        3.4,
        flow.packet((_VTEP1, _VTEP2), 63),
        Decision(
            kind="fdb",
            text=f"{_VTEP2} dst 172.18.0.12",
            command=f"bridge fdb get {_VTEP2} dev flannel.1",
            why=NODE2_REACHED,
        ),
        Decision(kind="tunnel", text="flannel.1 encapsulates: VNI 1, UDP port 8472"),
        changes=(_ttl(64), _macs(_VTEP1, _VTEP2)),
    )
    way.hop(
        1,
        "eth0",
        "out",
        6.2,
        flow.tunnelled((_VTEP1, _VTEP2), 63, (NODE1, NODE2)),
        changes=(_in_vxlan(14 + flow.length),),
    )


def _request_on_node2(way: Way, flow: Flow, us: float | None = 14.1) -> None:
    """Hops 6 to 10."""
    way.hop(
        2,
        "eth0",
        "in",
        us,
        flow.tunnelled((_VTEP1, _VTEP2), 63, (NODE1, NODE2)),
        Decision(kind="tunnel", text="flannel.1 decapsulates: VNI 1, UDP port 8472"),
    )
    way.hop(
        2,
        "flannel.1",
        "in",
        2.8,
        flow.packet((_VTEP1, _VTEP2), 63),
        Decision(
            kind="route",
            text="10.244.2.0/24 dev cni0 proto kernel scope link src 10.244.2.1",
            why=NODE2_LEASES,
        ),
        Decision(kind="neigh", text=f"{POD2} lladdr {_POD2_MAC} dev cni0 REACHABLE"),
        changes=(_out_of_vxlan(64 + flow.length),),
    )
    packet = flow.packet((_GW2, _POD2_MAC), 62)
    way.hop(
        2,
        "cni0",
        "out",
        2.2,
        packet,
        Decision(kind="bridge", text=f"{_POD2_MAC} is at port {_VETH2}", why=POD2_HAS),
        changes=(_ttl(63), _macs(_GW2, _POD2_MAC)),
    )
    way.hop(2, _VETH2, "out", 0.8, packet, Decision(kind="pair", text="eth0 of pod:default/pod2"))
    way.hop(3, "eth0", "in", 1.1, packet, Decision(kind="local", text=f"{POD2} is its own"))


def _reply(way: Way, flow: Flow, us: float | None = 13.4) -> None:
    """The ten hops back, from pod2 to pod1."""
    packet = flow.packet((_POD2_MAC, _GW2), 64)
    way.hop(3, "eth0", "out", None, packet)
    way.hop(2, _VETH2, "in", 1.2, packet)
    way.hop(2, "cni0", "in", 0.7, packet)
    way.hop(
        2,
        "flannel.1",
        "out",
        2.4,
        flow.packet((_VTEP2, _VTEP1), 63),
        changes=(_ttl(64), _macs(_VTEP2, _VTEP1)),
    )
    tunnelled = flow.tunnelled((_VTEP2, _VTEP1), 63, (NODE2, NODE1))
    way.hop(2, "eth0", "out", 4.4, tunnelled, changes=(_in_vxlan(14 + flow.length),))
    way.hop(1, "eth0", "in", us, tunnelled)
    way.hop(
        1,
        "flannel.1",
        "in",
        2.0,
        flow.packet((_VTEP2, _VTEP1), 63),
        changes=(_out_of_vxlan(64 + flow.length),),
    )
    packet = flow.packet((_GW1, _POD1_MAC), 62)
    way.hop(1, "cni0", "out", 1.9, packet, changes=(_ttl(63), _macs(_GW1, _POD1_MAC)))
    way.hop(1, _VETH1, "out", 0.6, packet)
    way.hop(0, "eth0", "in", 0.9, packet)


# --- traces -----------------------------------------------------------------------------------


def trace(
    rounds: tuple[Round, ...],
    verdict: str,
    *,
    places: tuple[Place, ...] = ACROSS,
    source: Endpoint = FROM_POD1,
    target: Endpoint = TO_POD2,
    probe: Probe | None = None,
    notes: tuple[str, ...] = (),
) -> Trace:
    return Trace(
        started=STARTED,
        source=source,
        target=target,
        probe=probe or Probe(target=target.ip, count=len(rounds)),
        places=places,
        rounds=rounds,
        verdict=verdict,
        notes=notes,
    )


def _replied(request: Path, reply: Path, rtt_us: float, number: int = 1) -> Round:
    return Round(
        number=number, request=request, reply=reply, rtt_us=rtt_us, outcome=Outcome.REPLIED
    )


def _round_across(
    flow: Flow | None = None, number: int = 1, rtt_us: float = 71.4, us: float | None = 14.1
) -> Round:
    flow = flow or Flow()
    way = Way(ACROSS)
    _request_to_node2(way, flow)
    _request_on_node2(way, flow, us)
    back = way.back()
    _reply(back, flow.answer(), us)
    return _replied(way.path(), back.path(), rtt_us, number)


_ARRIVED = "pod default/pod1 reaches pod default/pod2 and is answered, 71 µs there and back"


def across() -> Trace:
    """The demo: pod1 on node1 pings pod2 on node2."""
    return trace((_round_across(),), _ARRIVED)


def across_tcp() -> Trace:
    return trace(
        (_round_across(tcp()),),
        _ARRIVED,
        probe=Probe(protocol="tcp", target=POD2, port=80),
    )


def across_clocks() -> Trace:
    """Two machines whose clocks can't be compared."""
    places = tuple(msgspec.structs.replace(place, clock=place.node) for place in ACROSS)
    return trace(
        (_round_across(us=None),),
        _ARRIVED,
        places=places,
        notes=("node1 and node2 have clocks of their own: times are not compared between the two",),
    )


def three_rounds() -> Trace:
    rounds = tuple(
        _round_across(number=number, rtt_us=rtt)
        for number, rtt in ((1, 183.2), (2, 124.0), (3, 118.9))
    )
    return trace(rounds, "pod default/pod1 reaches pod default/pod2: 3 of 3 answered")


def same_node() -> Trace:
    flow = Flow(POD1, POD3)
    way = Way(LOCAL)
    packet = flow.packet((_POD1_MAC, _POD3_MAC), 64)
    way.hop(
        0,
        "eth0",
        "out",
        None,
        packet,
        Decision(kind="route", text="10.244.1.0/24 dev eth0 proto kernel scope link"),
        Decision(kind="neigh", text=f"{POD3} lladdr {_POD3_MAC} REACHABLE dev eth0"),
    )
    way.hop(
        1,
        _VETH1,
        "in",
        1.4,
        packet,
        Decision(kind="bridge", text=f"{_POD3_MAC} is at port {_VETH3}", why=POD3_HAS),
    )
    way.hop(1, _VETH3, "out", 1.1, packet, Decision(kind="pair", text="eth0 of pod:default/pod3"))
    way.hop(2, "eth0", "in", 0.9, packet, Decision(kind="local", text=f"{POD3} is its own"))
    back, answer = way.back(), flow.answer().packet((_POD3_MAC, _POD1_MAC), 64)
    back.hop(2, "eth0", "out", None, answer)
    back.hop(1, _VETH3, "in", 1.0, answer)
    back.hop(1, _VETH1, "out", 0.8, answer)
    back.hop(0, "eth0", "in", 0.7, answer)
    return trace(
        (_replied(way.path(), back.path(), 21.3),),
        "pod default/pod1 reaches pod default/pod3 and is answered, 21 µs there and back",
        places=LOCAL,
        target=Endpoint(kind="pod", ip=POD3, name="default/pod3", node="node1"),
    )


def outside() -> Trace:
    """Out of the cluster: the node's address takes the place of the pod's."""
    places = ACROSS[:2]
    flow = Flow(POD1, OUTSIDE)
    translated = Flow(NODE1, OUTSIDE)
    way = Way(places)
    _out_of_pod1(way, flow)
    way.hop(
        1,
        "cni0",
        "in",
        0.9,
        flow.packet((_POD1_MAC, _GW1), 64),
        Decision(kind="route", text="default via 172.18.0.1 dev eth0"),
        Decision(
            kind="nft",
            text="inet podwire postrouting: ip saddr @cluster4 ip daddr != @cluster4"
            " ip daddr != 224.0.0.0/4 masquerade fully-random",
            command="nft list chain inet podwire postrouting",
            why=NODE1_TRANSLATES,
        ),
    )
    way.hop(
        1,
        "eth0",
        "out",
        7.7,
        translated.packet((_NIC1, _ROUTER), 63),
        changes=(
            Change("source-nat", f"source {POD1} → {NODE1}"),
            _ttl(64),
            _macs(_NIC1, _ROUTER),
        ),
    )
    back = way.back()
    back.hop(1, "eth0", "in", None, translated.answer().packet((_ROUTER, _NIC1), 57))
    answer = flow.answer().packet((_GW1, _POD1_MAC), 56)
    back.hop(
        1,
        "cni0",
        "out",
        4.9,
        answer,
        changes=(
            Change("target-nat", f"target {NODE1} → {POD1}"),
            _ttl(57),
            _macs(_GW1, _POD1_MAC),
        ),
    )
    back.hop(1, _VETH1, "out", 0.7, answer)
    back.hop(0, "eth0", "in", 0.9, answer)
    return trace(
        (_replied(way.path(arrived=False), back.path(), 8213.0),),
        f"pod default/pod1 reaches {OUTSIDE} as {NODE1} and is answered, 8.2 ms there and back",
        places=places,
        target=Endpoint(kind="address", ip=OUTSIDE),
    )


def node_to_pod() -> Trace:
    places = ACROSS[1:]
    flow = Flow("10.244.1.0", POD2)
    way = Way(places)
    way.hop(
        0,
        "flannel.1",
        "out",
        None,
        flow.packet((_VTEP1, _VTEP2), 64),
        *route_to_node2(),
        Decision(kind="fdb", text=f"{_VTEP2} dst 172.18.0.12", why=NODE2_REACHED),
    )
    tunnelled = flow.tunnelled((_VTEP1, _VTEP2), 64, (NODE1, NODE2))
    way.hop(0, "eth0", "out", 6.0, tunnelled, changes=(_in_vxlan(98),))
    way.hop(1, "eth0", "in", 13.0, tunnelled)
    way.hop(
        1, "flannel.1", "in", 2.1, flow.packet((_VTEP1, _VTEP2), 64), changes=(_out_of_vxlan(148),)
    )
    packet = flow.packet((_GW2, _POD2_MAC), 63)
    way.hop(1, "cni0", "out", 2.0, packet, changes=(_ttl(64), _macs(_GW2, _POD2_MAC)))
    way.hop(1, _VETH2, "out", 0.5, packet)
    way.hop(2, "eth0", "in", 0.7, packet)
    back, answer = way.back(), flow.answer()
    packet = answer.packet((_POD2_MAC, _GW2), 64)
    back.hop(2, "eth0", "out", None, packet)
    back.hop(1, _VETH2, "in", 0.9, packet)
    back.hop(1, "cni0", "in", 0.6, packet)
    back.hop(1, "flannel.1", "out", 2.2, answer.packet((_VTEP2, _VTEP1), 63), changes=(_ttl(64),))
    tunnelled = answer.tunnelled((_VTEP2, _VTEP1), 63, (NODE2, NODE1))
    back.hop(1, "eth0", "out", 4.1, tunnelled, changes=(_in_vxlan(98),))
    back.hop(0, "eth0", "in", 12.2, tunnelled)
    back.hop(
        0,
        "flannel.1",
        "in",
        1.9,
        answer.packet((_VTEP2, _VTEP1), 63),
        changes=(_out_of_vxlan(148),),
    )
    return trace(
        (_replied(way.path(), back.path(), 62.0),),
        "node1 reaches pod default/pod2 and is answered, 62 µs there and back",
        places=places,
        source=Endpoint(kind="node", ip="10.244.1.0", name="node1", node="node1"),
    )


def pod_to_node() -> Trace:
    """To the underlay address of the other node: translated, without the tunnel."""
    places = ACROSS[:3]
    flow, translated = Flow(POD1, NODE2), Flow(NODE1, NODE2)
    way = Way(places)
    _out_of_pod1(way, flow)
    way.hop(
        1,
        "cni0",
        "in",
        0.8,
        flow.packet((_POD1_MAC, _GW1), 64),
        Decision(kind="route", text="172.18.0.0/16 dev eth0 proto kernel scope link"),
    )
    packet = translated.packet((_NIC1, _NIC2), 63)
    way.hop(
        1,
        "eth0",
        "out",
        5.0,
        packet,
        changes=(Change("source-nat", f"source {POD1} → {NODE1}"), _ttl(64), _macs(_NIC1, _NIC2)),
    )
    way.hop(2, "eth0", "in", 12.0, packet, Decision(kind="local", text=f"{NODE2} is its own"))
    back = way.back()
    answer = translated.answer().packet((_NIC2, _NIC1), 64)
    back.hop(2, "eth0", "out", None, answer)
    back.hop(1, "eth0", "in", 11.0, answer)
    answer = flow.answer().packet((_GW1, _POD1_MAC), 63)
    back.hop(
        1,
        "cni0",
        "out",
        3.0,
        answer,
        changes=(Change("target-nat", f"target {NODE1} → {POD1}"), _ttl(64)),
    )
    back.hop(1, _VETH1, "out", 0.5, answer)
    back.hop(0, "eth0", "in", 0.8, answer)
    return trace(
        (_replied(way.path(), back.path(), 44.0),),
        "pod default/pod1 reaches node node2 and is answered, 44 µs there and back",
        places=places,
        target=Endpoint(kind="node", ip=NODE2, name="node2", node="node2"),
    )


def _dropped(
    way: Way, finding: Finding, *, outcome: Outcome = Outcome.DROPPED, reply: Path | None = None
) -> Trace:
    arrived = outcome in (Outcome.REFUSED, Outcome.DELIVERED)
    one = Round(
        number=1,
        request=way.path(arrived),
        reply=reply,
        rtt_us=None,
        outcome=outcome,
        finding=finding,
    )
    return trace((one,), f"{outcome.value} at {finding.where}: {finding.text}", places=way.places)


def no_route() -> Trace:
    way = Way(ACROSS)
    _out_of_pod1(way, Flow())
    remedy = "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 112 onlink"
    text = "node1 has no route to 10.244.2.2"
    problem = Problem(cause=Cause.NO_ROUTE, text=text, remedy=remedy, why=NODE2_LEASES)
    way.hop(
        1,
        "cni0",
        "in",
        0.9,
        Flow().packet((_POD1_MAC, _GW1), 64),
        Decision(
            kind="route",
            text="unreachable: no route to 10.244.2.2",
            command="ip route get 10.244.2.2 from 10.244.1.2 iif cni0",
            problem=problem,
        ),
    )
    return _dropped(
        way,
        Finding(
            cause=Cause.NO_ROUTE,
            where="node1, cni0",
            text=text,
            remedy=remedy,
            kernel_reason="IP_INNOROUTES",
            evidence=(
                "last seen at node1, cni0, on the way in",
                "the kernel freed it in ip_error (IP_INNOROUTES)",
                "ip route get 10.244.2.2 from 10.244.1.2 iif cni0: Network is unreachable",
            ),
            why=NODE2_LEASES,
        ),
    )


def no_fdb() -> Trace:
    way = Way(ACROSS)
    flow = Flow()
    _out_of_pod1(way, flow)
    way.hop(1, "cni0", "in", 0.9, flow.packet((_POD1_MAC, _GW1), 64), *route_to_node2())
    remedy = f"bridge fdb replace {_VTEP2} dst 172.18.0.12 dev flannel.1 self permanent"
    text = f"flannel.1 does not know behind which node {_VTEP2} is"
    way.hop(
        1,
        "flannel.1",
        "out",
        3.1,
        flow.packet((_VTEP1, _VTEP2), 63),
        Decision(
            kind="fdb",
            text=f"no entry for {_VTEP2}",
            command=f"bridge fdb get {_VTEP2} dev flannel.1",
            problem=Problem(cause=Cause.NO_FDB, text=text, remedy=remedy, why=NODE2_REACHED),
        ),
        changes=(_ttl(64), _macs(_VTEP1, _VTEP2)),
    )
    return _dropped(
        way,
        Finding(
            cause=Cause.NO_FDB,
            where="node1, flannel.1",
            text=text,
            remedy=remedy,
            kernel_reason="NO_TX_TARGET",
            evidence=("last seen at node1, flannel.1, on the way out",),
            why=NODE2_REACHED,
        ),
    )


def underlay() -> Trace:
    """Left node1, never reached node2."""
    way = Way(ACROSS)
    _request_to_node2(way, Flow())
    return _dropped(
        way,
        Finding(
            cause=Cause.UNDERLAY,
            where="between node1, eth0 and node2, eth0",
            text="left node1 in UDP to 172.18.0.12:8472 and never reached node2",
            remedy="let UDP port 8472 from 172.18.0.11 to 172.18.0.12 pass in what is between them",
            evidence=(
                "seen at node1, eth0, on the way out",
                "not seen at node2, eth0, which was watched",
            ),
        ),
    )


def nft_drop() -> Trace:
    way = Way(ACROSS)
    flow = tcp(port=5432)
    _out_of_pod1(way, flow)
    text = "a rule of chain forward in table inet guard drops it, which is not Podwire's"
    rule = "inet guard forward: ip daddr 10.244.2.0/24 tcp dport 5432 counter drop"
    way.hop(
        1,
        "cni0",
        "in",
        0.9,
        flow.packet((_POD1_MAC, _GW1), 64),
        *route_to_node2(),
        Decision(
            kind="nft",
            text=rule,
            command="nft -a list chain inet guard forward",
            problem=Problem(
                cause=Cause.NFT, text=text, remedy="nft delete rule inet guard forward handle 4"
            ),
        ),
    )
    return msgspec.structs.replace(
        _dropped(
            way,
            Finding(
                cause=Cause.NFT,
                where="node1, cni0",
                text=text,
                remedy="nft delete rule inet guard forward handle 4",
                kernel_reason="NETFILTER_DROP",
                evidence=(f"nft trace: {rule}", "the kernel freed it in nf_hook_slow"),
            ),
        ),
        probe=Probe(protocol="tcp", target=POD2, port=5432),
    )


def too_big() -> Trace:
    """Refused in the pod itself: no sighting on the way at all but the first device."""
    way = Way(ACROSS)
    finding = Finding(
        cause=Cause.TOO_BIG,
        where="pod:default/pod1, eth0",
        text="1500 bytes do not fit through eth0, whose MTU is 1450, and DF is set",
        remedy="send at most 1450 bytes, or raise the MTU of the underlay and of the pods",
        evidence=("the sender's own stack refused: EMSGSIZE, Message too long",),
    )
    return msgspec.structs.replace(
        _dropped(way, finding), probe=Probe(target=POD2, size=1500), verdict="dropped at its source"
    )


def refused() -> Trace:
    """Delivered; nothing listens."""
    flow = tcp(port=81)
    one = _round_across(flow)
    assert one.reply is not None
    hops = tuple(
        msgspec.structs.replace(
            hop,
            packet=msgspec.structs.replace(
                hop.packet,
                headers=tuple(
                    msgspec.structs.replace(header, flags="R.")
                    if isinstance(header, Tcp)
                    else header
                    for header in hop.packet.headers
                ),
            ),
        )
        for hop in one.reply.hops
    )
    finding = Finding(
        cause=Cause.REFUSED,
        where="pod:default/pod2, eth0",
        text="delivered, but nothing listens on TCP port 81 there: not a fault of the network",
        remedy="start what should listen in pod default/pod2, or ask for the port that it has",
        evidence=("pod2 answered with RST",),
    )
    answered = msgspec.structs.replace(
        one, reply=Path(hops, True), outcome=Outcome.REFUSED, finding=finding
    )
    return trace(
        (answered,),
        "refused: pod default/pod2 has nothing on TCP port 81",
        probe=Probe(protocol="tcp", target=POD2, port=81),
    )


def reply_lost() -> Trace:
    """The request arrives; its answer dies on node2, by reverse-path filter on node1."""
    one = _round_across()
    assert one.reply is not None
    finding = Finding(
        cause=Cause.RP_FILTER,
        where="node1, flannel.1",
        text="node1's reverse-path filter on flannel.1 takes 10.244.2.2 for a forgery",
        remedy="sysctl -w net.ipv4.conf.flannel.1.rp_filter=0",
        kernel_reason="IP_RPFILTER",
        evidence=("the kernel freed the reply in ip_rcv_finish_core (IP_RPFILTER)",),
    )
    return trace(
        (
            msgspec.structs.replace(
                one,
                reply=Path(one.reply.hops[:7], False),
                rtt_us=None,
                outcome=Outcome.DROPPED,
                finding=finding,
            ),
        ),
        "dropped on the way back, at node1, flannel.1: reverse-path filter",
    )


def agent_away() -> Trace:
    """node2's agent does not answer: only node1 is observed."""
    way = Way(ACROSS[:2])
    _request_to_node2(way, Flow())
    return msgspec.structs.replace(
        _dropped(
            way,
            Finding(
                cause=Cause.AGENT_AWAY,
                where="node2",
                text="left node1 for node2, whose agent does not answer: not seen further",
                remedy="podwire get nodes; start the agent of node2",
                evidence=("seen at node1, eth0, on the way out",),
            ),
            outcome=Outcome.UNANSWERED,
        ),
        notes=("node2 was not observed: its agent does not answer",),
    )


def mixed_rounds() -> Trace:
    """The second of three got lost on the underlay."""
    lost = msgspec.structs.replace(underlay().rounds[0], number=2)
    rounds = (_round_across(), lost, _round_across(number=3, rtt_us=69.0))
    return trace(rounds, "dropped: 1 of 3 between node1 and node2")


def not_in_use() -> Trace:
    """Nobody on node2 has the address: its ARP request stays without an answer."""
    flow = Flow(POD1, "10.244.2.99")
    way = Way(ACROSS)
    _request_to_node2(way, flow)
    _request_on_node2(way, flow)
    del way.hops[7:]
    way.places = ACROSS[:3]
    one = _dropped(
        way,
        Finding(
            cause=Cause.NOT_IN_USE,
            where="node2, cni0",
            text="nobody on node2 has 10.244.2.99: its ARP requests on cni0 got no answer",
            remedy="podwire get pods -o wide shows the addresses that are in use",
            kernel_reason="NEIGH_FAILED",
            evidence=("node2 asked 3 times who has 10.244.2.99",),
        ),
    )
    target = Endpoint(kind="address", ip="10.244.2.99", node="node2")
    return msgspec.structs.replace(one, target=target, probe=Probe(target=target.ip))


def not_in_use_here() -> Trace:
    """The same on the pod's own node: not even the first frame goes out."""
    finding = Finding(
        cause=Cause.NOT_IN_USE,
        where="pod:default/pod1, eth0",
        text="nobody on node1 has 10.244.1.99: ARP requests of pod default/pod1 got no answer",
    )
    target = Endpoint(kind="address", ip="10.244.1.99", node="node1")
    one = _dropped(Way(LOCAL[:2]), finding)
    return msgspec.structs.replace(one, target=target, probe=Probe(target=target.ip))


def wrong_fdb() -> Trace:
    """The tunnel leads to node3, which has no use for it."""
    node3 = msgspec.structs.replace(ACROSS[2], node="node3")
    places = (*ACROSS, node3)
    flow = Flow()
    way = Way(places)
    _request_to_node2(way, flow)
    tunnelled = flow.tunnelled((_VTEP1, _VTEP2), 63, (NODE1, NODE2))
    way.hop(4, "eth0", "in", 12.0, tunnelled)
    return _dropped(
        way,
        Finding(
            cause=Cause.WRONG_FDB,
            where="node1, flannel.1",
            text=f"flannel.1 sends frames for {_VTEP2} to node3, and it is the VTEP of node2",
            remedy=f"bridge fdb replace {_VTEP2} dst 172.18.0.12 dev flannel.1 self permanent",
            why=NODE2_REACHED,
        ),
    )


def to_own_node() -> Trace:
    """From a pod to the bridge's address on its own node."""
    places = ACROSS[:2]
    flow = Flow(POD1, "10.244.1.1")
    way = Way(places)
    _out_of_pod1(way, flow)
    way.hop(
        1,
        "cni0",
        "in",
        0.7,
        flow.packet((_POD1_MAC, _GW1), 64),
        Decision(kind="local", text="10.244.1.1 is its own"),
    )
    back = way.back()
    answer = flow.answer().packet((_GW1, _POD1_MAC), 64)
    back.hop(1, "cni0", "out", None, answer)
    back.hop(1, _VETH1, "out", 0.7, answer)
    back.hop(0, "eth0", "in", 0.7, answer)
    return trace(
        (_replied(way.path(), back.path(), 18.0),),
        "pod default/pod1 reaches node node1 and is answered, 18 µs there and back",
        places=places,
        target=Endpoint(kind="node", ip="10.244.1.1", name="node1", node="node1"),
    )


def no_answer() -> Trace:
    """UDP, delivered; what listens there stays silent."""
    flow = Flow(upper=(Udp(40001, 53, 64), Payload(56)), protocol=17)
    one = msgspec.structs.replace(
        _round_across(flow),
        reply=None,
        rtt_us=None,
        outcome=Outcome.DELIVERED,
        finding=Finding(
            cause=Cause.NO_ANSWER,
            where="pod:default/pod2, eth0",
            text="delivered to pod default/pod2, which sent no answer",
        ),
    )
    return trace(
        (one,),
        "delivered to pod default/pod2; no answer came",
        probe=Probe(protocol="udp", target=POD2, port=53),
    )


_V6 = {POD1: "fd00:10:244:1::2", POD2: "fd00:10:244:2::2", NODE1: "fd00:172:18::11"}


def _as_ipv6(header: Header) -> Header:
    if isinstance(header, Ip) and header.source in _V6 | {POD2: ""} and header.protocol == 1:
        ends = (_V6.get(header.source, header.source), _V6.get(header.target, header.target))
        return Ip(
            version=6,
            source=ends[0],
            target=ends[1],
            ttl=header.ttl,
            protocol=58,
            length=header.length + 20,
            dont_fragment=True,
        )
    if isinstance(header, Icmp):
        return msgspec.structs.replace(header, type={8: 128, 0: 129}[header.type])
    return header


def across_ipv6() -> Trace:
    """The demo, in IPv6 inside."""

    def turned(path: Path | None) -> Path:
        assert path is not None
        hops = tuple(
            msgspec.structs.replace(
                hop,
                packet=Packet(
                    hop.packet.size + 20, tuple(_as_ipv6(header) for header in hop.packet.headers)
                ),
            )
            for hop in path.hops
        )
        return Path(hops, path.arrived)

    one = _round_across()
    both = msgspec.structs.replace(one, request=turned(one.request), reply=turned(one.reply))
    return trace(
        (both,),
        _ARRIVED,
        source=msgspec.structs.replace(FROM_POD1, ip=_V6[POD1]),
        target=msgspec.structs.replace(TO_POD2, ip=_V6[POD2]),
    )


SAMPLES = {
    make.__name__: make
    for make in (
        across,
        across_tcp,
        across_clocks,
        three_rounds,
        same_node,
        outside,
        node_to_pod,
        pod_to_node,
        no_route,
        no_fdb,
        underlay,
        nft_drop,
        too_big,
        refused,
        reply_lost,
        agent_away,
        mixed_rounds,
        not_in_use,
        not_in_use_here,
        wrong_fdb,
        to_own_node,
        no_answer,
        across_ipv6,
    )
}
