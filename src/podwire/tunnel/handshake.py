"""The two handshake messages as datagrams, and what bounds the cost of forged ones.

What lives here: layouts, the first and cheapest proof that each carries, and timestamps. What does
not: the cryptographic handshake (`noise`), and what follows from a message (`secure`).

    initiation (132)  1 . . . | sender 4 | Noise's first message 108: a timestamp of 12 | mac 16
    response    (76)  2 . . . | sender 4 | receiver 4 | Noise's second message 48: empty | mac 16

The mac is keyed with the receiver's public key. It proves nothing about the sender but that it has
that key, so what is sent blindly at the port costs one HMAC and no X25519.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from podwire.tunnel.noise import FIRST_OVERHEAD, SECOND_OVERHEAD

INITIATION = 1
RESPONSE = 2

#: Mixed into every handshake, so that ends of different versions refuse each other there.
PROLOGUE = b"podwire tunnel 1"
TIMESTAMP_SIZE = 12

_MAC_SIZE = 16
_INITIATION = struct.Struct("<II")
_RESPONSE = struct.Struct("<III")
INITIATION_SIZE = _INITIATION.size + FIRST_OVERHEAD + TIMESTAMP_SIZE + _MAC_SIZE
RESPONSE_SIZE = _RESPONSE.size + SECOND_OVERHEAD + _MAC_SIZE

_TAI64_EPOCH = (1 << 62) + 10
_NS = 1_000_000_000


def timestamp(wall_ns: int) -> bytes:
    """Time as TAI64N has it, of nanoseconds since 1970; later ones compare as greater."""
    seconds, nanoseconds = divmod(wall_ns, _NS)
    return (_TAI64_EPOCH + seconds).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")


def mac_key(receiver: bytes) -> bytes:
    """The key for macs of messages to the holder of this public key."""
    return hashlib.sha256(b"podwire mac " + receiver).digest()


def initiation(key: bytes, sender: int, noise: bytes) -> bytes:
    """The datagram of a first message; `key` is the receiver's `mac_key`."""
    return _with_mac(key, _INITIATION.pack(INITIATION, sender) + noise)


def response(key: bytes, sender: int, receiver: int, noise: bytes) -> bytes:
    """The datagram of a second message; `key` is the receiver's `mac_key`."""
    return _with_mac(key, _RESPONSE.pack(RESPONSE, sender, receiver) + noise)


def has_mac(key: bytes, datagram: bytes) -> bool:
    """Whether a handshake message is from somebody who knows this end's public key."""
    mac = hmac.digest(key, datagram[:-_MAC_SIZE], "sha256")[:_MAC_SIZE]
    return hmac.compare_digest(mac, datagram[-_MAC_SIZE:])


def parse_initiation(datagram: bytes) -> tuple[int, bytes]:
    """The sender's index and Noise's message, of a datagram of `INITIATION_SIZE`."""
    return _INITIATION.unpack_from(datagram)[1], datagram[_INITIATION.size : -_MAC_SIZE]


def parse_response(datagram: bytes) -> tuple[int, int, bytes]:
    """The sender's index, the receiver's, and Noise's message, of one of `RESPONSE_SIZE`."""
    _, sender, receiver = _RESPONSE.unpack_from(datagram)
    return sender, receiver, datagram[_RESPONSE.size : -_MAC_SIZE]


def _with_mac(key: bytes, message: bytes) -> bytes:
    return message + hmac.digest(key, message, "sha256")[:_MAC_SIZE]
