"""ICMP echo between many namespaces at once, from one process: who is reached, and how.

What lives here: the packets and who saw them. What does not: what is expected (`looks`).

A raw socket in each namespace gets a copy of every ICMP packet that arrives, of requests too. So
for each request there is what its target saw (the source, the TTL) and what came back.
"""

from __future__ import annotations

import errno
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address

from .places import Place

# linux/in.h, linux/in6.h: never fragment, whatever was learnt of the path
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DO = 10, 23, 2
_ECHO, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence (RFC 792, RFC 4443)
_IP_LENGTH = {4: 20, 6: 40}
#: What the kernel says of a packet that it does not send.
_REFUSALS = {errno.EMSGSIZE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL}


@dataclass
class Echo:
    """One request: what its target saw of it, and what came back.

    `error` is the type and code of an ICMP error, `refused` the errno with which the kernel sent
    nothing at all.
    """

    seen_from: str | None = None
    ttl_there: int | None = None
    ttl_back: int | None = None
    error: tuple[int, int] | None = None
    refused: int | None = None

    @property
    def replied(self) -> bool:
        return self.ttl_back is not None

    @property
    def over(self) -> bool:
        """Whether nothing more is to be waited for."""
        return self.replied or self.error is not None or self.refused is not None


class Echoes:
    """Sockets in all these places, while the block lasts."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._stack = ExitStack()
        self._sequence = 0
        #: The identifier in all of its packets.
        self.identifier = secrets.randbelow(1 << 16)

    def __enter__(self) -> Echoes:
        self._stack.enter_context(self._selector)
        for place in self._places:
            for version in {ip_address(ip).version for ip in place.ips}:
                with place.entered():
                    made = self._stack.enter_context(_raw(version))
                self._sockets[place.name, version] = made
                self._selector.register(made, selectors.EVENT_READ, version)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def ask(
        self,
        pairs: Iterable[tuple[Place, str]],
        *,
        size: int | None = None,
        patience_s: float = 1.0,
    ) -> dict[tuple[str, str], Echo]:
        """One request from each place to each address, all at once, as (name, address) → Echo.

        `size` is the IP packet's, headers included. Returns when nothing more is to come, or after
        `patience_s`.
        """
        asked: dict[int, Echo] = {}
        found = {}
        for place, ip in pairs:
            self._sequence += 1
            echo = found[place.name, ip] = asked[self._sequence] = Echo()
            self._send(place, ip, self._sequence, size, echo)
        deadline = time.monotonic() + patience_s
        # What came first may be read last: the targets' own sightings are waited for too.
        while ready := self._selector.select(self._patience_s(asked.values(), deadline)):
            for key, _ in ready:
                self._hear(key.fileobj, key.data, asked)  # type: ignore[arg-type]
        return found

    @staticmethod
    def _patience_s(asked: Iterable[Echo], deadline: float) -> float:
        over = all(echo.over for echo in asked)
        return 0.0 if over else max(0.0, deadline - time.monotonic())

    def _send(self, place: Place, ip: str, sequence: int, size: int | None, echo: Echo) -> None:
        version = ip_address(ip).version
        padding = bytes(56 if size is None else size - _IP_LENGTH[version] - _HEADER.size)
        packet = _HEADER.pack(_ECHO[version], 0, 0, self.identifier, sequence) + padding
        if version == 4:  # the kernel fills in ICMPv6's alone (RFC 3542, section 3.1)
            checksum = struct.pack("!H", _checksum(packet))
            packet = packet[:2] + checksum + packet[4:]
        try:
            self._sockets[place.name, version].sendto(packet, (ip, 0))
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            echo.refused = error.errno

    def _hear(self, at: socket.socket, version: int, asked: dict[int, Echo]) -> None:
        data, ancillary, _, (source, *_) = at.recvmsg(65536, 256)
        ttl = data[8] if version == 4 else 0
        for _, kind, value in ancillary:
            if kind == socket.IPV6_HOPLIMIT:
                ttl = struct.unpack("@i", value)[0]
        message = data[(data[0] & 15) * 4 :] if version == 4 else data
        kind, code, _, identifier, sequence = _HEADER.unpack_from(message)
        quoted = _HEADER.size + _IP_LENGTH[version]
        is_error = kind < 128 if version == 6 else kind in (3, 11)
        if is_error and len(message) >= quoted + _HEADER.size:
            _, _, _, identifier, sequence = _HEADER.unpack_from(message, quoted)
        if identifier != self.identifier or sequence not in asked:
            return
        echo = asked[sequence]
        if is_error:
            echo.error = (kind, code)
        elif kind == _ECHO[version]:
            echo.seen_from, echo.ttl_there = source, ttl
        elif kind == _REPLY[version]:
            echo.ttl_back = ttl


def _raw(version: int) -> socket.socket:
    if version == 4:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
    else:
        made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1)
    return made


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
