"""Neighbours asked whether they are there, by ARP and NDP: many by one socket, on one link.

What lives here: the sockets and the bytes. What does not: whom to ask, when, and what follows.

A question goes out by the link and to the MAC that it is given, and its answer comes back by the
same link (RFC 826; RFC 4861, section 7.2.4), whatever routes there are on either side. So an answer
says of this one link that it works both ways. The kernel there answers, no process.

An answer names who is there, and not what it was asked; it is taken to be one to the last question.
When it came is told by the kernel (SO_TIMESTAMPNS), so that whoever reads late still knows how long
it took. A filter in the kernel lets nothing but answers through; of NDP's only those that no router
has passed on (RFC 4861, section 7.1.2).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from podwire.kernel.netlink import SO_RCVBUFFORCE
from podwire.kernel.observe import cbpf

#: linux/if_ether.h
_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD
#: Hardware and protocol with the lengths of their addresses, operation; RFC 826.
_ARP_HEAD = struct.pack("!HHBB", 1, 0x0800, 6, 4)
_ARP_REQUEST, _ARP_REPLY = 1, 2
_ARP_OPERATION, _ARP_SENDER_IP = 6, slice(14, 18)
#: RFC 4861, sections 4.3, 4.4 and 4.6.1.
_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOURCE_MAC_OPTION = bytes([1, 1])
_ADVERTISED = slice(8, 24)
_HOP_LIMIT, _HOP_LIMIT_AT = 255, 7
#: asm-generic/socket.h; Python has no name for it. A timestamp's message has the same number.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("=qq")
_CONTROL = socket.CMSG_SPACE(_TIMESPEC.size)
#: Room for the answers of thousands of peers that come while nobody reads.
_RECEIVE_BUFFER = 4 * 1024 * 1024
_DATAGRAM = 128
_NONBLOCK = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


class Question(NamedTuple):
    """Who is asked, and who asks: addresses of one IP version, packed, and MACs."""

    ip: bytes
    mac: bytes
    own_ip: bytes
    own_mac: bytes


class Answer(NamedTuple):
    """Who answered (packed), the number of the question, and how many seconds after it."""

    ip: bytes
    number: int
    rtt_s: float


class Solicitor:
    """Asks neighbours of one IP version on the link `dev`. Raises OSError where there is none."""

    def __init__(self, version: int, dev: str) -> None:
        self._version, self._dev = version, dev
        self._index = socket.if_nametoindex(dev)
        #: Of each neighbour the last question: its number, and when it was sent.
        self._asked: dict[bytes, tuple[int, int]] = {}
        with contextlib.ExitStack() as stack:
            kind = socket.SOCK_DGRAM | _NONBLOCK
            # Protocol 0 receives nothing, so nothing arrives before the filter is there.
            self._sender = stack.enter_context(socket.socket(socket.AF_PACKET, kind, 0))
            if version == 4:
                self._receiver = self._sender
                self._prepare(_arp_replies())
                self._receiver.bind((dev, _ETH_P_ARP))
            else:
                # A packet socket would look at all of IPv6 that comes by the link.
                raw = socket.SOCK_RAW | _NONBLOCK
                self._receiver = stack.enter_context(
                    socket.socket(socket.AF_INET6, raw, socket.IPPROTO_ICMPV6)
                )
                name = dev.encode() + b"\0"
                self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
                self._prepare(_advertisements())
            self._stack = stack.pop_all()

    def _prepare(self, program: tuple[cbpf.Insn, ...]) -> None:
        cbpf.attach(self._receiver, program)
        self._receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        # Beyond what an ordinary process may have: the agent is root.
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _RECEIVE_BUFFER)

    def close(self) -> None:
        self._stack.close()

    @property
    def is_current(self) -> bool:
        """Whether the link is still the one that it was made for."""
        try:
            return socket.if_nametoindex(self._dev) == self._index
        except OSError:
            return False

    def ask(self, question: Question, number: int) -> None:
        """Send one. Whatever keeps it from being sent is as good as its being lost."""
        self._asked[question.ip] = (number, time.time_ns())
        if self._version == 4:
            protocol, message = _ETH_P_ARP, _arp_request(question)
        else:
            protocol, message = _ETH_P_IPV6, _solicitation(question)
        with contextlib.suppress(OSError):
            self._sender.sendto(message, (self._dev, protocol, 0, 0, question.mac))

    def answers(self) -> Iterator[Answer]:
        """All that have come since this was asked last."""
        # Nothing more has come; or the link is down or gone, which is told once.
        with contextlib.suppress(OSError):
            while True:
                data, control, _, _ = self._receiver.recvmsg(_DATAGRAM, _CONTROL)
                ip = data[_ARP_SENDER_IP if self._version == 4 else _ADVERTISED]
                number, sent_ns = self._asked.get(ip, (0, 0))
                took_ns = _received_ns(control) - sent_ns
                if sent_ns and took_ns >= 0:
                    yield Answer(ip, number, took_ns / 1e9)


def _arp_request(question: Question) -> bytes:
    return b"".join(
        (
            _ARP_HEAD,
            _ARP_REQUEST.to_bytes(2, "big"),
            question.own_mac,
            question.own_ip,
            bytes(6),
            question.ip,
        )
    )


def _solicitation(question: Question) -> bytes:
    """With its IPv6 header."""
    option = _SOURCE_MAC_OPTION + question.own_mac
    blank = bytes([_SOLICITATION]) + bytes(7) + question.ip + option
    ips = question.own_ip + question.ip
    # RFC 8200, section 8.1: the pseudo-header is part of the sum.
    summed = ips + struct.pack("!II", len(blank), socket.IPPROTO_ICMPV6) + blank
    checksum = 0xFFFF - int.from_bytes(summed, "big") % 0xFFFF
    head = struct.pack("!IHBB", 6 << 28, len(blank), socket.IPPROTO_ICMPV6, _HOP_LIMIT)
    return head + ips + blank[:2] + checksum.to_bytes(2, "big") + blank[4:]


def _arp_replies() -> tuple[cbpf.Insn, ...]:
    return _only((cbpf.HALF, cbpf.SKF_NET_OFF + _ARP_OPERATION, _ARP_REPLY))


def _advertisements() -> tuple[cbpf.Insn, ...]:
    return _only(
        (cbpf.BYTE, 0, _ADVERTISEMENT),
        (cbpf.BYTE, cbpf.SKF_NET_OFF + _HOP_LIMIT_AT, _HOP_LIMIT),
    )


def _only(*conditions: tuple[int, int, int]) -> tuple[cbpf.Insn, ...]:
    """Lets through what has these values, each given as size, offset, value."""
    asm, other = cbpf.Assembler(), cbpf.Label("other")
    for size, offset, value in conditions:
        asm.load(size, offset)
        asm.jump_if(cbpf.JEQ, value, otherwise=other)
    asm.end(cbpf.ALL)
    asm.place(other)
    asm.end(0)
    return asm.assemble()


def _received_ns(control: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return time.time_ns()
