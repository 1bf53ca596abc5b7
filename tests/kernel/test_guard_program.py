"""The guard's program, run by the kernel on frames, against the same rules written down plainly."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.kernel import bpf, guard_program

pytestmark = pytest.mark.root

MAC, OTHER_MAC = bytes.fromhex("0a580af40105"), bytes.fromhex("0a580af40106")
OWN4 = (ip_address("10.244.1.5"), ip_address("200.1.2.3"))
OWN6 = (ip_address("fd00::5"), ip_address("fd00::b:5"))
LINK_LOCAL = ip_address("fe80::858:aff:fef4:105")
NOBODY4, NOBODY6 = IPv4Address(0), IPv6Address(0)
HEADERS = (0, 43, 60, 44)  # hop-by-hop, routing, destination options, fragment
PASS = "passes"
#: Where the kernel says that the frames come from.
LOOPBACK = 1


def check(frame: bytes, *, frames: bool) -> str:
    """What becomes of a frame: passed, or what it is counted as."""
    if len(frame) < 14:
        return "other_frames" if frames else PASS
    sender, kind, body = frame[6:12], frame[12:14].hex(), frame[14:]
    own_mac = sender == MAC or not frames
    match kind:
        case "0800":
            if len(body) < 20 or not own_mac:
                return "spoofed_ip"
            source, target = IPv4Address(body[12:16]), IPv4Address(body[16:20])
            everybody = target == IPv4Address("255.255.255.255") or target.packed[:3] == b"\xe0\0\0"
            free = source == NOBODY4 and (frames or everybody)
            return PASS if source in OWN4 or free else "spoofed_ip"
        case "86dd":
            return ipv6(body, own_mac=own_mac, frames=frames)
        case "0806" if frames:
            told = len(body) >= 18 and own_mac and body[8:14] == MAC
            own = told and IPv4Address(body[14:18]) in (*OWN4, NOBODY4)
            return PASS if own else "spoofed_arp"
        case "8100" | "88a8":
            return "other_frames"
    return "other_frames" if frames else PASS


def ipv6(packet: bytes, *, own_mac: bool, frames: bool) -> str:
    if len(packet) < 40:
        return "spoofed_ip"
    upper, at, is_whole = packet[6], 40, True
    for _ in range(4):
        if upper not in HEADERS or not is_whole:
            break
        if len(packet) < at + 4:
            return "spoofed_ra"
        is_fragment = upper == 44
        upper, size = packet[at], 8 if is_fragment else 8 * (packet[at + 1] + 1)
        if is_fragment and int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF8:
            is_whole = False
        at += size
    if is_whole and upper in HEADERS:
        return "spoofed_ra"
    if is_whole and upper == 58:
        if len(packet) <= at or packet[at] in (134, 137):
            return "spoofed_ra"
        target = packet[at + 8 : at + 24]
        told = frames and packet[at] == 136 and len(target) == 16
        if told and IPv6Address(target) not in (*OWN6, LINK_LOCAL):
            return "spoofed_nd"
    source = IPv6Address(packet[8:24])
    if not own_mac:
        return "spoofed_ip"
    free = source == NOBODY6 and upper == 58
    return PASS if source in (*OWN6, LINK_LOCAL) or free else "spoofed_ip"


class Loaded:
    """The program for both wirings, with counters."""

    def __init__(self) -> None:
        self.counters = bpf.new_array("podwire_test", guard_program.COUNTERS_BYTES)
        self.ports: dict[bool, int] = {}
        self.programs = {frames: self._load(frames) for frames in (True, False)}

    def _load(self, frames: bool) -> int:
        ports = self.ports[frames] = bpf.new_hash("podwire_test", guard_program.VALUE_BYTES, 4)
        known = guard_program.value(frames=frames, mac=MAC, ips=(*OWN4, *OWN6), on_link=LINK_LOCAL)
        bpf.write_hash(ports, LOOPBACK, known)
        code = guard_program.assemble(ports, self.counters, frames=frames)
        return bpf.load_classifier("podwire_test", code, guard_program.LICENCE)

    def counts(self) -> dict[str, int]:
        data = bpf.read_value(self.counters, 0, guard_program.COUNTERS_BYTES)
        assert data is not None
        return dict(zip(guard_program.KINDS, struct.unpack("<5Q", data), strict=True))

    def run(self, frame: bytes, *, frames: bool) -> str:
        """BPF_PROG_TEST_RUN (include/uapi/linux/bpf.h)."""
        held = ctypes.create_string_buffer(frame, len(frame))
        attributes = struct.Struct("<IIIIQQ40x")
        before = self.counts()
        attr = ctypes.create_string_buffer(
            attributes.pack(self.programs[frames], 0, len(frame), 0, ctypes.addressof(held), 0)
        )
        number = bpf._CALL_NUMBER[os.uname().machine]
        done = bpf._libc.syscall(
            ctypes.c_long(number), ctypes.c_long(10), attr, ctypes.c_ulong(attributes.size)
        )
        assert done == 0, os.strerror(ctypes.get_errno())
        verdict = struct.unpack_from("<i", attr, 4)[0]
        grown = [kind for kind, count in self.counts().items() if count == before[kind] + 1]
        assert (verdict == guard_program.DROP) is bool(grown)
        assert verdict in (guard_program.DROP, guard_program.PASS)
        return grown[0] if grown else PASS


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    one = Loaded()
    yield one
    for fd in (one.counters, *one.ports.values(), *one.programs.values()):
        os.close(fd)


def _chain(kinds: list[int], sizes: list[int], offset: int, upper: int) -> tuple[int, bytes]:
    """Extension headers: the first one's number, and all of them."""
    following, data = upper, b""
    for kind, size in reversed(list(zip(kinds, sizes, strict=False))):
        if kind == 44:
            data = bytes([following, 0]) + struct.pack("!HI", offset << 3 | 1, 7) + data
        else:
            data = bytes([following, size]) + bytes(6 + 8 * size) + data
        following = kind
    return following, data


