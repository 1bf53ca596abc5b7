"""What captures at nodes' interfaces saw of echoes between two pods, bare or in a tunnel.

What lives here: finding the pods' packets in frames. What does not: capturing (`capture`), and what
is expected (`looks`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .capture import Capture, Encapsulated, Packet

_ECHO_TYPES = {1: (0, 8), 58: (128, 129)}
_UDP = 17


@dataclass(frozen=True)
class Sighting:
    """A pod's echo packet at a node's interface. `carrier` is "direct", "vxlan" or "udp"; `outer`,
    `port`, `vni` and `macs` (of the carried frame: source, target) are of its tunnel.

    `overhead` is how many bytes the frame on the wire has more than the pod's own."""

    node: str
    carrier: str
    packet: Packet
    overhead: int
    outer: Packet | None = None
    port: int = 0
    vni: int = 0
    macs: tuple[str, str] = ("", "")

    @property
    def identifier(self) -> int:
        return int.from_bytes(self.packet.payload[4:6], "big")


def sightings(captures: Mapping[str, Capture], udp_port: int) -> list[Sighting]:
    """All echoes that were captured since the last call, by node; those in the UDP tunnel are
    looked for in datagrams to `udp_port`."""
    return [
        sighting
        for node, capture in captures.items()
        for frame in capture.frames()
        for sighting in _in_frame(node, frame, udp_port)
    ]


def _in_frame(node: str, frame: bytes, udp_port: int) -> Iterator[Sighting]:
    packet = Packet.of_frame(frame)
    if packet is None:
        return
    if _is_echo(packet):
        yield Sighting(node, "direct", packet, 0)
    if packet.protocol != _UDP:
        return
    _, port = struct.unpack_from("!HH", packet.payload)
    if port == udp_port:
        for carried in _bare(packet.payload[8:]):
            overhead = packet.size - len(packet.payload) + 8
            yield Sighting(node, "udp", carried, overhead, packet, port)
        return
    inside = Encapsulated.of_packet(packet)
    inner = inside.inner if inside is not None else None
    if inside is not None and inner is not None and _is_echo(inner):
        macs = (inside.frame[6:12].hex(":"), inside.frame[:6].hex(":"))
        overhead = packet.size - inner.size
        yield Sighting(node, "vxlan", inner, overhead, packet, port, inside.vni, macs)


def _bare(payload: bytes) -> Iterator[Packet]:
    """The echoes in a datagram, or in several that the kernel has yet to part (UDP GSO)."""
    while (packet := Packet.of_bytes(payload)) is not None:
        if _is_echo(packet):
            yield packet
        payload = payload[packet.size :]


def _is_echo(packet: Packet) -> bool:
    return packet.payload[:1] != b"" and packet.payload[0] in _ECHO_TYPES.get(packet.protocol, ())
