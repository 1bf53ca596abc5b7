"""Netlink: the message framing, attributes, and a socket that sends many messages at once.

What lives here: bytes on the wire (netlink(7), include/uapi/linux/netlink.h) and the socket.
What does not: what the messages mean, which is in `podwire.kernel.messages`.

A request is sent without NLM_F_ACK except for the last of its batch: the kernel then answers only
what fails, and one acknowledgement tells that the whole batch has been worked through. That is
about ten times cheaper than a round trip a message.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence

import msgspec

from podwire.errors import KernelError
from podwire.kernel import netns

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python's socket module has no name for it
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK, NETLINK_CAP_ACK = 1, 11, 12, 10

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_ATTR = struct.Struct("=HH")
_I32 = struct.Struct("=i")

#: What one sendmsg carries. The kernel works through a batch holding the RTNL lock message by
#: message; larger batches gain nothing and need a larger socket buffer.
BATCH_BYTES = 128 * 1024
RECEIVE_BYTES = 256 * 1024


class Message(msgspec.Struct, frozen=True):
    """One message as received: its type, its flags and what follows the header."""

    type: int
    flags: int
    payload: bytes


class Failure(msgspec.Struct, frozen=True):
    """The kernel's refusal of the message at `index` of a batch. `text` is its own explanation."""

    index: int
    errno: int
    text: str


def attr(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = 4 + len(data)
    return _ATTR.pack(size, kind) + data + b"\0" * (-size & 3)


def nested(kind: int, *attrs: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(kind | NLA_F_NESTED, b"".join(attrs))


def attr_u8(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=B", value))


def attr_u16be(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("!H", value))


def attr_u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=I", value))


def attr_str(kind: int, text: str) -> bytes:
    return attr(kind, text.encode() + b"\0")


def parse_attrs(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attributes by type; of a type that repeats, the last. Malformed trailing bytes end it."""
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + 4 <= end:
        size, kind = _ATTR.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            break
        found[kind & NLA_TYPE_MASK] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def message(kind: int, flags: int, payload: bytes) -> bytes:
    """A request with its sequence number still open (zero); `NetlinkSocket` fills it in."""
    return HEADER.pack(16 + len(payload), kind, flags | NLM_F_REQUEST, 0, 0) + payload


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, payload) of each message in a datagram."""
    offset, end = 0, len(data)
    while offset + 16 <= end:
        size, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if size < 16 or offset + size > end:
            return
        yield kind, flags, sequence, data[offset + 16 : offset + size]
        offset += (size + 3) & ~3


class NetlinkSocket:
    """A netlink socket of the namespace that the calling thread is in when it is made.

    Not for use by two threads at once. `groups` are the multicast groups (RTNLGRP_…, NFNLGRP_…)
    to be notified of; `receive_buffer` is in bytes.
    """

    def __init__(
        self,
        family: int = NETLINK_ROUTE,
        groups: Sequence[int] = (),
        *,
        receive_buffer: int = 4 * 1024 * 1024,
    ) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family
        )
        self._sequence = 0
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        for option in (NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK, NETLINK_CAP_ACK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, messages: Sequence[bytes]) -> list[Failure]:
        """Send messages made by `message()`, in order, and wait until all are worked through.

        Every message is tried, whatever became of those before it.
        """
        failures: list[Failure] = []
        start = 0
        while start < len(messages):
            size, stop = 0, start
            while stop < len(messages) and (stop == start or size < BATCH_BYTES):
                size += len(messages[stop])
                stop += 1
            failures += self._send_batch(messages[start:stop], start)
            start = stop
        return failures

    def _send_batch(self, messages: Sequence[bytes], base: int) -> list[Failure]:
        buffer = bytearray()
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(messages)
        for sequence, one in enumerate(messages, first):
            at = len(buffer)
            buffer += one
            struct.pack_into("=I", buffer, at + 8, sequence)
            if sequence == last:
                flags = struct.unpack_from("=H", buffer, at + 6)[0]
                struct.pack_into("=H", buffer, at + 6, flags | NLM_F_ACK)
        self._socket.send(buffer)
        failures: list[Failure] = []
        while True:
            for kind, flags, sequence, payload in split(self._socket.recv(RECEIVE_BYTES)):
                if kind != NLMSG_ERROR or not first <= sequence <= last:
                    continue
                if (code := -_I32.unpack_from(payload)[0]) != 0:
                    text = _explanation(flags, payload)
                    failures.append(Failure(base + sequence - first, code, text))
                if sequence == last:
                    return failures

    def do(self, *messages: bytes, what: str) -> None:
        """Like `request`, but any refusal raises `KernelError`; `what` says what was attempted."""
        if failures := self.request(messages):
            raise kernel_error(what, failures[0])

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """The payloads of all messages of a dump. A dump that changed meanwhile is repeated."""
        for _ in range(10):
            found, consistent = self._dump_once(kind, payload)
            if consistent:
                return found
        return found  # A table in permanent flux: notifications bring what this reading missed.

    def _dump_once(self, kind: int, payload: bytes) -> tuple[list[bytes], bool]:
        self._sequence += 1
        header = HEADER.pack(16 + len(payload), kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0)
        self._socket.send(header + payload)
        found: list[bytes] = []
        consistent = True
        while True:
            for answer, flags, sequence, body in split(self._socket.recv(RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                if flags & NLM_F_DUMP_INTR:
                    consistent = False
                if answer == NLMSG_DONE:
                    return found, consistent
                if answer == NLMSG_ERROR:
                    failure = Failure(0, -_I32.unpack_from(body)[0], _explanation(flags, body))
                    raise kernel_error("read from the kernel", failure)
                found.append(body)

    def get(self, kind: int, payload: bytes) -> bytes | None:
        """The payload of one answer; None where the kernel knows no such thing."""
        self._sequence += 1
        header = HEADER.pack(16 + len(payload), kind, NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + payload)
        while True:
            for answer, flags, sequence, body in split(self._socket.recv(RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                if answer != NLMSG_ERROR:
                    return body
                failure = Failure(0, -_I32.unpack_from(body)[0], _explanation(flags, body))
                if failure.errno in (19, 2, 3):  # ENODEV, ENOENT, ESRCH
                    return None
                raise kernel_error("read from the kernel", failure)

    def notifications(self) -> list[Message]:
        """What has been notified and not read yet, without waiting.

        Raises OSError with ENOBUFS when notifications were lost: then read everything anew.
        """
        found: list[Message] = []
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found += [Message(kind, flags, body) for kind, flags, _, body in split(data)]


def socket_in(netns_fd: int) -> NetlinkSocket:
    """A netlink socket inside another namespace."""
    with netns.entered(netns_fd):
        return NetlinkSocket()


def kernel_error(what: str, failure: Failure) -> KernelError:
    """The exception for a refusal, with the kernel's own words where it gave any."""
    reason = failure.text or os.strerror(failure.errno)
    return KernelError(f"{what}: {reason}", errno=failure.errno)


def _explanation(flags: int, payload: bytes) -> str:
    """The extended acknowledgement's text: attributes after the error code and message header."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    text = parse_attrs(payload, 4 + HEADER.size).get(NLMSGERR_ATTR_MSG, b"")
    return text.rstrip(b"\0").decode(errors="replace")
