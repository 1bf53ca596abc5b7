"""The system calls of the data path: UDP with GSO and GRO, reading and writing by address.

What lives here: the underlay's socket, the raw sockets for ICMP errors, and libc's `read` and
`writev` for the TUN device, called by addresses in buffers that NumPy computes in, without an
object for each piece. What does not: what is in the packets.

GSO: one sendmsg of many datagrams of equal size, the last maybe shorter (udp(7), UDP_SEGMENT). GRO:
one recvmsg gives as many as came, and their size in a control message (UDP_GRO).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
import sys

import numpy as np

from podwire.errors import KernelError
from podwire.kernel.netlink import SO_RCVBUFFORCE
from podwire.kernel.observe import cbpf
from podwire.tunnel.table import Line, Peer, Place

# Without letting go of the interpreter's lock: nothing here blocks, and there is one thread.
_libc = ctypes.PyDLL(None, use_errno=True)
read = _libc.read
read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
read.restype = ctypes.c_ssize_t
writev = _libc.writev
writev.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
writev.restype = ctypes.c_ssize_t

_UDP_SEGMENT, _UDP_GRO = 103, 104
_IP_MTU_DISCOVER, _IP_MTU, _IPV6_MTU_DISCOVER, _IPV6_MTU = 10, 14, 23, 24
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_SO_SNDBUFFORCE, _SO_ATTACH_REUSEPORT_CBPF = 32, 51
#: The program that returns 0 for each packet.
_ZERO = (cbpf.Insn(cbpf.RET | cbpf.K, 0, 0, 0),)

_SEGMENT = struct.Struct("=H")
#: Room for one control message of four bytes.
_CONTROL = socket.CMSG_SPACE(4)

#: UDP_MAX_SEGMENTS of kernels before 6.9.
MAX_SEGMENTS = 64
#: Bytes that wait in the kernel either way: about 10 ms at 5 Gbit/s. What comes beyond is lost.
_BUFFER_BYTES = 8 << 20

#: What a connected socket was told of a datagram sent before, once, in place of sending the next.
_OF_BEFORE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO})

#: Where a datagram is received in its buffer: in front there is room for a `virtio_net_hdr`.
START = 64
#: A slot: a batch, and as much again for its last datagram to be made as long as the others.
ROOM = START + 2 * 65536 + 64
#: What is received, and read from the device, before any of it is passed on: it then shares the
#: cost of what is done to all at once, and still fits into a processor's second-level cache.
SLOTS = 4
#: Times that all slots are filled, until the other direction has its turn.
ROUNDS = 2


class Underlay:
    """A UDP socket of one address family, bound to this node's address and the tunnel's port, and
    those that are connected from there, `lines`."""

    def __init__(self, local: str, port: int, *, offloads: bool = True) -> None:
        """Raises KernelError."""
        self.version = 6 if ":" in local else 4
        self._local = (local, port)
        self._socket = self._make()
        try:
            # Those that are yet to be connected get nothing: all goes to the group's first.
            cbpf.attach(self._socket, _ZERO, _SO_ATTACH_REUSEPORT_CBPF)
            self._socket.bind(self._local)
        except KernelError:
            self._socket.close()
            raise
        except OSError as error:
            self._socket.close()
            raise KernelError(
                f"UDP port {port} of {local}: {error.strerror}",
                errno=error.errno or 0,
                remedy="find who has it with: ss -ulpn"
                if error.errno == errno.EADDRINUSE
                else None,
            ) from error
        self.fd = self._socket.fileno()
        self.lines: dict[Place, Line] = {}
        self.gso = offloads and self._takes(_UDP_SEGMENT, 0)
        self.gro = offloads and self._takes(_UDP_GRO, 1)
        #: What was received, in slots.
        self.buffer = np.zeros(SLOTS * ROOM, np.uint8)
        view = self.buffer.data
        self._rooms = [[view[at : at + 65536]] for at in range(START, SLOTS * ROOM, ROOM)]
        #: The first slot's.
        self.room = self._rooms[0][0]
        #: The sender of what was received (see `Peer.place`).
        self.source: Place = ("", 0)
        #: The size of each datagram received but the last, which may be smaller.
        self.segment = 0

    @property
    def descriptors(self) -> list[int]:
        """All that are read."""
        return [self.fd, *(line.fd for line in self.lines.values())]

    def close(self) -> None:
        for line in self.lines.values():
            line.socket.close()
        self._socket.close()

    def clear_error(self) -> None:
        """Read the error that is pending at the socket, which is over with that."""
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def connect(self, place: Place) -> Line:
        """Make a line. Raises KernelError."""
        made = self._make()
        try:
            if self.gro:
                made.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)
            made.bind(self._local)
            made.connect(place)
        except OSError as error:
            made.close()
            raise KernelError(
                f"a socket connected to {place[0]}: {error.strerror}", errno=error.errno or 0
            ) from error
        line = self.lines[place] = Line(made, place)
        return line

    def disconnect(self, line: Line) -> None:
        """Give up a line."""
        del self.lines[line.place]
        line.socket.close()

    def _make(self) -> socket.socket:
        made = socket.socket(
            socket.AF_INET6 if self.version == 6 else socket.AF_INET,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        )
        try:
            for option in (SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
                made.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self.version == 6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._discover(made, _PMTUDISC_DO)
        except OSError as error:
            made.close()
            raise KernelError(
                f"make a UDP socket: {error.strerror}", errno=error.errno or 0
            ) from error
        return made

    def _discover(self, sock: socket.socket, how: int) -> None:
        """Whether datagrams carry DF, so that paths tell their MTU, or are cut up as needed."""
        if self.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, how)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, how)

    def _takes(self, option: int, value: int) -> bool:
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_UDP, option, value)
            return True
        return False

    # Receiving.

    def receive(self, line: Line | None = None, slot: int = 0) -> int:
        """Receive one batch into a slot of `buffer`; its bytes, or -1 where nothing waits.

        Sets `source` and `segment`.
        """
        sock = self._socket if line is None else line.socket
        try:
            size, control, _, source = sock.recvmsg_into(self._rooms[slot], _CONTROL)
        except OSError:
            return -1
        self.source = source[:2]
        self.segment = int.from_bytes(control[0][2], sys.byteorder) if control else size
        return size

    # Sending. Each returns 0, or the error's number.

    def send(self, peer: Peer, datagram: memoryview) -> int:
        """Send one datagram."""
        line = peer.line
        if line is None:
            return self._send_aside(datagram, peer.place)
        try:
            line.send(datagram)
        except OSError as error:
            if error.errno in _OF_BEFORE:
                return self._send_aside(datagram, peer.place)
            return error.errno or errno.EIO
        return 0

    def send_batch(self, peer: Peer, datagrams: memoryview, segment: int) -> int:
        """Send datagrams, one or more, of `segment` bytes each, the last maybe shorter."""
        if len(datagrams) <= segment:
            return self.send(peer, datagrams)
        line = peer.line
        control = (socket.SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(segment))
        if line is None:
            return self._send_aside(datagrams, peer.place, control)
        try:
            line.socket.sendmsg((datagrams,), (control,))
        except OSError as error:
            if error.errno in _OF_BEFORE:
                return self._send_aside(datagrams, peer.place, control)
            return error.errno or errno.EIO
        return 0

    def send_fragmented(self, peer: Peer, datagram: memoryview) -> int:
        """Send one datagram without DF, so that it may be larger than the path's MTU."""
        self._discover(self._socket, _PMTUDISC_DONT)
        try:
            return self._send_aside(datagram, peer.place)
        finally:
            self._discover(self._socket, _PMTUDISC_DO)

    def _send_aside(
        self, datagrams: memoryview, place: Place, *control: tuple[int, int, bytes]
    ) -> int:
        """Send without a line."""
        try:
            self._socket.sendmsg((datagrams,), control, 0, place)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def path_mtu(self, peer: Peer) -> int:
        """The largest UDP payload that the path to a peer is known to take in one packet.

        Raises OSError where there is no path.
        """
        with socket.socket(self._socket.family, socket.SOCK_DGRAM) as probe:
            probe.bind((self._socket.getsockname()[0], 0))
            probe.connect((peer.value.address, peer.value.port))
            if self.version == 6:
                return probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU) - 48
            return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU) - 28


class IcmpSocket:
    """Sends ICMP errors, from the address that the kernel itself would take."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._sockets = {
            4: socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP),
            6: socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6),
        }
        for one in self._sockets.values():
            # Only for sending: of what arrives, of which each raw socket gets a copy, nothing is
            # let in.
            cbpf.attach(one, _ZERO)

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()

    def send(self, target: bytes, message: bytes) -> None:
        """Send to a packed address. An error about an error is nobody's concern."""
        version = 4 if len(target) == 4 else 6
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with contextlib.suppress(OSError):
            self._sockets[version].sendto(message, (socket.inet_ntop(family, target), 0))
