"""Firewall rules as values: chains, their rules, and the sets that these look at.

Expressions are nft's JSON (libnftables-json(5)), also of rules that nft has not made. It does not
tell what is in an extension of iptables (`{"xt": …}`); nft's text does, so each rule has that too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

#: Family, table, and the name of what is in it.
Key = tuple[str, str, str]

#: The tables that iptables makes, in its own hooks' chains.
_IPTABLES = ("raw", "mangle", "nat", "filter", "security")


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

    @property
    def key(self) -> Key:
        return self.key_of(self.name)

    def key_of(self, name: str) -> Key:
        """The key of another chain of the same table."""
        return self.family, f"{self.table} (legacy)" if self.legacy else self.table, name

    def __str__(self) -> str:
        if not self.by_iptables:
            return f"{self.family} {self.table} {self.name}"
        tool = "iptables" if self.family == "ip" else "ip6tables"
        table = "" if self.table == "filter" else f" -t {self.table}"
        return f"{tool}{'-legacy' if self.legacy else ''}{table} {self.name}"


class Ruleset(msgspec.Struct, frozen=True):
    """Chains by their keys, elements of named sets and maps by (family, table, name)."""

    chains: dict[Key, Chain]
    sets: dict[Key, Sequence[Any]]
