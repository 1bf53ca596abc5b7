"""What stops packets of routed pods and in the UDP tunnel is named by trace and doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from podwire.lab import Lab
from podwire.trace.model import Cause, Decision, Trace

from .commands import Command
from .tracing import Tracer, spots

pytestmark = [pytest.mark.root, pytest.mark.slow]

QUICK = ("--timeout", "0.5s")


@dataclass(frozen=True)
class Site:
    """A lab with pods `a` on node1 and `b` on node2, whose agents mend nothing."""

    lab: Lab
    podwire: Command
    tracer: Tracer
    ips: dict[str, str]

    def run(self, node: str, line: str) -> str:
        done = self.lab.node(node).exec(["sh", "-ec", line])
        assert done.returncode == 0, f"{node}: {line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def device_of(self, node: str, ip: str) -> str:
        """Where the node sends what is for an address."""
        words = self.run(node, f"ip route get {ip}").split()
        return words[words.index("dev") + 1]

    @contextmanager
    def broken(self, node: str, line: str, undo: str = "") -> Iterator[None]:
        """While it is, and mended afterwards, by the doctor where `undo` does not."""
        self.run(node, line)
        try:
            yield
        finally:
            if undo:
                self.run(node, undo)
            else:
                self.podwire.run("doctor", "--node", node, "--check", "desired", "--fix")

    def dropped(self, *arguments: str) -> tuple[Cause, str, str]:
        """The cause, the sentence and the remedy of a trace that does not arrive."""
        trace = self.tracer.trace(*arguments, *QUICK, code=1)
        finding = trace.rounds[0].finding
        assert finding is not None, trace.verdict
        return finding.cause, finding.text, finding.remedy

    def failing(self, node: str, check: str) -> str:
        """What the doctor says of a node by one check."""
        done = self.podwire.run("doctor", "--node", node, "--check", check)
        assert done.returncode == 1, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def make_site() -> Iterator[Callable[..., Site]]:
    labs = []

    def make(**options: Any) -> Site:
        lab = Lab(nodes=2, **options)
        labs.append(lab)
        lab.up()
        pods = {"a": lab.run("a", node="node1"), "b": lab.run("b", node="node2")}
        lab.wait_ready()
        podwire = Command(lab.name)
        return Site(lab, podwire, Tracer(lab), {name: pod.ip for name, pod in pods.items()})

    yield make
    for lab in labs:
        lab.down()


def decided(trace: Trace, kind: str) -> list[Decision]:
    """All of a kind on the request's way."""
    hops = trace.rounds[0].request.hops
    return [one for hop in hops for one in hop.decisions if one.kind == kind]


# --- routed pods ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calico(make_site: Callable[..., Site]) -> Site:
    site = make_site(profile="calico")
    for node in ("node1", "node2"):
        site.podwire.ok("agent", "hold", "--node", node)
    return site


def test_a_routed_pods_route_that_is_gone(calico: Site) -> None:
    b, dev = calico.ips["b"], calico.device_of("node2", calico.ips["b"])
    with calico.broken("node2", f"ip route del {b}"):
        cause, text, remedy = calico.dropped("a", "b")
        assert "route " + b in calico.failing("node2", "desired")
    assert cause is Cause.NO_ROUTE
    assert "takes `blackhole " in text
    assert remedy.startswith(f"ip route add {b}/32 dev {dev} ")


def test_a_gateway_that_nobody_answers_for(calico: Site) -> None:
    dev = calico.device_of("node1", calico.ips["a"])
    forget = "ip neigh flush dev eth0"
    with calico.broken("node1", f"sysctl -qw net.ipv4.conf.{dev}.proxy_arp=0"):
        calico.podwire.ok("exec", "a", "--", "sh", "-c", forget)
        cause, text, remedy = calico.dropped("a", "b")
        assert "proxy_arp is not as it should be" in calico.failing("node1", "desired")
    # The pod asks again at once, and not a second after it asked in vain.
    calico.podwire.ok("exec", "a", "--", "sh", "-c", forget)
    assert cause is Cause.NO_NEIGHBOR
    assert text.startswith("nobody answers for 169.254.1.1, the gateway of pod default/a")
    assert remedy.startswith(f"sysctl -w net.ipv4.conf.{dev}.proxy_arp=1")


