"""The firewall rules of this network namespace that others made.

What lives here: reading them through libnftables, which shows what iptables-nft makes, too; those
of iptables-legacy are read by `podwire.kernel.xtables`. What does not: what they do to a packet,
which is `podwire.kernel.ruling`; our own table, which is `podwire.kernel.nft`, and those of traces.
Nothing is ever changed from here.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import msgspec

from podwire.errors import KernelError
from podwire.kernel.nft import FAMILY, TABLE
from podwire.kernel.nft_context import OUTPUT_HANDLE, Nft, can_be_named
from podwire.kernel.observe.nft_trace import PREFIX
from podwire.kernel.rules import Chain, Rule, Ruleset
from podwire.kernel.xtables import legacy_chains

#: A rule in nft's own indentation, with its handle; and where a chain of family netdev sits, which
#: nft's JSON does not tell (1.0.6).
_RULE = re.compile(r"^\t\t(.*[^{]) # handle (\d+)$", re.MULTILINE)
_COUNTER = re.compile(r"counter packets \d+ bytes \d+ ?")
_DEVICES = re.compile(
    r"^\tchain (\S+) \{.*\n\t\ttype \w+ hook \w+ devices?( .*) priority", re.MULTILINE
)
_NAME = re.compile(r"[^\s{},\"=]+")


def list_chains() -> list[Chain]:
    """All chains but our own; those of nft without their rules, so it is cheap.

    Raises KernelError.
    """
    with closing(Nft()) as context:
        return [*_list_chains(context), *legacy_chains(4), *legacy_chains(6)]


def read_ruleset(hooks: Collection[str]) -> Ruleset:
    """The tables of others that filter at one of `hooks` (`forward`, `input`, `ingress`, …).

    Tables that only translate (type nat) drop nothing, and are often the largest. A table that
    goes meanwhile is left out, and so is one whose name nft can't read. Raises KernelError.
    """
    ruleset = Ruleset({}, {})
    with closing(Nft()) as context, closing(Nft(OUTPUT_HANDLE)) as printer:
        tables = {
            (chain.family, chain.table)
            for chain in _list_chains(context)
            if chain.hook in hooks and chain.kind in ("filter", "route")
        }
        for family, table in sorted(tables):
            if not can_be_named(table):
                continue
            command = f"list table {family} {table}"
            try:
                items = _items(context, command)
                text = printer.run(command).decode(errors="replace")
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue
            _add_table(ruleset, family, table, items, text)
    for chain in (*legacy_chains(4), *legacy_chains(6)):
        ruleset.chains[chain.key] = chain
    return ruleset


def _list_chains(context: Nft) -> list[Chain]:
    found = [item["chain"] for item in _items(context, "list chains") if "chain" in item]
    return [
        _chain(one, (), ())
        for one in found
        if (one["family"], one["table"]) != (FAMILY, TABLE) and not one["table"].startswith(PREFIX)
    ]


def _items(context: Nft, command: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = msgspec.json.decode(context.run(command))["nftables"]
    return items


def _add_table(
    ruleset: Ruleset, family: str, table: str, items: Iterable[Mapping[str, Any]], text: str
) -> None:
    """`items` and `text` are the same table in nft's JSON and in its own language."""
    texts = {int(handle): _COUNTER.sub("", line) for line, handle in _RULE.findall(text)}
    devices = {name: tuple(_NAME.findall(words)) for name, words in _DEVICES.findall(text)}
    chains = []
    rules: dict[str, list[Rule]] = {}
    for item in items:
        if found := item.get("chain"):
            chains.append(found)
        elif found := item.get("set") or item.get("map"):
            ruleset.sets[family, table, found["name"]] = found.get("elem", ())
        elif found := item.get("rule"):
            handle = found["handle"]
            rule = Rule(tuple(found.get("expr", ())), texts.get(handle, "").strip(), handle)
            rules.setdefault(found["chain"], []).append(rule)
    for found in chains:
        name = found["name"]
        chain = _chain(found, rules.get(name, ()), devices.get(name, ()))
        ruleset.chains[family, table, name] = chain


def _chain(found: Mapping[str, Any], rules: Sequence[Rule], devices: tuple[str, ...]) -> Chain:
    return Chain(
        family=found["family"],
        table=found["table"],
        name=found["name"],
        rules=rules,
        kind=found.get("type", ""),
        hook=found.get("hook", ""),
        priority=found.get("prio", 0),
        policy=found.get("policy", "accept"),
        devices=devices,
    )
