"""The packets of a fabric: everybody reaches everybody, unchanged, in the carrier that is expected.

What lives here: what of a lab's packets is not as its `Look` says, one sentence each. What does
not: sending (`echoes`), capturing (`capture`, `wire`), and the state of nodes (`looks`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from typing import TypeAlias

from .capture import Capture
from .echoes import Echo, Echoes
from .looks import Seen
from .places import Place
from .wire import Sighting, sightings

#: How long nodes may take to hear of new pods, on a machine that has much else to do.
_DEADLINE_S = 60.0
_PINGS = 3
_UDP_PORT = 8285
#: What came of asking, by who asked and which address.
Answers: TypeAlias = dict[tuple[str, str], Echo]
_IP_HEADER = {4: 20, 6: 40}


def everybody(echoes: Echoes, places: Sequence[Place]) -> Answers:
    """Each place asks all others, until all have replied or long enough."""
    left = [
        (place, ip) for place in places for other in places for ip in other.ips if other != place
    ]
    found: Answers = {}
    deadline = time.monotonic() + _DEADLINE_S
    while left and time.monotonic() < deadline:
        found |= echoes.ask(left)
        left = [(place, ip) for place, ip in left if not found[place.name, ip].replied]
    return found


def unreached(seen: Seen, answers: Answers) -> list[str]:
    """Who does not reach whom, or looks otherwise there."""
    places = {place.name: place for place in seen.places}
    owner = {ip: place for place in seen.places for ip in place.ips}
    return [
        f"{name} to {owner[ip].name} at {ip}: {text}"
        for (name, ip), echo in answers.items()
        for text in _echo_amiss(seen, places[name], owner[ip], ip, echo)
    ]


def _echo_amiss(seen: Seen, place: Place, other: Place, ip: str, echo: Echo) -> Iterator[str]:
    if not echo.replied:
        yield f"no reply: {echo}"
        return
    version = ip_address(ip).version
    if other.is_node and not place.is_node:
        # Outside of the cluster network, as each of these systems has it: masqueraded.
        return
    own = {*place.ips} if not place.is_node else {*seen.states[place.name].addresses(version)}
    if echo.seen_from not in own:
        yield f"comes from {echo.seen_from}, which is not its own"
    if place.is_node:
        return
    ttl = seen.look.ttl_on_node
    if place.node != other.node:
        ttl = seen.look.ttl(seen.look.carrier(place, other, seen.underlay))
    if (echo.ttl_there, echo.ttl_back) != (ttl, ttl):
        yield f"TTL {echo.ttl_there} there and {echo.ttl_back} back, not {ttl}"


def unlike(seen: Seen, echoes: Echoes, pod: Place) -> list[str]:
    """What is not as expected on the underlay while a pod pings each pod of another node."""
    problems = []
    with ExitStack() as stack:
        captures = {
            node.name: stack.enter_context(Capture(node.namespace, "eth0")) for node in seen.nodes
        }
        for other in (one for one in seen.pods if one.node != pod.node):
            for ip in other.ips:
                for _ in range(_PINGS):
                    (echo,) = echoes.ask([(pod, ip)], patience_s=_DEADLINE_S).values()
                    if not echo.replied:
                        problems.append(f"a ping of {other.name} at {ip} is lost: {echo}")
                source = pod.ip(ip_address(ip).version)
                them = [
                    one
                    for one in sightings(captures, _UDP_PORT)
                    if one.identifier == echoes.identifier
                ]
                title = f"on the underlay, {source} and {ip}"
                problems += [f"{title}: {text}" for text in _unlike(seen, pod, other, ip, them)]
    return problems


def _unlike(seen: Seen, pod: Place, other: Place, ip: str, them: list[Sighting]) -> Iterator[str]:
    look, version = seen.look, ip_address(ip).version
    carrier = look.carrier(pod, other, seen.underlay)
    # In and out of each of two nodes, there and back.
    if len(them) != 4 * _PINGS:
        yield f"{len(them)} sightings of {_PINGS} pings: {them}"
    nodes = {one.ip(version): _node(seen, one) for one in (pod, other)}
    macs = {one.ip(version): _vtep_mac(seen, one, version) for one in (pod, other)}
    for one in them:
        packet = one.packet
        if {packet.source, packet.target} != set(nodes):
            yield f"it is {packet.source} → {packet.target}"
            continue
        if one.carrier != carrier:
            yield f"it travels {one.carrier}, not {carrier}"
            continue
        # After one node has routed it, and the tunnel's process, where there is one.
        ttl = 64 if look.is_one_segment else 62 if carrier == "udp" else 63
        if packet.ttl != ttl:
            yield f"its TTL is {packet.ttl}, not {ttl}"
        if one.outer is None:
            continue
        sender, receiver = nodes[packet.source], nodes[packet.target]
        over = ip_address(one.outer.source).version
        ends = (sender.ip(over), receiver.ip(over))
        if (one.outer.source, one.outer.target) != ends:
            yield f"its tunnel is {one.outer.source} → {one.outer.target}, not {ends}"
        added = _IP_HEADER[over] + (8 if carrier == "udp" else 8 + 8 + 14)
        if one.overhead != added:
            yield f"its tunnel adds {one.overhead} bytes, not {added}"
        if carrier != "vxlan":
            continue
        if (one.port, one.vni) != (look.port, look.vni):
            yield f"port {one.port} and VNI {one.vni}, not {look.port} and {look.vni}"
        wanted = (macs[packet.source], macs[packet.target])
        if one.macs != wanted:
            yield f"the MACs in the tunnel are {one.macs}, not {wanted}"


def _node(seen: Seen, pod: Place) -> Place:
    return next(node for node in seen.nodes if node.name == pod.node)


def _vtep_mac(seen: Seen, pod: Place, version: int) -> str:
    """Whom frames in VXLAN are for: the pod itself in one segment, else its node's VTEP."""
    if seen.look.is_one_segment:
        return str(seen.states[pod.name].links["eth0"]["address"])
    dev = seen.look.vxlan_devs.get(version)
    return str(seen.states[pod.node].links[dev]["address"]) if dev else ""


