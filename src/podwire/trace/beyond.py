"""What is known of a packet that left what is watched: for a node, a pod, the world outside.

What lives here: where it was heading, and what follows from not having seen it there. What does
not: what stopped it before that (`endings`). Pure.

A packet that left for a node that was watched, and was not seen there, was lost in between. That is
as sure as the watching was: where frames found no room, it is not. Of other nodes, of the world
outside, and of pods that could not be looked into, nothing is claimed.
"""

from __future__ import annotations

from shlex import quote

import msgspec

from podwire.trace import observations as seen
from podwire.trace.case import Case, KnownDrop, Leg
from podwire.trace.evidence import NodeFacts
from podwire.trace.model import Cause, Ethernet, Finding, Interface, Ip, Outcome, Udp
from podwire.trace.observations import finding
from podwire.trace.reasons import reason_of
from podwire.trace.sightings import Sighting
from podwire.trace.user_tunnel import TunnelCount, meaning

#: What the tunnel at the other end may have dropped a datagram for.
_FAR_REASONS = frozenset(
    {
        "not_a_peer",
        "malformed",
        "foreign_source",
        "foreign_destination",
        "ttl_expired_inbound",
        "tun_refused",
        "not_encrypted",
        "no_key",
        "no_session",
        "not_authentic",
        "replayed",
        "handshake_forged",
        "handshake_stale",
        "handshake_limited",
    }
)
_REMEDIES = {
    "not_a_peer": "podwire status tells whose leases are not used, and why",
    "not_authentic": "does something on the way change datagrams? Look at what both ends of it see:"
    " podwire capture udp",
    "handshake_forged": "do the nodes have each other's present key? podwire get nodes -o yaml",
    "no_session": "trace again: a new session is asked for at once",
    "not_encrypted": "start all nodes' agents with --encrypt, or none",
}


def beyond(case: Case, leg: Leg) -> tuple[Outcome, Finding] | None:
    """None where the packet did not leave what is watched."""
    last = leg.last
    if last is None or not last.outgoing:
        return None
    if _into_a_pod(last.interface):
        return _unseen_pod(case, leg, last)
    if last.interface.kind == "tun":
        return _in_the_tunnel(case, leg, last)
    if not _off_the_node(last.interface):
        return None
    ip = seen.outermost(last.packet)
    if ip is None:
        return None
    facts = case.evidence.facts
    node = facts.node_at(ip.target) or facts.owner(ip.target)
    here = case.evidence.places[last.place].node
    if node is None or node.name == here:
        return _outside(case, leg, last, ip)
    if not any(place.node == node.name for place in case.evidence.places):
        return _away(case, leg, last, node)
    return _lost(case, leg, last, ip, node)


def _into_a_pod(one: Interface) -> bool:
    return one.kind == "veth" and bool(one.master) and one.peer_place is None and not one.underlay


def _off_the_node(one: Interface) -> bool:
    inside = one.kind in ("bridge", "vxlan", "loopback") and not one.underlay
    return not inside and one.peer_place is None


def _in_the_tunnel(case: Case, leg: Leg, last: Sighting) -> tuple[Outcome, Finding] | None:
    """It was given to the user-space tunnel's process. What that sends is seen by its inner packet,
    unless it is encrypted."""
    ip = seen.outermost(last.packet)
    node = case.evidence.facts.owner(ip.target) if ip is not None else None
    here, dev = case.evidence.places[last.place].node, last.interface.name
    if not case.evidence.encrypted:
        return Outcome.DROPPED, finding(
            case,
            leg,
            Cause.TUNNEL,
            f"the process that reads {dev} of {here} has not sent it on, and counted no drop",
            where=seen.where_seen(case, last),
            remedy=f"is it busy, or stopped? podwire status --node {here}",
        )
    if node is None or node.name == here:
        return None
    if not any(place.node == node.name for place in case.evidence.places):
        return _away(case, leg, last, node)
    return Outcome.DROPPED, _sealed(case, leg, last, node)


