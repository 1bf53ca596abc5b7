"""Frames as they pass the interfaces of a network namespace, in both directions.

What lives here: the packet socket (packet(7)) and the ring that it shares with the kernel
(Documentation/networking/packet_mmap.rst, TPACKET_V2). What does not: which frames are wanted,
which is the filter's business, and what they mean.

    kernel: filter ─▶ slot n ─▶ slot n+1 ─▶ …        a slot is the kernel's or ours, by its status
    us:               read() takes slots in order, copies, gives them back

*Order.* The kernel hands out slots one by one under a lock, so the frames of one tap come in the
order in which they were seen, on whichever processor. That holds where timestamps do not tell:

*Timestamps.* Each sighting gets the time at which it happened, read from the real-time clock,
unless somebody on this machine has asked for software timestamps (SO_TIMESTAMP, SO_TIMESTAMPING:
`ping` and every NTP daemon do). Then the kernel stamps a packet as it enters and keeps that stamp
on its way up: a packet that came in by a veth is seen with the same time again on its bridge,
and one that came in a tunnel with the time of the packet that carried it. A sighting on the way
out, and the first one in the next namespace, has a time of its own always. So times never run
backwards along a packet's way, but may repeat within a namespace.

*Size.* A slot has room for a packet of an MTU of 2048. Larger ones (`snaplen` permitting), as
segmentation offload makes them, are queued on the socket beside (PACKET_COPY_THRESH), and put
together with what the slot says about them. Where the queue is full they are cut to the slot.

`lo` shows each packet twice, on its way out and in. An interface that goes down or away is
simply silent; one that comes is seen from its first frame on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

from podwire.errors import KernelError
from podwire.kernel import netns
from podwire.kernel.netlink import SO_RCVBUFFORCE
from podwire.kernel.observe import cbpf

#: ARPHRD_… (linux/if_arp.h): link types whose frames begin with an Ethernet header, and the one
#: without any link header (TUN).
ETHERNET, LOOPBACK, NO_HEADER = 1, 772, 65534

_SOL_PACKET, _ETH_P_ALL = 263, 3
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_COPY_THRESH, _PACKET_VERSION = 5, 6, 7, 10
_TPACKET_V2 = 1
_PACKET_OUTGOING = 4
_KERNEL = 0  # TP_STATUS_KERNEL: the slot is not ours
_STATUS_COPY, _STATUS_VLAN, _STATUS_VLAN_TPID = 1 << 1, 1 << 4, 1 << 6
_ETH_P_8021Q = 0x8100

#: struct tpacket2_hdr without its status, padded to 32 bytes, and struct sockaddr_ll.
_SLOT = struct.Struct("=4xIIHHIIHH4xHHiHBB")
#: What precedes the network header in a slot: both of the above and room for a link header.
_HEADROOM = 80
_SOCKADDR = struct.Struct("=HHi12x")
_ALIGN = 16
_SLOT_BYTES = 2048
_BLOCK_BYTES = 64 * 1024
_QUEUE_BYTES = 4 * 1024 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class RawFrame(NamedTuple):
    """One sighting. `time_ns` since the epoch, `length` in bytes on the wire (`data` may be less),
    `link_type` the device's ARPHRD_ number; `data` begins with the link header where the device
    has one. A VLAN tag that the device took off is in its place again."""

    ifindex: int
    outgoing: bool
    time_ns: int
    length: int
    link_type: int
    data: bytes


class FrameTap:
    """Sees what `program` lets through on one interface of a namespace, or on all of them.

    `netns_fd` is None for the calling thread's namespace, `ifindex` 0 for all its interfaces,
    also those to come. At most `snaplen` bytes of each frame are kept; `frames` fit into the
    ring (about 2 KiB of kernel memory each), what comes while it is full is counted in `lost`.
    Not for use by two threads at once. Raises KernelError.
    """

    def __init__(
        self,
        netns_fd: int | None,
        program: Sequence[cbpf.Insn],
        *,
        ifindex: int = 0,
        snaplen: int = 2048,
        frames: int = 1024,
    ) -> None:
        self.lost = 0  # cumulative, as of the last `read`
        self._snaplen = snaplen
        self._next = 0
        self._order = threading.Lock()
        self._order.acquire()
        try:
            with contextlib.ExitStack() as opened:
                self._open(opened, netns_fd, program, ifindex, frames)
                self._opened = opened.pop_all()
        except OSError as error:
            raise _refused(error) from error

    def _open(
        self,
        opened: contextlib.ExitStack,
        netns_fd: int | None,
        program: Sequence[cbpf.Insn],
        ifindex: int,
        frames: int,
    ) -> None:
        # A socket of protocol 0 sees nothing, so nothing arrives before the filter is there.
        with netns.entered(netns_fd) if netns_fd is not None else contextlib.nullcontext():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        opened.enter_context(self._socket)
        cbpf.attach(self._socket, program)
        ring_bytes = self._make_ring(frames)
        # The map holds the socket open (mmap duplicates the descriptor), the views hold the map.
        view = memoryview(opened.enter_context(mmap.mmap(self._socket.fileno(), ring_bytes)))
        self._view = opened.enter_context(view)
        self._words = opened.enter_context(view.cast("I"))
        self._bind(ifindex)

    def _make_ring(self, frames: int) -> int:
        """Its size in bytes."""
        slot = min(self._snaplen, _SLOT_BYTES)
        slot = (_HEADROOM + slot + _ALIGN - 1) // _ALIGN * _ALIGN
        per_block = _BLOCK_BYTES // slot
        blocks = -(-frames // per_block)
        option = self._socket.setsockopt
        option(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        if self._snaplen > _SLOT_BYTES:
            option(_SOL_PACKET, _PACKET_COPY_THRESH, 1)
            option(socket.SOL_SOCKET, SO_RCVBUFFORCE, _QUEUE_BYTES)
        ring = struct.pack("@IIII", _BLOCK_BYTES, blocks, slot, blocks * per_block)
        option(_SOL_PACKET, _PACKET_RX_RING, ring)
        self._slots = [
            block * _BLOCK_BYTES + number * slot
            for block in range(blocks)
            for number in range(per_block)
        ]
        return blocks * _BLOCK_BYTES

    def _bind(self, ifindex: int) -> None:
        # Python's own bind takes a name, and knows none for all interfaces.
        address = _SOCKADDR.pack(socket.AF_PACKET, socket.htons(_ETH_P_ALL), ifindex)
        if _libc.bind(self.fileno(), address, len(address)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def __enter__(self) -> FrameTap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back to the kernel. Closing twice is fine."""
        self._opened.close()

    def fileno(self) -> int:
        """Readable when there are frames."""
        return self._socket.fileno()

    def read(self) -> list[RawFrame]:
        """What has been seen since the last time, in order; empty if nothing has. Never waits."""
        # An interface that goes down is reported as the socket's error, which would make it
        # readable for ever. Asking for the error takes it away.
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        words, slots = self._words, self._slots
        first, count = self._next, 0
        while count < len(slots) and words[slots[(first + count) % len(slots)] // 4] != _KERNEL:
            count += 1
        if not count:
            return []
        ours = [slots[number % len(slots)] for number in range(first, first + count)]
        self._fence()
        seen = [self._take(slot) for slot in ours]
        self._fence()
        for slot in ours:
            words[slot // 4] = _KERNEL
        self._next = (first + count) % len(slots)
        # Reading the statistics sets them back (packet(7)).
        counts = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self.lost += struct.unpack("=II", counts)[1]
        return seen

    def _fence(self) -> None:
        # Loads and stores before stay before, those after stay after: releasing a lock and
        # acquiring it again orders both ways, on machines that reorder memory as on those that
        # do not. The kernel writes a slot, then its status; we read and write the other way.
        self._order.release()
        self._order.acquire()

    def _take(self, slot: int) -> RawFrame:
        length, kept, start, _, seconds, nanoseconds, tci, tpid, *link = _SLOT.unpack_from(
            self._view, slot
        )
        _, _, ifindex, link_type, direction, _ = link
        status = self._words[slot // 4]
        data = None
        if status & _STATUS_COPY:
            data = self._queued()
        if data is None:
            begin = slot + start
            data = bytes(self._view[begin : begin + min(kept, self._snaplen)])
        if status & _STATUS_VLAN and len(data) >= 12 and link_type == ETHERNET:
            tag = struct.pack("!HH", tpid if status & _STATUS_VLAN_TPID else _ETH_P_8021Q, tci)
            data = (data[:12] + tag + data[12:])[: self._snaplen]
            length += len(tag)
        return RawFrame(
            ifindex,
            direction == _PACKET_OUTGOING,
            seconds * 1_000_000_000 + nanoseconds,
            length,
            link_type,
            data,
        )

    def _queued(self) -> bytes | None:
        """The whole of a packet that was too large for its slot."""
        while True:
            try:
                return self._socket.recv(self._snaplen, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                # Said once, before what is queued.
                if error.errno != errno.ENETDOWN:
                    raise


def _refused(error: OSError) -> KernelError:
    number = error.errno or 0
    remedy = "run as root, or with CAP_NET_RAW" if number == errno.EPERM else None
    return KernelError(f"packet socket: {os.strerror(number)}", errno=number, remedy=remedy)
