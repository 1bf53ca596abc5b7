"""The words that stand beside the packet's way: what changed, what decided, what it died of.

What lives here: which of a hop's many words are worth their room, and how short they can be, since
the picture shows the devices and the packet itself. What does not: where they stand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from podwire.trace.model import Change, Decision, Hop, Round
from podwire.trace.render import words

#: Of what stands between two devices, the first so many lines.
_MOST = 4
_TOLD = frozenset({"route", "fdb", "nft", "tunnel"})
#: What the picture shows anyway, or what only a table needs: these words with the one after them,
#: and these alone.
_PAIRS = frozenset({"dev", "proto", "scope", "src", "metric", "nud"})
_ALONE = frozenset({"onlink", "self", "permanent", "PERMANENT", "REACHABLE", "STALE", "DELAY"})
#: Statements that end a rule, of nft(8): what becomes of the packet.
_STATEMENTS = frozenset(
    {
        "accept",
        "drop",
        "reject",
        "return",
        "jump",
        "goto",
        "queue",
        "masquerade",
        "snat",
        "dnat",
        "redirect",
        "tproxy",
        "notrack",
    }
)
_QUOTED = re.compile(r'"[^"]*"|\S+')


@dataclass(frozen=True)
class Note:
    """One line; `ink` is the colour's class, `shorter` what may stand there, the best first."""

    text: str
    ink: str
    shorter: tuple[str, ...] = ()


def between(a: Hop, b: Hop) -> list[Note]:
    """What changed between two sightings and what decided it, the least telling last."""
    changed = [_changed(one, a, b) for one in b.changes if one.kind != "mac"]
    changes = [Note(text, "q", without_middle(text)) for text in changed]
    decisions = [one for one in a.decisions if one.problem is None]
    told = [_decided(one) for one in decisions if one.kind in _TOLD]
    neighbours = [_decided(one) for one in decisions if one.kind == "neigh"]
    ethernet = words.ethernet_of(b.packet.inner)
    if ethernet is not None and any(one.kind == "mac" for one in b.changes):
        neighbours = [Note(f"to MAC {ethernet.target}", "q")]
    return [*changes, *told, *neighbours][:_MOST]


def failure(one: Round | None) -> list[Note]:
    """What stands at the cross: the cause, and the kernel's word for it."""
    finding = one.finding if one is not None else None
    if finding is None:
        return [Note("lost", "x")]
    kernel = [Note(finding.kernel_reason, "m")] if finding.kernel_reason else []
    return [Note(words.cause_words(finding.cause), "x"), *kernel]


def _changed(change: Change, a: Hop, b: Hop) -> str:
    """A change; of a translation only the addresses, where those changed."""
    before, after = words.ip_of(a.packet.inner), words.ip_of(b.packet.inner)
    if before is not None and after is not None:
        if change.kind == "source-nat" and before.source != after.source:
            return f"source {before.source} → {after.source}"
        if change.kind == "target-nat" and before.target != after.target:
            return f"target {before.target} → {after.target}"
    return change.text


def _decided(decision: Decision) -> Note:
    """A decision in as few words as the picture needs."""
    if decision.kind == "nft":
        return Note(f"nft {decision.text}", "m", shorter_rule(decision.text))
    if decision.kind == "tunnel":
        return Note(decision.text.partition(", ")[0], "m")
    parts = iter(decision.text.partition(" (")[0].split())
    shown = [decision.kind]
    for word in parts:
        if word in _PAIRS:
            next(parts, None)
        elif word not in _ALONE:
            shown.append(word)
    text = " ".join(shown)
    return Note(text, "m", without_middle(text))


def without_middle(text: str) -> tuple[str, ...]:
    """`neigh … lladdr 0a:58:0a:f4:01:01` and shorter: what it is, and what came of it."""
    first, *rest = text.split() or [""]
    return tuple(f"{first} … {' '.join(rest[-kept:])}" for kept in (2, 1) if len(rest) > kept)


def shorter_rule(text: str) -> tuple[str, ...]:
    """A rule (`inet podwire postrouting: ip saddr … masquerade`) without what it matches.

    First `nft inet podwire postrouting: … masquerade fully-random`, then without the statement's
    options, then without the chain. None of a rule that says nothing of the packet's fate.
    """
    chain, colon, rule = text.partition(": ")
    words = _QUOTED.findall(rule if colon else text)
    at = next((at for at in reversed(range(len(words))) if words[at] in _STATEMENTS), None)
    if at is None:
        return ()
    end = words.index("comment", at) if "comment" in words[at:] else len(words)
    statement = words[at]
    # Of a jump, the chain is what matters.
    named = end if statement in ("jump", "goto") else at + 1
    elided = "… " if at else ""
    head = f"nft {chain}: {elided}" if colon else f"nft {elided}"
    whole, bare = (" ".join(words[at:stop]) for stop in (end, named))
    found = (f"{head}{whole}", f"{head}{bare}", f"nft … {bare}")
    return tuple(dict.fromkeys(found))
