"""A datagram for a group, or for all: who hears it."""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack

from .places import Place

#: Of an organisation (RFC 2365; RFC 4291, section 2.7), and everybody on the link.
GROUP, GROUP6, ALL = "239.10.32.1", "ff05::1032", "255.255.255.255"
_PORT = 10032  # in the pods' own namespaces


def hearers(
    sender: Place, listeners: Sequence[Place], target: str, *, patience_s: float = 10.0
) -> set[str]:
    """Names of the listeners that get a UDP datagram from `sender` to a group or to all.

    It is sent until all have it, or for `patience_s`.
    """
    heard: set[str] = set()
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for place in listeners:
            with place.entered():
                listener = stack.enter_context(_socket(target))
            listener.bind(("::" if ":" in target else "", _PORT))
            selector.register(listener, selectors.EVENT_READ, place.name)
        with sender.entered():
            mouth = stack.enter_context(_socket(target))
        deadline = time.monotonic() + patience_s
        while len(heard) < len(listeners) and time.monotonic() < deadline:
            mouth.sendto(b"hello", (target, _PORT))
            for key, _ in selector.select(0.2):
                key.fileobj.recv(100)  # type: ignore[union-attr]
                heard.add(key.data)
    return heard


def _socket(target: str) -> socket.socket:
    """A member of the group, on `eth0` of the namespace that this thread is in."""
    index = socket.if_nametoindex("eth0")
    if ":" in target:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        member = socket.inet_pton(socket.AF_INET6, target) + struct.pack("@I", index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        return made
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    if target != ALL:
        member = socket.inet_aton(target) + bytes(4) + struct.pack("@i", index)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
    return made
