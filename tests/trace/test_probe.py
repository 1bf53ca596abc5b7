"""Probes out of real namespaces: every way that one can end, both IP versions, nothing left."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from podwire.errors import KernelError
from podwire.kernel import netns
from podwire.model.probe import Probe, Protocol
from podwire.trace.probe import Prober
from podwire.trace.records import ProbeResult
from tests.conftest import Namespace

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Wire:
    """`a` ── `router` ── `b`, of one IP version; `b`'s link has an MTU of 1400."""

    version: Literal[4, 6]
    a: Namespace
    router: Namespace
    b: Namespace
    netns_fd: int
    b_fd: int

    @property
    def here(self) -> str:
        return {4: "10.81.1.2", 6: "fd81:1::2"}[self.version]

    @property
    def gateway(self) -> str:
        return {4: "10.81.1.1", 6: "fd81:1::1"}[self.version]

    @property
    def there(self) -> str:
        return {4: "10.81.2.2", 6: "fd81:2::2"}[self.version]

    @property
    def nowhere(self) -> str:
        return {4: "10.99.0.1", 6: "fd99::1"}[self.version]

    @property
    def header(self) -> int:
        return {4: 20, 6: 40}[self.version]

    def fire(self, probe: Probe) -> list[ProbeResult]:
        with Prober(self.netns_fd, probe) as prober:
            return prober.fire()

    @contextmanager
    def listening(self, kind: socket.SocketKind) -> Iterator[socket.socket]:
        """A socket of `b`, on port 7777."""
        family = {4: socket.AF_INET, 6: socket.AF_INET6}[self.version]
        with netns.entered(self.b_fd):
            sock = socket.socket(family, kind)
        with sock:
            sock.bind((self.there, 7777))
            yield sock


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def wire(request: pytest.FixtureRequest, make_namespace: Callable[[], Namespace]) -> Iterator[Wire]:
    version: Literal[4, 6] = request.param
    a, router, b = make_namespace(), make_namespace(), make_namespace()
    router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    for one in (a, router, b):
        # Neighbour discovery asks from the link-local address, which else is tentative for long.
        one.run("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0")
    for index, (one, mtu) in enumerate(((a, 1500), (b, 1400)), 1):
        peer = f"ip link add eth{index} mtu {mtu} type veth peer name eth0 netns {one.name}"
        router.run(f"{peer}; ip link set eth{index} up")
        one.run(f"ip link set eth0 mtu {mtu} up")
        for host, side, dev in ((router, 1, f"eth{index}"), (one, 2, "eth0")):
            if version == 4:
                host.run(f"ip addr add 10.81.{index}.{side}/24 dev {dev}")
            else:
                host.run(f"ip addr add fd81:{index}::{side}/64 dev {dev} nodad")
        if version == 4:
            one.run(f"ip route add 10.81.0.0/16 via 10.81.{index}.1")
        else:
            one.run(f"ip -6 route add fd81::/16 via fd81:{index}::1")
    a_fd, b_fd = netns.open_netns(a.path), netns.open_netns(b.path)
    yield Wire(version, a, router, b, a_fd, b_fd)
    os.close(a_fd)
    os.close(b_fd)


def open_fds() -> set[str]:
    return {str(one) for one in Path("/proc/self/fd").iterdir()}


def test_an_echo_is_answered_each_time(wire: Wire) -> None:
    with Prober(wire.netns_fd, Probe(target=wire.there, count=3)) as prober:
        assert prober.source == wire.here
        results = prober.fire()
    assert [(one.number, one.outcome) for one in results] == [
        (1, "replied"),
        (2, "replied"),
        (3, "replied"),
    ]
    assert all(one.rtt_us is not None and one.rtt_us > 0 for one in results)


def test_a_probe_that_is_given_up_is_waited_for_no_longer(wire: Wire) -> None:
    probe = Probe(target=wire.there, protocol="udp", port=7777, count=2, timeout_s=60)
    results: list[ProbeResult] = []
    with wire.listening(socket.SOCK_DGRAM), Prober(wire.netns_fd, probe) as prober:
        thread = threading.Thread(target=lambda: results.extend(prober.fire()))
        thread.start()
        while thread.is_alive():
            prober.give_up()
            thread.join(0.01)
    assert [one.outcome for one in results] == ["timeout", "timeout"]
    assert all(one.given_up_s is not None and one.given_up_s < 60 for one in results)


