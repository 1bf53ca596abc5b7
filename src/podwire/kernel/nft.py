"""nftables, through libnftables: our table read, compared and changed in one transaction.

The library is nft(8) itself without its process, so what is printed for a person is what runs.
Rules come back from the kernel in another spelling than they went in, so each carries a digest of
its own text in its comment, and a chain is compared by those. Set elements, which are the state
that changes, are compared as they are.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import struct
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import msgspec

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel.netlink import NLA_TYPE_MASK
from podwire.model.state import NFT_TABLE, NftChain, NftHook, NftRule, NftSet, NftTable

NFNLGRP_NFTABLES = 7

#: The one table that is ours, and is removed as a whole when nothing in it is wanted.
FAMILY, TABLE = "inet", NFT_TABLE

_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = 15
_NFTA_TABLE_NAME = 1

# nftables/libnftables.h
OUTPUT_STATELESS, OUTPUT_HANDLE = 1 << 2, 1 << 3
_OUTPUT_JSON, _OUTPUT_NUMERIC_PRIORITY = 1 << 4, 1 << 8
_COMMENT = "podwire "

#: What nft's language has for a name (`string` in its scanner). The kernel takes any text for one.
_NAME = re.compile(r"[A-Za-z_.][A-Za-z0-9/_.-]*")
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type

#: What prints the extensions of iptables (libxtables) is not made for two threads at once. JSON
#: leaves them out.
_printing = threading.Lock()


class SetState(msgspec.Struct, frozen=True):
    type: str
    flags: tuple[str, ...]
    elements: frozenset[str]


class TableState(msgspec.Struct, frozen=True):
    """What the kernel holds of a table: sets by name; chains by name with their rules' digests."""

    sets: dict[str, SetState]
    chains: dict[str, tuple[NftHook | None, tuple[str, ...]]]


