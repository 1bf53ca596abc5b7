"""ICMP echo to many peers by one socket, through one device.

What lives here: the socket and the bytes. What does not: whom to ask, when, and what follows.

A raw socket that is bound to the device, so that neither a route that points elsewhere nor one
that is missing makes an answer that came another way. A filter in the kernel lets only answers to
this socket's own requests through. When an answer came is told by the kernel (SO_TIMESTAMPNS),
so that whoever reads late still knows how long it took.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from podwire.kernel.observe import cbpf
from podwire.trace.probe_message import ECHO, ECHO_REQUEST, checksum, reply_filter

#: What is asked with: the header, and when it was sent, in nanoseconds since the epoch.
_SENT = struct.Struct("!Q")
_TIMESPEC = struct.Struct("=qq")
#: asm-generic/socket.h; Python has no names for them. A timestamp's message has the same number.
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
#: Room for the answers of thousands of peers that come while nobody reads.
_RECEIVE_BUFFER = 4 * 1024 * 1024
_DATAGRAM = 128
_CONTROL = socket.CMSG_SPACE(_TIMESPEC.size)
#: The device is gone, or another one of that name is there.
_DEVICE_GONE = (errno.ENODEV, errno.ENXIO)

_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}


class Answer(NamedTuple):
    """Who answered which request, and how many seconds after it was sent."""

    source: str
    number: int
    rtt_s: float


class Echo:
    """Asks through `dev`. Raises OSError where there is no such device."""

    def __init__(self, version: int, dev: str) -> None:
        self._version = version
        self._ident = secrets.randbelow(0xFFFF) + 1
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(_DOMAIN[version], kind, _PROTOCOL[version])
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dev.encode() + b"\0")
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            # Beyond what an ordinary process may have: the agent is root.
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            cbpf.attach(self._socket, reply_filter(version, self._ident))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def ask(self, target: str, number: int) -> bool:
        """Send one request. False where the device is gone, so that nothing can be sent any more;
        whatever else keeps it from being sent is as good as a lost one."""
        body = _SENT.pack(time.time_ns())
        blank = ECHO.pack(ECHO_REQUEST[self._version], 0, 0, self._ident, number) + body
        # The kernel computes ICMPv6's checksum over whatever is there.
        message = blank[:2] + checksum(blank).to_bytes(2, "big") + blank[4:]
        try:
            self._socket.sendto(message, (target, 0))
        except OSError as error:
            return error.errno not in _DEVICE_GONE
        return True

    def answers(self) -> Iterator[Answer]:
        """All that have come since this was asked last."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, control, _, source = self._socket.recvmsg(_DATAGRAM, _CONTROL)
                # Raw sockets receive IPv4's header too, but not IPv6's.
                at = (data[0] & 0x0F) * 4 if self._version == 4 and data else 0
                if len(data) < at + ECHO.size + _SENT.size:
                    continue
                number = ECHO.unpack_from(data, at)[4]
                (sent_ns,) = _SENT.unpack_from(data, at + ECHO.size)
                rtt_s = max(_received_ns(control) - sent_ns, 0) / 1e9
                yield Answer(source[0], number, rtt_s)


def _received_ns(control: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return time.time_ns()
