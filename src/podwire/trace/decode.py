"""Packets out of bytes: Ethernet, ARP, IPv4, IPv6, UDP, TCP, ICMP, NDP, VXLAN, IP bare in UDP.

What lives here: reading headers, outermost first. What does not: what a packet means for a trace
(`identify`). Pure, and it takes anything: what can't be read (too short, unknown, damaged) is a
`Payload` from there on, and no input raises.

How it works: each function reads one header at `at` and hands the rest on. `end` is where the
packet ends on the wire, by its own length field; the capture may hold less. Errors quote packets
and tunnels carry frames, so `depth` counts how deep we are.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

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


class TunnelPorts(NamedTuple):
    """UDP ports of tunnels. VXLAN: Linux's (and Flannel's), IANA's, Weave's. `bare` are those whose
    datagrams carry an IP packet and nothing else: Flannel's."""

    vxlan: tuple[int, ...] = (8472, 4789, 6784)
    bare: tuple[int, ...] = (8285,)


USUAL = TunnelPorts()

# ARPHRD_ (linux/if_arp.h): whose frames start with an Ethernet header.
_WITH_ETHERNET = frozenset({1, 772})

# EtherTypes (linux/if_ether.h).
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TAGS = frozenset({0x8100, 0x88A8})

# Protocol numbers (IANA).
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
_FRAGMENT, _AUTHENTICATION = 44, 51
#: IPv6 extension headers that say their length in units of 8 bytes, less the first (RFC 8200).
_OPTIONS = frozenset({0, 43, 60, 135, 139, 140})

# ICMP types (RFC 792, RFC 4443, RFC 4861) that this module reads beyond type and code.
_ECHO = {4: frozenset({0, 8}), 6: frozenset({128, 129})}
_ERRORS = {4: frozenset({3, 4, 5, 11, 12}), 6: frozenset({1, 2, 3, 4})}
_NDP = frozenset({135, 136})

#: tcpdump's letters in its order, by the bit of each.
_FLAGS = "FSRP.UEW"

#: So much of a payload is kept: it is what tells one probe from another, and no more is shown.
PAYLOAD_BYTES = 32
#: Deeper than this (a frame in a tunnel, in a packet quoted by an error in a tunnel) is payload.
_DEEPEST = 4


class _Source(NamedTuple):
    data: bytes
    ports: TunnelPorts


def decode(data: bytes, link_type: int, length: int, *, ports: TunnelPorts = USUAL) -> Packet:
    """The packet in a captured frame. `link_type` is an ARPHRD_ number, `length` on the wire."""
    source = _Source(data, ports)
    first = _ethernet if link_type in _WITH_ETHERNET else _network
    return Packet(size=length, headers=tuple(first(source, 0, max(length, len(data)), 0)))


def decode_network(data: bytes, length: int = 0, *, ports: TunnelPorts = USUAL) -> Packet:
    """The packet in bytes that start at the network header. `length` 0: by its own length field."""
    source = _Source(data, ports)
    headers = tuple(_network(source, 0, max(length, len(data)), 0))
    size = length or (headers[0].length if headers and isinstance(headers[0], Ip) else len(data))
    return Packet(size=size, headers=headers)


def _ethernet(source: _Source, at: int, end: int, depth: int) -> Iterator[Header]:
    data = source.data
    if len(data) < at + 14:
        yield from _payload(source, at, end)
        return
    after, kind = at + 14, _number(data, at + 12, 2)
    while kind in _TAGS and len(data) >= after + 4:
        after, kind = after + 4, _number(data, after + 2, 2)
    yield Ethernet(source=_mac(data, at + 6), target=_mac(data, at), type=kind)
    if kind == _ARP:
        yield from _arp(source, after, end)
    elif kind in (_IPV4, _IPV6):
        yield from _network(source, after, end, depth)
    else:
        yield from _payload(source, after, end)


def _arp(source: _Source, at: int, end: int) -> Iterator[Header]:
    data = source.data
    # Ethernet and IPv4 are all that ARP is used for: 6-byte and 4-byte addresses.
    if len(data) < at + 28 or data[at : at + 6] != b"\x00\x01\x08\x00\x06\x04":
        yield from _payload(source, at, end)
        return
    yield Arp(
        operation=_number(data, at + 6, 2),
        source_mac=_mac(data, at + 8),
        source_ip=_ipv4(data, at + 14),
        target_mac=_mac(data, at + 18),
        target_ip=_ipv4(data, at + 24),
    )


def _network(source: _Source, at: int, end: int, depth: int) -> Iterator[Header]:
    version = source.data[at] >> 4 if len(source.data) > at else 0
    if version == 4 and len(source.data) >= at + 20:
        yield from _internet4(source, at, end, depth)
    elif version == 6 and len(source.data) >= at + 40:
        yield from _internet6(source, at, end, depth)
    else:
        yield from _payload(source, at, end)


def _internet4(source: _Source, at: int, end: int, depth: int) -> Iterator[Header]:
    data = source.data
    header, total = (data[at] & 15) * 4, _number(data, at + 2, 2)
    if header < 20:
        yield from _payload(source, at, end)
        return
    # 0: longer than the field can say, a super-packet on its way to be segmented.
    length = total or end - at
    flags = _number(data, at + 6, 2)
    ip = Ip(
        version=4,
        source=_ipv4(data, at + 12),
        target=_ipv4(data, at + 16),
        ttl=data[at + 8],
        protocol=data[at + 9],
        length=length,
        id=_number(data, at + 4, 2),
        dont_fragment=bool(flags & 0x4000),
        more_fragments=bool(flags & 0x2000),
        offset=(flags & 0x1FFF) * 8,
        tos=data[at + 1],
    )
    yield ip
    yield from _transport(source, at + header, max(at + header, at + length), ip, depth)


