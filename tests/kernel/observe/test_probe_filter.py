"""The probe's filter: in the machine of the tests, and in the kernel, packet by packet."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.kernel import netns
from podwire.kernel.observe.frames import FrameTap, RawFrame
from podwire.kernel.observe.probe_filter import probe_filter
from podwire.model.probe import MAGIC, ProbeMatch
from tests.conftest import Namespace
from tests.kernel.observe.conftest import MakeTun
from tests.kernel.observe.machine import run
from tests.kernel.observe.packets import (
    ARP,
    Sample,
    icmp,
    in_udp,
    ip,
    leaves,
    neighbors,
    quoted,
    samples,
    tunnelled,
    udp,
)

V4 = {"source": "10.244.1.2", "target": "10.244.2.2"}
V6 = {"source": "fd00::2", "target": "fd00:2::2"}
NEIGHBORS = ("10.244.1.2", "fd00::2")


def match(protocol: str, ends: dict[str, str], **more: Any) -> ProbeMatch:
    port = None if protocol == "icmp" else 443
    fields: dict[str, Any] = {"protocol": protocol, "ident": 0xA1B2, "port": port, **ends}
    return ProbeMatch(**(fields | more))


MATCHES = [
    match("icmp", V4, bare_ports=(8285,)),
    match("icmp", V6, neighbors=NEIGHBORS, bare_ports=(8285,)),
    match("tcp", V4, neighbors=NEIGHBORS),
    match("tcp", V6, translated=True, bare_ports=(8285,)),
    match("udp", V4, translated=True, neighbors=NEIGHBORS, tunnel_ports=(8285, 8472)),
    match("udp", V6, neighbors=("10.244.1.2",)),
]
PROGRAMS = {one: probe_filter(one) for one in MATCHES}


def passes(one: ProbeMatch, sample: Sample) -> bool:
    packet = sample.frame
    program = PROGRAMS.get(one) or probe_filter(one)
    return run(program, packet, network_offset=14, protocol=sample.ethertype) > 0


def name(one: ProbeMatch) -> str:
    return f"{one.protocol}-{one.source}"


@pytest.mark.parametrize("one", MATCHES, ids=name)
def test_exactly_the_probes_packets_pass(one: ProbeMatch) -> None:
    wrong = [sample.name for sample in samples(one) if passes(one, sample) != sample.matches]
    assert wrong == []


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_carries_them(data: st.DataObject) -> None:
    """Options and fragment headers at each level, errors in tunnels and tunnels in errors."""
    one = data.draw(st.sampled_from(MATCHES))
    bare = data.draw(st.booleans())
    sample = data.draw(st.sampled_from([*leaves(one), *([] if bare else neighbors(one))]))
    if sample.ethertype != ARP and not sample.name.startswith("NDP") and data.draw(st.booleans()):
        if data.draw(st.booleans()):
            sample = tunnelled(sample, data.draw(st.sampled_from([4, 6])), **header(data))
        sample = quoted(sample, **header(data))
        if "VXLAN" in sample.name:
            assert passes(one, sample) == sample.matches
            return
    sample = tunnelled(sample, data.draw(st.sampled_from([4, 6])), **header(data))
    assert passes(one, sample) == sample.matches


def header(data: st.DataObject) -> dict[str, Any]:
    kinds = [{}, {"options": 1}, {"options": 10}, {"fragment": (0, True)}]
    return data.draw(st.sampled_from(kinds))


@settings(max_examples=100)
@given(st.binary(max_size=80), st.sampled_from([0x0800, 0x86DD, ARP]), st.sampled_from(MATCHES))
def test_garbage_ends_the_program_and_does_not_break_it(
    garbage: bytes, ethertype: int, one: ProbeMatch
) -> None:
    assert passes(one, Sample("garbage", ethertype, garbage, False)) in (True, False)


def test_a_packet_cut_anywhere_is_no_match_before_its_ports() -> None:
    one = MATCHES[2]
    whole = next(sample for sample in leaves(one) if sample.name == "tcp there")
    for size in range(len(whole.data)):
        cut = whole._replace(data=whole.data[:size])
        assert passes(one, cut) == (size >= 24)


def test_a_probe_of_the_tunnels_own_port_is_seen_at_both_levels() -> None:
    one = match("udp", V4, port=8472)
    packet = ip(one.source, one.target, 17, udp(one.ident, 8472, b"podw"))
    sample = Sample("to 8472", *packet, True)
    assert passes(one, sample)
    assert passes(one, tunnelled(sample, 4))
    assert not passes(one, Sample("", *ip("10.1.1.1", "10.1.1.2", 17, udp(7, 8472)), False))


def test_without_tunnels_nothing_is_looked_at_inside() -> None:
    one = match("tcp", V4, tunnel_ports=())
    whole = next(sample for sample in leaves(one) if sample.name == "tcp there")
    assert passes(one, whole)
    assert not passes(one, tunnelled(whole, 4))
    assert passes(one, quoted(whole))


def test_only_what_begins_like_ip_is_bare_in_a_datagram() -> None:
    one = match("icmp", V4, tunnel_ports=(), bare_ports=(8285,))
    sample = next(sample for sample in leaves(one) if sample.name == "request")
    assert passes(one, in_udp(sample, one, 4))
    sealed = sample._replace(data=b"\x04" + sample.data[1:])
    assert not passes(one, in_udp(sealed, one, 4))


def test_ends_of_different_families_are_refused() -> None:
    with pytest.raises(ValueError, match="different families"):
        probe_filter(match("icmp", {"source": "10.0.0.1", "target": "fd00::1"}))


# --- in the kernel: each packet ends with its number, so that all differ ----------------------


def last_of(one: ProbeMatch) -> Sample:
    """Matches, and is none of `samples`."""
    if one.protocol == "icmp":
        upper, kind = (1, 8) if "." in one.source else (58, 128)
        payload = icmp(kind, one.ident << 16 | 0xFFFF, MAGIC)
    else:
        upper = {"tcp": 6, "udp": 17}[one.protocol]
        payload = struct.pack("!HH", one.ident, one.port or 0) + b"the last of all."
    return Sample("last", *ip(one.source, one.target, upper, payload), True)


def read_until(tap: FrameTap, data: bytes, times: int) -> list[RawFrame]:
    seen: list[RawFrame] = []
    while sum(frame.data == data for frame in seen) < times:
        assert select.select([tap], [], [], 10)[0], "nothing came"
        seen += tap.read()
    return seen


def wrong_ones(seen: Iterable[RawFrame], sent: Iterable[tuple[Sample, bytes]]) -> list[str]:
    found = {frame.data for frame in seen}
    return [sample.name for sample, data in sent if (data in found) != sample.matches]


@pytest.mark.root
@pytest.mark.parametrize("one", MATCHES, ids=name)
def test_the_kernel_agrees_on_ethernet(namespace: Namespace, one: ProbeMatch) -> None:
    namespace.run(
        "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 && ip link add v0 type veth peer name v1"
        " && ip link set v0 up && ip link set v1 up"
    )
    sent = [
        (sample, sample.frame + struct.pack("!H", at))
        for at, sample in enumerate((*samples(one), last_of(one)))
    ]
    fd = netns.open_netns(namespace.path)
    with FrameTap(fd, PROGRAMS[one]) as tap:
        with netns.entered(fd), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
            out.bind(("v0", 0))
            for _, frame in sent:
                out.send(frame)
        seen = read_until(tap, sent[-1][1], 2)
    os.close(fd)
    assert tap.lost == 0
    for outgoing in (True, False):
        assert wrong_ones([one for one in seen if one.outgoing == outgoing], sent) == []
    assert len(seen) == 2 * sum(sample.matches for sample, _ in sent)


@pytest.mark.root
@pytest.mark.parametrize("one", MATCHES, ids=name)
def test_the_kernel_agrees_without_link_headers(
    namespace: Namespace, one: ProbeMatch, make_tun: MakeTun
) -> None:
    tun = make_tun(namespace, "tun0")
    sent = [
        (sample, sample.data + struct.pack("!H", at))
        for at, sample in enumerate((*samples(one), last_of(one)))
        if sample.ethertype != ARP
    ]
    fd = netns.open_netns(namespace.path)
    with FrameTap(fd, PROGRAMS[one]) as tap:
        for _, packet in sent:
            os.write(tun, packet)
        seen = read_until(tap, sent[-1][1], 1)
    os.close(fd)
    assert wrong_ones(seen, sent) == []
