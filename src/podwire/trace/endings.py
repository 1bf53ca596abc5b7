"""What explains that a packet was not seen any further: candidates, the surest first.

What lives here: rules that dropped it, what the kernel at its last hop objects to, the kernel's
own reason, what the sender's stack and routers say, silence in answer to ARP and NDP. What does
not: the outcome (`verdict`), what lies beyond what is seen (`beyond`). Pure.

A problem that was found by asking the kernel after the fact counts if the kernel's reason for the
drop allows it: what is asked later may have changed. The reason alone names a cause where it can
have no other, and is told as evidence always.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from shlex import quote

import msgspec

from podwire.trace import observations as seen
from podwire.trace.case import Case, KnownDrop, Leg
from podwire.trace.filters import filtered
from podwire.trace.model import Cause, Finding, Problem
from podwire.trace.observations import finding
from podwire.trace.order import ErrorPath
from podwire.trace.questions import is_refusal
from podwire.trace.reasons import Reason, reason_of
from podwire.trace.records import Drop
from podwire.trace.sightings import NeighborAsk, Sighting

#: What an ICMP error says of its cause, by IP version, type and code (RFC 792, 1812, 4443).
_ICMP_CAUSES = {
    (4, 3, 0): Cause.NO_ROUTE,
    (4, 3, 1): Cause.NOT_IN_USE,
    (4, 3, 2): Cause.NETFILTER,
    (4, 3, 3): Cause.NETFILTER,
    (4, 3, 4): Cause.TOO_BIG,
    (4, 3, 9): Cause.NETFILTER,
    (4, 3, 10): Cause.NETFILTER,
    (4, 3, 13): Cause.NETFILTER,
    (4, 11, 0): Cause.TTL,
    (6, 1, 0): Cause.NO_ROUTE,
    (6, 1, 1): Cause.NETFILTER,
    (6, 1, 3): Cause.NOT_IN_USE,
    (6, 1, 4): Cause.NETFILTER,
    (6, 1, 5): Cause.NETFILTER,
    (6, 1, 6): Cause.BLACKHOLE,
    (6, 2, 0): Cause.TOO_BIG,
    (6, 3, 0): Cause.TTL,
}
#: What the sender's own stack means by refusing to send.
_ERRNO_CAUSES = {
    errno.ENETUNREACH: Cause.NO_ROUTE,
    errno.EHOSTUNREACH: Cause.BLACKHOLE,
    errno.EACCES: Cause.BLACKHOLE,
    errno.EINVAL: Cause.BLACKHOLE,
    errno.EMSGSIZE: Cause.TOO_BIG,
    errno.EPERM: Cause.NETFILTER,
    errno.ENETDOWN: Cause.LINK_DOWN,
}
_VAGUE = Reason("")


def explained(case: Case, leg: Leg) -> Finding | None:
    """The surest explanation; None where there is none."""
    return next(filter(None, _explanations(case, leg)), None)


def _explanations(case: Case, leg: Leg) -> Iterator[Finding | None]:
    yield filtered(case, leg)
    known = drop_of(leg)
    reason = _VAGUE
    if known is not None:
        encapsulated = known.packet.encapsulated
        reason = reason_of(known.drop.reason, known.drop.location, encapsulated=encapsulated)
    problem = next(
        (one.problem for of_hop in leg.decisions[::-1] for one in of_hop if one.problem), None
    )
    if problem is not None and (not reason.causes or problem.cause in reason.causes):
        yield _by_problem(case, leg, problem, known)
    silent = seen.unanswered(case, leg)
    unresolved = bool(silent) and Cause.NOT_IN_USE in reason.causes
    if known is not None and reason.causes and not unresolved:
        yield _by_drop(case, leg, known, reason)
    yield _by_sender(case, leg, silent=bool(silent))
    for error in case.journey.errors:
        if error.kind.about == leg.role and not is_refusal(error, case.evidence):
            yield _by_error(case, leg, error, silent=bool(silent))
    if silent:
        yield _by_silence(case, leg, silent[0], known)
    if known is not None:
        yield _by_drop(case, leg, known, reason)
    if problem is not None:
        yield _by_problem(case, leg, problem, None)


# --- the kernel -----------------------------------------------------------------------------------


def drop_of(leg: Leg) -> KnownDrop | None:
    """The drop of a leg's packet that tells of its end, in a place that is observed.

    Not of copies: bridges flood them to whom they are not for, and back to where it came from.
    """
    last = leg.last
    passed = {one.place for one in leg.sightings if last is not None and one.place != last.place}
    return max(
        (
            known
            for known in leg.drops
            if known.drop.place is not None
            and known.drop.place not in passed
            and (known.drop.reason != "OTHERHOST" or _is_at(known.drop, last))
        ),
        key=lambda known: (last is not None and known.drop.place == last.place, known.drop.time_ns),
        default=None,
    )


def _is_at(drop: Drop, last: Sighting | None) -> bool:
    where = (drop.place, drop.ifindex)
    return last is not None and where == (last.place, last.interface.index)


def _by_problem(case: Case, leg: Leg, problem: Problem, known: KnownDrop | None) -> Finding:
    last, end = leg.last, seen.end_of(case, leg)
    place = problem.place or seen.where(case, end)
    node = case.evidence.places[end].node if end is not None else "NODE"
    own = last is not None and place == case.evidence.places[last.place].name
    interface = problem.interface or (last.interface.name if last is not None and own else "")
    return finding(
        case,
        leg,
        problem.cause,
        problem.text,
        where=f"{place}, {interface}" if interface else place,
        remedy=problem.remedy or f"podwire doctor --node {node}",
        reason=known.drop.reason if known is not None else None,
        why=problem.why,
    )


def _by_drop(case: Case, leg: Leg, known: KnownDrop, reason: Reason) -> Finding:
    drop = known.drop
    place = case.evidence.places[drop.place] if drop.place is not None else None
    name = place.name if place is not None else "this machine"
    remedy = f"podwire doctor --node {place.node if place is not None else 'NODE'}"
    if reason.likeliest is Cause.LINK_DOWN and place is not None and drop.interface:
        remedy = f"ip link set {quote(drop.interface)} up  # {seen.inside(case, drop.place)}"
    found = finding(
        case,
        leg,
        reason.likeliest,
        f"the kernel of {name} dropped the {seen.what(leg)} at {drop.interface or 'no interface'}:"
        f" {reason.words}",
        where=seen.where_dropped(case, drop),
        remedy=remedy,
        reason=drop.reason,
    )
    objections = tuple(
        f"asked afterwards: {one.problem.text}"
        for of_hop in leg.decisions
        for one in of_hop
        if one.problem is not None
    )
    return msgspec.structs.replace(found, evidence=(*found.evidence, *objections))


# --- the sender's stack ---------------------------------------------------------------------------


def _by_sender(case: Case, leg: Leg, *, silent: bool) -> Finding | None:
    """The source's own stack would not send it."""
    result = case.result
    if leg.role != "request" or leg.sightings or result is None or result.outcome != "error":
        return None
    if silent and result.errno == errno.EHOSTUNREACH:
        return None
    interface = ""
    if case.source is not None and case.evidence.places[case.source].pod:
        links = [
            one for one in case.evidence.places[case.source].interfaces if one.kind != "loopback"
        ]
        interface = links[0].name if len(links) == 1 else ""
    target, probe = case.evidence.match.target, case.evidence.probe
    told = result.text or errno.errorcode.get(result.errno, "no reason")
    text = f"the sender's own stack did not send it: {told}"
    at = seen.inside(case, case.source)
    remedy = f"ask it: ip route get {target}  # {at}"
    if result.errno == errno.EMSGSIZE:
        mtu = _mtu(case, case.source, interface)
        through = f"{interface}, whose MTU is {mtu}" if mtu else "the interface that it leaves by"
        text = f"{probe.size} bytes do not fit through {through}, and DF is set"
        remedy = f"send at most {mtu} bytes" if mtu else "send less; ip link show tells the MTU"
    elif result.errno == errno.EPERM:
        remedy = f"look for who drops it: nft list ruleset  # {at}"
    return finding(
        case,
        leg,
        _ERRNO_CAUSES.get(result.errno, Cause.SOCKET),
        text,
        where=seen.where(case, case.source, interface),
        remedy=remedy,
    )


