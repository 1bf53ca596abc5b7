"""The nft rules that mark a probe's packets to be traced, and nothing else.

What lives here: `ProbeMatch` as chains of rules; what matches is said there. What does not: how
an expression is encoded (`nft_messages`), and the table's life (`nft_trace`). Pure.

    base chains ──▶ packet ──VXLAN──▶ inner ──ICMP error──▶ inner_quoted ──▶ mark
                      ├─────in UDP────▶ bare ───ICMP error──▶ bare_quoted
                      ├─────ICMP error────▶ quoted
                      └─────ARP, NDP──────▶ arp, ndp (inner_arp, inner_ndp)

A rule is over at its first comparison that fails, so each begins with what tells the probe from
most other traffic: its ports or identifier. What is inside of a packet is read at fixed offsets
from its transport header, so inner and quoted IPv4 headers with options do not match, nor do
inner and quoted IPv6 packets with extension headers, nor an error that quotes a tunnel's packet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from podwire.kernel.observe.headers import (
    ACK,
    ARP,
    BARE_PACKET,
    ERRORS,
    ETHERTYPES,
    FLAGS,
    FRAGMENT,
    ICMP,
    NDP,
    QUOTED,
    RST,
    SOURCE,
    SYN,
    TCP,
    UDP,
    VXLAN_PACKET,
    VXLAN_TYPE,
)
from podwire.kernel.observe.nft_messages import (
    EQUAL,
    META_L4PROTO,
    META_PROTOCOL,
    NETWORK,
    NOT_EQUAL,
    NOT_GREATER,
    NOT_LESS,
    TRANSPORT,
    accept,
    compare,
    equals,
    goto,
    jump,
    load,
    mask,
    meta_equals,
    set_nftrace,
)
from podwire.model.probe import MAGIC, ProbeMatch

#: Where each base chain jumps to.
START = "packet"
#: Who got here is the probe's.
MARK = "mark"

Expressions = tuple[bytes, ...]
Chains = dict[str, list[Expressions]]

_ETHERTYPE = {version: number.to_bytes(2, "big") for version, number in ETHERTYPES.items()}
_ARP = ARP.to_bytes(2, "big")
_ICMPV6 = ICMP[6]
_HEADER = {4: 20, 6: 40}
_FRAGMENT_BITS = {4: b"\x1f\xff", 6: b"\xff\xf8"}
#: Echo request and reply differ in one bit: type, and the mask that leaves it out.
_ECHO = {4: (b"\x00", b"\xf7"), 6: (b"\x80", b"\xfe")}
#: The bits of an IP header's first byte that say its version.
_VERSION_BITS = b"\xf0"


class _Layer(NamedTuple):
    """Where an IP packet's headers are: what offsets count from, and the offsets.

    `whole`: the kernel has parsed it, and knows its protocol whatever its headers' lengths.
    """

    network_base: int
    network: int
    transport: int
    whole: bool = False

    def at_network(self, offset: int, value: bytes) -> Expressions:
        return equals(self.network_base, self.network + offset, value)

    def at_transport(self, offset: int, value: bytes) -> Expressions:
        return equals(TRANSPORT, self.transport + offset, value)

    def carries(self, protocol: int, version: int) -> Expressions:
        if self.whole:
            ethertype = meta_equals(META_PROTOCOL, _ETHERTYPE[version])
            return (*meta_equals(META_L4PROTO, bytes([protocol])), *ethertype)
        if version == 4:
            return (*self.at_network(9, bytes([protocol])), *self.at_network(0, b"\x45"))
        return self.at_network(6, bytes([protocol]))

    def within(self, offset: int, version: int) -> _Layer:
        """A packet of that IP version, `offset` behind this one's transport header."""
        start = self.transport + offset
        return _Layer(TRANSPORT, start, start + _HEADER[version])


_PACKET = _Layer(NETWORK, 0, 0, whole=True)