SOURCES4 = st.sampled_from([*OWN4, NOBODY4, ip_address("10.244.1.6"), ip_address("0.0.0.9")])
TARGETS4 = st.sampled_from([ip_address("255.255.255.255"), ip_address("224.0.0.22"), OWN4[0]])
SOURCES6 = st.sampled_from(
    [*OWN6, LINK_LOCAL, NOBODY6, *map(ip_address, ("fd00::6", "fe80::1", "::1", "fd00::1:5"))]
)


@st.composite
def packets4(draw: st.DrawFn) -> bytes:
    addresses = draw(SOURCES4).packed + draw(TARGETS4).packed
    return b"\x45\0\0\x1c\0\0\0\0\x40\x11\0\0" + addresses + bytes(8)


@st.composite
def packets6(draw: st.DrawFn) -> bytes:
    upper = draw(st.sampled_from([6, 17, 58, 59, 51]))
    kinds = draw(st.lists(st.sampled_from(HEADERS), max_size=6))
    sizes = draw(st.lists(st.integers(0, 3), min_size=6, max_size=6))
    first, chain = _chain(kinds, sizes, draw(st.sampled_from([0, 0, 1, 8000])), upper)
    kind = draw(st.sampled_from([128, 133, 134, 135, 136, 137, 143]))
    data = bytes([kind]) + bytes(7) + draw(SOURCES6).packed
    head = b"\x60\0\0\0" + struct.pack("!HBB", len(chain) + len(data), first, 255)
    return head + draw(SOURCES6).packed + OWN6[0].packed + chain + data


@st.composite
def arp(draw: st.DrawFn) -> bytes:
    sender = draw(st.sampled_from([MAC, OTHER_MAC, MAC[:-1] + b"\0"]))
    return struct.pack("!HHBBH", 1, 0x800, 6, 4, 2) + sender + draw(SOURCES4).packed + bytes(10)


@st.composite
def ethernet(draw: st.DrawFn) -> bytes:
    kind, body = draw(
        st.one_of(
            st.tuples(st.just(0x800), packets4()),
            st.tuples(st.just(0x86DD), packets6()),
            st.tuples(st.just(0x806), arp()),
            st.tuples(st.sampled_from([0x8100, 0x88A8, 0x88CC, 46]), packets4()),
        )
    )
    if draw(st.integers(0, 5)) == 0:
        # The kernel runs no program on less than the header that the type promises.
        least = {0x800: 20, 0x86DD: 40}.get(kind, 1)
        body = body[: draw(st.integers(least, len(body)))]
    sender = draw(st.sampled_from([MAC, MAC, MAC, OTHER_MAC]))
    return b"\x02\0\0\0\0\1" + sender + kind.to_bytes(2, "big") + body


@settings(max_examples=400)
@given(frame=ethernet(), frames=st.booleans())
def test_as_the_rules_say(loaded: Loaded, frame: bytes, frames: bool) -> None:
    assert loaded.run(frame, frames=frames) == check(frame, frames=frames)
