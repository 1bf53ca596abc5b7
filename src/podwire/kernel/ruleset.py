"""The firewall rules of this network namespace that others made.

What lives here: the values, and reading them through libnftables (which shows what iptables-nft
makes, too). What does not: what they do to a packet, which is `podwire.kernel.ruling`; our own
table, which is `podwire.kernel.nft`. Nothing is ever changed from here.

Expressions stay in nft's JSON (libnftables-json(5)). It does not tell what is in an extension of
iptables (`{"xt": …}`); nft's text does, so each rule has that as well.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import msgspec

from podwire.kernel.nft import FAMILY, OUTPUT_HANDLE, TABLE, Nft

#: A rule in nft's own indentation, with its handle; and where a chain of family netdev sits, which
#: nft's JSON does not tell (1.0.6).
_RULE = re.compile(r"^\t\t(.*[^{]) # handle (\d+)$", re.MULTILINE)
_COUNTER = re.compile(r"counter packets \d+ bytes \d+ ?")
_DEVICES = re.compile(
    r"^\tchain (\S+) \{.*\n\t\ttype \w+ hook \w+ devices?( .*) priority", re.MULTILINE
)
_NAME = re.compile(r"[^\s{},\"=]+")


class Rule(msgspec.Struct, frozen=True):
    """`expr` are its expressions in order; `text` is the rule in nft's (or iptables') words."""

    expr: Sequence[Mapping[str, Any]]
    text: str
    handle: int = 0


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain. `hook` is empty for one that is only jumped to; `devices` are of family netdev.

    `legacy`: it belongs to iptables-legacy, which nft neither shows nor changes.
    """

    family: str
    table: str
    name: str
    rules: Sequence[Rule]
    kind: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    devices: tuple[str, ...] = ()
    legacy: bool = False

    @property
    def by_iptables(self) -> bool:
        """Whether iptables made it, so that iptables is the tool to change it with."""
        return self.family in ("ip", "ip6") and self.table in _IPTABLES

    def __str__(self) -> str:
        if not self.by_iptables:
            return f"{self.family} {self.table} {self.name}"
        tool = "iptables" if self.family == "ip" else "ip6tables"
        table = "" if self.table == "filter" else f" -t {self.table}"
        return f"{tool}{'-legacy' if self.legacy else ''}{table} {self.name}"


class Ruleset(msgspec.Struct, frozen=True):
    """Chains by (family, table, name), elements of named sets and maps by the same."""

    chains: dict[tuple[str, str, str], Chain]
    sets: dict[tuple[str, str, str], Sequence[Any]]


#: The tables that iptables makes, in its own hooks' chains.
_IPTABLES = ("raw", "mangle", "nat", "filter", "security")


def list_chains() -> list[Chain]:
    """All chains but our own, without their rules: cheap however many rules there are.

    Raises KernelError.
    """
    with closing(Nft()) as context:
        return _list_chains(context)


def read_ruleset(hooks: Collection[str]) -> Ruleset:
    """The tables of others that filter at one of `hooks` (`forward`, `input`, `ingress`, …).

    Tables that only translate (type nat) drop nothing, and are often the largest. Raises
    KernelError.
    """
    ruleset = Ruleset({}, {})
    with closing(Nft()) as context, closing(Nft(OUTPUT_HANDLE)) as printer:
        tables = {
            (chain.family, chain.table)
            for chain in _list_chains(context)
            if chain.hook in hooks and chain.kind in ("filter", "route")
        }
        for family, table in sorted(tables):
            command = f"list table {family} {table}"
            text = printer.run(command).decode(errors="replace")
            _add_table(ruleset, family, table, _items(context, command), text)
    return ruleset


def _list_chains(context: Nft) -> list[Chain]:
    found = [item["chain"] for item in _items(context, "list chains") if "chain" in item]
    return [
        _chain(one, (), ()) for one in found if (one["family"], one["table"]) != (FAMILY, TABLE)
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