def _internet6(source: _Source, at: int, end: int, depth: int) -> Iterator[Header]:
    data = source.data
    first = _number(data, at, 4)
    carried = _number(data, at + 4, 2)
    length = 40 + carried if carried else end - at
    protocol, after = data[at + 6], at + 40
    ident, offset, more = 0, 0, False
    while len(data) >= after + 8:
        if protocol == _FRAGMENT:
            place = _number(data, after + 2, 2)
            ident, offset, more = _number(data, after + 4, 4), place & 0xFFF8, bool(place & 1)
            protocol, after = data[after], after + 8
            if offset:
                break
        elif protocol in _OPTIONS:
            protocol, after = data[after], after + 8 + data[after + 1] * 8
        elif protocol == _AUTHENTICATION:
            protocol, after = data[after], after + 8 + data[after + 1] * 4
        else:
            break
    ip = Ip(
        version=6,
        source=str(IPv6Address(data[at + 8 : at + 24])),
        target=str(IPv6Address(data[at + 24 : at + 40])),
        ttl=data[at + 7],
        protocol=protocol,
        length=length,
        id=ident,
        dont_fragment=True,
        more_fragments=more,
        offset=offset,
        tos=first >> 20 & 0xFF,
    )
    yield ip
    yield from _transport(source, after, max(after, at + length), ip, depth)


def _transport(source: _Source, at: int, end: int, ip: Ip, depth: int) -> Iterator[Header]:
    left = len(source.data) - at
    if ip.offset or left < 4:
        yield from _payload(source, at, end)
    elif ip.protocol == UDP and left >= 8:
        yield from _udp(source, at, end, depth)
    elif ip.protocol == TCP and left >= 8:
        yield from _tcp(source, at, end)
    elif ip.protocol == (ICMP if ip.version == 4 else ICMPV6):
        yield from _icmp(source, at, end, ip.version, depth)
    else:
        yield from _payload(source, at, end)


def _udp(source: _Source, at: int, end: int, depth: int) -> Iterator[Header]:
    data = source.data
    port = _number(data, at + 2, 2)
    yield Udp(source_port=_number(data, at, 2), target_port=port, length=_number(data, at + 4, 2))
    # RFC 7348, section 5: the one flag that is set says that there is a VNI.
    vxlan = port in source.ports.vxlan and len(data) >= at + 16 and data[at + 8] & 0x08
    if vxlan and depth < _DEEPEST:
        yield Vxlan(vni=_number(data, at + 12, 3))
        yield from _ethernet(source, at + 16, end, depth + 1)
    elif port in source.ports.bare and depth < _DEEPEST and _is_packet(data, at + 8, end):
        yield Tunnel()
        yield from _network(source, at + 8, end, depth + 1)
    else:
        yield from _payload(source, at + 8, end)


def _is_packet(data: bytes, at: int, end: int) -> bool:
    """Whether an IP packet is there that is no longer than what carries it, as far as was kept."""
    version = data[at] >> 4 if len(data) > at else 0
    if version == 4 and len(data) >= at + 4:
        return 20 <= _number(data, at + 2, 2) <= end - at
    return version == 6 and len(data) >= at + 6 and 40 + _number(data, at + 4, 2) <= end - at


def _tcp(source: _Source, at: int, end: int) -> Iterator[Header]:
    data = source.data
    # An error quotes at least 8 bytes of what it is about, and often no more: flags are unknown.
    whole = len(data) >= at + 20
    bits = data[at + 13] if whole else 0
    flags = "".join(letter for bit, letter in enumerate(_FLAGS) if bits >> bit & 1)
    yield Tcp(
        source_port=_number(data, at, 2),
        target_port=_number(data, at + 2, 2),
        sequence=_number(data, at + 4, 4),
        acknowledgement=_number(data, at + 8, 4) if whole else 0,
        flags=flags or ("none" if whole else ""),
    )
    if whole:
        yield from _payload(source, at + max(20, (data[at + 12] >> 4) * 4), end)


def _icmp(source: _Source, at: int, end: int, version: int, depth: int) -> Iterator[Header]:
    data = source.data
    kind, code = data[at], data[at + 1]
    if len(data) < at + 8:
        yield Icmp(type=kind, code=code)
    elif kind in _ECHO[version]:
        ident, sequence = _number(data, at + 4, 2), _number(data, at + 6, 2)
        yield Icmp(type=kind, code=code, id=ident, sequence=sequence)
        yield from _payload(source, at + 8, end)
    elif kind in _ERRORS[version]:
        mtu = None
        if version == 4 and (kind, code) == (3, 4):
            mtu = _number(data, at + 6, 2)
        elif version == 6 and kind == 2:
            mtu = _number(data, at + 4, 4)
        deeper = depth < _DEEPEST
        quoted = tuple(_network(source, at + 8, end, depth + 1)) if deeper else ()
        yield Icmp(type=kind, code=code, mtu=mtu, quoted=quoted)
    elif version == 6 and kind in _NDP and len(data) >= at + 24:
        yield Icmp(type=kind, code=code, target=str(IPv6Address(data[at + 8 : at + 24])))
    else:
        yield Icmp(type=kind, code=code)
        yield from _payload(source, at + 8, end)


def _payload(source: _Source, at: int, end: int) -> Iterator[Payload]:
    if end > at:
        kept = source.data[at : min(end, at + PAYLOAD_BYTES)]
        yield Payload(length=end - at, data=kept.hex())


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _mac(data: bytes, at: int) -> str:
    return data[at : at + 6].hex(":")


def _ipv4(data: bytes, at: int) -> str:
    return str(IPv4Address(data[at : at + 4]))
