"""Explanations of a node's network in real namespaces: as it is wanted, and when it is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from podwire.errors import InputError
from podwire.kernel import netns
from podwire.kernel.netlink import NetlinkSocket
from podwire.model.cluster import Node
from podwire.trace.explain import answer
from podwire.trace.explanations.knowledge import Knowledge
from podwire.trace.wire import Explain, Explained
from tests.trace.two_nodes import Network, lease, pod_ip, vtep_mac

pytestmark = pytest.mark.root

A = "pod:default/a"
MAC2 = vtep_mac(2).hex(":")
NODES = {
    f"node{number}": Node(
        f"node{number}",
        pod_cidrs=lease(number, 4).subnets,
        internal_ips=(lease(number, 4).public_ip,),
        lease=lease(number, 4),
    )
    for number in (1, 2)
} | {
    "node9": Node(
        "node9",
        pod_cidrs=(ip_network("10.244.9.0/24"),),
        internal_ips=(ip_address("172.18.0.19"),),
    )
}
Ask = Callable[..., Explained]


@pytest.fixture
def ask(network: Network) -> Iterator[Ask]:
    """Asks node1, which is mended after the test."""
    fd = netns.open_netns(network.nodes[1].path)
    try:
        with netns.entered(fd):
            sock = NetlinkSocket()

        def one(kind: str, thing: str, *, held: bool = False) -> Explained:
            about = Knowledge(
                node="node1", intent=network.intent(1), nodes=NODES, sock=sock, held=held
            )
            with netns.entered(fd):
                return answer(Explain(id=7, kind=kind, thing=thing), about)

        with sock:
            yield one
    finally:
        os.close(fd)
    network.mend(1)


def details(explained: Explained, label: str) -> list[str]:
    return [text for one, text in explained.details if one == label]


def why(explained: Explained) -> str:
    return str(explained.why or "")


# --- as it is wanted --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "thing", "entry", "because", "text"),
    [
        (
            "route",
            "10.244.2.0/24",
            "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 112 onlink",
            "Node/node2 leases 10.244.2.0/24",
            "the way from node1 to node2's pods",
        ),
        (
            "route",
            "fd00:244:2::/64",
            "fd00:244:2::/64 via fd00:244:2:: dev flannel.1 proto 112",
            "Node/node2 leases fd00:244:2::/64",
            "the way from node1 to node2's pods",
        ),
        (
            "route",
            "10.244.2.7",
            "10.244.2.0/24 via 10.244.2.0",
            "Node/node2 leases 10.244.2.0/24",
            "the way from node1 to node2's pods",
        ),
        (
            "route",
            "10.244.2.7/24",
            "10.244.2.0/24 via 10.244.2.0",
            "Node/node2",
            "the way from node1 to node2's pods",
        ),
        ("route", "10.244.1.0/24", "10.244.1.0/24 dev cni0", "Node/node1 leases", "own pods"),
        ("route", "10.244.1.1", "local 10.244.1.1 dev cni0", "Node/node1 leases", "node1's own"),
        ("route", "172.18.0.0/24", "172.18.0.0/24 dev eth0 proto kernel", "", "not made by"),
        (
            "neigh",
            "10.244.2.0",
            f"10.244.2.0 dev flannel.1 lladdr {MAC2} PERMANENT",
            "Node/node2 leases 10.244.2.0/24",
            "node2",
        ),
        (
            "neigh",
            "fd00:244:2:: dev flannel.1",
            "fd00:244:2:: dev flannel.1",
            "Node/node2",
            "node2",
        ),
        (
            "neigh",
            MAC2.upper().replace(":", "-"),
            "10.244.2.0 dev flannel.1",
            "Node/node2",
            "node2",
        ),
        ("neigh", "172.18.0.12", "172.18.0.12 dev eth0 lladdr", "", "node2 (172.18.0.12)"),
        (
            "fdb",
            MAC2,
            f"{MAC2} dev flannel.1 dst 172.18.0.12",
            "Node/node2 is reached at 172.18.0.12",
            "node2's end",
        ),
        ("fdb", "172.18.0.12", f"{MAC2} dev flannel.1", "Node/node2 is reached", "node2's end"),
        ("fdb", "2:0:0:0:0:2", f"{MAC2} dev flannel.1", "Node/node2 is reached", "node2's end"),
        (
            "fdb",
            "0a:58:0a:f4:01:02",
            "0a:58:0a:f4:01:02 dev vetha",
            "Pod/default/a has",
            "pod default/a is at port vetha",
        ),
        ("fdb", "0a:58:0a:f4:01:01", "0a:58:0a:f4:01:01 dev cni0", "", "cni0 itself"),
        ("link", "cni0", "cni0 bridge, up, mtu 1450", "Node/node1 leases", "gateway is 10.244.1.1"),
        ("link", "cni0:", "cni0 bridge", "Node/node1 leases", "the bridge"),
        ("link", "flannel.1", "flannel.1 vxlan, up", "Node/node1 is the VTEP", "VXLAN number 1"),
        ("link", "vetha@if2", "vetha veth, up", "Pod/default/a has", "the cable to pod default/a"),
        ("link", "02:00:00:00:00:01", "flannel.1 vxlan", "Node/node1 is the VTEP", "the tunnel"),
        ("link", "eth0", "eth0 veth, up, mtu 1500", "", "the underlay"),
        ("link", "lo", "lo loopback", "", "the loopback"),
        (
            "rule",
            'iifname "eth0" udp',
            'iifname "eth0" udp dport 8472 notrack',
            "Node/node1 receives tunnel packets",
            "bypass conntrack",
        ),
        ("rule", "inet podwire tunnel_out", "udp dport 8472 notrack", "Node/node1 sends", "bypass"),
        (
            "rule",
            "ip saddr @cluster4",
            "ip saddr @cluster4",
            "Network/10.244.0.0/16 is unknown outside",
            "takes the node's address",
        ),
    ],
)
def test_what_is_there_is_explained(
    network: Network, ask: Ask, kind: str, thing: str, entry: str, because: str, text: str
) -> None:
    network.probe(A, pod_ip("b"))  # so that the kernel has asked and learned
    explained = ask(kind, thing)
    assert explained.to == 7
    assert explained.found
    assert any(one.startswith(entry) for one in details(explained, "entry")), explained
    assert why(explained).startswith(because)
    assert bool(explained.why) == bool(because)
    assert text in explained.text
    assert details(explained, "wrong") == []
    if because and kind != "fdb":
        assert explained.without


def test_the_shown_commands_show_it(network: Network, ask: Ask) -> None:
    for kind, thing in (
        ("route", "10.244.2.0/24"),
        ("neigh", "10.244.2.0"),
        ("fdb", MAC2),
        ("link", "cni0"),
        ("rule", "tunnel_out"),
    ):
        (command,) = details(ask(kind, thing), "show")
        assert network.nodes[1].run(command).strip(), command


def test_several_rules_are_listed_by_their_handles(ask: Ask) -> None:
    explained = ask("rule", "masquerade")
    assert explained.text.startswith("2 rules fit, 2 of them Podwire's")
    handle, told = explained.details[0]
    chain = told.partition(":")[0]
    for thing in (f"{chain} {handle}", f"{chain} # handle {handle}"):
        assert "masquerade" in details(ask("rule", thing), "entry")[0]
    assert ask("rule", f"# handle {handle}").found


@pytest.mark.parametrize(
    ("kind", "thing", "text"),
    [
        ("route", "192.0.2.0/24", "node1 has no route for 192.0.2.0/24"),
        ("route", "192.0.2.1", "node1 has no route to 192.0.2.1"),
        ("route", "default", "node1 has no default route for IPv4"),
        ("route", "default -6", "node1 has no default route for IPv6"),
        ("neigh", "192.0.2.1", "node1 has no neighbour entry for 192.0.2.1"),
        ("neigh", "10.244.2.0 dev eth0", "on eth0"),
        ("fdb", "02:00:00:00:00:99", "no forwarding entry for 02:00:00:00:00:99"),
        ("link", "wlan0", "node1 has no link wlan0; it has lo"),
        ("rule", "nonsense", "words `nonsense`"),
        ("rule", "99999", "99999"),
    ],
)
def test_what_is_not_there_is_not_found(ask: Ask, kind: str, thing: str, text: str) -> None:
    explained = ask(kind, thing)
    assert not explained.found
    assert text in explained.text


@pytest.mark.parametrize(
    ("kind", "thing", "expected"),
    [
        ("route", "10.244.2.0/33", "a prefix such as 10.244.2.0/24"),
        ("route", "cni0", "a prefix (10.244.2.0/24), an IP or `default`"),
        ("route", "", "a prefix"),
        ("neigh", "10.244.2", "an IP or a MAC"),
        ("fdb", "02:00:00", "an IP or a MAC"),
        ("link", "a-name-too-long-for-one", "an interface's name"),
        ("link", "", "an interface's name"),
        ("link", "../eth0", "an interface's name"),
        ("link", "eth0\0x", "an interface's name"),
        ("rule", "", "a handle, a chain's name"),
        ("ip", "pod1", "an IP address"),
        ("pod", "a", "expected one of route, neigh, fdb, link, rule, ip"),
    ],
)
def test_what_can_not_be_read_is_refused_with_what_was_expected(
    ask: Ask, kind: str, thing: str, expected: str
) -> None:
    with pytest.raises(InputError, match=expected.replace("(", r"\(").replace(")", r"\)")):
        ask(kind, thing)


# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "text", "labels"),
    [
        (pod_ip("a"), "pod default/a on node1", {"pod", "node", "subnet", "route", "neigh"}),
        (pod_ip("a", 6), "pod default/a on node1", {"pod", "route", "neigh"}),
        (pod_ip("b"), "an address of node2's subnet 10.244.2.0/24", {"use", "fdb", "tunnel"}),
        (pod_ip("b", 6), "an address of node2's subnet fd00:244:2::/64", {"use", "fdb"}),
        ("10.244.2.0", "node2's end of the tunnel", {"fdb"}),
        ("10.244.2.1", "the gateway of node2's pods", {"fdb"}),
        ("10.244.2.255", "broadcast address, which no pod gets", {"node"}),
        ("10.244.1.1", "the gateway of node1's pods", {"local"}),
        ("10.244.1.0", "node1's own end of the tunnel flannel.1", {"local"}),
        ("10.244.1.77", "an address of node1's subnet 10.244.1.0/24: no pod has it", {"route"}),
        ("172.18.0.11", "node1 itself: its address on the underlay eth0", {"local"}),
        ("172.18.0.12", "node node2 itself", {"route", "neigh"}),
        ("172.18.0.19", "whose agent has published no lease", {"route"}),
        ("10.244.9.7", "given to node9; its agent has published no lease", {"wrong", "mend"}),
        ("10.244.77.7", "in no node's subnet: nobody's", {"wrong"}),
        ("8.8.8.8", "outside of the pod network", {"pods"}),
        ("127.0.0.1", "the loopback", set()),
        ("::1", "the loopback", set()),
        ("224.0.0.1", "multicast", set()),
        ("255.255.255.255", "the broadcast address", set()),
        ("::", "no address at all", set()),
        ("169.254.1.1", "link-local", set()),
        ("fe80::1%eth0", "link-local", set()),
        (f"{pod_ip('a')}/24", "pod default/a on node1", {"pod"}),
    ],
)
def test_an_address_is_somebodys_or_nobodys(
    ask: Ask, thing: str, text: str, labels: set[str]
) -> None:
    explained = ask("ip", thing)
    assert explained.found
    assert text in explained.text
    assert labels <= {label for label, _ in explained.details}, explained


def test_pods_get_outside_with_an_address_of_that_family_only(ask: Ask) -> None:
    assert details(ask("ip", "8.8.8.8"), "pods") == [
        "those of node1 reach it as 172.18.0.11 (masqueraded)"
    ]
    # The pods have IPv6 addresses, the node has none on the underlay.
    assert not details(ask("ip", "2001:db8::1"), "pods")


# --- what is not as it is wanted --------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "undo", "kind", "thing", "mend"),
    [
        ("ip route del 10.244.2.0/24", "", "route", "10.244.2.0/24", "ip route add 10.244.2.0/24"),
        ("ip route del 10.244.2.0/24", "", "route", "10.244.2.9", "ip route add 10.244.2.0/24"),
        ("ip route del 10.244.2.0/24", "", "ip", "10.244.2.9", "ip route add 10.244.2.0/24"),
        (
            "ip route add 10.244.2.9 via 172.18.0.1 dev eth0 onlink proto bird",
            "ip route del 10.244.2.9",
            "route",
            "10.244.2.9",
            "ip route del 10.244.2.9 via 172.18.0.1 dev eth0 proto bird",
        ),
        ("ip neigh del 10.244.2.0 dev flannel.1", "", "neigh", "10.244.2.0", "ip neigh replace"),
        ("ip neigh del 10.244.2.0 dev flannel.1", "", "ip", "10.244.2.9", "ip neigh replace"),
        (
            f"bridge fdb replace {MAC2} dev flannel.1 dst 172.18.0.99",
            "",
            "fdb",
            MAC2,
            f"bridge fdb replace {MAC2} dev flannel.1 dst 172.18.0.12",
        ),
        (f"bridge fdb del {MAC2} dev flannel.1", "", "fdb", "172.18.0.12", "bridge fdb replace"),
        ("ip link set cni0 mtu 1400", "", "link", "cni0", "ip link set cni0 mtu 1450"),
        ("ip link set flannel.1 down", "", "link", "flannel.1", "ip link set flannel.1 up"),
        ("ip link del flannel.1", "", "link", "flannel.1", "ip link add flannel.1"),
        ("nft flush chain inet podwire postrouting", "", "rule", "masquerade", "podwire doctor"),
        (
            "ip address del 10.244.1.1/24 dev cni0",
            "",
            "ip",
            "10.244.1.1",
            "ip address replace 10.244.1.1/24",
        ),
    ],
)
def test_what_is_not_as_wanted_is_told_with_what_mends_it(
    network: Network, ask: Ask, broken: str, undo: str, kind: str, thing: str, mend: str
) -> None:
    network.run("node1", broken)
    try:
        explained = ask(kind, thing)
        held = ask(kind, thing, held=True)
    finally:
        if undo:
            network.run("node1", undo)
    assert explained.found
    assert len(details(explained, "wrong")) == 1, explained
    (line,) = details(explained, "mend")
    assert line.startswith(mend)
    if not undo:
        assert line.endswith("its agent does it by itself unless held or dead")
        assert "podwire agent resume --node node1" in details(held, "mend")[0]


def test_what_others_made_is_said_to_be_theirs(network: Network, ask: Ask) -> None:
    network.run(
        "node1",
        "ip route add 192.0.2.0/24 via 172.18.0.1 dev eth0 onlink proto bird;"
        "ip link add docker0 type bridge; ip link set docker0 alias theirs;"
        "nft add table ip filter; nft add chain ip filter DOCKER-USER;"
        "nft add rule ip filter DOCKER-USER tcp dport 22 drop",
    )
    try:
        route, link, rule = (
            ask("route", "192.0.2.0/24"),
            ask("link", "docker0"),
            ask("rule", "dport 22"),
        )
    finally:
        network.run(
            "node1",
            "ip route del 192.0.2.0/24; ip link del docker0; nft delete table ip filter",
        )
    assert route.why is link.why is rule.why is None
    assert details(route, "maker") == ["a routing daemon (BIRD)"]
    assert "not made by Podwire" in link.text
    assert details(link, "alias") == ["theirs"]
    assert "Docker" in rule.text


def test_a_foreign_route_in_the_pod_network_is_warned_of(network: Network, ask: Ask) -> None:
    network.run("node1", "ip route add 10.244.77.0/24 dev eth0 proto static")
    try:
        explained = ask("route", "10.244.77.0/24")
    finally:
        network.run("node1", "ip route del 10.244.77.0/24")
    assert details(explained, "beware") == ["it takes packets of the pod network"]
    assert details(explained, "mend")[0].startswith("ip route del 10.244.77.0/24 dev eth0")
