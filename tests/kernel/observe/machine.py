"""The classic BPF machine in Python, to run filters on packets without a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from podwire.kernel.observe import cbpf
from podwire.kernel.observe.cbpf import Insn

_SIZES = {cbpf.WORD: 4, cbpf.HALF: 2, cbpf.BYTE: 1}


class _OutOfPacketError(Exception):
    pass


def run(
    program: Sequence[Insn],
    packet: bytes,
    *,
    network_offset: int = 0,
    protocol: int = 0,
    hatype: int = 1,
) -> int:
    """What `program` returns for `packet`, whose network header is at `network_offset`.

    Raises AssertionError for what the kernel would refuse: unknown instructions, memory read
    before it is written, running past the end.
    """
    ancillary = {cbpf.AD_PROTOCOL: protocol, cbpf.AD_HATYPE: hatype}

    def load(offset: int, size: int) -> int:
        if offset in ancillary:
            return ancillary[offset]
        start = offset if offset >= 0 else offset - cbpf.SKF_NET_OFF + network_offset
        if start < 0 or start + size > len(packet):
            raise _OutOfPacketError
        return int.from_bytes(packet[start : start + size], "big")

    try:
        return _run(program, load, len(packet))
    except _OutOfPacketError:
        return 0


def _run(program: Sequence[Insn], load: Callable[[int, int], int], length: int) -> int:
    a = x = at = 0
    memory: dict[int, int] = {}
    while True:
        assert at < len(program), "ran past the end"
        code, jt, jf, k = program[at]
        at += 1
        kind = code & 7
        signed = k - (1 << 32) if k & 0x80000000 else k
        if kind in (cbpf.LD, cbpf.LDX):
            mode = code & 0xE0
            if mode == cbpf.IMM:
                value = k
            elif mode == cbpf.MEM:
                value = memory[k]
            elif mode == cbpf.LEN:
                value = length
            elif mode == cbpf.MSH:
                value = 4 * (load(signed, 1) & 15)
            else:
                assert mode in (cbpf.ABS, cbpf.IND)
                value = load(signed + (x if mode == cbpf.IND else 0), _SIZES[code & 0x18])
            if kind == cbpf.LD:
                a = value
            else:
                x = value
        elif kind in (cbpf.ST, cbpf.STX):
            assert k < 16
            memory[k] = a if kind == cbpf.ST else x
        elif kind == cbpf.ALU:
            a = _compute(code & 0xF0, a, x if code & cbpf.X else k)
        elif kind == cbpf.JMP:
            test, other = code & 0xF0, x if code & cbpf.X else k
            if test == cbpf.JA:
                at += k
                continue
            taken = {
                cbpf.JEQ: a == other,
                cbpf.JGT: a > other,
                cbpf.JGE: a >= other,
                cbpf.JSET: bool(a & other),
            }[test]
            at += jt if taken else jf
        elif kind == cbpf.RET:
            return a if code & cbpf.A else k
        elif code & 0x80:
            a = x
        else:
            x = a


def _compute(operation: int, a: int, b: int) -> int:
    results = {
        cbpf.ADD: a + b,
        cbpf.SUB: a - b,
        cbpf.MUL: a * b,
        cbpf.OR: a | b,
        cbpf.AND: a & b,
        cbpf.LSH: a << (b & 31),
        cbpf.RSH: a >> (b & 31),
        cbpf.XOR: a ^ b,
    }
    return results[operation] & 0xFFFFFFFF
