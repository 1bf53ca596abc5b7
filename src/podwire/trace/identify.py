"""Whose packet is this: which probe's request or answer, an error about one, or a stranger's?

What lives here: reading a decoded packet's inner headers for what a prober wrote into them. What
does not: where and when it was seen (`order`). Pure.

    icmp   echo with the probe's payload, or its identifier and addresses; number = sequence
    udp    the probe's payload says the number; answers come with it, or to the request's ports
    tcp    a SYN from the prober's port; each connection has a sequence number of its own, and
           probes are numbered in the order in which those were first seen; its answer
           acknowledges that number plus one

An address translator on the way changes addresses, ports and identifiers, but neither payloads
nor TCP's numbers. So one of the two addresses has to be right, and the translated ones are learned
from the requests that were recognised by what a translator leaves alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from podwire.model.probe import MAGIC, ProbeMatch
from podwire.trace.model import Header, Icmp, Ip, Packet, Payload, Tcp, Udp

Role = Literal["request", "reply"]

_REQUESTS, _REPLIES = frozenset({8, 128}), frozenset({0, 129})
_SEQUENCES = 2**32

_Tuple = tuple[str, int, str, int]  # source and its port, target and its port


class Identity(NamedTuple):
    """`number` is None where the packet is a probe's, and can't say which one's.

    `error`: an ICMP error about that packet.
    """

    role: Role
    number: int | None
    error: bool = False


class Identifier:
    """Recognises the packets of one prober. `learn` from every packet seen before asking.

    TCP's probes are numbered in the order in which `learn` meets them.
    """

    def __init__(self, match: ProbeMatch) -> None:
        self._match = match
        self._tuples: set[_Tuple] = set()
        self._numbers: dict[int, int] = {}  # of TCP's first sequence numbers
        if match.port is not None:
            self._tuples.add((match.source, match.ident, match.target, match.port))

    def learn(self, packet: Packet) -> None:
        """Take over what tells later packets: TCP's sequence numbers, translated ports."""
        headers = packet.inner
        ip, upper = _layers(headers)
        if ip is None:
            return
        if isinstance(upper, Tcp) and _is_syn(upper):
            mine = (ip.source, upper.source_port, ip.target, upper.target_port) in self._tuples
            if mine and upper.sequence not in self._numbers:
                self._numbers[upper.sequence] = len(self._numbers) + 1
        elif isinstance(upper, Udp) and self._marked(headers) is not None:
            there = (ip.source, upper.source_port, ip.target, upper.target_port)
            if there[2:] == (self._match.target, self._match.port):
                self._tuples.add(there)

    def identify(self, packet: Packet) -> Identity | None:
        """None for a stranger's packet, and for one that has nothing to tell it by (the later
        fragments of a packet)."""
        _, upper = _layers(packet.inner)
        if isinstance(upper, Icmp) and upper.quoted:
            about = self._of(inner_headers(upper.quoted))
            return about and about._replace(error=True)
        return self._of(packet.inner)

    def _of(self, headers: tuple[Header, ...]) -> Identity | None:
        ip, upper = _layers(headers)
        if ip is None:
            return None
        if isinstance(upper, Icmp) and self._match.protocol == "icmp":
            return self._echo(ip, upper, headers)
        if isinstance(upper, Tcp) and self._match.protocol == "tcp":
            return self._connection(ip, upper)
        if isinstance(upper, Udp) and self._match.protocol == "udp":
            return self._datagram(ip, upper, headers)
        return None

    def _echo(self, ip: Ip, echo: Icmp, headers: tuple[Header, ...]) -> Identity | None:
        role: Role = "request" if echo.type in _REQUESTS else "reply"
        if echo.type not in _REQUESTS | _REPLIES:
            return None
        ours, theirs = self._ends(ip, role)
        if ours and theirs and echo.id == self._match.ident:
            return Identity(role, echo.sequence)
        if (ours or theirs) and self._marked(headers) is not None:
            return Identity(role, echo.sequence)
        return None

    def _connection(self, ip: Ip, tcp: Tcp) -> Identity | None:
        # What an error quotes may end before the flags.
        if (_is_syn(tcp) or not tcp.flags) and any(self._ends(ip, "request")):
            number = self._numbers.get(tcp.sequence)
            if number is not None and tcp.target_port == self._match.port:
                return Identity("request", number)
        answers = "." in tcp.flags and ("S" in tcp.flags or "R" in tcp.flags)
        if answers and tcp.source_port == self._match.port and any(self._ends(ip, "reply")):
            number = self._numbers.get((tcp.acknowledgement - 1) % _SEQUENCES)
            return None if number is None else Identity("reply", number)
        return None

    def _datagram(self, ip: Ip, udp: Udp, headers: tuple[Header, ...]) -> Identity | None:
        number = self._marked(headers)
        there = (ip.source, udp.source_port, ip.target, udp.target_port)
        back = (ip.target, udp.target_port, ip.source, udp.source_port)
        if there in self._tuples:
            return Identity("request", number)
        if back in self._tuples:
            return Identity("reply", number)
        if number is not None and udp.target_port == self._match.port:
            return Identity("request", number) if any(self._ends(ip, "request")) else None
        if number is not None and udp.source_port == self._match.port:
            return Identity("reply", number) if any(self._ends(ip, "reply")) else None
        return None

    def _ends(self, ip: Ip, role: Role) -> tuple[bool, bool]:
        """Whether the source's and the target's address are at the ends where `role` has them."""
        first, last = self._match.source, self._match.target
        if role == "reply":
            return ip.target == first, ip.source == last
        return ip.source == first, ip.target == last

    def _marked(self, headers: tuple[Header, ...]) -> int | None:
        """The number in a probe's payload of this prober."""
        if not headers or not isinstance(headers[-1], Payload):
            return None
        data = bytes.fromhex(headers[-1].data)
        if not data.startswith(MAGIC + self._match.ident.to_bytes(2, "big")) or len(data) < 8:
            return None
        return int.from_bytes(data[6:8], "big")


def inner_headers(headers: tuple[Header, ...]) -> tuple[Header, ...]:
    """What is inside of the last encapsulation."""
    return Packet(0, headers).inner


def inner_ip(packet: Packet) -> Ip | None:
    """The IP header that the packet's two ends see."""
    return next((one for one in packet.inner if isinstance(one, Ip)), None)


def _is_syn(tcp: Tcp) -> bool:
    """Whether it opens a connection; ECN's flags may be set as well."""
    return "S" in tcp.flags and "." not in tcp.flags


def _layers(headers: Iterable[Header]) -> tuple[Ip | None, Header | None]:
    """The IP header and the one after it, which a later fragment does not have."""
    ip: Ip | None = None
    for header in headers:
        if ip is not None:
            return ip, header
        if isinstance(header, Ip):
            ip = header
    return ip, None
