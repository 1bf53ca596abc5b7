"""Bytes in, headers out; whatever the bytes are."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.trace.decode import PAYLOAD_BYTES, TunnelPorts, decode, decode_network
from podwire.trace.model import (
    Arp,
    Ethernet,
    Header,
    Icmp,
    Ip,
    Packet,
    Payload,
    Tcp,
    Tunnel,
    Udp,
    Vxlan,
)

from . import packets
from .packets import ETHERNET, NO_LINK_HEADER

A, B = "0a:58:0a:f4:01:02", "0a:58:0a:f4:01:01"
POD1, POD2 = "10.244.1.2", "10.244.2.2"


def seen(frame: bytes, cut: int | None = None) -> Packet:
    return decode(frame[:cut], ETHERNET, len(frame))


def kinds(headers: tuple[Header, ...]) -> list[type]:
    return [type(header) for header in headers]


def test_an_echo_request() -> None:
    packet = seen(packets.ethernet(A, B, packets.echo(POD1, POD2, 4711, 1)))
    assert packet.size == 98
    assert packet.headers == (
        Ethernet(source=A, target=B, type=0x0800),
        Ip(
            version=4,
            source=POD1,
            target=POD2,
            ttl=64,
            protocol=1,
            length=84,
            dont_fragment=True,
        ),
        Icmp(type=8, code=0, id=4711, sequence=1),
        Payload(length=56, data=packets.mark(4711, 1, PAYLOAD_BYTES).hex()),
    )


def test_an_echo_request_of_ipv6() -> None:
    packet = seen(packets.ethernet(A, B, packets.echo("fd00:1::2", "fd00:2::2", 7, 3, ttl=62)))
    _, ip, icmp, payload = packet.headers
    assert isinstance(ip, Ip)
    assert (ip.version, ip.ttl, ip.length, ip.dont_fragment) == (6, 62, 104, True)
    assert icmp == Icmp(type=128, code=0, id=7, sequence=3)
    assert isinstance(payload, Payload)
    assert payload.length == 56


def test_a_frame_in_a_tunnel() -> None:
    inner = packets.ethernet(A, B, packets.echo(POD1, POD2, 1, 1))
    outer = packets.vxlan(("172.18.0.11", "172.18.0.12"), (B, A), inner)
    packet = seen(outer)
    assert packet.size == 98 + 50
    assert kinds(packet.headers) == [Ethernet, Ip, Udp, Vxlan, Ethernet, Ip, Icmp, Payload]
    assert packet.headers[3] == Vxlan(vni=1)
    assert packet.inner == seen(inner).headers
    assert packet.encapsulated


@pytest.mark.parametrize(
    ("port", "ports", "found"), [(4789, (8472, 4789), True), (53, (8472,), False)]
)
def test_a_tunnel_is_known_by_its_port(port: int, ports: tuple[int, ...], found: bool) -> None:
    frame = packets.vxlan(
        ("172.18.0.11", "172.18.0.12"), (A, B), packets.arp(A, POD1, POD2), port=port
    )
    packet = decode(frame, ETHERNET, len(frame), ports=TunnelPorts(vxlan=ports))
    assert packet.encapsulated is found


@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_bare_in_a_datagram(version: int) -> None:
    pods = (POD1, POD2) if version == 4 else ("fd00:1::2", "fd00:2::2")
    inner = packets.echo(*pods, 1, 1)
    packet = decode_network(packets.udp("172.18.0.11", "172.18.0.12", (8285, 8285), inner))
    assert kinds(packet.headers) == [Ip, Udp, Tunnel, Ip, Icmp, Payload]
    assert packet.inner == decode_network(inner).headers
    assert packet.encapsulated


def test_a_bare_packet_that_was_cut_is_still_one() -> None:
    """The kernel tells of rules with no more than 20 bytes from the transport header on."""
    inner = packets.echo(POD1, POD2, 1, 1)
    whole = packets.udp("172.18.0.11", "172.18.0.12", (8285, 8285), inner)
    assert decode_network(whole[:40]).encapsulated


@pytest.mark.parametrize(
    "payload",
    [
        packets.echo(POD1, POD2, 1, 1)[:-1],  # shorter than it says
        b"\x55" + packets.echo(POD1, POD2, 1, 1)[1:],  # no IP version
        b"\x45",
        b"",
    ],
)
def test_what_is_no_whole_packet_is_payload_on_a_tunnels_port_too(payload: bytes) -> None:
    packet = decode_network(packets.udp("172.18.0.11", "172.18.0.12", (8285, 8285), payload))
    assert not packet.encapsulated
    assert packet.headers[2:] == ((Payload(len(payload), payload[:32].hex()),) if payload else ())


@pytest.mark.parametrize(
    ("flags", "text"), [("S", "S"), ("S.", "S."), (".R", "R."), ("P.F", "FP."), ("", "none")]
)
def test_tcp_flags_are_tcpdumps(flags: str, text: str) -> None:
    packet = decode_network(packets.tcp(POD1, POD2, (1, 80), flags, sequence=9, acknowledgement=8))
    assert packet.headers[1] == Tcp(
        source_port=1, target_port=80, sequence=9, acknowledgement=8, flags=text
    )


def test_udp_and_its_payload() -> None:
    packet = decode_network(packets.udp(POD1, POD2, (1000, 53), b"query"))
    assert packet.headers[1:] == (
        Udp(source_port=1000, target_port=53, length=13),
        Payload(length=5, data=b"query".hex()),
    )
    assert packet.size == 33


def test_arp_asks_and_answers() -> None:
    asks, answers = seen(packets.arp(A, POD1, POD2)), seen(packets.arp(B, POD2, POD1, A))
    assert asks.headers[1] == Arp(
        operation=1,
        source_mac=A,
        source_ip=POD1,
        target_mac="00:00:00:00:00:00",
        target_ip=POD2,
    )
    assert isinstance(answers.headers[1], Arp)
    assert answers.headers[1].operation == 2


def test_ndp_says_whom_it_is_about() -> None:
    packet = seen(packets.ndp(A, "fe80::1", "ff02::1:ff00:2", about="fd00:2::2"))
    assert packet.headers[2] == Icmp(type=135, code=0, target="fd00:2::2")


def test_an_error_quotes_what_it_is_about() -> None:
    quoted = packets.udp(POD1, POD2, (1000, 53), packets.mark(1000, 2, 20))
    packet = decode_network(packets.icmp_error("10.244.1.1", POD1, 3, 4, quoted, mtu=1400))
    error = packet.headers[1]
    assert isinstance(error, Icmp)
    assert error.mtu == 1400
    assert kinds(error.quoted) == [Ip, Udp, Payload]


def test_an_error_of_ipv6_has_an_mtu_of_32_bits() -> None:
    quoted = packets.echo("fd00:1::2", "fd00:2::2", 7, 3)
    packet = decode_network(packets.icmp_error("fd00:1::1", "fd00:1::2", 2, 0, quoted, mtu=70000))
    error = packet.headers[1]
    assert isinstance(error, Icmp)
    assert error.mtu == 70000
    assert kinds(error.quoted) == [Ip, Icmp, Payload]


def test_eight_quoted_bytes_of_tcp_are_enough() -> None:
    quoted = packets.tcp(POD1, POD2, (1000, 80), sequence=77)[:28]
    error = decode_network(packets.icmp_error("10.244.1.1", POD1, 3, 1, quoted)).headers[1]
    assert isinstance(error, Icmp)
    assert error.quoted[1] == Tcp(
        source_port=1000, target_port=80, sequence=77, acknowledgement=0, flags=""
    )


def test_vlan_tags_are_skipped() -> None:
    packet = packets.echo(POD1, POD2, 1, 1)
    tagged = packets.ethernet(A, B, struct.pack("!HHHH", 5, 0x8100, 6, 0x0800) + packet, 0x88A8)
    assert seen(tagged).headers == seen(packets.ethernet(A, B, packet)).headers


def test_ip_options_are_skipped() -> None:
    message = struct.pack("!BBHHH", 8, 0, 0, 1, 2)
    packet = decode_network(packets.ip(POD1, POD2, 1, message, options=b"\x94\x04\0\0"))
    assert packet.headers[1:] == (Icmp(type=8, code=0, id=1, sequence=2),)


def test_ipv6_extension_headers_are_skipped() -> None:
    message = struct.pack("!BBHHH", 128, 0, 0, 1, 2)
    fragment = struct.pack("!BBHI", 58, 0, 1, 99) + message
    hop_by_hop = struct.pack("!BB6x", 44, 0) + fragment
    packet = decode_network(packets.ip("fd00::1", "fd00::2", 0, hop_by_hop))
    ip, icmp = packet.headers
    assert isinstance(ip, Ip)
    assert (ip.protocol, ip.id, ip.more_fragments, ip.offset) == (58, 99, True, 0)
    assert icmp == Icmp(type=128, code=0, id=1, sequence=2)


def test_a_later_fragment_has_no_upper_header() -> None:
    packet = decode_network(
        packets.ip(POD1, POD2, 17, b"x" * 100, offset=1480, more=True, dont_fragment=False)
    )
    ip, payload = packet.headers
    assert isinstance(ip, Ip)
    assert (ip.offset, ip.more_fragments, ip.dont_fragment) == (1480, True, False)
    assert payload == Payload(length=100, data=(b"x" * PAYLOAD_BYTES).hex())


def test_ethernet_padding_is_no_payload() -> None:
    frame = packets.ethernet(A, B, packets.udp(POD1, POD2, (1, 2))).ljust(60, b"\0")
    assert kinds(seen(frame).headers) == [Ethernet, Ip, Udp]


def test_without_a_link_header_the_packet_starts_with_ip() -> None:
    packet = packets.echo(POD1, POD2, 1, 1)
    assert decode(packet, NO_LINK_HEADER, len(packet)).headers == decode_network(packet).headers


@pytest.mark.parametrize("cut", [0, 10, 14, 20, 34, 36, 38, 42, 50])
def test_what_is_there_of_a_cut_packet_is_read(cut: int) -> None:
    frame = packets.ethernet(A, B, packets.echo(POD1, POD2, 4711, 1))
    packet, whole = seen(frame, cut), seen(frame)
    assert packet.size == 98
    complete = {14: 1, 20: 1, 34: 2, 36: 2, 38: 2, 42: 3, 50: 3}.get(cut, 0)
    assert packet.headers[:complete] == whole.headers[:complete]


def test_what_a_cut_packet_lacks_is_counted() -> None:
    frame = packets.ethernet(A, B, packets.echo(POD1, POD2, 4711, 1))
    assert seen(frame, 44).headers[-1] == Payload(length=56, data=b"po".hex())


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([1, 772, 65534, 512]), st.integers(0, 70000))
def test_no_bytes_are_an_error(data: bytes, link_type: int, length: int) -> None:
    assert decode(data, link_type, length).size == length
    decode_network(data)


@settings(max_examples=300)
@given(st.data())
def test_no_damage_is_an_error(data: st.DataObject) -> None:
    quoted = packets.echo("fd00:1::2", "fd00:2::2", 7, 3)
    error = packets.icmp_error("fd00:1::1", "fd00:1::2", 1, 3, quoted)
    frame = bytearray(
        packets.vxlan(("10.0.0.1", "10.0.0.2"), (A, B), packets.ethernet(A, B, error))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    decode(bytes(frame[:cut]), ETHERNET, len(frame))
