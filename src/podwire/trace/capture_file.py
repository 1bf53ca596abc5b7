"""Frames of many places as one pcapng file, in which everything has its name.

What lives here: how interfaces and addresses are called in a capture, and the comments of its
packets. What does not: the file format (`pcapng`), and where frames come from. Sans I/O: bytes
come back, in the order in which they are to be written.

Interfaces are `node1/cni0` and `pod:default/pod1/eth0`. Addresses get names through the format's
name resolution records, and each packet that is from or to a named one gets a comment with both.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping

from podwire import __version__
from podwire.model.probe import IPText
from podwire.trace.decode import USUAL, TunnelPorts, decode
from podwire.trace.evidence import NodeFacts, PodFacts
from podwire.trace.model import Arp, Header, Interface, Ip, Place
from podwire.trace.pcapng import PcapngWriter
from podwire.trace.records import Frame

_ENDED = frozenset({"Succeeded", "Failed"})
#: Characters of an Ethernet address as text; tunnels of other kinds have shorter ones.
_MAC_TEXT = 17
_ETHERNET, _UDP = 1, 17
#: EtherType IPv4, and a header of 20 bytes.
_PLAIN = b"\x08\x00\x45"
#: Of so many pairs of addresses the comments are kept.
_MOST_KNOWN = 10_000
_UNKNOWN = Interface(index=0, name="", kind="device")


def names(
    nodes: Iterable[NodeFacts], pods: Iterable[PodFacts], places: Iterable[Place] = ()
) -> dict[IPText, str]:
    """What addresses are called: `pod:default/pod1`, `node1`.

    `places` name what else a node has (its bridge's address). Of several with one address the
    node wins: pods that use its network say that it is theirs.
    """
    found = {ip: f"pod:{pod.name}" for pod in pods if pod.phase not in _ENDED for ip in pod.ips}
    for place in places:
        if not place.pod:
            found |= {
                address.partition("/")[0]: place.node
                for one in place.interfaces
                if one.kind != "loopback"
                for address in one.addresses
            }
    return found | {ip: node.name for node in nodes for ip in node.ips}


class CaptureFile:
    """One capture. Begin with `head`, end with `tail`; what is there in between is a file too.

    `counts` are the packets of each interface by its name, `lost` those that had no room.
    """

    def __init__(
        self,
        called: Mapping[IPText, str],
        *,
        filter_text: str = "",
        snaplen: int = 0,
        ports: TunnelPorts = USUAL,
    ) -> None:
        self.counts: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self._called = called
        self._filter = filter_text
        self._snaplen = snaplen
        self._ports = ports
        self._writer = PcapngWriter()
        self._numbers: dict[tuple[str, str, int], tuple[int, str]] = {}
        self._known: dict[bytes, tuple[str, ...]] = {}

    def head(self, comment: str = "") -> bytes:
        section = self._writer.section(
            hardware=platform.machine(),
            os=f"{platform.system()} {platform.release()}",
            application=f"podwire {__version__}",
            comment=comment,
        )
        return section + self._writer.names({ip: (name,) for ip, name in self._called.items()})

    def packet(
        self, place: Place, frame: Frame, *, lost: int = 0, comments: Iterable[str] = ()
    ) -> bytes:
        """One frame that was seen at `place`, and its interface if it is the first there.

        `lost` frames of that place got no room before this one. `comments` go before ours.
        """
        block = b""
        key = (place.node, place.pod, frame.ifindex)
        if key not in self._numbers:
            block = self._interface(key, place, frame)
        number, name = self._numbers[key]
        self.counts[name] += 1
        self.lost[name] += lost
        return block + self._writer.packet(
            number,
            frame.time_ns,
            frame.data,
            frame.length,
            outgoing=frame.outgoing,
            comments=(*comments, *self._ends(frame)),
            lost=lost,
        )

    def tail(self, time_ns: int) -> bytes:
        """What each interface had, at the end."""
        return b"".join(
            self._writer.statistics(
                number, time_ns, received=self.counts[name], lost=self.lost[name]
            )
            for number, name in self._numbers.values()
        )

    def _interface(self, key: tuple[str, str, int], place: Place, frame: Frame) -> bytes:
        found = (one for one in place.interfaces if one.index == frame.ifindex)
        # One that has come since the capture began has a number, and its name is not known.
        one = next(found, _UNKNOWN)
        name = f"{place.name}/{one.name or f'if{frame.ifindex}'}"
        number, block = self._writer.interface(
            name,
            frame.link_type,
            description=" ".join((one.kind, *one.addresses)) if one.name else "",
            snaplen=self._snaplen,
            filter_text=self._filter,
            mac=one.mac if len(one.mac) == _MAC_TEXT else "",
            comment=f"on {place.node}" if place.pod else "",
        )
        self._numbers[key] = number, name
        self.counts.setdefault(name, 0)
        self.lost.setdefault(name, 0)
        return block

    def _ends(self, frame: Frame) -> tuple[str, ...]:
        """`pod:default/pod1 → pod:default/pod2`, and which nodes' tunnel it is in."""
        key = self._key(frame)
        if key is None:
            return self._decoded(frame)
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._decoded(frame)
        return self._known[key]

    def _key(self, frame: Frame) -> bytes | None:
        """The addresses of the commonest packets, which are at fixed places: IPv4 without options
        on Ethernet, also in a tunnel. Packets with the same have the same comments, so that few
        are decoded."""
        data = frame.data
        if frame.link_type != _ETHERNET or data[12:15] != _PLAIN or len(data) < 34:
            return None
        is_udp, whole = data[23] == _UDP, not (data[20] & 0x3F or data[21])
        port = int.from_bytes(data[36:38], "big") if is_udp else 0
        if port in self._ports.bare:
            return None
        if port in self._ports.vxlan:
            inner_is_plain = data[62:65] == _PLAIN and len(data) >= 84 and data[73] != _UDP
            return data[26:34] + data[76:84] if whole and inner_is_plain else None
        return data[26:34] if whole or not is_udp else None

    def _decoded(self, frame: Frame) -> tuple[str, ...]:
        packet = decode(frame.data, frame.link_type, frame.length, ports=self._ports)
        comments = [self._between(packet.inner)]
        if packet.encapsulated:
            carried = self._between(packet.headers)
            comments.append(f"in a tunnel: {carried}" if carried else "")
        return tuple(comment for comment in comments if comment)

    def _between(self, headers: Iterable[Header]) -> str:
        """Both ends by name, where at least one has any."""
        for header in headers:
            if isinstance(header, Ip):
                ends = header.source, header.target
            elif isinstance(header, Arp):
                ends = header.source_ip, header.target_ip
            else:
                continue
            if ends[0] in self._called or ends[1] in self._called:
                return " → ".join(self._called.get(ip, ip) for ip in ends)
            return ""
        return ""