def _mtu(case: Case, place: int | None, name: str) -> int:
    interfaces = case.evidence.places[place].interfaces if place is not None else ()
    return next((one.mtu for one in interfaces if one.name == name), 0)


# --- routers --------------------------------------------------------------------------------------


def _by_error(case: Case, leg: Leg, error: ErrorPath, *, silent: bool) -> Finding | None:
    """A router said why it did not pass it on."""
    kind = error.kind
    cause = _ICMP_CAUSES.get((kind.version, kind.type, kind.code))
    if cause is None or (silent and cause is Cause.NOT_IN_USE):
        return None
    place = case.ground.with_address(kind.sender)
    at, interface = seen.who_is(case, kind.sender), ""
    if place is not None:
        interfaces = case.evidence.places[place].interfaces
        interface = next((one.name for one in interfaces if kind.mtu and one.mtu == kind.mtu), "")
        at = seen.where(case, place, interface)
    text = seen.error_words(case, error)
    remedy = f"ask there: ip route get {case.evidence.match.target}"
    if cause is Cause.TOO_BIG:
        size = seen.length(leg.last.packet) if leg.last is not None else case.evidence.probe.size
        router = seen.who_is(case, kind.sender)
        text = f"the packet has {size} bytes and DF, and {router} passes on at most {kind.mtu}"
        remedy = f"send at most {kind.mtu} bytes, or mend the MTU there"
    elif cause is Cause.NETFILTER:
        text += ": a packet filter rejects it"
        remedy = "look for who rejects it: nft list ruleset; iptables-save"
    elif cause is Cause.TTL:
        remedy = "look for a loop of routes: the hops above repeat"
    return finding(case, leg, cause, text, where=at, remedy=remedy)


