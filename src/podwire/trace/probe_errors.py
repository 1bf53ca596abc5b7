"""Why a probe could not be sent or was turned back: the kernel's error queue, in words.

What lives here: reading a socket's error queue (IP_RECVERR in ip(7), IPV6_RECVERR in ipv6(7);
`struct sock_extended_err` of include/uapi/linux/errqueue.h) and the words for what it says. What
does not: sending, which is `podwire.trace.probe`.

A plain errno tells "no route to host" for a dozen reasons. The queue keeps which ICMP error it
was, who sent it, and the start of the packet that it is about.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

import msgspec

_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_EXTENDED = struct.Struct("=IBBBBII")  # errno, origin, type, code, padding, info, data
_RECVERR_LEVELS = {socket.IPPROTO_IP: 11, socket.IPPROTO_IPV6: 25}

#: ICMP destination unreachable (RFC 792, RFC 1812 section 5.2.7.1) and time exceeded.
_ICMP = {
    (3, 0): "network unreachable",
    (3, 1): "host unreachable",
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 4): "fragmentation needed",
    (3, 9): "network administratively prohibited",
    (3, 10): "host administratively prohibited",
    (3, 13): "administratively prohibited",
    (11, 0): "TTL exceeded in transit",
    (11, 1): "fragments not reassembled in time",
}
#: RFC 4443 section 3.
_ICMP6 = {
    (1, 0): "no route to destination",
    (1, 1): "administratively prohibited",
    (1, 2): "beyond scope of source address",
    (1, 3): "address unreachable",
    (1, 4): "port unreachable",
    (1, 5): "source address failed ingress/egress policy",
    (1, 6): "reject route to destination",
    (2, 0): "packet too big",
    (3, 0): "hop limit exceeded in transit",
    (3, 1): "fragments not reassembled in time",
}

#: What a stack tells itself when it has found no neighbour (net/ipv4/route.c, net/ipv6/route.c).
_NO_NEIGHBOR = {(_ORIGIN_ICMP, 3, 1), (_ORIGIN_ICMP6, 1, 3)}

#: What the sender's own stack means by refusing to send.
_OWN = {
    errno.EPERM: "the sender's own firewall (nft or xtables, hook output or postrouting) drops it",
    errno.ENETUNREACH: "the sender has no route to it",
    errno.EHOSTUNREACH: "the sender's route to it says unreachable",
    errno.EACCES: "the sender's route to it says prohibit, or it is a broadcast address",
    errno.EINVAL: "the sender's route to it says blackhole",
    errno.EADDRNOTAVAIL: "the source address is not the sender's",
    errno.ENETDOWN: "the interface that it leaves through is down",
}


class QueuedError(msgspec.Struct, frozen=True):
    """One entry of the queue. `offender` sent the ICMP error, None where the stack itself refused.

    `info` is the MTU of EMSGSIZE. `quoted` is what is known of the packet, from the ICMP header
    on for a raw socket, from the payload on for UDP; routers may quote as little as 8 bytes.
    """

    errno: int
    origin: int
    type: int
    code: int
    info: int
    offender: str | None
    quoted: bytes

    def text(self, sender: str) -> str:
        """What it says, in words, to who sent the packet from address `sender`."""
        if self.offender is None:
            return own_refusal(self.errno, mtu=self.info)
        if self.offender == sender and (self.origin, self.type, self.code) in _NO_NEIGHBOR:
            return "the next hop does not answer ARP or NDP"
        what = icmp_words(4 if self.origin == _ORIGIN_ICMP else 6, self.type, self.code)
        if self.errno == errno.EMSGSIZE:
            what += f" (MTU {self.info})"
        return f"{what}, says {self.offender}"


def icmp_words(version: int, kind: int, code: int) -> str:
    """What an ICMP error of type `kind` says, by IP version."""
    words = _ICMP if version == 4 else _ICMP6
    return words.get((kind, code), f"ICMP type {kind} code {code}")


def own_refusal(code: int, *, mtu: int = 0) -> str:
    """Why the sender's own stack refused with errno `code`; `mtu` where that is known."""
    if code == errno.EMSGSIZE:
        known = f" of {mtu} bytes" if mtu else ""
        return f"it is longer than the MTU{known} of the interface that it leaves through"
    if code in _OWN:
        return _OWN[code]
    return f"the sender's stack refused: {os.strerror(code)}"


def read_errors(sock: socket.socket) -> list[QueuedError]:
    """Empty the socket's error queue, oldest first, and clear its pending error."""
    found: list[QueuedError] = []
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(
                2048, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
            )
        except OSError:
            break
        found += [
            parse_error(body, data)
            for level, kind, body in ancillary
            if _RECVERR_LEVELS.get(level) == kind and len(body) >= _EXTENDED.size
        ]
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return found


def parse_error(body: bytes, quoted: bytes) -> QueuedError:
    """A control message's `struct sock_extended_err`, which the offender's address follows."""
    code, origin, kind, subcode, _, info, _ = _EXTENDED.unpack_from(body)
    offender = None
    if origin in (_ORIGIN_ICMP, _ORIGIN_ICMP6):
        offender = _address(body[_EXTENDED.size :])
    return QueuedError(code, origin, kind, subcode, info, offender, quoted)


def _address(sockaddr: bytes) -> str | None:
    """The address in a `struct sockaddr_in` or `sockaddr_in6`."""
    family = int.from_bytes(sockaddr[:2], sys.byteorder)
    if family == socket.AF_INET and len(sockaddr) >= 8:
        return socket.inet_ntop(family, sockaddr[4:8])
    if family == socket.AF_INET6 and len(sockaddr) >= 24:
        return socket.inet_ntop(family, sockaddr[8:24])
    return None
