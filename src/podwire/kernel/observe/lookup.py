"""What would the kernel do with this packet? Its own answers, asked for over rtnetlink.

What lives here: one function a question, each a round trip or two on a socket of the namespace in
question (some 30 µs). IPv4 and IPv6 are one code path. What does not: what to conclude from the
answers, which is `podwire.trace`'s business.

Nothing is kept: an answer holds for the moment in which it is given.
"""

from __future__ import annotations

import fcntl
import os
import socket
from ipaddress import ip_address

import msgspec

from podwire.errors import KernelError
from podwire.kernel import messages, netns, sysctl
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe import lookup_messages as codec
from podwire.kernel.observe.lookup_messages import (
    FibEntry,
    NeighborAnswer,
    NetConf,
    RouteAnswer,
    RouteQuestion,
)

_ALL = -1
_SIOCGSKNS = 0x894C  # linux/sockios.h: a descriptor of the namespace that a socket is in
_ENODEV = 19
_NOWHERE = bytes(6)


def route(sock: NetlinkSocket, question: RouteQuestion) -> RouteAnswer:
    """Where the packet goes from here, and by which entry of which table.

    A refusal is an answer too: its `errno` is ENETUNREACH or EHOSTUNREACH without a way, EINVAL
    for a blackhole, EACCES for `prohibit`; for a packet that came in by an interface, EXDEV where
    the reverse-path filter objects (EINVAL since Linux 6.13, for that and anything else), and
    EHOSTUNREACH where that interface does not forward.
    """
    body, errno = _ask(sock, messages.RTM_GETROUTE, codec.get_route(question, fib_match=False))
    answer = RouteAnswer(errno=errno) if body is None else codec.parse_route_answer(body)
    return msgspec.structs.replace(answer, match=fib_entry(sock, question))


def fib_entry(sock: NetlinkSocket, question: RouteQuestion) -> FibEntry | None:
    """The entry that matches, None where none does (or where the input is refused before)."""
    body, _ = _ask(sock, messages.RTM_GETROUTE, codec.get_route(question, fib_match=True))
    return codec.parse_fib_entry(body) if body is not None else None


def refusing_entry(sock: NetlinkSocket, dst: bytes) -> FibEntry | None:
    """The blackhole, unreachable or prohibit entry that a packed address runs into.

    The kernel names none in its answer, so those entries are dumped: ask only after a refusal.
    """
    family = socket.AF_INET if len(dst) == 4 else socket.AF_INET6
    address = ip_address(dst)
    found = [
        entry
        for kind in sorted(codec.REFUSING)
        for body in sock.dump(messages.RTM_GETROUTE, codec.get_routes_of_type(family, kind))
        if address in (entry := codec.parse_fib_entry(body)).dst and entry.kind == kind
    ]
    return max(found, key=lambda one: (one.dst.prefixlen, -one.metric), default=None)


def neighbor(sock: NetlinkSocket, ifindex: int, ip: bytes) -> NeighborAnswer | None:
    """The ARP or NDP entry of a packed address; None where the kernel has not asked yet."""
    body, _ = _ask(sock, messages.RTM_GETNEIGH, codec.get_neighbor(ifindex, ip))
    return codec.parse_neighbor_answer(body) if body is not None else None


def tunnel_end(sock: NetlinkSocket, ifindex: int, mac: bytes) -> bytes | None:
    """Where a VXLAN device sends frames for a MAC: packed, the entry's or the default remote's.

    None where it has neither: such a frame is dropped. Of several remotes the first.
    """
    for one in (mac, _NOWHERE):
        body, _ = _ask(sock, messages.RTM_GETNEIGH, codec.get_tunnel_fdb(ifindex, one))
        if body is not None:
            dst = messages.parse_neighbor(body)[3]
            if dst and any(dst):
                return dst
    return None


def bridge_port(sock: NetlinkSocket, bridge: int, mac: bytes) -> int | None:
    """The port that a bridge has a MAC at, by index; None for one that it doesn't know and floods.

    The bridge's own index says that the frame goes up to the bridge itself, which has its own MAC
    and those of its ports as permanent entries.
    """
    body, _ = _ask(sock, messages.RTM_GETNEIGH, codec.get_bridge_fdb(bridge, mac))
    if body is None:
        return None
    _, port, state, _, _ = messages.parse_neighbor(body)
    return bridge if state & codec.NUD_PERMANENT else port


def settings(sock: NetlinkSocket, version: int, ifindex: int) -> NetConf | None:
    """`net.ipv4.conf` (or ipv6) of an interface; None where it has none."""
    return _netconf(sock, version, ifindex)


def general_settings(sock: NetlinkSocket, version: int) -> NetConf:
    """`net.ipv4.conf.all` (or ipv6), whose `forwarding` is `ip_forward`."""
    return _netconf(sock, version, _ALL) or NetConf(False, 0)


def sysctl_value(sock: NetlinkSocket, key: str) -> str | None:
    """A key below /proc/sys in the socket's namespace, which the calling thread enters for it."""
    fd = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
    try:
        with netns.entered(fd):
            return sysctl.read(key)
    finally:
        os.close(fd)


def _netconf(sock: NetlinkSocket, version: int, ifindex: int) -> NetConf | None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    body, _ = _ask(sock, codec.RTM_GETNETCONF, codec.get_netconf(family, ifindex))
    return codec.parse_netconf(body) if body is not None else None


def _ask(sock: NetlinkSocket, kind: int, payload: bytes) -> tuple[bytes | None, int]:
    """The answer and 0, or None and the errno of the refusal."""
    try:
        body = sock.get(kind, payload)
    except KernelError as error:
        return None, error.errno
    return (body, 0) if body is not None else (None, _ENODEV)