def test_an_echo_to_oneself_is_answered(wire: Wire) -> None:
    assert wire.fire(Probe(target=wire.here))[0].outcome == "replied"


def test_two_probers_at_once_get_each_their_own(wire: Wire) -> None:
    with (
        Prober(wire.netns_fd, Probe(target=wire.there)) as one,
        Prober(wire.netns_fd, Probe(target=wire.there)) as other,
    ):
        assert one.ident != other.ident
        assert other.fire()[0].outcome == "replied"
        assert one.fire()[0].outcome == "replied"


def test_tcp_is_answered_from_one_port_and_leaves_no_connection(wire: Wire) -> None:
    with wire.listening(socket.SOCK_STREAM) as server:
        server.listen()
        probe = Probe(protocol="tcp", target=wire.there, port=7777, count=3)
        with Prober(wire.netns_fd, probe) as prober:
            assert prober.source == wire.here
            assert [one.outcome for one in prober.fire()] == ["replied"] * 3
            ports = {server.accept()[1][1] for _ in range(3)}
        assert ports == {prober.ident}
    assert wire.a.run("ss -Htan") == ""
    assert wire.b.run("ss -Htan") == ""


def test_udp_is_answered_by_whatever_a_server_says(wire: Wire) -> None:
    with wire.listening(socket.SOCK_DGRAM) as server:
        probe = Probe(protocol="udp", target=wire.there, port=7777, size=200, count=2)
        received: list[tuple[bytes, str, int]] = []

        def serve() -> None:
            for _ in range(2):
                data, sender = server.recvfrom(2000)
                received.append((data, sender[0], sender[1]))
                server.sendto(b"hello", sender)

        thread = threading.Thread(target=serve)
        thread.start()
        with Prober(wire.netns_fd, probe) as prober:
            assert [one.outcome for one in prober.fire()] == ["replied"] * 2
        thread.join(5)
    assert {(sender, port) for _, sender, port in received} == {(wire.here, prober.ident)}
    assert [len(data) + 8 + wire.header for data, _, _ in received] == [200, 200]
    assert [data[:8] for data, _, _ in received] == [
        b"podw" + prober.ident.to_bytes(2, "big") + bytes([0, number]) for number in (1, 2)
    ]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_where_nothing_listens_it_is_refused(wire: Wire, protocol: Protocol) -> None:
    results = wire.fire(Probe(protocol=protocol, target=wire.there, port=7777, count=2))
    assert [one.outcome for one in results] == ["refused"] * 2
    assert wire.there in results[0].text


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_silence_is_a_timeout(wire: Wire, protocol: Protocol) -> None:
    wire.b.run(
        "nft 'add table inet t; add chain inet t i { type filter hook input priority 0; };"
        " add rule inet t i meta l4proto { tcp, udp } drop;"
        " add rule inet t i icmp type echo-request drop;"
        " add rule inet t i icmpv6 type echo-request drop'"
    )
    port = None if protocol == "icmp" else 7777
    probe = Probe(protocol=protocol, target=wire.there, port=port, timeout_s=0.05, count=2)
    assert [one.outcome for one in wire.fire(probe)] == ["timeout"] * 2


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_a_router_that_rejects_is_named(wire: Wire, protocol: Protocol) -> None:
    wire.router.run(
        "nft 'add table inet t; add chain inet t f { type filter hook forward priority 0; };"
        " add rule inet t f reject with icmpx admin-prohibited'"
    )
    port = None if protocol == "icmp" else 7777
    (result,) = wire.fire(Probe(protocol=protocol, target=wire.there, port=port))
    assert result.outcome == "error"
    assert result.errno in (errno.EHOSTUNREACH, errno.EACCES)
    assert result.text.endswith(f"prohibited, says {wire.gateway}")


@pytest.mark.parametrize("wire", [4], indirect=True, ids=["ipv4"])
@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_ipv4_packets_carry_df(wire: Wire, protocol: Protocol) -> None:
    number = {"icmp": 1, "tcp": 6, "udp": 17}[protocol]
    port = None if protocol == "icmp" else 7777
    with netns.entered(wire.b_fd):
        seen = socket.socket(socket.AF_INET, socket.SOCK_RAW, number)
    with seen:
        seen.settimeout(60)
        wire.fire(Probe(protocol=protocol, target=wire.there, port=port))
        packet = seen.recv(2000)
    assert packet[6] & 0x40
    if protocol != "tcp":
        assert len(packet) == 84


