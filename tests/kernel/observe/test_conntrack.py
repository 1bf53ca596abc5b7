"""Conntrack's answers: the codec, and translated flows through a real router."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.kernel import netns
from podwire.kernel.netlink import attr_u16be, nested, parse_attrs
from podwire.kernel.observe import conntrack
from podwire.model.probe import Probe, Protocol
from podwire.trace.probe import Prober
from tests.conftest import Namespace


@given(st.binary(max_size=200))
def test_garbage_is_no_connection(data: bytes) -> None:
    assert conntrack.parse(data) is None


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("ends", [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")])
def test_a_question_s_tuple_reads_as_what_was_asked(ends: tuple[str, str], reply: bool) -> None:
    asked = conntrack.request("udp", *ends, 4000, 53, reply=reply)
    one = parse_attrs(asked, 4)[1]
    flow = conntrack.parse(b"\0\0\0\0" + nested(1, one) + nested(2, one))
    assert flow is not None
    source, target = ends
    assert flow.original == (
        conntrack.Tuple(target, 53, source, 4000)
        if reply
        else conntrack.Tuple(source, 4000, target, 53)
    )


def test_an_identifier_belongs_to_who_asks() -> None:
    there = parse_attrs(conntrack.request("icmp", "10.0.0.1", "10.0.0.2", 7, None), 4)[1]
    back = parse_attrs(conntrack.request("icmp", "10.0.0.1", "10.0.0.2", 7, None, reply=True), 4)[1]
    flow = conntrack.parse(b"\0\0\0\0" + nested(1, there) + nested(2, back))
    assert flow is not None
    assert flow.original == conntrack.Tuple("10.0.0.1", 7, "10.0.0.2", 0)
    assert flow.reply == conntrack.Tuple("10.0.0.2", 0, "10.0.0.1", 7)
    assert flow.new_source is None
    assert flow.new_target is None


def test_a_connection_without_addresses_is_none() -> None:
    proto = nested(2, attr_u16be(2, 1), attr_u16be(3, 2))
    assert conntrack.parse(b"\0\0\0\0" + nested(1, proto) + nested(2, proto)) is None


# --- the kernel -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nat:
    """A pod ── a router ── the outside, of one IP version."""

    version: Literal[4, 6]
    router: Namespace
    pod_fd: int
    router_fd: int
    outside_fd: int

    def ip(self, net: int, host: int) -> str:
        return f"10.82.{net}.{host}" if self.version == 4 else f"fd82:{net}::{host}"

    def translate(self, *rules: str) -> None:
        self.router.run(
            "nft 'add table inet t;"
            " add chain inet t pre { type nat hook prerouting priority -100; };"
            " add chain inet t post { type nat hook postrouting priority 100; }'"
        )
        for rule in rules:
            self.router.run(f"nft 'add rule inet t {rule}'")

    @contextmanager
    def answering(self, protocol: Protocol) -> Iterator[None]:
        """Port 8080 outside, for TCP; UDP has its answer in the queue, ICMP in the kernel."""
        family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with netns.entered(self.outside_fd):
            server = socket.socket(family, kind)
        with server:
            server.bind((self.ip(2, 2), 8080))
            if protocol == "tcp":
                server.listen()
            yield

    def probe(self, protocol: Protocol, target: str) -> tuple[Prober, conntrack.Flow | None]:
        """Fires one probe; what conntrack has of it then."""
        port = None if protocol == "icmp" else 8080
        probe = Probe(protocol=protocol, target=target, port=port, timeout_s=0.05)
        with (
            Prober(self.pod_fd, probe) as prober,
            closing(conntrack.open_conntrack(self.router_fd)) as sock,
        ):
            prober.fire()
            source = prober.source
            return prober, conntrack.lookup(
                sock, protocol, source, target, ident=prober.ident, port=port
            )


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def nat(request: pytest.FixtureRequest, make_namespace: Callable[[], Namespace]) -> Iterator[Nat]:
    version: Literal[4, 6] = request.param
    pod, router, outside = make_namespace(), make_namespace(), make_namespace()
    fds = [netns.open_netns(one.path) for one in (pod, router, outside)]
    made = Nat(version, router, *fds)
    for one in (pod, router, outside):
        one.run("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0")
    router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    length = 24 if version == 4 else "64 nodad"
    for net, one in ((1, pod), (2, outside)):
        router.run(f"ip link add eth{net} type veth peer name eth0 netns {one.name}")
        router.run(f"ip link set eth{net} up; ip addr add {made.ip(net, 1)}/{length} dev eth{net}")
        one.run(f"ip link set eth0 up; ip addr add {made.ip(net, 2)}/{length} dev eth0")
    pod.run(f"ip -{version} route add default via {made.ip(1, 1)}")
    yield made
    for fd in fds:
        os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_a_masqueraded_flow_tells_its_new_source(nat: Nat, protocol: Protocol) -> None:
    nat.translate("post oifname eth2 masquerade fully-random")
    with nat.answering(protocol):
        prober, flow = nat.probe(protocol, nat.ip(2, 2))
    assert flow is not None
    assert (flow.original.source, flow.original.source_port) == (nat.ip(1, 2), prober.ident)
    assert flow.new_source is not None
    assert flow.new_source[0] == nat.ip(2, 1)
    assert flow.new_target is None
    assert flow.answered == (protocol != "udp")
    # The answer, as it comes in from outside, is found by what the source has become.
    with closing(conntrack.open_conntrack(nat.router_fd)) as sock:
        source, ident = flow.new_source
        port = None if protocol == "icmp" else 8080
        assert flow == conntrack.lookup(
            sock, protocol, source, nat.ip(2, 2), ident=ident, port=port, reply=True
        )


@pytest.mark.root
@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_a_redirected_flow_tells_its_new_target(nat: Nat, protocol: Protocol) -> None:
    virtual = nat.ip(3, 3)
    family = "ip" if nat.version == 4 else "ip6"
    nat.translate(
        f"pre {family} daddr {virtual} dnat {family} to {nat.ip(2, 2)}", "post masquerade"
    )
    with nat.answering(protocol):
        _, flow = nat.probe(protocol, virtual)
    assert flow is not None
    assert flow.new_target == (nat.ip(2, 2), 0 if protocol == "icmp" else 8080)


@pytest.mark.root
def test_an_untranslated_flow_is_itself_and_an_unknown_one_is_none(nat: Nat) -> None:
    nat.translate("post oifname elsewhere masquerade")  # whoever translates some tracks all
    _, flow = nat.probe("icmp", nat.ip(2, 2))
    assert flow is not None
    assert flow.new_source is None
    assert flow.new_target is None
    with closing(conntrack.open_conntrack(nat.router_fd)) as sock:
        assert conntrack.lookup(sock, "tcp", nat.ip(1, 2), nat.ip(2, 2), ident=9, port=9) is None
