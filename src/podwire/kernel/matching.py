"""Whether the conditions of a firewall rule hold for a kind of packets: yes, no, or unclear.

What lives here: packets of which not everything is known, and nft's expressions (in its JSON) for
them. What does not: chains and verdicts (`podwire.kernel.ruling`). Pure: values in, values out.

A condition holds, does not hold, or cannot be told (None): the packet leaves it open, or it is of
a kind that is not read here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Literal

import msgspec

from podwire.kernel.rules import Chain, Rule, Ruleset
from podwire.model.state import IPAddress

Truth = bool | None


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of whole packets, the first ones of their connections, and not marked. What is None
    may be anything."""

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


class Matcher:
    """One flow, and the sets that rules look it up in."""

    def __init__(self, ruleset: Ruleset, flow: Flow) -> None:
        self._ruleset = ruleset
        self._flow = flow

    def holds(self, chain: Chain, rule: Rule, kind: str, value: Any) -> Truth:
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
            case "fib" if what.get("result") == "oif" and "saddr" in what.get("flags", ()):
                # A reverse-path filter: whether there is a way back is no question of rules.
                return True
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
            values = {"saddr": flow.source, "daddr": flow.target, "frag-off": 0}
            return values.get(field, flow.protocol if field in ("protocol", "nexthdr") else None)
        if protocol in _TRANSPORTS:
            if protocol != "th" and flow.protocol not in (None, protocol):
                return _ABSENT
            if flow.protocol is None and protocol != "th":
                return None
            return {"sport": flow.sport, "dport": flow.dport}.get(field)
        if protocol in _OTHERS and flow.protocol in _TRANSPORTS:
            return _ABSENT
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
                return all_of(truths)
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
            port = self._payload(found[1], found[2])
            if port is _ABSENT:
                return False
            inside = any(_in_range(port, one) for one in found[4].split(",")) if port else None
            return inside if not found[3] or inside is None else not inside
        return None

    def mapped(self, chain: Chain, vmap: Mapping[str, Any]) -> str | None:
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


_ABSENT: Any = object()
_TRANSPORTS = frozenset({"udp", "tcp", "th", "sctp", "udplite", "dccp"})
#: What a packet of a transport is not.
_OTHERS = frozenset({"icmp", "icmpv6", "igmp", "esp", "arp"})
#: Where nft gives a protocol's number.
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58}
_CT_STATE = re.compile(r"\bct state (\w[\w,]*)")
_PORTS = re.compile(r"\b(udp|tcp) ([sd]port) (!= )?(?:\{ )?([\d, -]*\d)")
_ORDER: Mapping[str, Callable[[int, int], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


def all_of(truths: Sequence[Truth]) -> Truth:
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
