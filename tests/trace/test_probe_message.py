"""The bytes of probes, and what of a request is refused before anything is sent."""

from __future__ import annotations

import math
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.errors import InputError
from podwire.model.probe import MAGIC, Probe
from podwire.trace import probe_errors, probe_message


def test_an_echo_is_84_bytes_of_ipv4_and_104_of_ipv6() -> None:
    assert len(probe_message.build(Probe(target="10.0.0.1"), 7, 1)) + 20 == 84
    assert len(probe_message.build(Probe(target="fd00::1"), 7, 1)) + 40 == 104


@given(st.integers(36, 2000), st.integers(1, 0xFFFF), st.integers(1, 0xFFFF))
@settings(max_examples=30)
def test_an_echo_has_its_size_its_marks_and_a_true_checksum(
    size: int, ident: int, number: int
) -> None:
    data = probe_message.build(Probe(target="10.0.0.1", size=size), ident, number)
    assert len(data) == size - 20
    assert data[8:16] == MAGIC + struct.pack("!HH", ident, number)
    assert probe_message.is_echo(data, 8, ident, number)
    without = data[:2] + b"\0\0" + data[4:]
    assert int.from_bytes(data[2:4], "big") == probe_message.checksum(without)


def test_a_udp_payload_tells_of_another_probe_only_if_it_is_ours() -> None:
    probe = Probe(protocol="udp", port=53, target="10.0.0.1")
    late = probe_message.build(probe, 4000, 1)
    assert probe_message.is_of_another(late, 4000, 2)
    assert not probe_message.is_of_another(late, 4000, 1)
    assert not probe_message.is_of_another(late, 4001, 2)
    assert not probe_message.is_of_another(b"", 4000, 2)


@pytest.mark.parametrize(
    ("probe", "field"),
    [
        (Probe(target="pod1"), "target"),
        (Probe(target="fe80::1"), "target"),
        (Probe(target="224.0.0.1"), "target"),
        (Probe(target="::"), "target"),
        (Probe(target="10.0.0.1", source="fd00::1"), "source"),
        (Probe(target="10.0.0.1", source="eth0"), "source"),
        (Probe(target="10.0.0.1", port=80), "port"),
        (Probe(target="10.0.0.1", protocol="tcp"), "port"),
        (Probe(target="10.0.0.1", protocol="udp", port=70000), "port"),
        (Probe(target="10.0.0.1", count=0), "count"),
        (Probe(target="10.0.0.1", timeout_s=0), "timeout"),
        (Probe(target="10.0.0.1", timeout_s=math.nan), "timeout"),
        (Probe(target="10.0.0.1", timeout_s=1e9), "timeout"),  # more than poll(2) takes
        (Probe(target="10.0.0.1", size=35), "size"),
        (Probe(target="fd00::1", size=55), "size"),
        (Probe(target="10.0.0.1", size=65536), "size"),
        (Probe(target="10.0.0.1", protocol="tcp", port=80, size=100), "size"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(probe: Probe, field: str) -> None:
    with pytest.raises(InputError) as caught:
        probe_message.check(probe)
    assert caught.value.field == field


def test_an_error_of_the_queue_names_who_sent_it_and_what_it_says() -> None:
    router = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes([10, 0, 0, 1]))
    too_big = probe_errors.parse_error(
        struct.pack("=IBBBBII", 90, 2, 3, 4, 0, 1450, 0) + router, b""
    )
    assert too_big.text("10.0.0.9") == "fragmentation needed (MTU 1450), says 10.0.0.1"
    router6 = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, b"\xfd" + bytes(14) + b"\1", 0)
    closed = probe_errors.parse_error(struct.pack("=IBBBBII", 111, 3, 1, 4, 0, 0, 0) + router6, b"")
    assert closed.text("fd00::9") == "port unreachable, says fd00::1"
    own = probe_errors.parse_error(struct.pack("=IBBBBII", 90, 1, 0, 0, 0, 1500, 0), b"")
    assert own.offender is None
    assert "MTU of 1500 bytes" in own.text("10.0.0.9")


def test_a_host_that_finds_no_neighbor_tells_itself() -> None:
    own = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes([10, 0, 0, 1]))
    told = probe_errors.parse_error(struct.pack("=IBBBBII", 113, 2, 3, 1, 0, 0, 0) + own, b"")
    assert told.text("10.0.0.1") == "the next hop does not answer ARP or NDP"
    assert told.text("10.0.0.9") == "host unreachable, says 10.0.0.1"
