"""What a ruleset does to packets of a kind, found by reading it: three answers, yes, no, unclear.

What lives here: the walk through chains and rules as the kernel does it, for a packet of which not
everything is known. What does not: reading the ruleset (`podwire.kernel.ruleset`), and what to
make of the answer. Pure: values in, values out.

A condition holds, does not hold, or cannot be told (`None`): the packet leaves it open, or it is of
a kind that is not read here. What cannot be told is taken as follows, since a finding must be worth
the reader's time: a rule that would drop is taken not to match, a rule that would accept leaves it
unclear whether a later drop is reached. So a drop that is reported is one for sure, or `unclear`
with the rule that decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Literal

import msgspec

from podwire.kernel.ruleset import Chain, Rule, Ruleset
from podwire.model.state import IPAddress

Truth = bool | None


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of packets, the first ones of their connections. What is None may be anything."""

    version: Literal[4, 6]
    iifname: str | None = None
    oifname: str | None = None
    source: IPAddress | None = None
    target: IPAddress | None = None
    protocol: str | None = None
    sport: int | None = None
    dport: int | None = None
    #: Where the target is, as `fib daddr type` says: `local`, `unicast`.
    target_type: str | None = None
    #: conntrack's: `new`, or `untracked`.
    state: str = "new"


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
        self._flow = flow
        self._ends: dict[tuple[str, str, str], _End] = {}

    def through(self, chain: Chain) -> _End:
        """The same for every jump to the chain, so it is walked once."""
        key = (chain.family, chain.table, chain.name)
        if key not in self._ends:
            self._ends[key] = self._walk(chain)
        return self._ends[key]

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
                verdict = self._mapped(chain, value)
                return (None if verdict == "unclear" else holds), verdict
            if kind == "xt" and isinstance(value, dict) and value.get("type") == "target":
                return holds, "drop" if value.get("name") in ("DROP", "REJECT") else None
            holds = _and(holds, self._holds(chain, rule, kind, value))
            if holds is False:
                break
        return holds, None

    def _end(self, chain: Chain, rule: Rule, verdict: str) -> _End:
        """What the verdict leads to, were the rule to match."""
        match verdict.partition(" "):
            case ("jump" | "goto", _, target):
                to = self._ruleset.chains.get((chain.family, chain.table, target))
                return self.through(to) if to is not None else _End("continue")
            case ("drop" | "reject", _, _):
                return _End("drop", (chain, rule))
            case ("accept", _, _):
                return _End("accept", (chain, rule))
        # return, and whatever hands the packet to somebody else (queue, unclear).
        return _End("continue", None, rule if verdict in ("queue", "unclear") else None)

    def _mapped(self, chain: Chain, vmap: Mapping[str, Any]) -> str | None:
        """The verdict that a verdict map has for the flow."""
        key = self._value(vmap["key"])
        data = vmap["data"]
        if isinstance(data, str):
            pairs = self._ruleset.sets.get((chain.family, chain.table, data[1:]), ())
        else:
            pairs = data.get("set", ())
        open_ = False
        for element, verdict in pairs:
            fits = False if key is _ABSENT else self._contains(chain, element, key)
            open_ = open_ or fits is None
            if fits:
                ((kind, value),) = verdict.items()
                return f"{kind} {value['target']}" if kind in ("jump", "goto") else kind
        return "unclear" if open_ else None

    # --- conditions -----------------------------------------------------------------------

    def _holds(self, chain: Chain, rule: Rule, kind: str, value: Any) -> Truth:
        match kind:
            case "match":
                return self._matches(chain, value)
            case "xt":
                return self._extension_matches(rule, value)
            case "limit" | "quota" | "ct count" | "numgen" | "connlimit":
                return None
        return True  # counter, log, mangle, notrack, …: they do something, and go on.

    def _matches(self, chain: Chain, match: Mapping[str, Any]) -> Truth:
        value = self._value(match["left"])
        if value is _ABSENT:
            return False
        operator, right = match["op"], match["right"]
        if operator in ("==", "in"):
            return self._contains(chain, right, value)
        if operator == "!=":
            contained = self._contains(chain, right, value)
            return None if contained is None else not contained
        if value is None or not isinstance(value, int) or not isinstance(right, int):
            return None
        return _ORDER[operator](value, right) if operator in _ORDER else None

    def _value(self, left: Any) -> Any:
        """What the flow has there: None where that is open, `_ABSENT` where there is no such."""
        if not isinstance(left, dict) or len(left) != 1:
            return None
        ((kind, what),) = left.items()
        flow = self._flow
        match kind:
            case "meta":
                return self._meta(what["key"])
            case "payload" if "field" in what:
                return self._payload(what["protocol"], what["field"])
            case "ct":
                return {"state": flow.state, "status": "confirmed"}.get(what["key"])
            case "fib" if what.get("result") == "type" and what.get("flags") == ["daddr"]:
                return flow.target_type
            case "&":
                return 0 if self._value(what[0]) == 0 else None
            case "concat":
                parts = [self._value(one) for one in what]
                return _ABSENT if _ABSENT in parts else tuple(parts)
        return None

    def _meta(self, key: str) -> Any:
        flow = self._flow
        return {
            "iifname": flow.iifname,
            "iif": flow.iifname,
            "oifname": flow.oifname,
            "oif": flow.oifname,
            "l4proto": flow.protocol,
            "protocol": "ip" if flow.version == 4 else "ip6",
            "nfproto": f"ipv{flow.version}",
            "mark": 0,
            "pkttype": "host",
        }.get(key)

    def _payload(self, protocol: str, field: str) -> Any:
        flow = self._flow
        if protocol in ("ip", "ip6"):
            if (protocol == "ip") != (flow.version == 4):
                return _ABSENT
            values = {"saddr": flow.source, "daddr": flow.target}
            return values.get(field, flow.protocol if field in ("protocol", "nexthdr") else None)
        if protocol in _TRANSPORTS:
            if protocol != "th" and flow.protocol not in (None, protocol):
                return _ABSENT
            if flow.protocol is None and protocol != "th":
                return None
            return {"sport": flow.sport, "dport": flow.dport}.get(field)
        return None

    def _contains(self, chain: Chain, right: Any, value: Any) -> Truth:
        """Whether `value` is `right`, or in it where it is a set, prefix or range."""
        if isinstance(right, str) and right.startswith("@"):
            right = self._ruleset.sets.get((chain.family, chain.table, right[1:]))
            if right is None:
                return None
        if isinstance(right, dict):
            ((kind, what),) = right.items()
            if kind == "set":
                right = what
            elif kind == "elem":
                return self._contains(chain, what["val"], value)
            elif kind == "concat" and isinstance(value, tuple):
                truths = [self._contains(chain, *pair) for pair in zip(what, value, strict=False)]
                return _all(truths)
            else:
                return _within(kind, what, value)
        if isinstance(right, Sequence) and not isinstance(right, str):
            return _any([self._contains(chain, one, value) for one in right])
        return None if value is None else _equal(right, value)

    def _extension_matches(self, rule: Rule, xt: Any) -> Truth:
        """An extension of iptables, by what nft's text has made of it."""
        name = xt.get("name") if isinstance(xt, dict) else None
        if name == "comment":
            return True
        if name in ("conntrack", "state") and (found := _CT_STATE.search(rule.text)):
            return self._flow.state in found[1].split(",")
        if name in ("multiport", "udp", "tcp") and (found := _PORTS.search(rule.text)):
            port = self._payload(found[1], "dport")
            if port is _ABSENT:
                return False
            return None if port is None else _any([_in_range(port, r) for r in found[2].split(",")])
        return None


