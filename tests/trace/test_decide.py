"""The kernel's decisions, at real sightings of real probes; and what stops one, where it ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import pytest

from podwire.errors import InputError
from podwire.trace.model import Cause, Decision, Ip, Packet, Problem
from podwire.trace.records import Question
from tests.trace.two_nodes import Network, Sighting, pod_ip, problem_of, underlay_ip, vtep_mac

pytestmark = pytest.mark.root

A, B, C = "pod:default/a", "pod:default/b", "pod:default/c"
MAC1, MAC2 = (vtep_mac(number).hex(":") for number in (1, 2))


def kinds(decisions: list[Decision]) -> list[str]:
    return [one.kind for one in decisions]


# --- each kind of hop -------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_from_node_to_node_each_hop_says_what_sent_it_on(network: Network, version: int) -> None:
    seen, _ = network.probe(A, pod_ip("b", version))
    told = [(one.at, kinds(network.ask(one))) for one in seen]
    assert told == [
        (f"{A} eth0 out", ["route", "neigh", "pair"]),
        ("node1 vetha in", ["bridge"]),
        ("node1 cni0 in", ["route", "neigh"]),
        ("node1 flannel.1 out", ["fdb", "tunnel", "route", "neigh"]),
        ("node1 eth0 out", ["neigh"]),
        ("node2 eth0 in", ["tunnel"]),
        ("node2 flannel.1 in", ["route", "neigh"]),
        ("node2 cni0 out", ["bridge"]),
        ("node2 vethb out", ["pair"]),
        (f"{B} eth0 in", ["local"]),
    ]
    assert [problem_of(network.ask(one, ended=True)) for one in seen] == [None] * len(seen)


@pytest.mark.parametrize("version", [4, 6])
def test_the_words_are_those_of_iproute2_and_the_why_is_the_planners(
    network: Network, version: int
) -> None:
    base, subnet = (
        ("10.244.2.0", "10.244.2.0/24")
        if version == 4
        else (
            "fd00:244:2::",
            "fd00:244:2::/64",
        )
    )
    metric = "" if version == 4 else " metric 1024"
    source, target = pod_ip("a", version), pod_ip("b", version)
    seen, _ = network.probe(A, target)
    by_place = {one.at: network.ask(one) for one in seen}
    route, neighbor = by_place["node1 cni0 in"]
    assert route.text == f"{subnet} via {base} dev flannel.1 proto 112{metric} onlink"
    assert route.command == f"ip route get {target} from {source} iif cni0"
    assert str(route.why) == f"Node/node2 leases {subnet}"
    assert neighbor.text == f"{base} dev flannel.1 lladdr {MAC2} PERMANENT"
    assert neighbor.why == route.why
    fdb, tunnel, *_ = by_place["node1 flannel.1 out"]
    assert fdb.text == f"{MAC2} dev flannel.1 dst 172.18.0.12"
    assert str(fdb.why) == "Node/node2 is reached at 172.18.0.12"
    assert "172.18.0.11 → 172.18.0.12:8472, 50 bytes more" in tunnel.text
    (last,) = by_place[f"{B} eth0 in"]
    assert last.text == f"{target} is an address of eth0: delivered to pod default/b"


def test_the_commands_show_the_same(network: Network) -> None:
    seen, _ = network.probe(A, pod_ip("b"))
    places = {"node1": network.nodes[1], "node2": network.nodes[2]}
    places |= {f"pod:default/{name}": one for name, one in network.pods.items()}
    for one in seen:
        for decision in network.ask(one):
            shown = places[one.at.split()[0]].run(decision.command)
            if decision.kind in ("neigh", "fdb", "bridge"):
                told = decision.text.partition(":" if "itself" in decision.text else ";")[0]
                assert told.split()[0] in shown, (decision, shown)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (A, pod_ip("c"), [[A, "eth0"], ["node1", "vetha"], ["node1", "vethc"], [C, "eth0"]]),
        (A, "10.244.1.1", [[A, "eth0"], ["node1", "vetha"], ["node1", "cni0"]]),
        ("node1", pod_ip("a"), [["node1", "cni0"], ["node1", "vetha"], [A, "eth0"]]),
        (
            "node1",
            "10.244.2.1",
            [["node1", "flannel.1"], ["node1", "eth0"], ["node2", "eth0"], ["node2", "flannel.1"]],
        ),
        ("node1", "172.18.0.12", [["node1", "eth0"], ["node2", "eth0"]]),
        ("node1", "172.18.0.11", [["node1", "lo"], ["node1", "lo"]]),
    ],
)
def test_other_ways_end_in_local_delivery(
    network: Network, source: str, target: str, expected: list[list[str]]
) -> None:
    seen, _ = network.probe(source, target)
    assert [one.at.split()[:2] for one in seen] == expected
    assert kinds(network.ask(seen[-1]))[-1] == "local"
    assert [problem_of(network.ask(one, ended=True)) for one in seen] == [None] * len(seen)


def test_what_a_node_sends_begins_with_its_route_when_asked_for(network: Network) -> None:
    seen, _ = network.probe("node1", pod_ip("a"))
    first = seen[0]
    question = Question(
        place=first.place,
        ifindex=first.ifindex,
        direction="out",
        packet=first.packet,
        origin=True,
    )
    decisions = network.decider(1).decide(question)
    assert kinds(list(decisions)) == ["route", "neigh", "bridge"]
    assert decisions[0].text.startswith("10.244.1.0/24 dev cni0")


def test_what_is_no_ip_packet_is_decided_by_nobody(network: Network) -> None:
    question = Question(place=0, ifindex=1, direction="in", packet=Packet(60, ()))
    assert network.decider(1).decide(question) == ()


def test_a_question_that_makes_no_sense_is_refused(network: Network) -> None:
    seen, _ = network.probe(A, pod_ip("c"))
    decider = network.decider(1)
    good = Question(place=0, ifindex=1, direction="in", packet=seen[0].packet)
    wrong = Ip(version=4, source="10.0.0.1", target="pod", ttl=1, protocol=1, length=20)
    for question in (
        msgspec.structs.replace(good, place=9),
        msgspec.structs.replace(good, place=-1),
        msgspec.structs.replace(good, packet=Packet(20, (wrong,))),
    ):
        with pytest.raises(InputError):
            decider.decide(question)
    gone = msgspec.structs.replace(good, ifindex=999)
    (decision,) = decider.decide(gone)
    assert "gone" in decision.text


# --- what stops a packet ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """`lines` by place; `{base}`, `{far}`, `{near}`, `{b}` are put in for the IP version. `undo`
    what the reconciler does not mend. It ended at `at` (empty: not seen at all), whoever saw it
    without its being for him at `ignored`."""

    name: str
    cause: Cause
    at: str
    or_at: str = ""
    ignored: tuple[str, ...] = ()
    lines: dict[str, str] = field(default_factory=dict)
    undo: dict[str, str] = field(default_factory=dict)
    interface: str = ""
    place: str = "node1"
    source: str = A
    target: str = "{b}"
    size: int | None = None
    remedy: str = ""
    says: tuple[str, ...] = ()
    why: str = ""
    versions: tuple[int, ...] = (4, 6)


MEND_ROUTE = "ip route {verb} {far} via {base} dev flannel.1 onlink proto 112"

TROUBLES = [
    Trouble(
        name="missing route",
        lines={"node1": "ip route del {far}"},
        cause=Cause.NO_ROUTE,
        at="node1 cni0 in",
        interface="flannel.1",
        remedy=MEND_ROUTE.replace("{verb}", "add"),
        says=("node1 has no route to {far}",),
        why="Node/node2 leases {far}",
    ),
    Trouble(
        name="missing route, and a default one",
        lines={"node1": "ip route del {far}; ip route add default via {gateway} dev eth0 onlink"},
        undo={"node1": "ip route del default via {gateway}"},
        cause=Cause.NO_ROUTE,
        at="node1 cni0 in",
        interface="flannel.1",
        remedy=MEND_ROUTE.replace("{verb}", "add"),
        says=("default via",),
        why="Node/node2 leases {far}",
    ),
    Trouble(
        name="the default route takes it to a machine that is there",
        lines={
            "node1": "ip route del {far}; ip route add default via {gateway} dev eth0 onlink;"
            " ip neigh replace {gateway} lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
        },
        undo={
            "node1": "ip route del default via {gateway}; ip neigh del {gateway} dev eth0",
        },
        cause=Cause.NO_ROUTE,
        at="node1 eth0 out",
        ignored=("node2 eth0 in",),
        interface="flannel.1",
        remedy=MEND_ROUTE.replace("{verb}", "add"),
        versions=(4,),
    ),
    Trouble(
        name="wrong route",
        lines={"node1": "ip route replace {far} via {gateway} dev eth0 onlink proto static {m}"},
        undo={"node1": "ip route del {far}"},
        cause=Cause.WRONG_ROUTE,
        at="node1 cni0 in",
        interface="flannel.1",
        remedy=MEND_ROUTE.replace("{verb}", "replace"),
        says=("{far} via {gateway} dev eth0",),
        why="Node/node2 leases {far}",
    ),
    Trouble(
        name="a more specific route in the way",
        lines={"node1": "ip route add {b} via {gateway} dev eth0 onlink proto bird"},
        undo={"node1": "ip route del {b}"},
        cause=Cause.WRONG_ROUTE,
        at="node1 cni0 in",
        interface="flannel.1",
        remedy="ip route del {b} via {gateway} dev eth0 proto bird",
        says=("takes `{b} via {gateway} dev eth0", "not via {base} dev flannel.1"),
    ),
    Trouble(
        name="a route that refuses",
        lines={"node1": "ip route add unreachable {b}"},
        undo={"node1": "ip route del unreachable {b}"},
        cause=Cause.BLACKHOLE,
        at="node1 cni0 in",
        remedy="ip route del unreachable {b} proto boot",
        interface="flannel.1",
        says=("unreachable {b}",),
    ),
    Trouble(
        name="nowhere to send what is outside",
        target="{outside}",
        cause=Cause.NO_ROUTE,
        at="node1 cni0 in",
        says=("no route to {outside}",),
        remedy="ip route add default",
    ),
    Trouble(
        name="an outside that is refused",
        lines={"node1": "ip route add prohibit {outside}"},
        undo={"node1": "ip route del prohibit {outside}"},
        target="{outside}",
        cause=Cause.BLACKHOLE,
        at="node1 cni0 in",
        says=("prohibit {outside}",),
        remedy="ip route del prohibit {outside}",
    ),
    Trouble(
        name="a rule that refuses",
        lines={"node1": "ip {f} rule add to {outside} prohibit"},
        undo={"node1": "ip {f} rule del to {outside} prohibit"},
        target="{outside}",
        cause=Cause.BLACKHOLE,
        at="node1 cni0 in",
        says=("rule",),
        remedy="rule",
    ),
    Trouble(
        name="a subnet that no node leases",
        target="{unleased}",
        cause=Cause.NO_ROUTE,
        at="node1 cni0 in",
        says=("in no lease that",),
        remedy="podwire status",
    ),
    Trouble(
        name="missing neighbour",
        lines={"node1": "ip neigh del {base} dev flannel.1"},
        cause=Cause.NO_NEIGHBOR,
        at="node1 cni0 in",
        interface="flannel.1",
        remedy="ip neigh replace {base} lladdr {mac} dev flannel.1 nud permanent",
        why="Node/node2 leases {far}",
    ),
    Trouble(
        name="wrong neighbour",
        lines={"node1": "ip neigh replace {base} lladdr 02:00:00:00:00:bb dev flannel.1"},
        cause=Cause.WRONG_NEIGHBOR,
        at="node1 flannel.1 out",
        interface="flannel.1",
        remedy="ip neigh replace {base} lladdr {mac} dev flannel.1 nud permanent",
        says=("02:00:00:00:00:bb", "{mac}"),
    ),
    Trouble(
        name="wrong neighbour, whose frames arrive",
        lines={
            "node1": "ip neigh replace {base} lladdr 02:00:00:00:00:bb dev flannel.1;"
            " bridge fdb replace 02:00:00:00:00:bb dev flannel.1 dst 172.18.0.12"
        },
        cause=Cause.WRONG_NEIGHBOR,
        at="node2 flannel.1 in",
        interface="flannel.1",
        remedy="ip neigh replace {base} lladdr {mac} dev flannel.1 nud permanent  # on node1",
        says=("node1 has a wrong neighbour entry",),
    ),
    Trouble(
        name="missing FDB entry",
        lines={"node1": "bridge fdb del {mac} dev flannel.1"},
        cause=Cause.NO_FDB,
        at="node1 flannel.1 out",
        interface="flannel.1",
        remedy="bridge fdb replace {mac} dev flannel.1 dst 172.18.0.12 self permanent",
        why="Node/node2 is reached at 172.18.0.12",
    ),
    Trouble(
        name="FDB entry to nobody",
        lines={"node1": "bridge fdb replace {mac} dev flannel.1 dst 172.18.0.99"},
        cause=Cause.WRONG_FDB,
        at="node1 flannel.1 out",
        interface="flannel.1",
        says=("172.18.0.99", "172.18.0.12"),
        remedy="bridge fdb replace {mac} dev flannel.1 dst 172.18.0.12 self permanent",
    ),
    Trouble(
        name="FDB entry to where nobody listens",
        lines={
            "node1": "bridge fdb replace {mac} dev flannel.1 dst 172.18.0.77;"
            " ip neigh replace 172.18.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent"
        },
        undo={"node1": "ip neigh del 172.18.0.77 dev eth0"},
        cause=Cause.WRONG_FDB,
        at="node2 eth0 in",
        interface="flannel.1",
        says=("node1 sends frames for {mac} to 172.18.0.77",),
        remedy="bridge fdb replace {mac} dev flannel.1 dst 172.18.0.12 self permanent",
        versions=(4,),
    ),
    Trouble(
        name="forwarding off",
        lines={"node1": "sysctl -qw {forwarding}=0"},
        cause=Cause.NOT_FORWARDING,
        at="node1 cni0 in",
        interface="cni0",
        remedy="sysctl -w {forwarding}=1",
        says=("node1 does not forward",),
        why="Node/node1 leases",
    ),
    Trouble(
        name="forwarding off at one interface of the far node",
        lines={"node2": "sysctl -qw net/ipv4/conf/flannel.1/forwarding=0"},
        undo={"node2": "sysctl -qw net/ipv4/conf/flannel.1/forwarding=1"},
        cause=Cause.NOT_FORWARDING,
        at="node2 flannel.1 in",
        place="node2",
        interface="flannel.1",
        remedy="sysctl -w net/ipv4/conf/flannel.1/forwarding=1",
        versions=(4,),
    ),
    Trouble(
        name="reverse-path filter",
        lines={
            "node2": "sysctl -qw net.ipv4.conf.all.rp_filter=1;"
            " ip route replace {near} via 172.18.0.1 dev eth0 onlink"
        },
        undo={
            "node2": "sysctl -qw net.ipv4.conf.all.rp_filter=0; ip route del {near} via 172.18.0.1"
        },
        cause=Cause.RP_FILTER,
        at="node2 flannel.1 in",
        place="node2",
        interface="flannel.1",
        says=("rp_filter = 1", "{near} via 172.18.0.1", "flannel.1"),
        remedy="ip route replace {near} via 10.244.1.0 dev flannel.1 onlink proto 112",
        why="Node/node1 leases {near}",
        versions=(4,),
    ),
    Trouble(
        name="reverse-path filter on a source that nobody wants",
        lines={
            # Else it is dropped before that, as a source that is not the pod's own.
            "node1": "nft delete element bridge podwire guarded { vetha };"
            " sysctl -qw net.ipv4.conf.cni0.rp_filter=1",
            A: "ip address add 10.9.9.9/32 dev eth0; ip route replace {far} via 10.244.1.1"
            " src 10.9.9.9",
        },
        undo={
            "node1": "nft add element bridge podwire guarded { vetha };"
            " sysctl -qw net.ipv4.conf.cni0.rp_filter=0",
            A: "ip route del {far}; ip address del 10.9.9.9/32 dev eth0",
        },
        cause=Cause.RP_FILTER,
        at="node1 cni0 in",
        interface="cni0",
        says=("10.9.9.9 would go nowhere",),
        remedy="sysctl -w net.ipv4.conf.cni0.rp_filter=0",
        versions=(4,),
    ),
    Trouble(
        name="over the MTU of the tunnel",
        lines={"node1": "ip link set flannel.1 mtu 1300"},
        size=1400,
        cause=Cause.TOO_BIG,
        at="node1 cni0 in",
        interface="flannel.1",
        says=("1400", "1300"),
        remedy="ip link set flannel.1 mtu 1450",
        why="Node/node1 is the VTEP",
    ),
    Trouble(
        name="over the pod's own MTU",
        size=1451,
        cause=Cause.TOO_BIG,
        at="",
        place=A,
        interface="eth0",
        says=("1451", "1450"),
        remedy="at most 1450",
    ),
    Trouble(
        name="over the MTU of the far bridge's port",
        lines={"node2": "ip link set vethb mtu 1300"},
        size=1400,
        cause=Cause.TOO_BIG,
        at="node2 cni0 out",
        place="node2",
        interface="vethb",
        says=("1400", "1300"),
        remedy="ip link set vethb mtu 1450",
    ),
    Trouble(
        name="over the MTU of the pod that it is for",
        lines={B: "ip link set eth0 mtu 1300"},
        size=1400,
        cause=Cause.TOO_BIG,
        at="node2 vethb out",
        place=B,
        interface="eth0",
        says=("1400", "1300"),
        remedy="ip link set eth0 mtu 1450",
    ),
    Trouble(
        name="tunnel down",
        lines={"node1": "ip link set flannel.1 down"},
        cause=Cause.LINK_DOWN,
        at="node1 cni0 in",
        interface="flannel.1",
        remedy="ip link set flannel.1 up",
        why="Node/node1 is the VTEP",
    ),
    Trouble(
        name="tunnel gone",
        lines={"node1": "ip link del flannel.1"},
        cause=Cause.LINK_MISSING,
        at="node1 cni0 in",
        interface="flannel.1",
        remedy="ip link add flannel.1",
    ),
    Trouble(
        name="tunnel down at the far node",
        lines={"node2": "ip link set flannel.1 down"},
        cause=Cause.LINK_DOWN,
        at="node2 eth0 in",
        place="node2",
        interface="flannel.1",
        remedy="ip link set flannel.1 up",
    ),
    Trouble(
        name="tunnel gone at the far node",
        lines={"node2": "ip link del flannel.1"},
        cause=Cause.LINK_MISSING,
        at="node2 eth0 in",
        place="node2",
        interface="flannel.1",
        remedy="ip link add flannel.1",
    ),
    Trouble(
        name="another VNI at the far node",
        lines={
            "node2": "ip link del flannel.1; ip link add flannel.1 group 7077 type vxlan id 7"
            " local 172.18.0.12 dev eth0 dstport 8472 nolearning; ip link set flannel.1 up"
        },
        cause=Cause.LINK_MISSING,
        at="node2 eth0 in",
        place="node2",
        interface="flannel.1",
        says=("VNI 1",),
        remedy="ip link del flannel.1; ip link add flannel.1",
    ),
    Trouble(
        name="underlay down",
        lines={"node1": "ip link set eth0 down"},
        undo={"node1": "ip link set eth0 up"},
        cause=Cause.LINK_DOWN,
        at="node1 flannel.1 out",
        interface="eth0",
        remedy="ip link set eth0 up",
    ),
    Trouble(
        name="underlay unplugged",
        lines={"node2": "ip link set eth0 down"},
        undo={"node2": "ip link set eth0 up"},
        cause=Cause.LINK_DOWN,
        at="node1 flannel.1 out",
        # The kernel goes on sending until it has noticed, which it does once a second.
        or_at="node1 eth0 out",
        interface="eth0",
        says=("carrier",),
    ),
    Trouble(
        name="far node dead",
        lines={
            "node2": "ip address del 172.18.0.12/24 dev eth0",
            "node1": "ip neigh flush dev eth0",
        },
        undo={"node2": "ip address add 172.18.0.12/24 dev eth0"},
        cause=Cause.NOT_IN_USE,
        at="node1 flannel.1 out",
        interface="eth0",
        says=("ARP for 172.18.0.12 on eth0", "Node/node2"),
        why="Node/node2 is reached at 172.18.0.12",
    ),
    Trouble(
        name="far bridge down",
        lines={"node2": "ip link set cni0 down"},
        cause=Cause.LINK_DOWN,
        at="node2 flannel.1 in",
        place="node2",
        interface="cni0",
        remedy="ip link set cni0 up",
    ),
    Trouble(
        name="bridge down here",
        lines={"node1": "ip link set cni0 down"},
        cause=Cause.LINK_DOWN,
        at="node1 vetha in",
        interface="cni0",
        remedy="ip link set cni0 up",
    ),
    Trouble(
        name="target's cable down",
        lines={"node2": "ip link set vethb down"},
        cause=Cause.LINK_DOWN,
        at="node2 flannel.1 in",
        # Or, before the bridge has lost its carrier with its last port:
        or_at="node2 cni0 out",
        place="node2",
        interface="vethb",
        remedy="ip link set vethb up",
        why="Pod/default/b has",
    ),
    Trouble(
        # Its MAC is forgotten, so the frame is flooded, and hairpin brings it back.
        name="target's cable down on the same node",
        lines={"node1": "ip link set vethc down"},
        target="{c}",
        cause=Cause.LINK_DOWN,
        at=f"{A} eth0 in",
        interface="vethc",
        remedy="ip link set vethc up",
    ),
    Trouble(
        name="target's cable pulled out of the bridge",
        lines={"node2": "ip link set vethb nomaster"},
        cause=Cause.LINK_MISSING,
        at="node2 flannel.1 in",
        or_at="node2 cni0 out",
        place="node2",
        interface="vethb",
        remedy="ip link set vethb master cni0",
    ),
    Trouble(
        name="port disabled",
        lines={
            "node2": "ip neigh replace {b} lladdr 0a:58:0a:f4:02:02 dev cni0 nud permanent;"
            " bridge link set dev vethb state 0"
        },
        undo={"node2": "bridge link set dev vethb state 3; ip neigh del {b} dev cni0"},
        cause=Cause.LINK_DOWN,
        at="node2 cni0 out",
        # The bridge loses its carrier with its last port, a moment later.
        or_at="node2 flannel.1 in",
        place="node2",
        interface="vethb",
        remedy="bridge link set dev vethb state 3",
    ),
    Trouble(
        name="target's eth0 down",
        lines={B: "ip link set eth0 down"},
        cause=Cause.LINK_DOWN,
        at="node2 flannel.1 in",
        place="node2",
        interface="vethb",
        says=("eth0 is down in pod default/b",),
        remedy="ip link set eth0 up  # in pod default/b",
        versions=(4,),
    ),
    Trouble(
        name="target has lost its address",
        lines={B: "ip address del {b}/{bits} dev eth0", "node2": "ip neigh flush dev cni0"},
        cause=Cause.NOT_IN_USE,
        at="node2 flannel.1 in",
        place="node2",
        interface="cni0",
        says=("pod default/b is wired to vethb and does not answer",),
    ),
    Trouble(
        name="unused address of the far node",
        target="{unused}",
        cause=Cause.NOT_IN_USE,
        at="node2 flannel.1 in",
        place="node2",
        interface="cni0",
        says=("{arp} for {unused} on cni0", "node2 asked", "not in use"),
    ),
    Trouble(
        name="unused address of the same subnet",
        target="{unused_near}",
        cause=Cause.NOT_IN_USE,
        at="",
        place=A,
        interface="eth0",
        says=("{arp} for {unused_near} on eth0", "pod default/a asked", "not in use"),
    ),
    Trouble(
        name="broadcast address of the far subnet",
        target="10.244.2.255",
        cause=Cause.NOT_IN_USE,
        at="node2 flannel.1 in",
        place="node2",
        interface="cni0",
        says=("10.244.2.255 is the broadcast address of node2's cni0",),
        versions=(4,),
    ),
    Trouble(
        name="broadcast address of the own subnet",
        target="10.244.1.255",
        cause=Cause.NOT_IN_USE,
        at="",
        place=A,
        interface="eth0",
        says=("broadcast address",),
        versions=(4,),
    ),
    Trouble(
        name="address on the underlay that nobody has",
        target="172.18.0.99",
        cause=Cause.NOT_IN_USE,
        at="node1 cni0 in",
        interface="eth0",
        remedy="is a host of that address up",
        versions=(4,),
    ),
    Trouble(
        # The frame is flooded to the other pod, and hairpin brings it back: in the order of ports.
        name="bridge without an entry for its own MAC",
        lines={"node1": "bridge fdb del {gw_mac} dev cni0 self"},
        undo={"node1": "bridge fdb add {gw_mac} dev cni0 self permanent"},
        cause=Cause.NO_FDB,
        at=f"{C} eth0 in",
        ignored=("node1 vetha out", f"{A} eth0 in"),
        interface="cni0",
        says=("its own MAC {gw_mac}",),
        remedy="bridge fdb add {gw_mac} dev cni0 self permanent",
        why="Node/node1 leases",
    ),
    Trouble(
        name="source's cable down",
        lines={"node1": "ip link set vetha down"},
        cause=Cause.LINK_DOWN,
        at="",
        interface="vetha",
        remedy="ip link set vetha up",
    ),
    Trouble(
        name="gateway without its address",
        lines={
            "node1": "ip address del {gw1}/{bits} dev cni0",
            A: "ip neigh flush dev eth0",
        },
        cause=Cause.NOT_IN_USE,
        at="",
        interface="cni0",
        says=("cni0 of node1 has lost its address {gw1}",),
        remedy="ip address replace {gw1}/{bits}",
    ),
    Trouble(
        name="gateway whose MAC the pod has wrong",
        lines={A: "ip neigh replace {gw1} lladdr 02:00:00:00:00:66 dev eth0 nud permanent"},
        undo={A: "ip neigh del {gw1} dev eth0"},
        # Flooded, back to the pod, too.
        ignored=(f"{A} eth0 in", f"{C} eth0 in", "node1 vetha out", "node1 vethc out"),
        cause=Cause.WRONG_NEIGHBOR,
        at="node1 vetha in",
        interface="cni0",
        says=(
            "pod default/a takes 02:00:00:00:00:66 for the MAC of its gateway, which is {gw_mac}",
        ),
        remedy="ip neigh flush dev eth0  # in pod default/a",
    ),
    Trouble(
        name="no route in the pod",
        lines={A: "ip {f} route del default; ip route del {all}"},
        cause=Cause.NO_ROUTE,
        at="",
        place=A,
        interface="eth0",
        remedy="ip route add {all} via {gw1} dev eth0",
    ),
    Trouble(
        name="no way back in the pod that it is for",
        lines={B: "ip {f} route del default; ip route del {all}"},
        cause=Cause.NO_ROUTE,
        at=f"{B} eth0 in",
        place=B,
        interface="eth0",
        says=("the answer to {a}",),
        remedy="ip route add {all} via {gw2} dev eth0",
    ),
]


def words(version: int) -> dict[str, str]:
    six = {
        "far": "fd00:244:2::/64",
        "near": "fd00:244:1::/64",
        "base": "fd00:244:2::",
        "gateway": "fd18::1",
        "far_ip": "fd18::12",
        "outside": "fd99::9",
        "unleased": "fd00:244:9::9",
        "unused": "fd00:244:2::99",
        "unused_near": "fd00:244:1::99",
        "forwarding": "net.ipv6.conf.all.forwarding",
        "all": "fd00:244::/32",
        "gw1": "fd00:244:1::1",
        "gw2": "fd00:244:2::1",
        "bits": "64",
        "arp": "NDP",
        "f": "-6",
        "m": "metric 1024",
    }
    four = {
        "far": "10.244.2.0/24",
        "near": "10.244.1.0/24",
        "base": "10.244.2.0",
        "gateway": "172.18.0.1",
        "far_ip": underlay_ip(2),
        "outside": "192.0.2.9",
        "unleased": "10.244.9.9",
        "unused": "10.244.2.99",
        "unused_near": "10.244.1.99",
        "forwarding": "net.ipv4.ip_forward",
        "all": "10.244.0.0/16",
        "gw1": "10.244.1.1",
        "gw2": "10.244.2.1",
        "bits": "24",
        "arp": "ARP",
        "f": "-4",
        "m": "",
    }
    found = four if version == 4 else six
    found |= {name: pod_ip(name, version) for name in "abc"}
    return found | {"mac": MAC2, "gw_mac": "0a:58:0a:f4:01:01"}


def say(text: str, version: int) -> str:
    for word, value in words(version).items():
        text = text.replace("{" + word + "}", value)
    return text


@pytest.fixture
def site(network: Network) -> Iterator[Network]:
    """The network, mended after the test."""
    yield network
    network.wire_again()
    for number in network.nodes:
        network.mend(number)


def break_with(site: Network, lines: dict[str, str], version: int) -> None:
    for place, line in lines.items():
        site.run(place, "set -e; " + say(line, version))


def found(site: Network, trouble: Trouble, version: int) -> tuple[str, Problem | None]:
    """Where the probe ended, and what is found there."""
    target = say(trouble.target, version)
    seen, match = site.probe(trouble.source, target, size=trouble.size)
    seen = [one for one in seen if one.at not in trouble.ignored]
    if seen:
        return seen[-1].at, problem_of(site.ask(seen[-1], ended=True))
    source = match.source if match is not None else pod_ip("a", version)
    length = trouble.size or 84
    packet = Packet(
        length,
        (
            Ip(
                version=6 if version == 6 else 4,
                source=source,
                target=target,
                ttl=64,
                protocol=1 if version == 4 else 58,
                length=length,
                dont_fragment=True,
            ),
        ),
    )
    nowhere = Sighting(1, 0, "out", f"{A} - out", packet)
    return "", problem_of(site.ask(nowhere, ended=True))


@pytest.mark.parametrize(
    ("trouble", "version"),
    [(one, version) for one in TROUBLES for version in one.versions],
    ids=lambda value: value.name if isinstance(value, Trouble) else f"IPv{value}",
)
def test_what_stopped_it_is_found(site: Network, trouble: Trouble, version: int) -> None:
    break_with(site, trouble.lines, version)
    try:
        at, problem = found(site, trouble, version)
    finally:
        break_with(site, trouble.undo, version)
    assert at in (trouble.at, trouble.or_at or trouble.at), problem
    assert problem is not None
    assert (problem.cause, problem.interface, problem.place) == (
        trouble.cause,
        trouble.interface,
        trouble.place,
    ), problem
    for word in trouble.says:
        assert say(word, version) in problem.text
    assert say(trouble.remedy, version) in problem.remedy
    assert problem.remedy
    assert str(problem.why or "").startswith(say(trouble.why, version))


def test_a_bridge_takes_frames_for_its_ports_macs(site: Network) -> None:
    port = "02:00:00:00:0a:0a"
    site.run("node1", f"ip link set vetha address {port}")
    site.run(A, f"ip neigh replace 10.244.1.1 lladdr {port} dev eth0")
    seen, _ = site.probe(A, pod_ip("b"))
    assert seen[-1].at == f"{B} eth0 in"
    bridge = next(one for one in seen if one.at == "node1 cni0 in")
    assert kinds(site.ask(bridge, ended=True)) == ["route", "neigh"]


@pytest.mark.parametrize(
    ("line", "cause", "interface"),
    [
        ("ip link set vethc down", Cause.LINK_DOWN, "vethc"),
        ("ip link set vethc nomaster", Cause.LINK_MISSING, "vethc"),
        (
            "ip neigh replace {c} lladdr 0a:58:0a:f4:01:02 dev cni0 nud permanent",
            Cause.WRONG_NEIGHBOR,
            "cni0",
        ),
    ],
)
def test_why_it_went_into_another_pods_cable(
    site: Network, line: str, cause: Cause, interface: str
) -> None:
    """A bridge floods what it has no port for, and another pod may be all that is left."""
    known = "ip neigh replace {c} lladdr 0a:58:0a:f4:01:03 dev cni0 nud permanent; "
    break_with(site, {"node1": known + line}, 4)
    try:
        seen, _ = site.probe(B, pod_ip("c"))
        cable = next(one for one in seen if one.at == "node1 vetha out")
        problem = problem_of(site.ask(cable, ended=True))
    finally:
        break_with(site, {"node1": "ip neigh del {c} dev cni0"}, 4)
    assert problem is not None
    assert (problem.cause, problem.interface) == (cause, interface)


def test_a_pod_that_is_gone_is_not_in_use(site: Network) -> None:
    gone = "10.244.1.77"
    site.run("node1", f"ip neigh replace {gone} lladdr 0a:58:0a:f4:01:4d dev cni0 nud permanent")
    try:
        seen, _ = site.probe(B, gone)
        out = next(one for one in seen if one.at == "node1 cni0 out")
        problem = problem_of(site.ask(out, ended=True))
    finally:
        site.run("node1", f"ip neigh del {gone} dev cni0")
    assert problem is not None
    assert problem.cause is Cause.NOT_IN_USE
    assert f"no pod of node1 has {gone}" in problem.text


# --- over an IPv6 underlay --------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnel_over_ipv6_is_the_same(network6: Network, version: int) -> None:
    seen, _ = network6.probe(A, pod_ip("b", version))
    assert seen[-1].at == f"{B} eth0 in"
    fdb, tunnel, route, neighbor = network6.ask(
        next(one for one in seen if one.at == "node1 flannel-v6.1 out")
    )
    assert fdb.text == f"{MAC2} dev flannel-v6.1 dst fd18::12"
    assert "70 bytes more" in tunnel.text
    assert route.text.startswith("fd18::/64 dev eth0")
    assert neighbor.text.startswith("fd18::12 dev eth0 lladdr")
    assert [problem_of(network6.ask(one, ended=True)) for one in seen] == [None] * len(seen)


def test_what_the_tunnel_adds_may_be_too_much_for_the_underlay(network6: Network) -> None:
    """A tunnel's IPv6 packet is never fragmented; an IPv4 one is, so there it gets through."""
    for place in ("node1", "node2"):
        network6.run(place, "ip link set eth0 mtu 1400")
    try:
        seen, _ = network6.probe(A, pod_ip("b"), size=1380)
        assert seen[-1].at == "node1 flannel-v6.1 out"
        problem = problem_of(network6.ask(seen[-1], ended=True))
    finally:
        for place in ("node1", "node2"):
            network6.run(place, "ip link set eth0 mtu 1500")
    assert problem is not None
    assert (problem.cause, problem.interface) == (Cause.TOO_BIG, "eth0")
    assert "1380 and the 70 of the tunnel" in problem.text
    assert "1400" in problem.text


