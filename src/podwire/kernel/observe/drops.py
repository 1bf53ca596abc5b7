"""DropTap: the kernel's own word for why it dropped a probe's packet, and where.

What lives here: the tap, from the match to `RawDrop`s. What does not: the program in the kernel
(`drop_program`), and what a drop means for the trace.

The kernel also "drops" what nobody misses, and that is left out: the copy that a packet socket
has no room for; the copy that some raw ICMP socket refuses; each echo reply that a raw socket
(our prober's, ping's) has been given, because no ping socket wants it too; and what a socket was
given and had not read when it was closed. What remains may still be harmless: a frame that a
bridge flooded to the wrong port ends there as OTHERHOST, and a probe that nothing listens for ends
as NO_SOCKET, with the answer on its way. The kernel has no reason for some drops (NOT_SPECIFIED):
then `location` is what tells (`neigh_invalidate`: the neighbour did not answer;
`__dev_forward_skb2`: a veth's other end is down or has a smaller MTU).

The kernel names the function itself, so /proc/kallsyms (slow, and often hidden) is not needed.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import NamedTuple

from podwire.kernel import bpf
from podwire.kernel.observe import btf, drop_assembly, drop_layout, drop_program
from podwire.model.probe import ProbeMatch

#: Some 200 drops. The ring is kernel memory, and a probe's drops are few.
_RING_BYTES = 64 * 1024
#: Namespaces are numbered from here on (include/linux/proc_ns.h, rounded down). A packet in a
#: socket's queue has something else where its device was.
_FIRST_INODE = 0xEFFFFF00
_CLOCK_SAMPLES = 5

#: Functions of packet sockets, which only ever free their own copies.
_ONLOOKERS = frozenset({"packet_rcv", "packet_rcv_spkt", "tpacket_rcv", "packet_release"})
#: (function, reason): a raw socket refuses its copy; ICMP has served the raw sockets already; the
#: packet was delivered, and nobody read it.
_COPIES = frozenset(
    {
        ("raw_rcv", "SOCKET_FILTER"),
        ("raw_rcv", "SOCKET_RCVBUFF"),
        ("rawv6_rcv", "SOCKET_FILTER"),
        ("rawv6_rcv", "SOCKET_RCVBUFF"),
        ("ping_rcv", "NO_SOCKET"),
        ("inet_sock_destruct", "QUEUE_PURGE"),
    }
)


class RawDrop(NamedTuple):
    """`netns` is the namespace's inode number, 0 where the packet did not tell; so for `ifindex`
    and `interface`: the device that the packet came from or was to go to, whichever the kernel
    had noted last. `time_ns` is since the epoch. `reason` is the kernel's word (`IP_RPFILTER`),
    `location` the function, empty where the kernel can't tell. `data` begins with the network
    header, at most 192 bytes."""

    netns: int
    ifindex: int
    interface: str
    time_ns: int
    reason: str
    location: str
    data: bytes


class DropTap:
    """Open from when it is made. Raises UnsupportedError saying what this machine lacks, and
    KernelError."""

    def __init__(self, match: ProbeMatch) -> None:
        where = _layout()
        self._reasons = where.reasons
        self._ring = bpf.RingBuffer(bpf.new_ring("podwire_drops", _RING_BYTES), _RING_BYTES)
        try:
            symbol_format = bpf.new_constant("podwire_format", drop_program.SYMBOL_FORMAT)
            try:
                code = drop_program.assemble(match, where, self._ring.fileno(), symbol_format)
                program = bpf.load_raw_tracepoint("podwire_drops", code, drop_program.LICENCE)
            finally:
                os.close(symbol_format)
            try:
                self._attached = bpf.attach_raw_tracepoint(program, drop_layout.TRACEPOINT)
            finally:
                os.close(program)
        except BaseException:
            self._ring.close()
            raise

    def fileno(self) -> int:
        """Readable (poll) while there is something to read."""
        return self._ring.fileno()

    def read(self) -> list[RawDrop]:
        """What was dropped since the last time, in order; does not wait."""
        records = self._ring.read()
        if not records:
            return []
        offset = _epoch_offset_ns()
        drops = (self._drop(record, offset) for record in records)
        return [
            drop
            for drop in drops
            if drop.location not in _ONLOOKERS and (drop.location, drop.reason) not in _COPIES
        ]

    def close(self) -> None:
        """Twice is fine."""
        if self._attached >= 0:
            os.close(self._attached)
            self._attached = -1
        self._ring.close()

    def __enter__(self) -> DropTap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self, record: bytes, offset_ns: int) -> RawDrop:
        (
            time_ns,
            reason,
            socket_netns,
            netns,
            ifindex,
            route_netns,
            route_ifindex,
            name,
            route_name,
            location,
        ) = drop_assembly.RECORD.unpack_from(record)
        if netns < _FIRST_INODE:
            # On its way out, a packet has a socket and a route before it has a device. The route
            # to nowhere belongs to a device of the first namespace, wherever the packet was.
            netns, ifindex, name = socket_netns, 0, b""
            if route_netns >= _FIRST_INODE and netns in (route_netns, 0):
                netns, ifindex, name = route_netns, route_ifindex, route_name
        return RawDrop(
            netns=netns if netns >= _FIRST_INODE else 0,
            ifindex=ifindex,
            interface=_text(name),
            time_ns=time_ns + offset_ns,
            reason=self._reasons.get(reason, f"reason {reason:#x}"),
            # A module's function is followed by its name: `vxlan_xmit [vxlan]`.
            location=_text(location).split(" ")[0],
            data=record[drop_assembly.RECORD.size :],
        )


@cache
def _layout() -> drop_layout.Layout:
    """The running kernel's does not change."""
    return drop_layout.layout(btf.load())


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode(errors="replace")


def _epoch_offset_ns() -> int:
    """What to add to the program's clock (CLOCK_MONOTONIC) for the time since the epoch, from
    the sample that was interrupted least."""
    best = offset = 0
    for sample in range(_CLOCK_SAMPLES):
        before = time.monotonic_ns()
        now = time.time_ns()
        width = time.monotonic_ns() - before
        if sample == 0 or width < best:
            best, offset = width, now - before - width // 2
    return offset