@pytest.mark.parametrize("protocol", ["icmp", "udp"])
def test_a_smaller_mtu_on_the_way_is_told(wire: Wire, protocol: Protocol) -> None:
    port = None if protocol == "icmp" else 7777
    probe = Probe(protocol=protocol, target=wire.there, port=port, size=1401, count=2)
    results = wire.fire(probe)
    # The second says it again: the path MTU that the first has learned is not believed.
    assert [(one.outcome, one.errno) for one in results] == [("error", errno.EMSGSIZE)] * 2
    for one in results:
        assert one.text.endswith(f"(MTU 1400), says {wire.gateway}")


def test_what_just_fits_arrives(wire: Wire) -> None:
    assert wire.fire(Probe(target=wire.there, size=1400))[0].outcome == "replied"


def test_a_packet_over_the_own_interface_s_mtu_is_not_sent(wire: Wire) -> None:
    (result,) = wire.fire(Probe(target=wire.there, size=1501))
    assert (result.outcome, result.errno) == ("error", errno.EMSGSIZE)
    assert "longer than the MTU of 15" in result.text


@pytest.mark.parametrize("protocol", ["icmp", "udp"])
def test_the_sender_s_own_firewall_is_told(wire: Wire, protocol: Protocol) -> None:
    wire.a.run(
        "nft 'add table inet t; add chain inet t o { type filter hook output priority 0; };"
        f" add rule inet t o {'ip' if wire.version == 4 else 'ip6'} daddr {wire.there} drop'"
    )
    port = None if protocol == "icmp" else 7777
    (result,) = wire.fire(Probe(protocol=protocol, target=wire.there, port=port))
    assert (result.outcome, result.errno) == ("error", errno.EPERM)
    assert "own firewall" in result.text


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_without_a_route_there_is_no_prober_and_nothing_left(
    wire: Wire, protocol: Protocol
) -> None:
    before = open_fds()
    port = None if protocol == "icmp" else 7777
    with pytest.raises(KernelError) as caught:
        Prober(wire.netns_fd, Probe(protocol=protocol, target=wire.nowhere, port=port))
    assert caught.value.errno == errno.ENETUNREACH
    assert "no route" in str(caught.value)
    assert open_fds() == before


def test_a_route_that_goes_away_before_the_next_probe_is_an_error(wire: Wire) -> None:
    with Prober(wire.netns_fd, Probe(target=wire.there)) as prober:
        wire.a.run(f"ip -{wire.version} route flush via {wire.gateway}")
        (result,) = prober.fire()
    assert (result.outcome, result.errno) == ("error", errno.ENETUNREACH)


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_a_chosen_source_is_used(wire: Wire, protocol: Protocol) -> None:
    extra = {4: "10.81.1.9", 6: "fd81:1::9"}[wire.version]
    length = {4: 24, 6: "64 nodad"}[wire.version]
    wire.a.run(f"ip addr add {extra}/{length} dev eth0")
    port = None if protocol == "icmp" else 7777
    probe = Probe(protocol=protocol, target=wire.there, port=port, source=extra)
    with Prober(wire.netns_fd, probe) as prober:
        assert prober.source == extra
        assert prober.fire()[0].outcome == ("replied" if protocol == "icmp" else "refused")


def test_a_source_that_is_not_there_is_refused(wire: Wire) -> None:
    with pytest.raises(KernelError) as caught:
        Prober(wire.netns_fd, Probe(target=wire.there, source=wire.there))
    assert caught.value.errno in (errno.EADDRNOTAVAIL, errno.EINVAL)


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_close_ends_a_probe_that_waits_and_leaves_nothing(wire: Wire, protocol: Protocol) -> None:
    before = open_fds()
    wire.b.run("ip link set eth0 down")
    port = None if protocol == "icmp" else 7777
    probe = Probe(protocol=protocol, target=wire.there, port=port, timeout_s=600)
    prober = Prober(wire.netns_fd, probe)
    results: list[list[ProbeResult]] = []
    thread = threading.Thread(target=lambda: results.append(prober.fire()))
    thread.start()
    waits_in = Path(f"/proc/self/task/{thread.native_id}/wchan")
    deadline = time.monotonic() + 60
    while "poll" not in waits_in.read_text():
        assert time.monotonic() < deadline
    prober.close()
    thread.join(10)
    assert not thread.is_alive()
    assert results == [[]]
    assert prober.fire() == []
    prober.close()
    assert open_fds() == before