def test_fragments_of_an_ipv4_tunnel_are_no_problem(site: Network) -> None:
    for place in ("node1", "node2"):
        site.run(place, "ip link set eth0 mtu 1400")
    try:
        seen, _ = site.probe(A, pod_ip("b"), size=1380)
        problems = [problem_of(site.ask(one, ended=True)) for one in seen]
    finally:
        for place in ("node1", "node2"):
            site.run(place, "ip link set eth0 mtu 1500")
    assert problems == [None] * len(seen)


# --- what remedies say ------------------------------------------------------------------------


def test_a_remedy_says_who_would_have_mended_it(site: Network) -> None:
    site.run("node1", "ip route del 10.244.2.0/24")
    seen, _ = site.probe(A, pod_ip("b"))
    mended, held = (problem_of(site.ask(seen[-1], ended=True, held=held)) for held in (False, True))
    assert mended is not None
    assert held is not None
    assert mended.remedy.endswith("# on node1; its agent does it by itself unless held or dead")
    assert held.remedy.endswith("# on node1, or: podwire agent resume --node node1")


def test_the_remedies_command_mends_it(site: Network) -> None:
    """As it is printed, comment and all, in the shell of where it says."""
    for broken in (
        "ip route del {far}",
        "ip neigh del {base} dev flannel.1",
        "bridge fdb del {mac} dev flannel.1",
        "sysctl -qw net.ipv4.ip_forward=0",
        "ip link set cni0 down",
        "ip route add {b} via 172.18.0.1 dev eth0 onlink proto bird",
        "ip route add unreachable {b}",
    ):
        site.run("node1", say(broken, 4))
        seen, _ = site.probe(A, pod_ip("b"))
        problem = problem_of(site.ask(seen[-1], ended=True))
        assert problem is not None, broken
        site.run(problem.place, problem.remedy)
        seen, _ = site.probe(A, pod_ip("b"))
        assert seen[-1].at == f"{B} eth0 in", (broken, problem.remedy)