def test_a_gateway_that_the_node_has_no_route_to(calico: Site) -> None:
    forget = "ip neigh flush dev eth0"
    with calico.broken("node1", "ip route del default", "ip route add default via 172.18.0.1"):
        calico.podwire.ok("exec", "a", "--", "sh", "-c", forget)
        cause, text, remedy = calico.dropped("a", "b")
        assert "no answer for their gateway" in calico.failing("node1", "forwarding")
    calico.podwire.ok("exec", "a", "--", "sh", "-c", forget)
    assert cause is Cause.NO_NEIGHBOR
    assert "proxy ARP takes a route to it on node1" in text
    assert remedy.startswith("ip route add default via GATEWAY")


def test_neighbours_that_are_wrong(calico: Site) -> None:
    b, dev = calico.ips["b"], calico.device_of("node2", calico.ips["b"])
    wrong = "lladdr 02:02:02:02:02:02 nud permanent"
    with calico.broken(
        "node2", f"ip neigh replace {b} {wrong} dev {dev}", f"ip neigh del {b} dev {dev}"
    ):
        cause, text, _ = calico.dropped("a", "b")
    assert (cause, "02:02:02:02:02:02" in text) == (Cause.WRONG_NEIGHBOR, True), text
    node2 = calico.lab.node("node2").ip
    with calico.broken(
        "node1", f"ip neigh replace {node2} {wrong} dev eth0", f"ip neigh del {node2} dev eth0"
    ):
        cause, text, _ = calico.dropped("a", "b")
    assert (cause, text.partition(" ")[0]) == (Cause.WRONG_NEIGHBOR, "node1")


def test_an_address_of_no_pod_ends_in_the_blackhole(calico: Site) -> None:
    block = calico.run("node2", "ip route show type blackhole").split()[1]
    nobody = (
        block.partition("/")[0].rpartition(".")[0] + "." + str(int(block.split(".")[3][:-3]) + 50)
    )
    cause, text, _ = calico.dropped("a", nobody)
    assert (cause, text.startswith(f"no pod has {nobody}")) == (Cause.NOT_IN_USE, True)
    with calico.broken("node2", f"ip route del blackhole {block}"):
        cause, text, _ = calico.dropped("a", nobody)
        assert f"blackhole {block}" in calico.failing("node2", "desired")
    assert (cause, "has lost its blackhole" in text) == (Cause.NOT_IN_USE, True)


def test_a_pod_with_a_source_of_another(calico: Site) -> None:
    b, forged = calico.ips["b"], "192.0.2.7"
    inside = f"ip addr add {forged}/32 dev eth0; ip route add {b} via 169.254.1.1 dev eth0"
    calico.podwire.ok("exec", "a", "--", "sh", "-c", f"{inside} src {forged}")
    try:
        cause, text, _ = calico.dropped("a", "b")
    finally:
        undo = f"ip route del {b}; ip addr del {forged}/32 dev eth0"
        calico.podwire.ok("exec", "a", "--", "sh", "-c", undo)
    assert cause is Cause.SPOOFED
    assert f"sends with the source {forged}" in text
    assert "spoofed_ip" in text


# --- the UDP tunnel -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tunnel(make_site: Callable[..., Site]) -> Site:
    site = make_site(profile="flannel-udp", encrypt=True)
    # Until there is a session, packets wait for one.
    site.tracer.trace("a", "b", "--timeout", "10s")
    return site


