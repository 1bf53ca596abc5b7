"""eBPF: an assembler, from instructions with labels to the bytes that the kernel loads.

What lives here: the instructions that Podwire's programs use, as methods of a `Program` that
appends them. What does not: loading (`bpf`), and what the programs do.

An operand that is a `Reg` is a register, an int is an immediate of 32 bits, sign-extended by the
machine to 64; jumps compare 64 bits, unsigned, where they don't say otherwise. Sizes of loads and
stores are in bytes. Encoding: RFC 9669 ("BPF Instruction Set Architecture"), little-endian.
"""

from __future__ import annotations

import enum
import struct

_INSN = struct.Struct("<BBhi")  # opcode, registers, offset, immediate

# Instruction classes and what completes them (RFC 9669, section 3).
_LD, _LDX, _ST, _STX, _JMP, _JMP32, _ALU64 = 0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07
_IMM, _MEM, _ATOMIC = 0x00, 0x60, 0xC0
_REGISTER = 0x08
_SIZES = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}
_ALU = {"+": 0x00, "-": 0x10, "|": 0x40, "&": 0x50, "<<": 0x60, ">>": 0x70, "=": 0xB0}
_JUMPS = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "<": 0xA0, "<=": 0xB0}
_CALL, _EXIT = 0x80, 0x90
#: In a 64-bit immediate's source register: it is a map's descriptor, or that of one whose
#: values are meant (include/uapi/linux/bpf.h).
_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE = 1, 2


class Reg(enum.IntEnum):
    """R0: what a call returned. R1–R5: arguments, lost in a call. R6–R9: kept. R10: frame."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


Operand = Reg | int


class Program:
    """Instructions so far. A label may be jumped to before and after it is set."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def __len__(self) -> int:
        """In instructions, as the kernel counts them."""
        return len(self._code)

    def alu(self, operation: str, target: Reg, operand: Operand) -> None:
        """`target` (operation)= `operand` in 64 bits: `=`, `+`, `-`, `&`, `|`, `<<`, `>>`."""
        self._operate(_ALU64 | _ALU[operation], target, operand, 0)

    def mov(self, target: Reg, operand: Operand) -> None:
        self.alu("=", target, operand)

    def load64(self, target: Reg, value: int) -> None:
        """An immediate of 64 bits."""
        self._wide(target, 0, value)

    def map(self, target: Reg, fd: int) -> None:
        """The map itself, as helpers take it."""
        self._wide(target, _PSEUDO_MAP_FD, fd)

    def map_value(self, target: Reg, fd: int, offset: int = 0) -> None:
        """The address of an array map's first value, so many bytes into it."""
        self._wide(target, _PSEUDO_MAP_VALUE, fd | offset << 32)

    def load(self, size: int, target: Reg, base: Reg, offset: int) -> None:
        """`target` = the `size` bytes at `base` + `offset`, zero-extended."""
        self._emit(_LDX | _MEM | _SIZES[size], base << 4 | target, offset, 0)

    def store(self, size: int, base: Reg, offset: int, operand: Operand) -> None:
        if isinstance(operand, Reg):
            self._emit(_STX | _MEM | _SIZES[size], operand << 4 | base, offset, 0)
        else:
            self._emit(_ST | _MEM | _SIZES[size], base, offset, operand)

    def add_atomically(self, base: Reg, offset: int, operand: Reg) -> None:
        """The 8 bytes at `base` + `offset` += `operand`, as one step to whoever else does so."""
        self._emit(_STX | _ATOMIC | _SIZES[8], operand << 4 | base, offset, _ALU["+"])

    def jump(self, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._emit(_JMP, 0, 0, 0)

    def jump_if(self, left: Reg, comparison: str, right: Operand, label: str) -> None:
        """Compares unsigned: `==`, `!=`, `>`, `>=`, `<`, `<=`; `&` is "has bits in common"."""
        self._jumps.append((len(self._code), label))
        self._operate(_JMP | _JUMPS[comparison], left, right, 0)

    def jump_if32(self, left: Reg, comparison: str, right: Operand, label: str) -> None:
        """The same of the lower 32 bits only, which an immediate has as they are."""
        self._jumps.append((len(self._code), label))
        self._operate(_JMP32 | _JUMPS[comparison], left, right, 0)

    def label(self, name: str) -> None:
        """Names the next instruction."""
        if name in self._labels:
            raise ValueError(f"label {name} is set twice")
        self._labels[name] = len(self._code)

    def call(self, helper: int) -> None:
        """One of the kernel's helpers by number (enum bpf_func_id)."""
        self._emit(_JMP | _CALL, 0, 0, helper)

    def exit(self) -> None:
        """Ends the program; R0 is its result."""
        self._emit(_JMP | _EXIT, 0, 0, 0)

    def assemble(self) -> bytes:
        """The instructions, jumps resolved. Raises ValueError for a label that nobody set."""
        code = list(self._code)
        for at, label in self._jumps:
            if label not in self._labels:
                raise ValueError(f"label {label} is not set")
            opcode, registers, _, immediate = code[at]
            code[at] = (opcode, registers, self._labels[label] - at - 1, immediate)
        return b"".join(_INSN.pack(*one) for one in code)

    def _operate(self, opcode: int, target: Reg, operand: Operand, offset: int) -> None:
        if isinstance(operand, Reg):
            self._emit(opcode | _REGISTER, operand << 4 | target, offset, 0)
        else:
            self._emit(opcode, target, offset, operand)

    def _wide(self, target: Reg, source: int, value: int) -> None:
        low, high = struct.unpack("<ii", struct.pack("<Q", value))
        self._emit(_LD | _IMM | _SIZES[8], source << 4 | target, 0, low)
        self._emit(0, 0, 0, high)

    def _emit(self, opcode: int, registers: int, offset: int, immediate: int) -> None:
        if not -(1 << 31) <= immediate < 1 << 31:
            raise ValueError(f"{immediate:#x} is no immediate of 32 bits: use load64")
        self._code.append((opcode, registers, offset, immediate))