def _sealed(case: Case, leg: Leg, last: Sighting, node: NodeFacts) -> Finding:
    """What was encrypted, and did not come out of the tunnel at its other end: what the processes
    at both ends counted tells where it was lost."""
    here, dev = case.evidence.places[last.place].node, last.interface.name
    sent, taken = (case.evidence.tunnels.get(name, TunnelCount()) for name in (here, node.name))
    at, gone = f"{node.name}, {dev}", f"went into {dev} of {here}, encrypted, and"
    examine = f"podwire doctor --node {here} --node {node.name}"
    cause, remedy = Cause.TUNNEL, examine
    if taken.problem is not None:
        text = f"{gone} the tunnel of {node.name} does not forward: {taken.problem}"
    elif dropped := [one for one in taken.dropped if one in _FAR_REASONS]:
        said = "; ".join(f"{meaning(one)} ({one})" for one in dropped)
        text = f"{gone} the tunnel of {node.name} dropped it: {said}"
        remedy = next((_REMEDIES[one] for one in dropped if one in _REMEDIES), examine)
    elif node.name in sent.unmet:
        cause, at = Cause.UNDERLAY, f"between {seen.where_seen(case, last)} and {node.name}"
        text = (
            f"went into {dev} of {here}, and waits there: no encrypted session with {node.name},"
            " which does not answer the handshake"
        )
        remedy = f"does UDP get through between them? {examine} --check tunnel"
    else:
        cause, at = Cause.UNDERLAY, f"between {seen.where_seen(case, last)} and {node.name}"
        text = (
            f"{gone} did not come out of the tunnel on {node.name}, which dropped nothing; in"
            " between nobody can tell it from others"
        )
        remedy = f"does UDP get through between them? {examine} --check tunnel"
    found = finding(case, leg, cause, text, where=at, remedy=remedy)
    lines = (_counts(here, sent, node.name), _counts(node.name, taken, here))
    return msgspec.structs.replace(found, evidence=(*found.evidence, *lines))


def _counts(name: str, count: TunnelCount, peer: str) -> str:
    dropped = [f"{packets} {reason}" for reason, packets in sorted(count.dropped.items())]
    return (
        f"the tunnel of {name} meanwhile took {count.received.get(peer, 0)} packets from {peer},"
        f" and dropped {', '.join(dropped) or 'none'}"
    )


def _unseen_pod(case: Case, leg: Leg, last: Sighting) -> tuple[Outcome, Finding]:
    place = case.evidence.places[last.place]
    return Outcome.UNANSWERED, finding(
        case,
        leg,
        Cause.NO_ANSWER,
        f"went into {last.interface.name}, the cable of a pod that was not looked into; no answer"
        " was seen",
        where=seen.where_seen(case, last),
        remedy=f"look into the pod on {place.node}: does it answer its own node?",
    )


def _outside(case: Case, leg: Leg, last: Sighting, ip: Ip) -> tuple[Outcome, Finding]:
    node = case.evidence.places[last.place].node
    if (known := _dropped_elsewhere(leg)) is not None:
        drop = known.drop
        reason = reason_of(drop.reason, drop.location, encapsulated=known.packet.encapsulated)
        return Outcome.DROPPED, finding(
            case,
            leg,
            reason.likeliest,
            f"left {node} for {ip.target}, and the kernel dropped it in another namespace of the"
            f" same machine: {reason.words}",
            where=seen.where_dropped(case, drop),
            remedy=f"look into the namespace that has {drop.interface}: lsns -t net",
            reason=drop.reason,
        )
    return Outcome.UNANSWERED, finding(
        case,
        leg,
        Cause.NO_ANSWER,
        f"left {node} for {ip.target}, which is no node of the cluster; what becomes of it there"
        " can't be seen, and no answer came",
        where=seen.where_seen(case, last),
        remedy=f"look on: traceroute {ip.target}; does anything between drop {seen.flow(case)}?",
    )