def test_what_is_encrypted_says_that_it_was_not_seen(tunnel: Site) -> None:
    trace = tunnel.tracer.trace("a", "b")
    path = spots(trace, trace.rounds[0].request)
    at = path.index(("node1", "flannel0", "out"))
    assert path[at + 1] == ("node2", "flannel0", "in")
    changes = [change.kind for change in trace.rounds[0].request.hops[at + 1].changes]
    assert changes[0] == "unseen"
    table, sent = decided(trace, "tunnel")
    assert "→ node2 172.18.0.12" in table.text
    assert "encrypted" in sent.text


def test_a_tunnel_that_is_shut_out(tunnel: Site) -> None:
    drop = "nft 'table inet t { chain f { type filter hook input priority 0;"
    with tunnel.broken("node2", f"{drop} udp dport 8285 drop; }}; }}'", "nft delete table inet t"):
        cause, text, remedy = tunnel.dropped("a", "b")
        assert "UDP 8285 from node1 is dropped on this node" in tunnel.failing("node2", "tunnel")
    assert cause is Cause.UNDERLAY
    assert "in between nobody can tell it from others" in text
    assert remedy.endswith("--check tunnel")


def test_a_tunnel_whose_datagrams_are_changed_on_the_way(tunnel: Site) -> None:
    # A byte of what is encrypted, after the headers of UDP and of the session.
    change = "nft 'table netdev t { chain f { type filter hook ingress device eth0 priority 0;"
    change += " udp dport 8285 @th,200,8 set 7; }; }'"
    with tunnel.broken("node2", change, "nft delete table netdev t"):
        trace = tunnel.tracer.trace("a", "b", *QUICK, code=1)
    finding = trace.rounds[0].finding
    assert finding is not None
    assert (finding.cause, finding.where) == (Cause.TUNNEL, "node2, flannel0")
    assert "the datagram fails authentication (not_authentic)" in finding.text
    assert any("and dropped 1 not_authentic" in line for line in finding.evidence)


def test_a_tunnel_whose_process_is_stuck(tunnel: Site) -> None:
    pid = "$(pgrep -f podwire[.]tunnel)"
    with tunnel.broken("node1", f"kill -STOP {pid}", f"kill -CONT {pid}"):
        cause, text, _ = tunnel.dropped("a", "b")
        assert "its process does not answer" in tunnel.failing("node1", "tunnel")
    assert (cause, "does not forward" in text) == (Cause.TUNNEL, True)


# --- one segment ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weave(make_site: Callable[..., Site]) -> Site:
    site = make_site(profile="weave")
    for node in ("node1", "node2"):
        site.podwire.ok("agent", "hold", "--node", node)
    return site


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_segment_that_is_cut_off_from_its_bridge(weave: Site, node: str) -> None:
    with weave.broken(node, "ip link set vxlan-6784 nomaster"):
        cause, text, remedy = weave.dropped("a", "b")
    assert cause is Cause.LINK_MISSING
    assert text.startswith(f"vxlan-6784 of {node} is no port of weave")
    assert remedy.startswith("ip link set vxlan-6784 master weave")


def test_a_segment_over_an_underlay_that_takes_less(weave: Site) -> None:
    with weave.broken("node1", "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500"):
        cause, text, remedy = weave.dropped("a", "b", "--size", "1376")
    assert cause is Cause.TOO_BIG
    assert "eth0 of node1 takes 1400 (its MTU): 1376 and the 50 of the tunnel" in text
    assert remedy.startswith("give eth0 its MTU of old")


# --- several ways ---------------------------------------------------------------------------------


def test_auto_says_which_way_and_why(make_site: Callable[..., Site]) -> None:
    site = make_site(transport="auto", underlay="routed")
    trace = site.tracer.trace("a", "b")
    (way,) = decided(trace, "path")
    assert way.text.startswith("vxlan to node2 at 172.18.2.12: node2 is behind a router")
    crossing = next(
        hop for hop in trace.rounds[0].request.hops if trace.places[hop.place].node == "node2"
    )
    assert "through a router, 172.18.1.1" in [change.text for change in crossing.changes]
