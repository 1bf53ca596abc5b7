"""What a comparison found and what became of it, for people, logs and metrics. Values only."""

from __future__ import annotations

import msgspec

from podwire.model.state import Link, Why


class Change(msgspec.Struct, frozen=True):
    """A difference for a person: what kind, what is done, the line to type, and why."""

    kind: str
    action: str
    line: str
    why: Why | None


class Report(msgspec.Struct):
    """What a reconciliation did. `changes` are applied ones, `failures` one sentence each.

    `refused` are those failures without whose mending no pod can be wired: a bridge or a tunnel
    could not be made. `missing` are the pods' links that are gone and have to be attached anew.
    """

    changes: int = 0
    failures: list[str] = []
    refused: list[str] = []
    missing: list[Link] = []
    seconds: float = 0.0
    lines: list[Change] = []


class Transaction(msgspec.Struct, frozen=True):
    """Commands for `nft -f`, and the open sets (family, table, name) that they make, filled."""

    text: str
    why: Why | None
    sets: frozenset[tuple[str, str, str]] = frozenset()