# --- silence --------------------------------------------------------------------------------------


def _by_silence(case: Case, leg: Leg, ask: NeighborAsk, known: KnownDrop | None) -> Finding:
    facts, place = case.evidence.facts, case.evidence.places[ask.place]
    where = seen.where(case, ask.place, ask.interface.name)
    asked = f"{seen.asking(ask)} on {ask.interface.name} of {place.name} was not answered"
    pod, node = facts.pod_at(ask.target), facts.node_at(ask.target)
    remedy = f"who has it? podwire explain ip {ask.target}"
    if (down := _down(case, ask.target)) is not None:
        cause, text, where = Cause.LINK_DOWN, f"{down[1]} is down: {asked}", f"{down[0]}, {down[1]}"
        remedy = f"ip link set {quote(down[1])} up  # on {down[0]}"
    elif ask.interface.kind == "vxlan":
        cause, text = Cause.NO_NEIGHBOR, f"no neighbour entry for {ask.target}: {asked}"
        dev = quote(ask.interface.name)
        remedy = f"ip neigh show dev {dev}  # on {place.node}; its agent keeps these"
    elif node is not None and place.node != node.name:
        cause, text = Cause.UNDERLAY, f"{asked}: {node.name} is off, or not on that network"
        remedy = f"is {node.name} on? ping {ask.target}  # on {place.node}"
    elif pod is not None:
        cause, text = Cause.UNKNOWN, f"{asked}, though pod {pod.name} has that address"
        remedy = f"look into the pod: ip address  # in {pod.name}"
    elif ask.target == case.evidence.match.target:
        cause, text = Cause.NOT_IN_USE, f"{ask.target} is not in use: {asked}"
    else:
        cause, text = Cause.NOT_IN_USE, f"the next hop {ask.target} is not there: {asked}"
    reason = known.drop.reason if known is not None else None
    return finding(case, leg, cause, text, where=where, remedy=remedy, reason=reason)


def _down(case: Case, ip: str) -> tuple[str, str] | None:
    """The place and the interface that is down, if the owner of an address is cut off by one."""
    for place in case.evidence.places:
        for one in place.interfaces:
            if ip not in {text.partition("/")[0] for text in one.addresses}:
                continue
            if not one.up:
                return place.name, one.name
            if one.peer_place is not None:
                far = case.ground.interface(one.peer_place, one.peer)
                if not far.up:
                    return case.evidence.places[one.peer_place].name, far.name
    return None
