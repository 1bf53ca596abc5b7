"""The eBPF program that tells which of a probe's packets the kernel drops.

What lives here: the program, assembled for one match and one kernel, and the record that it
writes. What does not: whether a packet is the probe's (`drop_match`), loading the program, and what
becomes of the records.

It runs for each packet that the whole machine drops, in any namespace, so it leaves at the first
sign that a packet is another's. It reads the packet as the kernel has it, from the network header
on: that is the inner packet's until there is an outer one, and again once `vxlan_rcv` has taken
that off. Where none has been set yet (a packet fresh from a driver), the data begin with it.

Nothing is read beyond `tail`: there lie the bytes of packets past. What is not in the packet's
first piece (paged data) is not looked at; headers are there.
"""

from __future__ import annotations

from podwire.kernel.observe.drop_assembly import (
    DATA,
    DATA_BYTES,
    DEVICE,
    DEVICE_NAME,
    IN_ERROR,
    LEVEL,
    LOCATION,
    PACKET,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
    REASON,
    RECORD,
    ROUTE,
    ROUTE_NAME,
    SOCKET,
    SOCKET_NETNS,
    SYMBOL,
    TIME,
)
from podwire.kernel.observe.drop_layout import Layout
from podwire.kernel.observe.drop_match import Match
from podwire.model.probe import ProbeMatch

#: The helpers used need a program that says it is under a licence compatible with the GPL. This
#: is what the assembled program is offered under.
LICENCE = "Dual BSD/GPL"
#: bpf_snprintf's: the name of the function that an address lies in.
SYMBOL_FORMAT = b"%ps\0"

#: Reasons with which a packet is freed that was not dropped, or was but a packet socket's copy
#: (tcpdump's, our own) that its ring had no room for.
NOT_DROPS = frozenset({"NOT_DROPPED_YET", "CONSUMED", "PACKET_SOCK_ERROR"})

# enum bpf_func_id
_KTIME_GET_NS, _RINGBUF_OUTPUT, _SNPRINTF = 5, 130, 165


def assemble(match: ProbeMatch, where: Layout, ring: int, symbol_format: int) -> bytes:
    """The program for `match`; it writes to the ring buffer map `ring`. `symbol_format` is the
    descriptor of a constant map with SYMBOL_FORMAT."""
    return _Writer(match, where).write(ring, symbol_format)


class _Writer(Match):
    """All of it: where the packet is, whose it is, what is told of it."""

    def write(self, ring: int, symbol_format: int) -> bytes:
        self._begin()
        self.judge()
        self._tell(ring, symbol_format)
        self.program.label("out")
        self.program.mov(R0, 0)
        self.program.exit()
        return self.program.assemble()

    def _begin(self) -> None:
        program, where = self.program, self.where
        program.load(8, R2, R1, 8 * where.reason)
        for value, name in where.reasons.items():
            if name in NOT_DROPS:
                program.jump_if(R2, "==", value, "out")
        program.store(4, R10, REASON, R2)
        program.load(8, R6, R1, 8 * where.skb)
        program.store(8, R10, PACKET, R6)
        program.load(8, R2, R1, 8 * where.location)
        program.store(8, R10, LOCATION, R2)
        program.store(8, R10, SOCKET, 0)
        if where.socket is not None:
            program.load(8, R2, R1, 8 * where.socket)
            program.store(8, R10, SOCKET, R2)
        program.store(8, R10, LEVEL, 0)
        program.store(8, R10, IN_ERROR, 0)
        self.follow(R7, R6, where.head)
        self.follow(R9, R6, where.tail, 4)
        program.alu("+", R9, R7)
        self.follow(R8, R6, where.network_header, 2)
        program.jump_if(R8, "==", 0, "no network header")
        program.jump_if(R8, "==", 0xFFFF, "no network header")
        program.alu("+", R7, R8)
        program.jump("placed")
        program.label("no network header")
        self.follow(R7, R6, where.data)
        program.label("placed")
        program.mov(R8, R7)

    def _tell(self, ring: int, symbol_format: int) -> None:
        program, where = self.program, self.where
        program.label("hit")
        for at in range(SOCKET_NETNS + 4, DATA, 8):
            program.store(8, R10, at, 0)
        program.store(4, R10, SOCKET_NETNS, 0)
        program.call(_KTIME_GET_NS)
        program.store(8, R10, TIME, R0)
        self.frame(R1, SYMBOL)
        program.mov(R2, DATA - SYMBOL)
        program.map_value(R3, symbol_format)
        self.frame(R4, LOCATION)
        program.mov(R5, 8)
        program.call(_SNPRINTF)

        program.load(8, R6, R10, PACKET)
        self.follow(R8, R6, where.device)
        self._device(DEVICE, DEVICE_NAME, "device told")
        self.follow(R8, R6, where.route)
        program.alu("&", R8, -2)  # the lowest bit says whether the packet holds a reference
        program.jump_if(R8, "==", 0, "route told")
        self.follow(R8, R8, where.route_device)
        self._device(ROUTE, ROUTE_NAME, "route told")
        self.follow(R8, R6, where.owner)
        program.jump_if(R8, "!=", 0, "owned")
        program.load(8, R8, R10, SOCKET)
        program.jump_if(R8, "==", 0, "socket told")
        program.label("owned")
        self.follow(R8, R8, where.socket_netns)
        self.read(SOCKET_NETNS, 4, R8, where.netns_inode)
        program.label("socket told")

        self.read(DATA, DATA_BYTES, R7)
        program.mov(R3, R9)
        program.alu("-", R3, R7)
        program.jump_if(R3, "<=", DATA_BYTES, "whole")
        program.mov(R3, DATA_BYTES)
        program.label("whole")
        program.alu("+", R3, RECORD.size)
        program.map(R1, ring)
        self.frame(R2, TIME)
        program.mov(R4, 0)
        program.call(_RINGBUF_OUTPUT)

    def _device(self, into: int, name_into: int, done: str) -> None:
        """Tells the device at R8, unless there is none; sets the label `done` after it."""
        where = self.where
        self.program.jump_if(R8, "==", 0, done)
        self.read(into + 4, 4, R8, where.device_index)
        self.read(name_into, 16, R8, where.device_name)
        self.follow(R8, R8, where.device_netns)
        self.read(into, 4, R8, where.netns_inode)
        self.program.label(done)
