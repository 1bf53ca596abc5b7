"""What the parts of the drop program share: its frame, and how it reads the kernel's memory.

What lives here: where on the frame what is kept, and the few instructions that every part is made
of. What does not: what is read and why (`drop_match`, `drop_program`).
"""

from __future__ import annotations

import struct

from podwire.kernel.ebpf import Program, Reg
from podwire.kernel.observe.drop_layout import Layout

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Reg

DATA_BYTES = 192
#: What the program tells, followed by up to DATA_BYTES of the packet: time, reason, the socket's
#: namespace; namespace and ifindex of the packet's device and of its route's; both devices'
#: names; the function.
RECORD = struct.Struct("<QIIIIII16s16s64s")

# enum bpf_func_id
_PROBE_READ_KERNEL = 113

# The frame, in bytes from R10. The record and the packet's bytes after it lie together.
TIME = -(RECORD.size + DATA_BYTES)
REASON, SOCKET_NETNS = TIME + 8, TIME + 12
DEVICE, ROUTE = TIME + 16, TIME + 24
DEVICE_NAME, ROUTE_NAME, SYMBOL = TIME + 32, TIME + 48, TIME + 64
DATA = TIME + RECORD.size
IP = TIME - 40  # the IP header at the cursor
UPPER = IP - 16  # what comes after it
PACKET = UPPER - 8  # struct sk_buff *
LOCATION = PACKET - 8
SOCKET = LOCATION - 8  # the receiving struct sock *, where the tracepoint tells
LEVEL = SOCKET - 8
IN_ERROR = LEVEL - 8  # whether an ICMP error quotes what is at the cursor
SCRATCH = IN_ERROR - 8


class Assembly:
    """A program in the making, for one kernel.

    Registers throughout: R6 the upper protocol's number, R7 where the packet begins, R8 the cursor,
    R9 where the packet ends.
    """

    def __init__(self, where: Layout) -> None:
        self.program = Program()
        self.where = where

    def within(self, size: int) -> None:
        """Nothing to see here unless the packet has `size` bytes from the cursor on."""
        self.program.mov(R1, R8)
        self.program.alu("+", R1, size)
        self.program.jump_if(R1, ">", R9, "out")

    def follow(self, target: Reg, base: Reg, offset: int, size: int = 8) -> None:
        """`target` = what the kernel has at `base` + `offset`, 0 where that can't be read."""
        self.read(SCRATCH, size, base, offset)
        self.program.load(size, target, R10, SCRATCH)

    def read(self, into: int, size: int, base: Reg, offset: int = 0) -> None:
        """Onto the frame, from the kernel's memory; zeros where it can't be read."""
        self.program.mov(R3, base)
        if offset:
            self.program.alu("+", R3, offset)
        self.frame(R1, into)
        self.program.mov(R2, size)
        self.program.call(_PROBE_READ_KERNEL)

    def frame(self, target: Reg, at: int) -> None:
        self.program.mov(target, R10)
        self.program.alu("+", target, at)