class Nft:
    """A libnftables context, bound to the network namespace of the thread that makes it."""

    def __init__(self, output: int = _OUTPUT_JSON | _OUTPUT_NUMERIC_PRIORITY) -> None:
        """`output` are flags of what commands print: JSON, unless told otherwise."""
        try:
            lib = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise UnsupportedError(
                "libnftables.so.1 is not installed", remedy="apt-get install libnftables1"
            ) from error
        lib.nft_ctx_new.restype = ctypes.c_void_p
        lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(lib, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(lib, name).argtypes = [ctypes.c_void_p]
            getattr(lib, name).restype = ctypes.c_char_p
        lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._lib = lib
        self._guard = nullcontext() if output & _OUTPUT_JSON else _printing
        self._context = lib.nft_ctx_new(0)
        if not self._context:
            raise UnsupportedError("libnftables could not open a netlink socket")
        lib.nft_ctx_buffer_output(self._context)
        lib.nft_ctx_buffer_error(self._context)
        lib.nft_ctx_output_set_flags(self._context, output)

    def close(self) -> None:
        if self._context:
            self._lib.nft_ctx_free(self._context)
            self._context = None

    def run(self, commands: str) -> bytes:
        """Run commands as one transaction; their output. Raises KernelError, nothing applied."""
        with self._guard:
            failed = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
        if failed:
            error = self._lib.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
            first = error.splitlines()[0] if error else "unknown error"
            absent = "No such file or directory" in first
            raise KernelError(f"nft: {first.removeprefix('Error: ')}", errno=2 if absent else 22)
        output: bytes = self._lib.nft_ctx_get_output_buffer(self._context)
        return output

    def read(self, family: str, name: str) -> TableState | None:
        """The table as the kernel has it; None where there is none."""
        try:
            output = self.run(f"list table {family} {name}")
        except KernelError as error:
            if error.errno == 2:
                return None
            raise
        return parse_table(output)


def can_be_named(*names: str) -> bool:
    """Whether these names of others' tables and chains can stand in a command.

    Whoever may make a table, also in a pod, chooses its name: without this, new lines, semicolons
    and `include` in one would be commands that run with our rights.
    """
    return all(map(_NAME.fullmatch, names))


def parse_table(output: bytes) -> TableState:
    """What matters of `nft -j list table`."""
    sets: dict[str, SetState] = {}
    hooks: dict[str, NftHook | None] = {}
    rules: dict[str, list[str]] = {}
    for item in msgspec.json.decode(output)["nftables"]:
        if found := item.get("set"):
            flags = tuple(sorted(_listed(found.get("flags", []))))
            elements = frozenset(map(_element, found.get("elem", [])))
            sets[found["name"]] = SetState(str(found["type"]), flags, elements)
        elif found := item.get("chain"):
            hooks[found["name"]] = (
                NftHook(
                    type=found["type"],
                    hook=found["hook"],
                    priority=found["prio"],
                    policy=found.get("policy", "accept"),
                )
                if "hook" in found
                else None
            )
        elif found := item.get("rule"):
            rules.setdefault(found["chain"], []).append(found.get("comment", ""))
    chains = {name: (hook, tuple(rules.get(name, ()))) for name, hook in hooks.items()}
    return TableState(sets, chains)


def wanted_state(table: NftTable) -> TableState:
    """The state that `read` finds once the table has been applied."""
    return TableState(
        {
            one.name: SetState(one.type, tuple(sorted(one.flags)), frozenset(one.elements))
            for one in table.sets
        },
        {one.name: (one.hook, tuple(map(_digest, one.rules))) for one in table.chains},
    )


def transaction(table: NftTable, actual: TableState | None) -> str:
    """The nft commands that turn `actual` into `table`; empty when it already is that.

    While only elements differ, only elements change: counters and the rest of the table stay.
    """
    wanted = wanted_state(table)
    if actual == wanted:
        return ""
    if actual is None or _shape(actual) != _shape(wanted):
        return definition(table, replace=actual is not None)
    lines = []
    for name, one in wanted.sets.items():
        have = actual.sets[name].elements
        where = f"element {table.family} {table.name} {name}"
        if gone := sorted(have - one.elements):
            lines.append(f"delete {where} {{ {', '.join(gone)} }}")
        if new := sorted(one.elements - have):
            lines.append(f"add {where} {{ {', '.join(new)} }}")
    return "\n".join(lines) + "\n"


def definition(table: NftTable, *, replace: bool) -> str:
    """The whole table as commands for `nft -f`."""
    name = f"{table.family} {table.name}"
    lines = [f"delete table {name}"] if replace else []
    lines.append(f"table {name} {{")
    lines += _blocks(map(_set_lines, table.sets))
    lines += _blocks(map(_chain_lines, table.chains))
    lines.append("}")
    return "\n".join(lines) + "\n"


def removal(family: str, name: str) -> str:
    return f"delete table {family} {name}\n"


def notified_table(kind: int, payload: bytes) -> str | None:
    """The name of the table that a notification of group NFNLGRP_NFTABLES is about.

    All its messages carry it as attribute 1, behind the 4 bytes of nfgenmsg, except those of a
    new generation, which name none.
    """
    subsystem, message = divmod(kind, 256)
    if subsystem != _NFNL_SUBSYS_NFTABLES or message == _NFT_MSG_NEWGEN or len(payload) < 8:
        return None
    size, attribute = _ATTRIBUTE.unpack_from(payload, 4)
    if attribute & NLA_TYPE_MASK != _NFTA_TABLE_NAME:
        return None
    return payload[8 : 4 + size].rstrip(b"\0").decode(errors="replace")


def _shape(state: TableState) -> tuple[object, ...]:
    return {name: (one.type, one.flags) for name, one in state.sets.items()}, state.chains


def _digest(rule: NftRule) -> str:
    return _COMMENT + hashlib.sha256(rule.text.encode()).hexdigest()[:12]


def _set_lines(one: NftSet) -> list[str]:
    lines = [f"set {one.name} {{", f"\ttype {one.type}"]
    if one.flags:
        lines.append(f"\tflags {', '.join(one.flags)}")
    if one.elements:
        lines.append(f"\telements = {{ {', '.join(one.elements)} }}")
    return [*lines, "}"]


def _chain_lines(chain: NftChain) -> list[str]:
    lines = [f"chain {chain.name} {{"]
    if (hook := chain.hook) is not None:
        lines.append(
            f"\ttype {hook.type} hook {hook.hook} priority {hook.priority}; policy {hook.policy};"
        )
    lines += [f'\t{rule.text} comment "{_digest(rule)}"' for rule in chain.rules]
    return [*lines, "}"]


def _blocks(blocks: Iterable[list[str]]) -> list[str]:
    return ["\t" + line for block in blocks for line in block]


def _listed(value: Any) -> list[str]:
    """nft prints a list of one flag as the flag alone."""
    return [value] if isinstance(value, str) else list(value)


def _element(value: Any) -> str:
    """An element of nft's JSON in the text that it is written in."""
    if not isinstance(value, dict):
        return str(value)
    if "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if "range" in value:
        return "-".join(map(_element, value["range"]))
    if "concat" in value:
        return " . ".join(map(_element, value["concat"]))
    return _element(value["elem"]["val"]) if "elem" in value else str(value)
