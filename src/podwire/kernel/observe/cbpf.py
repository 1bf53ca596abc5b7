"""Classic BPF: the programs that a socket filter is made of, and an assembler for them.

What lives here: the instruction, an assembler with labels, and how a program is given to a
socket (SO_ATTACH_FILTER and others). What does not: which packets a program lets through.

The machine (Documentation/networking/filter.rst, linux/filter.h) has an accumulator A, an index
register X and sixteen words of memory. It only jumps forward, so a program ends; it ends with the
number of bytes to keep, 0 for none. A load from beyond the packet's end ends it with 0 too, so a
program has to look at what must be there before it looks at what may be.

A conditional jump has 8 bits for each of its two distances. The assembler hides that: where a
target is further away, the jump goes to an unconditional one, which has 32.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from podwire.errors import KernelError

SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python's socket module has no name for it
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS, linux/bpf_common.h

# Instruction classes, sizes, modes and operations (linux/bpf_common.h, linux/filter.h).
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
WORD, HALF, BYTE = 0x00, 0x08, 0x10
IMM, ABS, IND, MEM, LEN, MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR = range(0x00, 0xB0, 0x10)
JA, JEQ, JGT, JGE, JSET = 0x00, 0x10, 0x20, 0x30, 0x40
K, X, A = 0x00, 0x08, 0x10
TAX, TXA = 0x00, 0x80

#: Loads from here on are relative to the network header, whatever the link header is.
SKF_NET_OFF = -0x100000
#: Loads from here on are not of the packet, but of what the kernel knows about it.
SKF_AD_OFF = -0x1000
AD_PROTOCOL = SKF_AD_OFF + 0  # the EtherType, also on devices without link headers
AD_HATYPE = SKF_AD_OFF + 28  # ARPHRD_… of the device

#: What a program returns to keep the whole packet.
ALL = 0xFFFFFFFF

_INSTRUCTION = struct.Struct("=HBBI")
_FPROG = struct.Struct("@HP")
_FARTHEST = 255


class Insn(NamedTuple):
    """One instruction (struct sock_filter). `jt` and `jf` count the instructions to skip."""

    code: int
    jt: int
    jf: int
    k: int


class Label:
    """A place in a program, to be jumped to from before it."""

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Label({self.name!r})"


class _Step(NamedTuple):
    code: int
    k: int
    then: Label | None = None
    otherwise: Label | None = None


class Assembler:
    """Collects instructions; `assemble` makes the program.

    A target of None is the next instruction. A label is placed once, behind every jump to it:
    anything else is a mistake of the caller, and raises ValueError.
    """

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._places: dict[Label, int] = {}

    def place(self, label: Label) -> None:
        """`label` is the next instruction."""
        if label in self._places:
            raise ValueError(f"{label} is placed twice")
        self._places[label] = len(self._steps)

    def load(self, size: int, offset: int, *, indexed: bool = False) -> None:
        """A = the packet's WORD, HALF or BYTE at `offset`; `indexed` adds X to it."""
        self._steps.append(_Step(LD | size | (IND if indexed else ABS), offset))

    def load_x(self, value: int) -> None:
        self._steps.append(_Step(LDX | IMM, value))

    def load_x_memory(self, slot: int) -> None:
        self._steps.append(_Step(LDX | MEM, slot))

    def store_x(self, slot: int) -> None:
        self._steps.append(_Step(STX, slot))

    def compute(self, operation: int, value: int) -> None:
        """A = A `operation` value (ADD, AND, LSH, …)."""
        self._steps.append(_Step(ALU | operation | K, value))

    def compute_x(self, operation: int) -> None:
        """A = A `operation` X."""
        self._steps.append(_Step(ALU | operation | X, 0))

    def a_to_x(self) -> None:
        self._steps.append(_Step(MISC | TAX, 0))

    def x_to_a(self) -> None:
        self._steps.append(_Step(MISC | TXA, 0))

    def jump(self, target: Label) -> None:
        self._steps.append(_Step(JMP | JA, 0, then=target))

    def jump_if(
        self, test: int, value: int, then: Label | None = None, otherwise: Label | None = None
    ) -> None:
        """Go to `then` if A compares so with `value` (JEQ, JGT, JGE unsigned; JSET: any bit)."""
        self._steps.append(_Step(JMP | test | K, value, then, otherwise))

    def end(self, keep_bytes: int) -> None:
        """Keep so much of the packet; 0 lets it not through."""
        self._steps.append(_Step(RET | K, keep_bytes))

    def assemble(self) -> tuple[Insn, ...]:
        """The program. Raises ValueError for a wrong label and for more than 4096 instructions."""
        far: set[tuple[int, int]] = set()  # (step, side) whose target takes a long jump
        while True:
            starts = self._starts(far)
            more = {
                (index, side)
                for index, step in enumerate(self._steps)
                if step.code & 7 == JMP and step.code != JMP | JA
                for side, target in enumerate((step.then, step.otherwise))
                if self._distance(index, target, starts) > _FARTHEST
            }
            if more <= far:
                break
            far |= more
        program = tuple(self._encode(starts, far))
        if len(program) > MAX_INSTRUCTIONS:
            raise ValueError(f"{len(program)} instructions; {MAX_INSTRUCTIONS} are possible")
        return program

    def _starts(self, far: set[tuple[int, int]]) -> list[int]:
        """Where each step begins, and at the end the program's length."""
        starts = [0]
        for index in range(len(self._steps)):
            starts.append(starts[-1] + 1 + ((index, 0) in far) + ((index, 1) in far))
        return starts

    def _distance(self, index: int, target: Label | None, starts: list[int]) -> int:
        """From the instruction after the step's first to the target."""
        if target is None:
            return starts[index + 1] - starts[index] - 1
        place = self._places.get(target)
        if place is None:
            raise ValueError(f"{target} is never placed")
        if place <= index:
            raise ValueError(f"a jump back to {target}")
        if place >= len(self._steps):
            raise ValueError(f"{target} is behind the last instruction")
        return starts[place] - starts[index] - 1

    def _encode(self, starts: list[int], far: set[tuple[int, int]]) -> list[Insn]:
        program: list[Insn] = []
        for index, step in enumerate(self._steps):
            code, k = step.code, step.k & 0xFFFFFFFF
            if code == JMP | JA:
                program.append(Insn(code, 0, 0, self._distance(index, step.then, starts)))
            elif code & 7 == JMP:
                distances: list[int] = []
                long_jumps: list[Insn] = []
                for side, target in enumerate((step.then, step.otherwise)):
                    distance = self._distance(index, target, starts)
                    if (index, side) in far:
                        position = len(long_jumps)
                        long_jumps.append(Insn(JMP | JA, 0, 0, distance - position - 1))
                        distance = position
                    distances.append(distance)
                program.append(Insn(code, distances[0], distances[1], k))
                program += long_jumps
            else:
                program.append(Insn(code, 0, 0, k))
        return program


def pack(program: Sequence[Insn]) -> bytes:
    """The instructions as the kernel takes them: an array of struct sock_filter."""
    return b"".join(_INSTRUCTION.pack(*insn) for insn in program)


def unpack(code: bytes) -> tuple[Insn, ...]:
    """The other way: for programs that others compiled."""
    return tuple(Insn(*fields) for fields in _INSTRUCTION.iter_unpack(code))


def attach(sock: socket.socket, program: Sequence[Insn], option: int = SO_ATTACH_FILTER) -> None:
    """Make `program` the filter of a socket, or what else `option` says. Raises KernelError where
    the kernel refuses it."""
    code = ctypes.create_string_buffer(pack(program))
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, option, _FPROG.pack(len(program), ctypes.addressof(code))
        )
    except OSError as error:
        raise KernelError(
            f"socket filter of {len(program)} instructions: {error.strerror}",
            errno=error.errno or 0,
        ) from error