def _away(case: Case, leg: Leg, last: Sighting, node: NodeFacts) -> tuple[Outcome, Finding]:
    here = case.evidence.places[last.place].node
    known = f" ({node.away})" if node.away else ""
    state = "" if node.ready else f", and node {node.name} is not ready"
    return Outcome.UNANSWERED, finding(
        case,
        leg,
        Cause.AGENT_AWAY,
        f"left {here} for {node.name}, whose agent was not there to look{known}{state}: not seen"
        " further, and no answer came",
        where=seen.where_seen(case, last),
        remedy=f"bring the agent of {node.name} back, and trace again; podwire get nodes",
    )


def _lost(case: Case, leg: Leg, last: Sighting, ip: Ip, node: NodeFacts) -> tuple[Outcome, Finding]:
    here = case.evidence.places[last.place].node
    number, there = next(
        (number, place)
        for number, place in enumerate(case.evidence.places)
        if place.node == node.name and not place.pod
    )
    link = next((one for one in there.interfaces if one.underlay), None)
    between = f"between {seen.where_seen(case, last)} and"
    between += f" {seen.where(case, number, link.name if link is not None else '')}"
    port = _port(last)
    carried = f" in UDP to {ip.target}:{port}" if port else f" for {ip.target}"
    known = _dropped_elsewhere(leg)
    reason = known.drop.reason if known is not None else None
    cause, outcome = Cause.UNDERLAY, Outcome.DROPPED
    text = f"left {here}{carried} and never reached {node.name}"
    what = f"UDP port {port}" if port else seen.flow(case)
    remedy = f"let {what} from {ip.source} to {ip.target} pass in what is between them"
    if link is not None and not link.up:
        cause, between = Cause.LINK_DOWN, seen.where(case, number, link.name)
        text = f"{link.name} of {node.name} is down"
        remedy = f"ip link set {quote(link.name)} up  # on {node.name}"
    elif link is not None and (mac := _for_nobody(leg, last, link)):
        cause, between = Cause.WRONG_NEIGHBOR, seen.where_seen(case, last)
        text = f"{here} takes {mac} for the MAC of {node.name}, which is {link.mac}"
        own = next((one for one in node.ips if (":" in one) == (ip.version == 6)), ip.target)
        remedy = f"ip neigh del {own} dev {quote(last.interface.name)}  # on {here}"
    elif link is not None and 0 < link.mtu < ip.length:
        cause, between = Cause.TOO_BIG, seen.where(case, number, link.name)
        text = f"{ip.length} bytes left {here}, and {link.name} of {node.name} takes {link.mtu}"
        remedy = f"give {link.name} of {node.name} the MTU that the other nodes have"
    elif case.evidence.lost.get(node.name):
        cause, outcome = Cause.UNKNOWN, Outcome.UNANSWERED
        text = f"left {here}{carried}; not seen on {node.name}, whose frames were not all seen"
        remedy = "trace again"
    found = finding(case, leg, cause, text, where=between, remedy=remedy, reason=reason)
    unseen = f"not seen at {seen.where(case, number, link.name if link else '')}, which was watched"
    return outcome, msgspec.structs.replace(found, evidence=(*found.evidence, unseen))


def _for_nobody(leg: Leg, last: Sighting, link: Interface) -> str:
    """The MAC that a frame was sent to, where that is not the other node's; empty where it is, or
    where a router is to take it."""
    ethernet = next((one for one in last.packet.headers if isinstance(one, Ethernet)), None)
    decided = leg.decisions[len(leg.sightings) - 1] if leg.decisions else ()
    if ethernet is None or not link.mac or any(one.router for one in decided):
        return ""
    return "" if ethernet.target == link.mac else ethernet.target


def _dropped_elsewhere(leg: Leg) -> KnownDrop | None:
    """A drop in a namespace of this machine that is no place. Copies for others don't count."""
    unseen = [one for one in leg.drops if one.drop.place is None]
    return next((one for one in unseen[::-1] if one.drop.reason != "OTHERHOST"), None)


def _port(last: Sighting) -> int | None:
    """The tunnel's, of a packet in one."""
    if not last.packet.encapsulated:
        return None
    return next((one.target_port for one in last.packet.headers if isinstance(one, Udp)), None)
