"""Packet filters: the rule that dropped a packet, or that there was one.

What lives here: what the nft trace and the kernel's drop reason say of it. What does not: other
explanations. Pure.

Rules of iptables-legacy are not told by the kernel, nor are chains of family netdev; then its drop
reason is all there is.
"""

from __future__ import annotations

import re
from shlex import quote

from podwire.plan import guard, isolation, spoofing
from podwire.trace import observations as seen
from podwire.trace.case import Case, Leg
from podwire.trace.decode import decode_network
from podwire.trace.model import Cause, Finding
from podwire.trace.observations import finding
from podwire.trace.records import NftStep
from podwire.trace.render.words import ip_of


def filtered(case: Case, leg: Leg) -> Finding | None:
    """Dropped by a rule, or by a packet filter whose rule can't be named."""
    known = next(
        (
            one
            for one in leg.drops
            if one.drop.reason == "NETFILTER_DROP" and one.drop.place is not None
        ),
        None,
    )
    reason = known.drop.reason if known is not None else None
    if (step := seen.dropping_step(leg)) is not None:
        return _by_rule(case, leg, step, reason)
    if known is None or known.drop.place is None:
        return None
    place, at = case.evidence.places[known.drop.place], seen.inside(case, known.drop.place)
    return finding(
        case,
        leg,
        Cause.NETFILTER,
        f"a packet filter of {place.name} dropped the {seen.what(leg)}; by which rule is not known",
        where=seen.where_dropped(case, known.drop),
        remedy=f"look for it: nft list ruleset; iptables-legacy-save  # {at}",
        reason=reason,
    )


def _by_rule(case: Case, leg: Leg, step: NftStep, reason: str | None) -> Finding:
    rejects = "reject" in step.rule
    text = f"{seen.rule_name(step)} {'rejects' if rejects else 'drops'} the {seen.what(leg)}"
    if step.kind == "policy":
        text += ", which no rule of it accepts"
    text += f", because {step.why}" if step.why is not None else "; it is not Podwire's"
    if (guarded := _by_guard(case, leg, step, reason)) is not None:
        return guarded
    at = seen.inside(case, step.place)
    chain = f"{step.family} {quote(step.table)} {quote(step.chain)}"
    if step.why is not None:
        remedy = f"change what asks for it: {step.why.object}"
    elif step.kind == "policy":
        remedy = (
            f"accept it in that chain: nft insert rule {chain} {_matching(case)} accept  # {at}"
        )
    else:
        remedy = f"if it should pass: nft delete rule {chain} handle {step.handle}  # {at}"
    return finding(
        case,
        leg,
        Cause.NFT,
        text,
        where=seen.where_met(case, step),
        remedy=remedy,
        reason=reason,
        why=step.why,
    )


def _by_guard(case: Case, leg: Leg, step: NftStep, reason: str | None) -> Finding | None:
    """Dropped by a rule of ours that lets only those pass who are who they say."""
    counted = _COUNTED.search(step.rule) if step.why is not None else None
    if counted is None or counted[1] not in _GUARDS:
        return None
    ip = ip_of(decode_network(step.data, len(step.data)).headers)
    source = f" {ip.source}" if ip is not None else ""
    cause, text, remedy = _GUARDS[counted[1]]
    first = case.evidence.places[leg.sightings[0].place] if leg.sightings else None
    sender = f"pod {first.pod}" if first is not None and first.pod else "the sender"
    return finding(
        case,
        leg,
        cause,
        f"{text.format(sender=sender, source=source)}: dropped, and counted as {counted[1]}",
        where=seen.where_met(case, step),
        remedy=remedy.format(sender=sender, source=source),
        reason=reason,
        why=step.why,
    )


#: Of our own rules that drop, by their counters: the cause, what happened, what to do.
_COUNTED = re.compile(r'counter name "(\w+)" drop')
_GUARDS = {
    spoofing.SPOOFED_IP.name: (
        Cause.SPOOFED,
        "{sender} sends with the source{source}, which is not its own",
        'have it send with its own address, or let it: annotation podwire.io/anti-spoofing: "off"',
    ),
    guard.STRANGER.name: (
        Cause.SPOOFED,
        "a VXLAN packet from{source}, which is no node's address",
        "is{source} an address of a node? podwire status tells which ones peers have published",
    ),
    isolation.ISOLATED.name: (
        Cause.NFT,
        "pods and their own node are kept apart here",
        "nothing, if that is wanted: it is the agent's option --isolate-host",
    ),
}


def _matching(case: Case) -> str:
    """An nft match for the probe's packets."""
    match = case.evidence.match
    family = "ip6" if ":" in match.target else "ip"
    if match.protocol == "icmp":
        protocol = "ipv6-icmp" if family == "ip6" else "icmp"
        return f"{family} daddr {match.target} meta l4proto {protocol}"
    return f"{family} daddr {match.target} {match.protocol} dport {match.port}"
