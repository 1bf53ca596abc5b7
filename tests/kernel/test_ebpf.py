"""The assembler against encodings from RFC 9669, written out."""

from __future__ import annotations

import pytest

from podwire.kernel.ebpf import Program, Reg

R0, R1, R2, R10 = Reg.R0, Reg.R1, Reg.R2, Reg.R10


def test_each_instruction() -> None:
    program = Program()
    program.mov(R0, 1)
    program.mov(R1, R10)
    program.alu("+", R1, -8)
    program.alu(">>", R2, 4)
    program.load(8, R2, R1, -16)
    program.load(1, R0, R1, 3)
    program.store(4, R10, -4, R2)
    program.store(2, R10, -2, 7)
    program.load64(R1, 0xFFFFFFFF80000001)
    program.map(R1, 5)
    program.map_value(R2, 6)
    program.map_value(R2, 6, 8)
    program.add_atomically(R1, 16, R2)
    program.call(113)
    program.exit()
    assert program.assemble().hex(" ", 8).split() == [
        "b700000001000000",  # r0 = 1
        "bfa1000000000000",  # r1 = r10
        "07010000f8ffffff",  # r1 += -8
        "7702000004000000",  # r2 >>= 4
        "7912f0ff00000000",  # r2 = *(u64 *)(r1 - 16)
        "7110030000000000",  # r0 = *(u8 *)(r1 + 3)
        "632afcff00000000",  # *(u32 *)(r10 - 4) = r2
        "6a0afeff07000000",  # *(u16 *)(r10 - 2) = 7
        "1801000001000080",  # r1 = 0xffffffff80000001
        "00000000ffffffff",
        "1811000005000000",  # r1 = map 5
        "0000000000000000",
        "1822000006000000",  # r2 = value of map 6
        "0000000000000000",
        "1822000006000000",  # r2 = value of map 6, 8 bytes in
        "0000000008000000",
        "db21100000000000",  # lock *(u64 *)(r1 + 16) += r2
        "8500000071000000",  # call 113
        "9500000000000000",  # exit
    ]


def test_jumps_count_instructions_from_the_next_one() -> None:
    program = Program()
    program.label("again")
    program.jump_if(R1, "==", R2, "end")
    program.load64(R0, 1)  # two instructions long
    program.jump_if(R1, "<", 9, "again")
    program.jump_if32(R1, "==", -1, "again")
    program.jump("end")
    program.label("end")
    program.exit()
    assert len(program) == 7
    assert program.assemble().hex(" ", 8).split() == [
        "1d21050000000000",
        "1800000001000000",
        "0000000000000000",
        "a501fcff09000000",
        "1601fbffffffffff",
        "0500000000000000",
        "9500000000000000",
    ]


def test_labels_are_set_once() -> None:
    program = Program()
    program.jump("nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        program.assemble()
    program.label("here")
    with pytest.raises(ValueError, match="here"):
        program.label("here")


def test_an_immediate_has_32_bits() -> None:
    program = Program()
    program.mov(R0, -(1 << 31))
    with pytest.raises(ValueError, match="load64"):
        program.mov(R0, 1 << 31)
