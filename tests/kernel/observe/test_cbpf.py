"""The assembler: labels, long jumps, and that the kernel takes what it makes."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.errors import KernelError
from podwire.kernel.observe import cbpf
from podwire.kernel.observe.cbpf import Assembler, Insn, Label
from tests.kernel.observe.machine import run


def ladder(gaps: list[int]) -> tuple[Insn, ...]:
    """Keeps N + 1 bytes of a packet whose first byte is N; `gaps` instructions apart."""
    asm = Assembler()
    found = [Label(str(number)) for number in range(len(gaps))]
    asm.load(cbpf.BYTE, 0)
    for number, label in enumerate(found):
        asm.jump_if(cbpf.JEQ, number, then=label)
    asm.end(0)
    for number, (label, gap) in enumerate(zip(found, gaps, strict=True)):
        asm.place(label)
        for _ in range(gap):
            asm.load_x(0)
        asm.end(number + 1)
    return asm.assemble()


def test_a_near_jump_is_one_instruction() -> None:
    asm = Assembler()
    yes = Label("yes")
    asm.load(cbpf.HALF, 12)
    asm.jump_if(cbpf.JEQ, 0x0800, then=yes)
    asm.end(0)
    asm.place(yes)
    asm.end(cbpf.ALL)
    assert asm.assemble() == (
        Insn(0x28, 0, 0, 12),
        Insn(0x15, 1, 0, 0x0800),
        Insn(0x06, 0, 0, 0),
        Insn(0x06, 0, 0, 0xFFFFFFFF),
    )
    assert cbpf.pack(asm.assemble())[:8] == bytes.fromhex("2800 00 00 0c000000")


@pytest.mark.parametrize("gap", [253, 254, 255, 256, 3000])
def test_both_sides_of_a_jump_may_be_far(gap: int) -> None:
    asm = Assembler()
    yes, no = Label("yes"), Label("no")
    asm.load(cbpf.BYTE, 0)
    asm.jump_if(cbpf.JGE, 7, then=yes, otherwise=no)
    for _ in range(gap):
        asm.load_x(0)
    asm.place(yes)
    asm.end(1)
    asm.place(no)
    asm.end(2)
    program = asm.assemble()
    assert run(program, b"\7") == 1
    assert run(program, b"\6") == 2
    assert all(insn.jt <= 255 and insn.jf <= 255 for insn in program)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=12))
def test_jumps_of_any_distance_arrive(gaps: list[int]) -> None:
    program = ladder(gaps)
    for number in range(len(gaps)):
        assert run(program, bytes([number])) == number + 1
    assert run(program, bytes([len(gaps)])) == 0


def test_wrong_labels_are_refused() -> None:
    for place_before, place_after, message in (
        (True, False, "a jump back"),
        (False, False, "never placed"),
        (False, True, "behind the last"),
    ):
        asm, label = Assembler(), Label("there")
        if place_before:
            asm.place(label)
        asm.jump(label)
        if place_after:
            asm.place(label)
        with pytest.raises(ValueError, match=message):
            asm.assemble()
    with pytest.raises(ValueError, match="twice"):
        asm.place(label)


def test_a_program_that_is_too_long_is_refused() -> None:
    assert len(ladder([cbpf.MAX_INSTRUCTIONS - 4])) == cbpf.MAX_INSTRUCTIONS
    with pytest.raises(ValueError, match="4097 instructions"):
        ladder([cbpf.MAX_INSTRUCTIONS - 3])


def test_the_kernel_runs_it_as_the_machine_does() -> None:
    program = ladder([0, 300, 0, 700])
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with reader, writer:
        cbpf.attach(reader, program)
        for number in range(6):
            writer.send(bytes([number]) + b"....")
        writer.send(b"\0" * 5)
        for number in range(4):
            assert len(reader.recv(9)) == run(program, bytes([number, 46, 46, 46, 46]))
        assert reader.recv(9) == b"\0"


def test_what_the_kernel_refuses_is_said() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other, pytest.raises(KernelError, match="Invalid argument"):
        cbpf.attach(one, (Insn(0xFFFF, 0, 0, 0),))
