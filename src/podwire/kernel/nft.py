"""Our nft tables, read, compared and changed in one transaction each, through libnftables.

Rules come back from the kernel in another spelling than they went in. So each carries a digest of
its own text in its comment, which says which one it is; and how the kernel spells that one is asked
once, in a namespace of nobody's, which says whether it still is. Elements of closed sets are
compared as they are; those of open sets are not looked at here (`nft_elements`).

A table is never replaced as a whole: only what differs is taken out and put in, so that elements
of open sets and the values of counters stay.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any

import msgspec

from podwire.errors import KernelError
from podwire.kernel import netns, nft_elements
from podwire.kernel.netlink import NLA_TYPE_MASK
from podwire.kernel.nft_context import Nft
from podwire.kernel.observe.nft_messages import FAMILY_NAMES
from podwire.model.state import NFT_TABLE, NftChain, NftHook, NftRule, NftSet, NftTable

NFNLGRP_NFTABLES = 7

#: The table that every node has. Whatever its family, one of this name is ours, and is removed as
#: a whole when nobody wants it.
FAMILY, TABLE = "inet", NFT_TABLE

_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = 15
_NFTA_TABLE_NAME = 1

_COMMENT = "podwire "
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type


class SetState(msgspec.Struct, frozen=True):
    type: str
    flags: tuple[str, ...]
    elements: frozenset[str]


class TableState(msgspec.Struct, frozen=True):
    """What the kernel holds of a table: sets by name; chains by name with their rules' digests;
    the names of counters. Of an open set the elements are left out."""

    sets: dict[str, SetState]
    chains: dict[str, tuple[NftHook | None, tuple[str, ...]]]
    counters: frozenset[str] = frozenset()


#: The elements that an open set is to have, in nft's language, by the set's name.
Elements = Callable[[str], Sequence[str]]


def read(context: Nft, table: NftTable) -> TableState | None:
    """What the kernel holds of a table that is wanted so, with the elements of its closed sets;
    None where there is no such table."""
    where = f"{table.family} {table.name}"
    try:
        state = parse_table(context.run(f"list table {where}", terse=True), spelling(table))
        full = [
            parse_table(context.run(f"list set {where} {one.name}"))
            for one in table.sets
            if one.name in state.sets
        ]
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    sets = {**state.sets, **{key: one for found in full for key, one in found.sets.items()}}
    return msgspec.structs.replace(state, sets=sets)


@lru_cache(maxsize=16)
def spelling(table: NftTable) -> Mapping[str, object]:
    """What the kernel makes of each rule of a table, in nft's JSON, by the rule's comment.

    Asked of the kernel, where nothing comes of it. Nothing is known of a table that it refuses;
    whoever applies that is told.
    """

    def ask() -> bytes:
        with closing(Nft()) as context:
            context.run(definition(table, lambda name: ()))
            return context.run(f"list table {table.family} {table.name}", terse=True)

    try:
        listing = msgspec.json.decode(netns.in_new_namespace(ask))["nftables"]
    except KernelError:
        return {}
    rules = (item["rule"] for item in listing if "rule" in item)
    return {rule["comment"]: rule["expr"] for rule in rules}


def parse_table(output: bytes, spelling: Mapping[str, object] = {}) -> TableState:
    """What matters of `nft -j list table`. A rule that is not what `spelling` has for its comment
    counts as one without."""
    sets: dict[str, SetState] = {}
    hooks: dict[str, NftHook | None] = {}
    rules: dict[str, list[str]] = {}
    counters = []
    for item in msgspec.json.decode(output)["nftables"]:
        if found := item.get("set"):
            flags = tuple(sorted(_listed(found.get("flags", []))))
            elements = frozenset(map(_element, found.get("elem", [])))
            kind = " . ".join(_listed(found["type"]))
            sets[found["name"]] = SetState(kind, flags, elements)
        elif found := item.get("counter"):
            counters.append(found["name"])
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
            comment = found.get("comment", "")
            rewritten = spelling.get(comment, found["expr"]) != found["expr"]
            rules.setdefault(found["chain"], []).append("" if rewritten else comment)
    chains = {name: (hook, tuple(rules.get(name, ()))) for name, hook in hooks.items()}
    return TableState(sets, chains, frozenset(counters))


def wanted_state(table: NftTable) -> TableState:
    """The state that `read` finds once the table has been applied."""
    return TableState(
        {
            one.name: SetState(
                nft_elements.listed_type(one.type),
                tuple(sorted(one.flags)),
                frozenset(one.elements),
            )
            for one in table.sets
        }
        | {
            one.name: SetState(nft_elements.listed_type(one.type), (), frozenset())
            for one in table.open_sets
        },
        {one.name: (one.hook, tuple(map(_digest, one.rules))) for one in table.chains},
        frozenset(one.name for one in table.counters),
    )


def open_sets_made(table: NftTable, actual: TableState | None) -> list[str]:
    """The open sets that `transaction` makes, or makes anew."""
    wanted = wanted_state(table)
    sets = actual.sets if actual is not None else {}
    return [
        one.name
        for one in table.open_sets
        if _shape(sets.get(one.name)) != _shape(wanted.sets[one.name])
    ]


def transaction(
    table: NftTable, actual: TableState | None, elements: Elements = lambda name: ()
) -> str:
    """The nft commands that turn `actual` into `table`; empty when it already is that.

    Open sets that have to be made get their `elements` at once: while a set is empty, rules that
    ask for it drop everything.
    """
    wanted = wanted_state(table)
    if actual == wanted:
        return ""
    if actual is None:
        return definition(table, elements)
    where = f"{table.family} {table.name}"
    bad_sets = [
        name for name, one in actual.sets.items() if _shape(one) != _shape(wanted.sets.get(name))
    ]
    bad_counters = sorted(actual.counters - wanted.counters)
    # Rules hold on to the sets and counters that they name, and to the chains that they jump to.
    unlinked = bool(bad_sets or bad_counters)
    rewritten = {
        name for name in actual.chains if unlinked or actual.chains[name] != wanted.chains.get(name)
    }
    bad_chains = [
        name
        for name in rewritten
        if name not in wanted.chains or wanted.chains[name][0] != actual.chains[name][0]
    ]
    lines = [f"flush chain {where} {name}" for name in sorted(rewritten)]
    lines += [f"delete chain {where} {name}" for name in sorted(bad_chains)]
    lines += [f"delete set {where} {name}" for name in sorted(bad_sets)]
    lines += [f"delete counter {where} {name}" for name in bad_counters]
    kept = {name for name in actual.sets if name not in bad_sets}
    for name in sorted(kept):
        lines += _element_lines(f"element {where} {name}", actual.sets[name], wanted.sets[name])
    new = msgspec.structs.replace(
        table,
        counters=tuple(one for one in table.counters if one.name not in actual.counters),
        sets=tuple(one for one in table.sets if one.name not in kept),
        open_sets=tuple(one for one in table.open_sets if one.name not in kept),
        chains=tuple(
            one for one in table.chains if one.name in rewritten or one.name not in actual.chains
        ),
    )
    if new.counters or new.sets or new.open_sets or new.chains:
        lines.append(definition(new, elements).rstrip("\n"))
    return "\n".join(lines) + "\n"


def definition(table: NftTable, elements: Elements) -> str:
    """The whole table as commands for `nft -f`."""
    lines = [f"table {table.family} {table.name} {{"]
    lines += [f"\tcounter {one.name} {{ }}" for one in table.counters]
    lines += _blocks(map(_set_lines, table.sets))
    for one in table.open_sets:
        found = ", ".join(elements(one.name))
        lines.append(f"\tset {one.name} {{")
        lines.append(f"\t\t{nft_elements.declaration(one.type)}")
        lines += [f"\t\telements = {{ {found} }}"] if found else []
        lines.append("\t}")
    lines += _blocks(map(_chain_lines, table.chains))
    lines.append("}")
    return "\n".join(lines) + "\n"


def removal(family: str, name: str) -> str:
    return f"delete table {family} {name}\n"


def notified_table(kind: int, payload: bytes) -> tuple[str, str] | None:
    """(family, name) of the table that a notification of group NFNLGRP_NFTABLES is about.

    All its messages carry it as attribute 1, behind the 4 bytes of nfgenmsg, except those of a
    new generation, which name none.
    """
    subsystem, message = divmod(kind, 256)
    if subsystem != _NFNL_SUBSYS_NFTABLES or message == _NFT_MSG_NEWGEN or len(payload) < 8:
        return None
    size, attribute = _ATTRIBUTE.unpack_from(payload, 4)
    if attribute & NLA_TYPE_MASK != _NFTA_TABLE_NAME:
        return None
    name = payload[8 : 4 + size].rstrip(b"\0").decode(errors="replace")
    return FAMILY_NAMES.get(payload[0], ""), name


def _shape(state: SetState | None) -> tuple[object, ...] | None:
    return (state.type, state.flags) if state is not None else None


def _element_lines(where: str, have: SetState, want: SetState) -> list[str]:
    lines = []
    if gone := sorted(have.elements - want.elements):
        lines.append(f"delete {where} {{ {', '.join(gone)} }}")
    if new := sorted(want.elements - have.elements):
        lines.append(f"add {where} {{ {', '.join(new)} }}")
    return lines


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
