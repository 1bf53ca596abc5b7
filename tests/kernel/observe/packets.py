"""Packets built by hand, each with what a probe's filter should say to it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, NamedTuple

from podwire.model.probe import MAGIC, ProbeMatch

IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
_ECHO = {4: (8, 0), 6: (128, 129)}
_UNREACHABLE = {4: 3, 6: 1}
_UPPER = {4: 1, 6: 58}
_SYN, _RST, _PUSH, _ACK = 0x02, 0x04, 0x08, 0x10


class Sample(NamedTuple):
    """A packet from its network header on, and whether it matches; in `error`, whether an error
    that quotes it does, where that differs."""

    name: str
    ethertype: int
    data: bytes
    matches: bool
    error: bool | None = None

    @property
    def frame(self) -> bytes:
        return ethernet(self.ethertype, self.data)


def ethernet(ethertype: int, data: bytes) -> bytes:
    return bytes.fromhex("0200000000bb0200000000aa") + struct.pack("!H", ethertype) + data


def ip(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    *,
    options: int = 0,
    fragment: tuple[int, bool] | None = None,
) -> tuple[int, bytes]:
    """(EtherType, packet). `options` are 32-bit words of IPv4's; `fragment` is (offset in bytes,
    more follow)."""
    one, other = ip_address(source), ip_address(target)
    offset, more = fragment or (0, False)
    if one.version == 4:
        size = 20 + 4 * options
        flags = 0x4000 if fragment is None else offset // 8 | more << 13
        head = struct.pack(
            "!BBHHHBBH", 0x40 | size // 4, 0, size + len(payload), 7, flags, 64, protocol, 0
        )
        addresses = one.packed + other.packed
        check = _checksum(head + addresses + bytes([1]) * (4 * options))
        head = head[:10] + struct.pack("!H", check)
        return IPV4, head + addresses + bytes([1]) * (4 * options) + payload
    if fragment is not None:
        payload = struct.pack("!BBHI", protocol, 0, offset | more, 9) + payload
        protocol = 44
    head = struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64)
    return IPV6, head + one.packed + other.packed + payload


def udp(source: int, target: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def tcp(source: int, target: int, flags: int = _SYN) -> bytes:
    return struct.pack("!HHIIHHHH", source, target, 1, 0, 0x5000 | flags, 64240, 0, 0)


def icmp(kind: int, rest: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack("!BBHI", kind, 0, 0, rest) + payload


def vxlan(frame: bytes, port: int = 8472) -> bytes:
    return udp(50000, port, struct.pack("!II", 0x08000000, 1 << 8) + frame)


def arp(sender: str, target: str, operation: int = 1) -> bytes:
    mac = bytes(6)
    one, other = ip_address(sender).packed, ip_address(target).packed
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + mac + one + mac + other


def ndp(source: str, about: str, kind: int = 135, target: str = "ff02::1:ff00:2") -> bytes:
    return ip(source, target, 58, icmp(kind, 0, ip_address(about).packed))[1]


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def leaves(match: ProbeMatch) -> Iterator[Sample]:
    """Packets without anything inside: some that match, and some that nearly do."""
    source, target, ident, port = match.source, match.target, match.ident, match.port or 443
    version = ip_address(source).version
    other = "10.9.9.9" if version == 4 else "fd99::9"
    carry = {"icmp": _UPPER[version], "tcp": 6, "udp": 17}
    own = carry[match.protocol]

    def sample(name: str, matches: bool, protocol: int, payload: bytes, **more: Any) -> Sample:
        ends = (str(more.pop("a", source)), str(more.pop("b", target)))
        return Sample(name, *ip(*ends, protocol, payload, **more), matches)

    echo = match.protocol == "icmp"
    request, reply = _ECHO[version]
    marked = MAGIC + struct.pack("!HH", ident, 1)
    wrong = MAGIC + struct.pack("!HH", ident ^ 1, 1)
    for name, matches, payload in (
        ("request", echo, icmp(request, ident << 16 | 1, marked)),
        ("reply", echo, icmp(reply, ident << 16 | 1)),
        ("translated request", echo, icmp(request, (ident ^ 3) << 16 | 1, marked)),
        ("somebody's request", False, icmp(request, (ident ^ 3) << 16 | 1, b"abcdefgh")),
        ("another prober's request", False, icmp(request, (ident ^ 1) << 16 | 1, wrong)),
        ("short request", False, icmp(request, (ident ^ 3) << 16 | 1)),
        ("other ICMP", False, icmp(13 if version == 4 else 130, ident << 16 | 1, marked)),
    ):
        yield sample(name, matches, _UPPER[version], payload)

    for name, make, protocol in (("tcp", tcp, 6), ("udp", udp, 17)):
        is_own = own == protocol
        there = {"a": other}
        yield sample(f"{name} there", is_own, protocol, make(ident, port))
        yield sample(f"{name} back", is_own, protocol, make(port, ident))
        yield sample(f"{name} from anywhere", is_own, protocol, make(ident, port), **there)
        yield sample(f"{name} elsewhere", False, protocol, make(ident ^ 1, port), b=other)
        yield sample(f"{name} of others", False, protocol, make(port, ident ^ 1), a=other)
        yield sample(f"{name} other ports", False, protocol, make(ident, port ^ 1))
        if version == 4:
            yield sample(f"{name} options", is_own, protocol, make(ident, port), options=3)
        yield sample(f"{name} first", is_own, protocol, make(ident, port), fragment=(0, True))

    asked, answered = (ident ^ 1, port), (port, ident ^ 1)
    for protocol, name, matches, payload in (
        (6, "there", True, tcp(*asked)),
        (6, "there with ECN", True, tcp(*asked, 0xC0 | _SYN)),
        (6, "data", False, tcp(*asked, _ACK | _PUSH)),
        (6, "reset", False, tcp(*asked, _ACK | _RST)),
        (6, "SYN and ACK", False, tcp(*asked, _ACK | _SYN)),
        (6, "back", True, tcp(*answered, _ACK | _SYN)),
        (6, "refused", True, tcp(*answered, _ACK | _RST)),
        (6, "data back", False, tcp(*answered, _ACK | _PUSH)),
        (6, "reset back", False, tcp(*answered, _RST)),
        (6, "to that port back", True, tcp(port, port, _ACK | _SYN)),
        (17, "there", True, udp(*asked, marked)),
        (17, "another prober's", False, udp(*asked, wrong)),
        (17, "others' there", False, udp(*asked, b"abcdefgh")),
        (17, "empty there", False, udp(*asked)),
        (17, "back", True, udp(*answered)),
        (17, "to that port back", True, udp(port, port)),
    ):
        ours = own == protocol and match.translated
        ends = {"a": target, "b": other} if payload[:2] == struct.pack("!H", port) else {"a": other}
        one = sample(f"{protocol} translated {name}", ours and matches, protocol, payload, **ends)
        yield one._replace(error=ours)

    for offset in (8, 0x7FF8, 0x8000):
        yield sample(f"fragment at {offset}", True, own, b"?" * 24, fragment=(offset, True))
    for name, matches, more in (
        ("later fragment", True, {}),
        ("later fragment back", True, {"a": target, "b": source}),
        ("fragment from elsewhere", False, {"a": other}),
        ("fragment to elsewhere", False, {"b": other}),
        ("fragment back from elsewhere", False, {"a": other, "b": source}),
    ):
        yield sample(name, matches, own, b"?" * 24, fragment=(1480, False), **more)
    yield sample("fragment of another protocol", False, 132, b"?" * 24, fragment=(1480, True))
    yield sample("other protocol", False, 132, tcp(ident, port))
    stranger = ip("fd77::1", "fd77::2", own, tcp(ident, port))
    if version == 6:
        stranger = ip("10.7.7.1", "10.7.7.2", own, tcp(ident, port))
    yield Sample("other family", *stranger, False)


def neighbors(match: ProbeMatch) -> Iterator[Sample]:
    """ARP and NDP."""
    for name, sender, target, operation in (
        ("asks", "10.244.1.2", "10.244.1.1", 1),
        ("asked for", "10.244.1.1", "10.244.1.2", 1),
        ("answers", "10.244.1.2", "10.244.1.1", 2),
        ("others", "10.244.1.1", "10.244.1.9", 1),
    ):
        about = {sender, target} & set(match.neighbors)
        yield Sample(f"ARP {name}", ARP, arp(sender, target, operation), bool(about))
    for name, source, about_ip, kind, target in (
        ("asks", "fd00::2", "fd00::1", 135, "ff02::1:ff00:1"),
        ("asked for", "fd00::1", "fd00::2", 135, "ff02::1:ff00:2"),
        ("told", "fd00::9", "fd00::9", 136, "fd00::2"),
        ("others", "fd00::1", "fd00::12", 135, "ff02::1:ff00:12"),
    ):
        ours = bool({source, about_ip, target} & set(match.neighbors))
        data = ndp(source, about_ip, kind, target)
        yield Sample(f"NDP {name}", IPV6, data, ours)


def tunnelled(inner: Sample, outer: int, port: int = 8472, **more: Any) -> Sample:
    """Inside of VXLAN over IPv4 or IPv6."""
    ends = ("172.18.0.11", "172.18.0.12") if outer == 4 else ("fd18::11", "fd18::12")
    matches = inner.matches and port == 8472
    error = inner.error and port == 8472
    data = ip(*ends, 17, vxlan(inner.frame, port), **more)
    return Sample(f"{inner.name} in VXLAN/IPv{outer} to {port}", *data, matches, error)


def in_udp(inner: Sample, match: ProbeMatch, outer: int, port: int = 8285, **more: Any) -> Sample:
    """Bare in a UDP datagram over IPv4 or IPv6."""
    ends = ("172.18.0.11", "172.18.0.12") if outer == 4 else ("fd18::11", "fd18::12")
    ours = port in match.bare_ports
    data = ip(*ends, 17, udp(port, port, inner.data), **more)
    error = inner.error and ours
    return Sample(f"{inner.name} in UDP/IPv{outer} to {port}", *data, inner.matches and ours, error)


def quoted(about: Sample, **more: Any) -> Sample:
    """An ICMP error that quotes the packet."""
    version = 4 if about.ethertype == IPV4 else 6
    ends = ("192.0.2.1", "192.0.2.2") if version == 4 else ("fd02::1", "fd02::2")
    payload = icmp(_UNREACHABLE[version], 0, about.data)
    data = ip(*ends, _UPPER[version], payload, **more)
    matches = about.matches if about.error is None else about.error
    return Sample(f"error about {about.name}", *data, matches)


def samples(match: ProbeMatch) -> list[Sample]:
    """All of it: bare, in tunnels, in errors, and both."""
    bare, asking = list(leaves(match)), list(neighbors(match))
    found = [*bare, *asking]
    for one in (*bare, *asking):
        found += [tunnelled(one, 4), tunnelled(one, 6), tunnelled(one, 4, 4789)]
    for one in bare:
        if 8285 not in match.tunnel_ports:
            found += [in_udp(one, match, 4), in_udp(one, match, 6), in_udp(one, match, 4, 8286)]
            found.append(quoted(in_udp(one, match, 6)))
            found.append(in_udp(quoted(one), match, 4))
        found.append(quoted(one))
        found.append(quoted(tunnelled(one, 4)))
        found.append(quoted(tunnelled(one, 6)))
        found.append(tunnelled(quoted(one), 4))
    return found