def chains(match: ProbeMatch) -> Chains:
    """Chains by name, with their rules. A packet that is the probe's gets to `MARK` from `START`.

    Raises ValueError for addresses of different families.
    """
    version = ip_address(match.source).version
    if ip_address(match.target).version != version:
        raise ValueError(f"{match.source} and {match.target} are of different families")
    made: Chains = {
        MARK: [(*set_nftrace(), accept())],
        START: _about(match, _PACKET, version, "quoted"),
        "quoted": _probes(match, _PACKET.within(QUOTED, version), version, quoted=True),
    }
    for name, offset in (("inner", VXLAN_PACKET), ("bare", BARE_PACKET)):
        layer = _PACKET.within(offset, version)
        made[name] = _about(match, layer, version, f"{name}_quoted")
        quoted = layer.within(QUOTED, version)
        made[f"{name}_quoted"] = _probes(match, quoted, version, quoted=True)
    neighbors = [ip_address(one) for one in match.neighbors]
    arp = [one.packed for one in neighbors if one.version == 4]
    ndp = [one.packed for one in neighbors if one.version == 6]
    inner_types = [(_ETHERTYPE[version], "inner")]
    if arp:
        made["arp"] = list(_arp(NETWORK, 0, arp))
        made["inner_arp"] = list(_arp(TRANSPORT, VXLAN_PACKET, arp))
        made[START].append((*meta_equals(META_PROTOCOL, _ARP), goto("arp")))
        inner_types.append((_ARP, "inner_arp"))
    if ndp:
        made["ndp"] = list(_ndp(_PACKET, ndp))
        made["inner_ndp"] = list(_ndp(_PACKET.within(VXLAN_PACKET, 6), ndp))
        made[START].append((*_PACKET.carries(_ICMPV6, 6), jump("ndp")))
        inner_types.append((_ETHERTYPE[6], "inner_ndp"))
    udp = meta_equals(META_L4PROTO, bytes([UDP]))
    for port in match.bare_ports:
        tunnel = _PACKET.at_transport(2, struct.pack("!H", port))
        of_version = (
            *_masked(TRANSPORT, BARE_PACKET, _VERSION_BITS),
            compare(EQUAL, bytes([version << 4])),
        )
        made[START].append((*tunnel, *udp, *of_version, jump("bare")))
    for port in match.tunnel_ports:
        tunnel = _PACKET.at_transport(2, struct.pack("!H", port))
        made[START] += [
            (*tunnel, *udp, *_PACKET.at_transport(VXLAN_TYPE, kind), jump(chain))
            for kind, chain in inner_types
        ]
    return made


def _about(match: ProbeMatch, layer: _Layer, version: int, quoted: str) -> list[Expressions]:
    """Rules for the probe's packets and for errors about them."""
    first, last = ERRORS[version][0], ERRORS[version][-1]
    # Those in between that are none are followed by something else than an IP header.
    is_error = (
        load(TRANSPORT, layer.transport, 1),
        compare(NOT_LESS, bytes([first])),
        compare(NOT_GREATER, bytes([last])),
    )
    return [
        *_probes(match, layer, version, quoted=False),
        (*layer.carries(ICMP[version], version), *is_error, jump(quoted)),
    ]


def _probes(match: ProbeMatch, layer: _Layer, version: int, *, quoted: bool) -> list[Expressions]:
    return [
        *_whole(match, layer, version, quoted=quoted),
        *_fragments(match, layer, version),
    ]