_ABSENT: Any = object()
_VERDICTS = frozenset({"accept", "drop", "return", "continue", "reject", "queue"})
_TRANSPORTS = frozenset({"udp", "tcp", "th", "sctp", "udplite", "dccp"})
#: Where nft gives a protocol's number.
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58}
_CT_STATE = re.compile(r"\bct state (\w[\w,]*)")
_PORTS = re.compile(r"\b(udp|tcp) dport (?:\{ )?([\d, -]*\d)")
_ORDER: Mapping[str, Callable[[int, int], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


def _accepts(end: _End) -> bool:
    return end.verdict == "accept" or end.unless is not None


def _and(a: Truth, b: Truth) -> Truth:
    return _all([a, b])


def _all(truths: Sequence[Truth]) -> Truth:
    if any(one is False for one in truths):
        return False
    return None if any(one is None for one in truths) else True


def _any(truths: Sequence[Truth]) -> Truth:
    if any(one is True for one in truths):
        return True
    return None if any(one is None for one in truths) else False


def _equal(right: Any, value: Any) -> Truth:
    if isinstance(right, int) and value in _PROTOCOLS:
        return _PROTOCOLS[value] == right
    if isinstance(right, str) and isinstance(value, str):
        return value.startswith(right[:-1]) if right.endswith("*") else value == right
    if isinstance(value, int) or isinstance(right, int):
        return str(value) == str(right)
    try:
        return bool(ip_address(right) == value)
    except ValueError:
        return None


def _within(kind: str, what: Any, value: Any) -> Truth:
    """Whether a value is in a prefix or a range; None for what is neither, or open."""
    if value is None:
        return None
    try:
        if kind == "prefix":
            return value in ip_network((what["addr"], what["len"]), strict=False)
        if kind == "range":
            low, high = what
            if isinstance(value, int):
                return bool(int(low) <= value <= int(high))
            return bool(ip_address(low) <= value <= ip_address(high))
    except (TypeError, ValueError):
        return None
    return None


def _in_range(port: int, text: str) -> bool:
    low, _, high = text.strip().partition("-")
    return int(low) <= port <= int(high or low)
