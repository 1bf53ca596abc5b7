"""Frames that cross an interface, and VXLAN in them (RFC 7348), for tests that look at the wire."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from podwire.kernel import netns

_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 3, 0x0800, 0x86DD
_ETHERNET, _UDP, _VXLAN = 14, 8, 8
#: Room for a few thousand frames; by default there is some for 200.
_BUFFER = 16 * 1024 * 1024
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


@dataclass(frozen=True)
class Packet:
    """An IP packet. `size` is its total length, `ttl` in IPv6 the hop limit; `protocol` 1 for ICMP,
    6 TCP, 17 UDP, 58 ICMPv6 (extension headers are not looked behind)."""

    source: str
    target: str
    protocol: int
    ttl: int
    size: int
    payload: bytes

    @classmethod
    def of_frame(cls, frame: bytes) -> Packet | None:
        """The packet in an Ethernet frame, when it is an IP one."""
        if int.from_bytes(frame[12:14], "big") not in (_ETH_P_IP, _ETH_P_IPV6):
            return None
        return cls.of_bytes(frame[_ETHERNET:])

    @classmethod
    def of_bytes(cls, ip: bytes) -> Packet | None:
        """The packet that these bytes begin with."""
        version = ip[0] >> 4 if ip else 0
        if version == 4 and len(ip) >= 20:
            size = int.from_bytes(ip[2:4], "big")
            source, target = (str(ip_address(ip[at : at + 4])) for at in (12, 16))
            return cls(source, target, ip[9], ip[8], size, ip[(ip[0] & 15) * 4 : size])
        if version == 6 and len(ip) >= 40:
            size = 40 + int.from_bytes(ip[4:6], "big")
            source, target = (str(ip_address(ip[at : at + 16])) for at in (8, 24))
            return cls(source, target, ip[6], ip[7], size, ip[40:size])
        return None


@dataclass(frozen=True)
class Encapsulated:
    """A frame in VXLAN: the packet that carries it, its VNI, and the frame itself."""

    outer: Packet
    port: int
    vni: int
    frame: bytes

    @property
    def inner(self) -> Packet | None:
        return Packet.of_frame(self.frame)

    @classmethod
    def of_packet(cls, packet: Packet) -> Encapsulated | None:
        """What a UDP packet carries, when that looks like VXLAN to whichever port."""
        if packet.protocol != 17 or len(packet.payload) < _UDP + _VXLAN + _ETHERNET:
            return None
        _, port, _, _ = struct.unpack("!HHHH", packet.payload[:_UDP])
        flags, vni = packet.payload[8], int.from_bytes(packet.payload[12:15], "big")
        if flags != 0x08:  # only the bit that says that there is a VNI
            return None
        return cls(packet, port, vni, packet.payload[_UDP + _VXLAN :])


class Capture:
    """All frames, in and out, of an interface in a network namespace, while the block lasts."""

    def __init__(self, namespace: Path, interface: str) -> None:
        self._namespace = namespace
        self._interface = interface

    def __enter__(self) -> Capture:
        fd = netns.open_netns(self._namespace)
        try:
            with netns.entered(fd):
                # Without a protocol it hears nothing before it is bound to the one interface.
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        finally:
            os.close(fd)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.bind((self._interface, _ETH_P_ALL))
        self._socket.setblocking(False)
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def frames(self) -> list[bytes]:
        """What has been captured since the last call. What was sent before the call is in it."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(65536))
            except BlockingIOError:
                return found

    def packets(self) -> list[Packet]:
        """The IP packets among `frames`."""
        return [packet for frame in self.frames() if (packet := Packet.of_frame(frame))]
