"""Packets made and judged the slow, obvious way: what the tunnel's arithmetic is compared with."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from podwire.tunnel.headers import CWR, FIN, PSH, TCP, UDP

SOURCE = {4: bytes([10, 244, 1, 2]), 6: bytes.fromhex("fd0002440001" + "00" * 9 + "02")}
TARGET = {4: bytes([10, 244, 2, 2]), 6: bytes.fromhex("fd0002440002" + "00" * 9 + "02")}


def checksum(data: bytes) -> int:
    """RFC 1071, word by word, in network byte order."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet, by its fields."""

    version: int = 4
    protocol: int = TCP
    payload: bytes = b""
    source: bytes = b""
    target: bytes = b""
    ttl: int = 64
    tos: int = 0
    ident: int = 0
    dont_fragment: bool = True
    sport: int = 40000
    dport: int = 5201
    sequence: int = 0
    ack: int = 0
    flags: int = 0x10
    window: int = 500
    options: bytes = b""

    def data(self) -> bytes:
        return self.with_l4_check(checksum(self.pseudo() + self.l4(0)))

    def with_l4_check(self, check: int) -> bytes:
        """The packet with this in its TCP or UDP checksum."""
        l4 = self.l4(check or (0xFFFF if self.protocol == UDP else 0))
        return self.ip(len(l4)) + l4

    def partial(self) -> bytes:
        """As the kernel hands it over with NEEDS_CSUM: the pseudo header's sum in the field."""
        l4 = self.l4(~checksum(self.pseudo()) & 0xFFFF)
        return self.ip(len(l4)) + l4

    def l4(self, check: int) -> bytes:
        if self.protocol == UDP:
            length = 8 + len(self.payload)
            return struct.pack("!HHHH", self.sport, self.dport, length, check) + self.payload
        words = (5 + len(self.options) // 4) << 4
        head = struct.pack(
            "!HHIIBBHHH",
            self.sport,
            self.dport,
            self.sequence,
            self.ack,
            words,
            self.flags,
            self.window,
            check,
            0,
        )
        return head + self.options + self.payload

    def addresses(self) -> tuple[bytes, bytes]:
        return self.source or SOURCE[self.version], self.target or TARGET[self.version]

    def pseudo(self) -> bytes:
        length = len(self.l4(0))
        return b"".join(self.addresses()) + struct.pack("!IHBB", length, 0, 0, self.protocol)

    def ip(self, length: int) -> bytes:
        if self.version == 6:
            first = 6 << 28 | self.tos << 20 | 0x12345
            head = struct.pack("!IHBB", first, length, self.protocol, self.ttl)
            return head + b"".join(self.addresses())
        fragment = 0x4000 if self.dont_fragment else 0
        fixed = struct.pack(
            "!BBHHHBB", 0x45, self.tos, 20 + length, self.ident, fragment, self.ttl, self.protocol
        )
        check = checksum(fixed + b"\0\0" + b"".join(self.addresses()))
        return fixed + struct.pack("!H", check) + b"".join(self.addresses())

    @property
    def header(self) -> int:
        return len(self.data()) - len(self.payload)

    def segments(self, mss: int) -> list[Packet]:
        """Cut up, by the rules of RFC 9293 and of Linux's own segmentation."""
        parts = [self.payload[at : at + mss] for at in range(0, len(self.payload), mss)]
        found = []
        for number, part in enumerate(parts):
            flags = self.flags
            if number:
                flags &= ~CWR
            if number < len(parts) - 1:
                flags &= ~(FIN | PSH)
            found.append(
                replace(
                    self,
                    payload=part,
                    ident=self.ident if self.dont_fragment else (self.ident + number) % (1 << 16),
                    sequence=(self.sequence + number * mss) % (1 << 32),
                    flags=flags,
                )
            )
        return found


def is_valid(packet: bytes) -> bool:
    """Whether lengths and checksums of a TCP or UDP packet are right."""
    if packet[0] >> 4 == 4:
        header = (packet[0] & 15) * 4
        length, protocol = struct.unpack_from("!H", packet, 2)[0], packet[9]
        if length != len(packet) or checksum(packet[:header]) != 0:
            return False
        addresses = packet[12:20]
    else:
        header, protocol = 40, packet[6]
        if struct.unpack_from("!H", packet, 4)[0] != len(packet) - 40:
            return False
        addresses = packet[8:40]
    l4 = packet[header:]
    if protocol == UDP and struct.unpack_from("!H", l4, 4)[0] != len(l4):
        return False
    return checksum(addresses + struct.pack("!IHBB", len(l4), 0, 0, protocol) + l4) == 0


def packets(min_payload: int = 1, max_payload: int = 400) -> st.SearchStrategy[Packet]:
    """Any packet with data."""
    return st.builds(
        Packet,
        version=st.sampled_from((4, 6)),
        protocol=st.sampled_from((TCP, UDP)),
        payload=st.binary(min_size=min_payload, max_size=max_payload),
        ttl=st.integers(1, 255),
        tos=st.integers(0, 255),
        ident=st.one_of(st.integers(0, 0xFFFF), st.just(0xFFFF)),
        dont_fragment=st.booleans(),
        sport=st.integers(0, 0xFFFF),
        sequence=st.one_of(
            st.integers(0, (1 << 32) - 1), st.integers((1 << 32) - 500, (1 << 32) - 1)
        ),
        ack=st.integers(0, (1 << 32) - 1),
        flags=st.sampled_from((0x10, 0x18, 0x19, 0x90, 0x99, 0x50)),
        options=st.sampled_from(
            (b"", bytes(12), b"\x01\x01\x08\x0a\x00\x00\x00\x01\xff\xff\xff\xff")
        ),
    )
