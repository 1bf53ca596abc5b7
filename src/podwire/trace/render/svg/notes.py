"""The words that stand beside the packet's way: what changed, what decided, what it died of.

What lives here: which of a hop's many words are worth their room, and how short they can be, since
the picture shows the devices and the packet itself. What does not: where they stand.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Note:
    """One line; `ink` is the colour's class."""

    text: str
    ink: str


def between(a: Hop, b: Hop) -> list[Note]:
    """What changed between two sightings and what decided it, the least telling last."""
    changes = [Note(_changed(one, a, b), "q") for one in b.changes if one.kind != "mac"]
    decisions = [one for one in a.decisions if one.problem is None]
    told = [Note(_short(one), "m") for one in decisions if one.kind in _TOLD]
    neighbours = [Note(_short(one), "m") for one in decisions if one.kind == "neigh"]
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


def _short(decision: Decision) -> str:
    """A decision in as few words as the picture needs."""
    if decision.kind == "nft":
        return decision.text
    if decision.kind == "tunnel":
        return decision.text.partition(", ")[0]
    parts = iter(decision.text.partition(" (")[0].split())
    shown = [decision.kind]
    for word in parts:
        if word in _PAIRS:
            next(parts, None)
        elif word not in _ALONE:
            shown.append(word)
    return " ".join(shown)
