"""What a person means who names a thing to `podwire explain`, with its kind or without.

What lives here: reading the words, purely. What does not: whether there is such a thing; that the
agent knows, so a MAC has several kinds to be looked for as.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_interface

from podwire.errors import InputError

KINDS = ("route", "neigh", "fdb", "link", "rule", "ip")
LISTED = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"

_MAC = re.compile(r"[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}")
#: As `ip link` prints it too: `cni0:`, `eth0@if5`. IFNAMSIZ is 16 with its zero byte.
_NAME = re.compile(r"[^\s/:@]{1,15}(@\S+)?:?")


def kinds_and_thing(words: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The kinds to look for, the likeliest first, and the thing without a kind.

    Raises InputError where no kind is named and the words could be anything.
    """
    first, *rest = " ".join(words).split() or [""]
    if first in KINDS:
        if not rest:
            raise InputError(
                f"which {first}?",
                field="THING",
                remedy=f"podwire explain {first} THING; of an interface with that name:"
                f" podwire explain link {first}",
            )
        return (first,), " ".join(rest)
    thing = " ".join((first, *rest))
    kinds = _meant(first, rest)
    if not kinds:
        raise InputError(
            f"what is {thing!r}?",
            field="THING",
            remedy=f"say its kind before it, {LISTED}: podwire explain KIND THING",
        )
    return kinds, thing


def _meant(first: str, rest: Sequence[str]) -> tuple[str, ...]:
    on_device = rest[:1] == ["dev"] and len(rest) > 1
    if _MAC.fullmatch(first):
        # A MAC of the node's own has no neighbour or forwarding entry.
        return ("fdb", "neigh") if on_device else ("fdb", "neigh", "link") if not rest else ()
    if _is(ip_address, first.strip("[]").partition("%")[0]):
        # `10.244.2.0 dev flannel.1 …` is a line of `ip neigh`.
        return ("neigh",) if on_device else () if rest else ("ip",)
    if first == "default" or ("/" in first and _is(ip_interface, first)):
        return ("route",)
    if first == "dev" and len(rest) == 1:
        return ("link",)
    named = not rest and first.isprintable() and _NAME.fullmatch(first)
    return ("link",) if named and not first.isdigit() else ()


def _is(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True
