"""A rule's text from its handle.

What lives here: reading chains through libnftables, in nft's own words (also what iptables-nft
made, as far as libnftables can say it so). What does not: which rules a packet met.

The kernel tells a rule by its handle, which is unique in its table for as long as the table is
there. Texts are kept until the ruleset's generation changes.
"""

from __future__ import annotations

import re

from podwire.errors import KernelError
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from podwire.kernel.nft_context import OUTPUT_HANDLE, OUTPUT_STATELESS, Nft, can_be_named
from podwire.kernel.observe import nft_messages

#: The end of a rule, of a chain's or table's first line, as `nft -a list` prints them.
_HANDLE = re.compile(r" # handle (\d+)$")
_OPENS = re.compile(r"^\s*(table|chain) .*\{( # handle \d+)?$")
_HOOK = re.compile(r"^\s*type \w+ hook .*;$")
_SPACE = re.compile(r"\s+")

_Chain = tuple[str, str, str]


class RuleTexts:
    """Answers for the namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._nft = Nft(OUTPUT_HANDLE | OUTPUT_STATELESS)
        try:
            self._socket = NetlinkSocket(NETLINK_NETFILTER)
        except BaseException:
            self._nft.close()
            raise
        self._generation = 0
        self._chains: dict[_Chain, dict[int, str]] = {}

    def close(self) -> None:
        self._nft.close()
        self._socket.close()

    def refresh(self) -> None:
        """Forget what was read if the ruleset has changed since."""
        answer = self._socket.get(*nft_messages.getting_generation())
        generation = nft_messages.parse_generation(answer) if answer is not None else 0
        if generation != self._generation:
            self._generation = generation
            self._chains.clear()

    def text(self, family: str, table: str, chain: str, handle: int) -> str:
        """The rule in nft's words; empty for one that is not there any more, or in a chain that
        nft's language has no words for."""
        key = family, table, chain
        if key not in self._chains:
            self._chains[key] = self._read(*key)
        return self._chains[key].get(handle, "")

    def _read(self, family: str, table: str, chain: str) -> dict[int, str]:
        if not can_be_named(table, chain):
            return {}
        try:
            listing = self._nft.run(f"list chain {family} {table} {chain}")
        except KernelError:  # The chain is gone.
            return {}
        return parse_chain(listing.decode(errors="replace"))


def parse_chain(listing: str) -> dict[int, str]:
    """Rules by handle, of what `nft -a list chain` prints. A rule may take several lines."""
    found: dict[int, str] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if _OPENS.match(line) or _HOOK.match(line):
            continue
        lines.append(line)
        if end := _HANDLE.search(line):
            text = _SPACE.sub(" ", " ".join(lines)).strip()
            found[int(end[1])] = _HANDLE.sub("", text)
            lines = []
    return found
