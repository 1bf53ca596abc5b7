"""Packets as bytes, built layer by layer. Checksums are zero: nothing here verifies them."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address, ip_address

from podwire.model.probe import MAGIC

ETHERNET, NO_LINK_HEADER = 1, 65534
BROADCAST = "ff:ff:ff:ff:ff:ff"

_UPPER = {(4, "icmp"): 1, (6, "icmp"): 58, (4, "tcp"): 6, (6, "tcp"): 6}


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, target: str, payload: bytes, kind: int | None = None) -> bytes:
    """`kind` None: by the IP version of what is in it."""
    if kind is None:
        kind = 0x86DD if payload[0] >> 4 == 6 else 0x0800
    return mac(target) + mac(source) + struct.pack("!H", kind) + payload


def ip(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    ident: int = 0,
    dont_fragment: bool = True,
    more: bool = False,
    offset: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 or IPv6 packet, by its addresses; `options` are IPv4's, a multiple of 4 bytes."""
    addresses = ip_address(source).packed + ip_address(target).packed
    if isinstance(ip_address(source), IPv6Address):
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, ttl)
        return head + addresses + payload
    fragment = offset // 8 | (0x4000 if dont_fragment else 0) | (0x2000 if more else 0)
    words = 5 + len(options) // 4
    return (
        struct.pack("!BBH", 0x40 | words, 0, words * 4 + len(payload))
        + struct.pack("!HHBBH", ident, fragment, ttl, protocol, 0)
        + addresses
        + options
        + payload
    )


def mark(ident: int, number: int, size: int) -> bytes:
    """A probe's payload of `size` bytes."""
    return (MAGIC + struct.pack("!HH", ident, number)).ljust(size, b"\0")[:size]


def echo(
    source: str,
    target: str,
    ident: int,
    number: int,
    *,
    reply: bool = False,
    ttl: int = 64,
    size: int = 56,
    payload: bytes | None = None,
) -> bytes:
    """An ICMP echo request or reply with a probe's payload of `size` bytes."""
    version = ip_address(source).version
    kind = {4: 0 if reply else 8, 6: 129 if reply else 128}[version]
    body = mark(ident, number, size) if payload is None else payload
    message = struct.pack("!BBHHH", kind, 0, 0, ident, number) + body
    return ip(source, target, _UPPER[version, "icmp"], message, ttl=ttl)


def udp(
    source: str, target: str, ports: tuple[int, int], payload: bytes = b"", *, ttl: int = 64
) -> bytes:
    message = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    return ip(source, target, 17, message, ttl=ttl)


def tcp(
    source: str,
    target: str,
    ports: tuple[int, int],
    flags: str = "S",
    *,
    sequence: int = 0,
    acknowledgement: int = 0,
    ttl: int = 64,
) -> bytes:
    bits = sum(1 << "FSRP.UEW".index(flag) for flag in flags)
    message = struct.pack("!HHIIBBHHH", *ports, sequence, acknowledgement, 0x50, bits, 0, 0, 0)
    return ip(source, target, 6, message, ttl=ttl)


def icmp_error(
    source: str, target: str, kind: int, code: int, quoted: bytes, *, mtu: int = 0, ttl: int = 64
) -> bytes:
    """An ICMP error about `quoted`, a packet from its IP header on."""
    version = ip_address(source).version
    if version == 4:
        message = struct.pack("!BBHHH", kind, code, 0, 0, mtu) + quoted[:548]
    else:
        message = struct.pack("!BBHI", kind, code, 0, mtu) + quoted[:1232]
    return ip(source, target, _UPPER[version, "icmp"], message, ttl=ttl)


def arp(source_mac: str, source: str, target: str, target_mac: str | None = None) -> bytes:
    """A frame: who has `target`? With `target_mac`, the answer that `source` is at `source_mac`."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1 if target_mac is None else 2)
    body += mac(source_mac) + ip_address(source).packed
    body += mac(target_mac or "00:00:00:00:00:00") + ip_address(target).packed
    return ethernet(source_mac, target_mac or BROADCAST, body, 0x0806)


def ndp(source_mac: str, source: str, target: str, *, about: str, answer: bool = False) -> bytes:
    """A frame: a solicitation, or an advertisement, about the address `about`."""
    message = struct.pack("!BBHI", 136 if answer else 135, 0, 0, 0) + ip_address(about).packed
    message += bytes((2 if answer else 1, 1)) + mac(source_mac)
    return ethernet(source_mac, "33:33:ff:00:00:01", ip(source, target, 58, message, ttl=255))


def vxlan(
    outer: tuple[str, str],
    macs: tuple[str, str],
    frame: bytes,
    *,
    vni: int = 1,
    port: int = 8472,
    ttl: int = 64,
) -> bytes:
    """The frame that carries another between two VTEPs."""
    body = struct.pack("!II", 0x08 << 24, vni << 8) + frame
    message = struct.pack("!HHHH", 40000, port, 8 + len(body), 0) + body
    return ethernet(*macs, ip(*outer, 17, message, ttl=ttl, dont_fragment=False))