def too_small(seen: Seen, echoes: Echoes, pod: Place) -> list[str]:
    """A packet of the MTU passes whole to a pod of each other node, and none that is larger."""
    others = [(pod, ip) for one in seen.pods if one.node != pod.node for ip in one.ips]
    passed = echoes.ask(others, size=seen.look.mtu, patience_s=_DEADLINE_S)
    refused = echoes.ask(others, size=seen.look.mtu + 1)
    return [
        *(
            f"{seen.look.mtu} bytes to {ip}: {one}"
            for (_, ip), one in passed.items()
            if not one.replied
        ),
        *(f"a byte more to {ip}: {one}" for (_, ip), one in refused.items() if one.refused is None),
    ]


def unanswered(seen: Seen, echoes: Echoes, pod: Place) -> list[str]:
    """An address that nobody leases is answered with net-unreachable by the UDP tunnel."""
    nowhere = {4: "10.244.77.1", 6: "fd00:10:244:77::1"}
    targets = [(pod, nowhere[ip_address(ip).version]) for ip in pod.ips]
    unreachable = {(3, 0), (1, 0)}  # RFC 792; RFC 4443, no route
    return [
        f"{ip} has no lease, and this comes of a ping: {echo}"
        for (_, ip), echo in echoes.ask(targets, patience_s=_DEADLINE_S).items()
        if echo.error not in unreachable
    ]


def unmasked(seen: Seen, echoes: Echoes, pod: Place) -> list[str]:
    """What leaves the cluster has the address of the pod's node."""
    node = _node(seen, pod)
    problems = []
    for own in pod.ips:
        version = ip_address(own).version
        routes = seen.states[node.name].routes[version]
        router = next(one["gateway"] for one in routes if one["dst"] == "default")
        with Capture(node.namespace, "eth0") as capture:
            (echo,) = echoes.ask([(pod, router)], patience_s=_DEADLINE_S).values()
            seen_there = sightings({node.name: capture}, _UDP_PORT)
        sources = {one.packet.source for one in seen_there if one.packet.target == router}
        if not echo.replied or sources != {node.ip(version)}:
            problems.append(f"{own} leaves the cluster as {sources}: {echo}")
    return problems
