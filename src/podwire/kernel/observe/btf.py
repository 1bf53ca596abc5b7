"""BTF: where the running kernel keeps a member of a struct, and what its enums and events say.

What lives here: a reader of the type information that the kernel publishes about itself
(/sys/kernel/btf/vmlinux; include/uapi/linux/btf.h), from bytes, without I/O but for `load`. What
does not: which members anybody wants.

The file holds some 130,000 types in 5 MB, and a question concerns a dozen. So types are not
parsed: one pass over their headers notes where each begins (their lengths differ, and they refer
to each other by number), and a name is found by searching bytes: its text among the strings,
then that text's offset among the types. About 50 ms, reading included.

Only what little-endian 64-bit machines have.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

from podwire.errors import UnsupportedError

PATH = Path("/sys/kernel/btf/vmlinux")

_HEADER = struct.Struct("<HBBIIIII")  # struct btf_header
_MAGIC = 0xEB9F

(
    _INT,
    _PTR,
    _ARRAY,
    _STRUCT,
    _UNION,
    _ENUM,
    _FWD,
    _TYPEDEF,
    _VOLATILE,
    _CONST,
    _RESTRICT,
    _FUNC,
    _FUNC_PROTO,
    _VAR,
    _DATASEC,
    _FLOAT,
    _DECL_TAG,
    _TYPE_TAG,
    _ENUM64,
) = range(1, 20)

#: Words after a type's three: so many, and so many for each of its `vlen` members.
_AFTER = {
    _INT: (1, 0),
    _ARRAY: (3, 0),
    _STRUCT: (0, 3),
    _UNION: (0, 3),
    _ENUM: (0, 2),
    _FUNC_PROTO: (0, 2),
    _VAR: (1, 0),
    _DATASEC: (0, 3),
    _DECL_TAG: (1, 0),
    _ENUM64: (0, 3),
}
#: Names for a type, or qualifiers: what they say is said by the type they refer to.
_ALIASES = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_POINTER_BYTES = 8


class Member(NamedTuple):
    """Where in its struct, and how long; both in bytes."""

    offset: int
    size: int


class _Lengths(dict[int, int]):
    """A type's length in words by its `info` word, of which there are few different ones."""

    def __missing__(self, info: int) -> int:
        kind = _kind(info)
        if not 0 < kind <= _ENUM64:
            raise UnsupportedError(f"this kernel's BTF has types of a kind ({kind}) not known here")
        fixed, each = _AFTER.get(kind, (0, 0))
        self[info] = length = 3 + fixed + each * _vlen(info)
        return length


