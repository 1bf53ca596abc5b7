"""All nft rules of this network namespace, as text with their handles: for a person's question.

What lives here: listing and splitting what `nft -a list ruleset` prints. What does not: what rules
do to packets (`podwire.kernel.ruling`), and which of them a packet met (`nft_trace`).
"""

from __future__ import annotations

import re
from contextlib import closing
from typing import NamedTuple

from podwire.kernel.nft_context import OUTPUT_HANDLE, OUTPUT_STATELESS, Nft
from podwire.kernel.observe.nft_rules import parse_chain

_TABLE = re.compile(r"^table (\S+) (\S+) \{")
_CHAIN = re.compile(r"^\tchain (\S+) \{")
_HOOK = re.compile(r"^\t\t(type \w+ hook .*;)$")


class ListedRule(NamedTuple):
    """A rule. `hook` is where its chain sits (`type filter hook forward priority …; policy …;`),
    empty for a chain that is only jumped to."""

    family: str
    table: str
    chain: str
    handle: int
    text: str
    hook: str


def list_rules() -> list[ListedRule]:
    """All of them, in the order in which nft prints them. Raises KernelError, UnsupportedError."""
    with closing(Nft(OUTPUT_HANDLE | OUTPUT_STATELESS)) as printer:
        return parse_ruleset(printer.run("list ruleset").decode(errors="replace"))


def parse_ruleset(listing: str) -> list[ListedRule]:
    found: list[ListedRule] = []
    family = table = chain = hook = ""
    lines: list[str] = []
    for line in listing.splitlines():
        if opened := _TABLE.match(line):
            family, table = opened[1], opened[2]
        elif opened := _CHAIN.match(line):
            chain, hook, lines = opened[1], "", []
        elif chain and line == "\t}":
            rules = parse_chain("\n".join(lines))
            found += [
                ListedRule(family, table, chain, handle, text, hook)
                for handle, text in rules.items()
            ]
            chain = ""
        elif chain and (sits := _HOOK.match(line)):
            hook = sits[1]
        elif chain:
            lines.append(line)
    return found
