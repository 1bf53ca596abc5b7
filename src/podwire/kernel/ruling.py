"""What a ruleset does to packets of a kind, found by reading it: three answers, yes, no, unclear.

What lives here: the walk through chains and rules as the kernel does it. What does not: reading
the ruleset (`podwire.kernel.ruleset`), whether a single rule matches (`podwire.kernel.matching`),
and what to make of the answer. Pure: values in, values out.

What cannot be told is taken as follows, since a finding must be worth the reader's time: a rule
that would drop is taken not to match, a rule that would accept leaves it unclear whether a later
drop is reached. So a drop that is found is one for sure, or names the rule that it depends on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from podwire.kernel.matching import Flow, Matcher, Truth, all_of
from podwire.kernel.rules import Chain, Key, Rule, Ruleset


class Ruling(msgspec.Struct, frozen=True):
    """What stops a flow: a rule, or the chain's policy where `rule` is None.

    `unless` is a rule before it that may let the flow pass, which can't be told from here.
    """

    chain: Chain
    rule: Rule | None
    unless: Rule | None = None


class _End(msgspec.Struct, frozen=True):
    """How a chain ends for the flow; `by` is the rule, None for its end."""

    verdict: Literal["accept", "drop", "continue"]
    by: tuple[Chain, Rule] | None = None
    unless: Rule | None = None


def rulings(ruleset: Ruleset, hooks: Iterable[str], flow: Flow) -> list[Ruling]:
    """What stops the flow at these hooks, in their order: no chain can overrule another's drop."""
    walk = _Walk(ruleset, flow)
    found = []
    for hook in hooks:
        bases = [chain for chain in ruleset.chains.values() if _sees(chain, hook, flow)]
        for chain in sorted(bases, key=lambda one: one.priority):
            end = walk.through(chain)
            if end.verdict == "drop" and end.by is not None:
                found.append(Ruling(*end.by, end.unless))
            elif end.verdict == "continue" and chain.policy == "drop":
                found.append(Ruling(chain, None, end.unless))
    return found


def _sees(chain: Chain, hook: str, flow: Flow) -> bool:
    if chain.hook != hook or chain.kind not in ("filter", "route"):
        return False
    if chain.family == "netdev":
        return (flow.iifname if hook == "ingress" else flow.oifname) in chain.devices
    return chain.family in ("inet", "ip" if flow.version == 4 else "ip6")


class _Walk:
    """One flow's way through one ruleset."""

    def __init__(self, ruleset: Ruleset, flow: Flow) -> None:
        self._ruleset = ruleset
        self._matcher = Matcher(ruleset, flow)
        self._ends: dict[Key, _End] = {}

    def through(self, chain: Chain) -> _End:
        """The same for every jump to the chain, so it is walked once."""
        if chain.key not in self._ends:
            self._ends[chain.key] = self._walk(chain)
        return self._ends[chain.key]

    def _walk(self, chain: Chain) -> _End:
        unless: Rule | None = None
        for rule in chain.rules:
            holds, verdict = self._judge(chain, rule)
            if holds is False or verdict in (None, "continue"):
                continue
            end = self._end(chain, rule, verdict)
            if holds is None:
                # It may spare the flow by accepting, returning, or a jump to what accepts.
                if end.verdict != "drop" and (not verdict.startswith("jump") or _accepts(end)):
                    unless = unless or rule
                continue
            unless = unless or end.unless
            if verdict == "return":
                break
            if end.verdict != "continue" or verdict.startswith("goto"):
                return msgspec.structs.replace(end, unless=unless)
        return _End("continue", None, unless)

    def _judge(self, chain: Chain, rule: Rule) -> tuple[Truth, str | None]:
        """Whether the rule's conditions hold, and its verdict (None: it has none)."""
        holds: Truth = True
        for expression in rule.expr:
            ((kind, value),) = expression.items()
            if kind in _VERDICTS:
                return holds, kind
            if kind in ("jump", "goto"):
                return holds, f"{kind} {value['target']}"
            if kind == "vmap":
                verdict = self._matcher.mapped(chain, value)
                return (None if verdict == "unclear" else holds), verdict
            if kind == "xt" and isinstance(value, dict) and value.get("type") == "target":
                return holds, "drop" if value.get("name") in ("DROP", "REJECT") else None
            holds = all_of([holds, self._matcher.holds(chain, rule, kind, value)])
            if holds is False:
                break
        return holds, None

    def _end(self, chain: Chain, rule: Rule, verdict: str) -> _End:
        """What the verdict leads to, were the rule to match."""
        match verdict.partition(" "):
            case ("jump" | "goto", _, target):
                to = self._ruleset.chains.get(chain.key_of(target))
                return self.through(to) if to is not None else _End("continue")
            case ("drop" | "reject", _, _):
                return _End("drop", (chain, rule))
            case ("accept", _, _):
                return _End("accept", (chain, rule))
        # return, and whatever hands the packet to somebody else (queue, unclear).
        return _End("continue", None, rule if verdict in ("queue", "unclear") else None)


_VERDICTS = frozenset({"accept", "drop", "return", "continue", "reject", "queue"})


def _accepts(end: _End) -> bool:
    return end.verdict == "accept" or end.unless is not None
