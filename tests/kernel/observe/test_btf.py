"""The reader of the kernel's type information: on types made here, and on the running kernel's."""

from __future__ import annotations

import struct

import pytest

from podwire.errors import UnsupportedError
from podwire.kernel.observe import btf, drop_layout
from podwire.kernel.observe.btf import Btf, Member

INT, PTR, ARRAY, STRUCT, UNION, ENUM = 1, 2, 3, 4, 5, 6
TYPEDEF, CONST, FUNC_PROTO, VAR, DATASEC, ENUM64 = 8, 10, 13, 14, 15, 19


class Types:
    """BTF, written. Types are numbered from 1 on, in order."""

    def __init__(self) -> None:
        self.names = b"\0"
        self.types = b""

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.names += text.encode() + b"\0"
        return len(self.names) - len(text) - 1

    def add(self, kind: int, name: str, size: int, count: int = 0, rest: bytes = b"") -> None:
        info = kind << 24 | count
        self.types += struct.pack("<III", self.name(name), info & 0xFFFFFFFF, size) + rest

    def fields(self, *fields: tuple[str, int, int]) -> bytes:
        return b"".join(struct.pack("<III", self.name(n), kind, bits) for n, kind, bits in fields)

    def bytes(self) -> bytes:
        sizes = (len(self.types), len(self.types), len(self.names))
        return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, *sizes) + self.types + self.names


def written() -> Types:
    types = Types()
    types.add(INT, "int", 4, rest=struct.pack("<I", 32))  # 1
    types.add(STRUCT, "node", 24, 3, types.fields(("key", 1, 0), ("left", 3, 64), ("", 5, 128)))
    types.add(PTR, "", 4)  # 3: const struct node *
    types.add(CONST, "", 2)
    types.add(UNION, "", 8, 2, types.fields(("right", 3, 0), ("", 6, 0)))  # 5
    types.add(STRUCT, "", 8, 2, types.fields(("low", 1, 0), ("high", 1, 32)))
    types.add(STRUCT, "tree", 64, 2, types.fields(("root", 8, 64), ("names", 9, 256)))  # 7
    types.add(TYPEDEF, "node_t", 2)
    types.add(ARRAY, "", 0, rest=struct.pack("<III", 10, 1, 16))  # 9: char[16]
    types.add(INT, "char", 1, rest=struct.pack("<I", 8))
    values = struct.pack("<IiIi", types.name("RED"), 0, types.name("BLUE"), 7)
    types.add(ENUM, "colour", 4, 2, values)  # 11
    arguments = struct.pack("<8I", 0, 13, 0, 3, 0, 11, 0, 1)
    types.add(FUNC_PROTO, "", 0, 4, arguments)  # 12
    types.add(PTR, "", 0)  # 13: void *
    types.add(PTR, "", 12)
    types.add(TYPEDEF, "btf_trace_painted", 14)  # 15
    types.add(VAR, "counter", 1, rest=struct.pack("<I", 1))
    types.add(DATASEC, ".data", 4, 1, struct.pack("<III", 16, 0, 4))
    types.add(ENUM64, "wide", 8, 1, struct.pack("<III", types.name("ALL"), 1, 1))
    packed = types.fields(("flag", 1, 1 << 24 | 3), ("whole", 1, 32))
    types.add(STRUCT | 0x80, "bits", 8, 2, packed)  # 19: its offsets also carry widths
    types.add(TYPEDEF, "btf_trace_odd", 1)
    types.add(TYPEDEF, "broken", 999)
    types.add(STRUCT, "worse", 8, 1, types.fields(("field", 999, 0)))
    return types


@pytest.fixture(scope="module")
def small() -> Btf:
    return Btf(written().bytes())


@pytest.mark.parametrize(
    ("name", "path", "member"),
    [
        ("node", "key", Member(0, 4)),
        ("node", "left", Member(8, 8)),
        ("node", "right", Member(16, 8)),
        ("node", "high", Member(20, 4)),
        ("tree", "root.high", Member(28, 4)),
        ("tree", "names", Member(32, 16)),
        ("bits", "whole", Member(4, 4)),
    ],
)
def test_members_also_through_what_has_no_name(
    small: Btf, name: str, path: str, member: Member
) -> None:
    assert small.member(name, path) == member


def test_enumerators(small: Btf) -> None:
    assert small.enum("colour") == {0: "RED", 7: "BLUE"}


def test_arguments_of_a_tracepoint_but_for_the_tracers_own(small: Btf) -> None:
    assert small.tracepoint("painted") == ("struct node *", "enum colour", "int")


@pytest.mark.parametrize(
    ("name", "path", "text"),
    [
        ("node", "middle", "no node.middle"),
        ("node", "left.key", "no node.left.key"),  # a pointer is not looked through
        ("tree", "root.key.more", "no tree.root.key.more"),
        ("leaf", "key", "no leaf"),
        ("colour", "RED", "no colour"),  # an enum, and not a struct
        ("key", "key", "no key"),  # a member's name, and no type's
        ("bits", "flag", "bits.flag is a bit field"),
        ("worse", "field", "types that it does not have"),
    ],
)
def test_what_is_missing_is_named(small: Btf, name: str, path: str, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        small.member(name, path)


def test_missing_enums_and_tracepoints_are_named(small: Btf) -> None:
    with pytest.raises(UnsupportedError, match="no shade"):
        small.enum("shade")
    with pytest.raises(UnsupportedError, match="no btf_trace_drawn"):
        small.tracepoint("drawn")
    with pytest.raises(UnsupportedError, match="does not describe tracepoint odd"):
        small.tracepoint("odd")


def test_what_is_no_btf_is_refused() -> None:
    good = written().bytes()
    for bad in (b"", good[:20], b"\xeb\x9f" + good[2:], b"\x9f\xeb\x02" + good[3:], good[:-1]):
        with pytest.raises(UnsupportedError):
            Btf(bad)
    unknown = written()
    unknown.add(25, "future", 0)
    with pytest.raises(UnsupportedError, match="kind"):
        Btf(unknown.bytes())
    torn = written()
    torn.types = torn.types[:-4]
    with pytest.raises(UnsupportedError, match="cut short"):
        Btf(torn.bytes())


def test_the_running_kernel_has_what_the_drop_tap_wants() -> None:
    assert btf.PATH.exists(), f"this test needs a kernel with BTF ({btf.PATH})"
    kernel = btf.load()
    assert kernel.member("list_head", "prev") == Member(8, 8)
    assert kernel.member("iphdr", "daddr") == Member(16, 4)
    assert kernel.member("ipv6hdr", "daddr") == Member(24, 16)
    assert kernel.member("net_device", "name").size == 16
    layout = drop_layout.layout(kernel)
    assert layout.reasons[0] == "NOT_DROPPED_YET"
    assert {"NO_SOCKET", "NETFILTER_DROP", "IP_RPFILTER"} < set(layout.reasons.values())
    assert len({layout.skb, layout.location, layout.reason, layout.socket}) == 4
