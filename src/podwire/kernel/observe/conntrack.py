"""How the kernel's connection tracking translates a flow: its addresses before and after.

What lives here: one question to conntrack, as bytes and over a socket
(include/uapi/linux/netfilter/nfnetlink_conntrack.h). What does not: which rule asked for the
translation; the nft tap sees that.

A tracked connection has two tuples: `original`, as its first packet came, and `reply`, as its
answers come. Without a translation each is the other turned around; with one they differ:

    pod 10.244.1.2:40000 → 192.0.2.1:80      original
    192.0.2.1:80 → node 172.18.0.11:51234    reply: the source is translated
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from ipaddress import ip_address

import msgspec

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import netns
from podwire.kernel.netlink import (
    NETLINK_NETFILTER,
    NetlinkSocket,
    attr,
    attr_u8,
    attr_u16be,
    nested,
    parse_attrs,
)
from podwire.model.probe import IPText, Protocol

_CT_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _MARK = 1, 2, 3, 8  # CTA_…
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {4: 1, 6: 3}  # the target's follows
_PROTO_NUMBER, _SOURCE_PORT, _TARGET_PORT = 1, 2, 3
_ICMP_ID = {4: 4, 6: 7}  # type and code follow
_NUMBERS: dict[Protocol, dict[int, int]] = {
    "icmp": {4: 1, 6: 58},
    "tcp": {4: 6, 6: 6},
    "udp": {4: 17, 6: 17},
}
_ECHO_REQUEST, _ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_STATUS_SEEN_REPLY = 1 << 1  # linux/netfilter/nf_conntrack_common.h

_GENERIC = struct.Struct("!BBH")  # struct nfgenmsg: family, version, resource


class Tuple(msgspec.Struct, frozen=True):
    """One way of a flow. The ports of an echo: its identifier for who asks, 0 for who answers."""

    source: IPText
    source_port: int
    target: IPText
    target_port: int


class Flow(msgspec.Struct, frozen=True):
    """A tracked connection. `answered`: a packet of the reply has been seen."""

    original: Tuple
    reply: Tuple
    answered: bool = False
    mark: int = 0

    @property
    def new_source(self) -> tuple[IPText, int] | None:
        """Address and port (or identifier) that its source is translated to; None if not."""
        now = self.reply.target, self.reply.target_port
        return None if now == (self.original.source, self.original.source_port) else now

    @property
    def new_target(self) -> tuple[IPText, int] | None:
        """Address and port that its target is translated to; None if not."""
        now = self.reply.source, self.reply.source_port
        return None if now == (self.original.target, self.original.target_port) else now


def open_conntrack(netns_fd: int | None) -> NetlinkSocket:
    """A socket to ask with, in a namespace (None: the thread's own). Raises KernelError."""
    try:
        with netns.entered(netns_fd) if netns_fd is not None else contextlib.nullcontext():
            return NetlinkSocket(NETLINK_NETFILTER)
    except OSError as error:
        raise KernelError(f"conntrack: {error.strerror}", errno=error.errno or 0) from error


def lookup(
    sock: NetlinkSocket,
    protocol: Protocol,
    source: IPText,
    target: IPText,
    *,
    ident: int,
    port: int | None = None,
    reply: bool = False,
) -> Flow | None:
    """The tracked connection that a packet belongs to; None where it is not tracked.

    The packet is from `source` to `target` as it looks where it comes in, before a translation:
    TCP or UDP from port `ident` to `port`, or an ICMP echo with identifier `ident`. With `reply`
    it is the answer, which comes from `target` and `port`. Raises KernelError, UnsupportedError.
    """
    try:
        answer = sock.get(_CT_GET, request(protocol, source, target, ident, port, reply=reply))
    except KernelError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            raise UnsupportedError(
                "this kernel does not tell of translated connections",
                remedy="load nf_conntrack_netlink",
            ) from error
        raise
    return parse(answer) if answer is not None else None


def request(
    protocol: Protocol,
    source: IPText,
    target: IPText,
    ident: int,
    port: int | None,
    *,
    reply: bool = False,
) -> bytes:
    """The payload of the question; see `lookup`."""
    one, other = ip_address(source), ip_address(target)
    version = one.version
    ports = ident, port or 0
    if reply:
        one, other, ports = other, one, ports[::-1]
    first = _IP_SOURCE[version]
    number = attr_u8(_PROTO_NUMBER, _NUMBERS[protocol][version])
    if protocol == "icmp":
        at = _ICMP_ID[version]
        kind = (_ECHO_REPLY if reply else _ECHO_REQUEST)[version]
        upper = attr_u16be(at, ident) + attr_u8(at + 1, kind) + attr_u8(at + 2, 0)
    else:
        upper = attr_u16be(_SOURCE_PORT, ports[0]) + attr_u16be(_TARGET_PORT, ports[1])
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return _GENERIC.pack(family, 0, 0) + nested(
        _TUPLE_ORIGINAL,
        nested(_TUPLE_IP, attr(first, one.packed), attr(first + 1, other.packed)),
        nested(_TUPLE_PROTO, number, upper),
    )


def parse(payload: bytes) -> Flow | None:
    """The connection in an answer; None where it lacks what a connection has."""
    attrs = parse_attrs(payload, _GENERIC.size)
    original = _parse_tuple(attrs.get(_TUPLE_ORIGINAL, b""), asked_by=0)
    reply = _parse_tuple(attrs.get(_TUPLE_REPLY, b""), asked_by=1)
    if original is None or reply is None:
        return None
    status = int.from_bytes(attrs.get(_STATUS, b""), "big")
    mark = int.from_bytes(attrs.get(_MARK, b""), "big")
    return Flow(original, reply, bool(status & _STATUS_SEEN_REPLY), mark)


def _parse_tuple(data: bytes, *, asked_by: int) -> Tuple | None:
    """`asked_by` is the end that asks: 0 the source, 1 the target."""
    attrs = parse_attrs(data)
    ips = parse_attrs(attrs.get(_TUPLE_IP, b""))
    upper = parse_attrs(attrs.get(_TUPLE_PROTO, b""))
    version = 6 if _IP_SOURCE[6] in ips else 4
    first = _IP_SOURCE[version]
    source, target = ips.get(first, b""), ips.get(first + 1, b"")
    if not len(source) == len(target) == (4 if version == 4 else 16):
        return None
    ports = [int.from_bytes(upper.get(end, b""), "big") for end in (_SOURCE_PORT, _TARGET_PORT)]
    if (ident := upper.get(_ICMP_ID[version])) is not None:
        ports[asked_by] = int.from_bytes(ident, "big")
    return Tuple(str(ip_address(source)), ports[0], str(ip_address(target)), ports[1])