class Btf:
    """The types in one BTF file. Each question raises UnsupportedError naming what is missing."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size or data[:2] != _MAGIC.to_bytes(2, "little"):
            raise UnsupportedError("this kernel's BTF is not of a little-endian machine")
        _, version, _, length, type_at, type_len, name_at, name_len = _HEADER.unpack_from(data)
        type_at, name_at = type_at + length, name_at + length
        if version != 1 or type_len % 4 or max(type_at + type_len, name_at + name_len) > len(data):
            raise UnsupportedError("this kernel's BTF is cut short or of another version")
        self._types = data[type_at : type_at + type_len]
        self._names = data[name_at : name_at + name_len]
        self._words = array("I", self._types)
        self._starts = self._index()

    def member(self, name: str, path: str) -> Member:
        """Of struct `name`; `path` is a member's name, or several (`nd_net.net`) where a member
        is a struct itself. Anonymous structs and unions are looked through, as in C."""
        at: int | None = self._find(name, _STRUCT)
        offset = size = 0
        for part in path.split("."):
            found = None if at is None else self._within(at, part)
            if found is None:
                raise UnsupportedError(f"this kernel's BTF has no {name}.{path}")
            bits, kind = found
            if bits % 8:
                raise UnsupportedError(f"{name}.{path} is a bit field in this kernel")
            offset += bits // 8
            size = self._size(kind)
            at = self._resolve(kind)
        return Member(offset, size)

    def enum(self, name: str) -> dict[int, str]:
        """The enumerators of an enum by their values."""
        at = self._find(name, _ENUM)
        first = at + 3
        words = self._words[first : first + 2 * _vlen(self._words[at + 1])]
        return {words[i + 1]: self._name(words[i]) for i in range(0, len(words), 2)}

    def tracepoint(self, name: str) -> tuple[str, ...]:
        """The types of the arguments that programs on a raw tracepoint get, in C's words
        (`struct sk_buff *`), innermost names only; argument names are not recorded."""
        # typedef void (*btf_trace_<name>)(void *__data, …); the first is the tracer's own
        at = self._resolve(self._words[self._find(f"btf_trace_{name}", _TYPEDEF) + 2])
        if at is None or self._kind(at) != _PTR:
            raise UnsupportedError(f"this kernel's BTF does not describe tracepoint {name}")
        at = self._resolve(self._words[at + 2])
        if at is None or self._kind(at) != _FUNC_PROTO:
            raise UnsupportedError(f"this kernel's BTF does not describe tracepoint {name}")
        count = _vlen(self._words[at + 1])
        return tuple(self._spell(self._words[at + 4 + 2 * i]) for i in range(1, count))

    def _index(self) -> list[int]:
        """Where each type begins, in words; type 1 first."""
        words, lengths = self._words, _Lengths()
        starts: list[int] = []
        note = starts.append
        at, end = 0, len(words)
        try:
            while at < end:
                note(at)
                at += lengths[words[at + 1]]
        except IndexError:
            at = -1
        if at != end:
            raise UnsupportedError("this kernel's BTF is cut short")
        return starts

    def _find(self, name: str, kind: int) -> int:
        """Where the type of that name and kind begins, in words."""
        text = self._names.find(b"\0" + name.encode() + b"\0") + 1
        wanted = text.to_bytes(4, "little")
        at = self._types.find(wanted) if text else -1
        while at >= 0:
            word, odd = divmod(at, 4)
            # The same four bytes are also members' names, sizes and numbers of types.
            if not odd and self._begins(word) and self._kind(word) == kind:
                return word
            at = self._types.find(wanted, at + 1)
        raise UnsupportedError(f"this kernel's BTF has no {name}")

    def _begins(self, word: int) -> bool:
        position = bisect_left(self._starts, word)
        return position < len(self._starts) and self._starts[position] == word

    def _within(self, at: int, name: str) -> tuple[int, int] | None:
        """(offset in bits, type's number) of a member of the struct or union at `at`."""
        words = self._words
        if self._kind(at) not in (_STRUCT, _UNION):
            return None
        packs_bit_fields = words[at + 1] >> 31
        first = at + 3
        for member in range(first, first + 3 * _vlen(words[at + 1]), 3):
            text, kind, bits = words[member : member + 3]
            if packs_bit_fields:
                # The upper eight bits are a bit field's width; such a one is no whole byte's.
                bits = bits & 0xFFFFFF if not bits >> 24 else 1
            if text == 0:
                inner = self._resolve(kind)
                found = None if inner is None else self._within(inner, name)
                if found is not None:
                    return bits + found[0], found[1]
            elif self._name(text) == name:
                return bits, kind
        return None

    def _resolve(self, number: int) -> int | None:
        """Where the type of that number begins, aliases followed; None for `void`."""
        while number:
            if number > len(self._starts):
                raise UnsupportedError("this kernel's BTF refers to types that it does not have")
            at = self._starts[number - 1]
            if self._kind(at) not in _ALIASES:
                return at
            number = self._words[at + 2]
        return None

    def _size(self, number: int) -> int:
        at = self._resolve(number)
        if at is None:
            return 0
        kind = self._kind(at)
        if kind == _PTR:
            return _POINTER_BYTES
        if kind == _ARRAY:
            element, _, count = self._words[at + 3 : at + 6]
            return count * self._size(element)
        return self._words[at + 2]

    def _spell(self, number: int) -> str:
        at = self._resolve(number)
        if at is None:
            return "void"
        kind = self._kind(at)
        if kind == _PTR:
            return f"{self._spell(self._words[at + 2])} *"
        prefix = {_STRUCT: "struct ", _UNION: "union ", _ENUM: "enum "}.get(kind, "")
        return prefix + self._name(self._words[at])

    def _kind(self, at: int) -> int:
        return _kind(self._words[at + 1])

    def _name(self, offset: int) -> str:
        return self._names[offset : self._names.index(b"\0", offset)].decode()


def _kind(info: int) -> int:
    return info >> 24 & 0x1F


def _vlen(info: int) -> int:
    return info & 0xFFFF


def load(path: Path = PATH) -> Btf:
    """The running kernel's: some 15 MB of memory, so keep the answers and not this.

    Raises UnsupportedError where there is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnsupportedError(
            f"this kernel does not describe its types (BTF): {path}: {error.strerror}",
            remedy="use a kernel built with CONFIG_DEBUG_INFO_BTF",
        ) from error
    return Btf(data)