def _whole(
    match: ProbeMatch, layer: _Layer, version: int, *, quoted: bool
) -> Iterator[Expressions]:
    carries = layer.carries(_protocol(match, version), version)
    if match.protocol == "icmp":
        ident = struct.pack("!H", match.ident)
        kind, bits = _ECHO[version]
        is_echo = (*_masked(TRANSPORT, layer.transport, bits), compare(EQUAL, kind))
        yield (*layer.at_transport(4, ident), *is_echo, *carries, goto(MARK))
        yield (*layer.at_transport(8, MAGIC + ident), *is_echo, *carries, goto(MARK))
        return
    port = match.port or 0
    for ports in ((match.ident, port), (port, match.ident)):
        yield (*layer.at_transport(0, struct.pack("!HH", *ports)), *carries, goto(MARK))
    if match.translated:
        target = ip_address(match.target).packed
        source_at = SOURCE[version]
        for port_at, address_at in ((2, source_at + len(target)), (0, source_at)):
            to_or_from = layer.at_network(address_at, target)
            number = layer.at_transport(port_at, struct.pack("!H", port))
            known = () if quoted else _not_of_others(match, layer, asks=port_at == 2)
            yield (*number, *to_or_from, *carries, *known, goto(MARK))


def _not_of_others(match: ProbeMatch, layer: _Layer, *, asks: bool) -> Expressions:
    """What a packet to or from the target's port must have if it is the probe's."""
    if match.protocol == "udp":
        ident = struct.pack("!H", match.ident)
        return layer.at_transport(8, MAGIC + ident) if asks else ()
    flags = layer.transport + FLAGS
    if asks:
        return (*_masked(TRANSPORT, flags, bytes([SYN | ACK])), compare(EQUAL, bytes([SYN])))
    return (
        *_masked(TRANSPORT, flags, bytes([ACK])),
        compare(EQUAL, bytes([ACK])),
        *_masked(TRANSPORT, flags, bytes([SYN | RST])),
        compare(NOT_EQUAL, b"\0"),
    )


def _fragments(match: ProbeMatch, layer: _Layer, version: int) -> Iterator[Expressions]:
    """All but the first: their transport header is not there."""
    protocol = _protocol(match, version)
    if version == 4:
        offset, carries = 6, layer.at_network(9, bytes([protocol]))
    else:  # The fragment header follows IPv6's: next header, reserved, offset.
        offset = 42
        carries = (
            *layer.at_network(6, bytes([FRAGMENT])),
            *layer.at_network(40, bytes([protocol])),
        )
    bits = _FRAGMENT_BITS[version]
    later = (
        *_masked(layer.network_base, layer.network + offset, bits),
        compare(NOT_EQUAL, b"\0\0"),
    )
    ethertype = meta_equals(META_PROTOCOL, _ETHERTYPE[version]) if layer.whole else ()
    ends = (ip_address(match.source).packed, ip_address(match.target).packed)
    for one, other in (ends, ends[::-1]):
        between = layer.at_network(SOURCE[version], one + other)
        yield (*ethertype, *later, *carries, *between, goto(MARK))


def _arp(base: int, start: int, neighbors: Sequence[bytes]) -> Iterator[Expressions]:
    """RFC 826, of Ethernet and IPv4: the sender's address is at 14, the target's at 24."""
    for neighbor in neighbors:
        for offset in (14, 24):
            yield (*equals(base, start + offset, neighbor), goto(MARK))


def _ndp(layer: _Layer, neighbors: Sequence[bytes]) -> Iterator[Expressions]:
    """Asked for in the message, or one end of it."""
    is_ndp = (
        *layer.carries(_ICMPV6, 6),
        load(TRANSPORT, layer.transport, 1),
        compare(NOT_LESS, bytes([NDP[0]])),
        compare(NOT_GREATER, bytes([NDP[1]])),
    )
    for neighbor in neighbors:
        source = SOURCE[6]
        for about in (
            layer.at_transport(8, neighbor),
            layer.at_network(source, neighbor),
            layer.at_network(source + len(neighbor), neighbor),
        ):
            yield (*about, *is_ndp, goto(MARK))


def _protocol(match: ProbeMatch, version: int) -> int:
    return {"icmp": ICMP[version], "tcp": TCP, "udp": UDP}[match.protocol]


def _masked(base: int, offset: int, bits: bytes) -> Expressions:
    return load(base, offset, len(bits)), mask(bits)
