"""What routing does with a packet at a place, and what on that way stops it.

What lives here: the decisions route, neighbour and local delivery, in order. What does not: bridges
and cables (`switching`), the tunnel (`tunneling`). The kernel objects in this order, and only the
first objection is told:

    route: none, one that refuses, one that is not the wanted one
    forwarding switched off ─ reverse-path filter ─ TTL ─ the size of the next link
    that link itself, down or gone ─ the neighbour there
"""

from __future__ import annotations

from ipaddress import ip_address
from shlex import quote

import msgspec

from podwire.kernel.observe import lookup
from podwire.kernel.observe.interfaces import InterfaceState
from podwire.kernel.observe.lookup_messages import (
    ROUTE_TYPES,
    RTN_BROADCAST,
    RTN_LOCAL,
    RTN_UNICAST,
    FibEntry,
    RouteAnswer,
    RouteQuestion,
)
from podwire.plan.paths import over
from podwire.trace import iproute
from podwire.trace.decisions import mend
from podwire.trace.decisions.devices import cable_problem, device_problem
from podwire.trace.decisions.flow import Flow
from podwire.trace.decisions.neighbors import resolved, unanswered
from podwire.trace.decisions.refusals import forwarding_problem, reverse_path_problem
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.decisions.ways import lost_address, no_way, way_problem
from podwire.trace.model import Cause, Decision, Problem


class Routed(msgspec.Struct, frozen=True):
    """The decisions in order. `local`: they end in this place, which the packet is for."""

    decisions: tuple[Decision, ...]
    local: bool = False

    @property
    def problem(self) -> Problem | None:
        return next((one.problem for one in self.decisions if one.problem is not None), None)


def routed(
    v: Vantage, flow: Flow, *, iif: InterfaceState | None = None, ended: bool = False, mark: int = 0
) -> Routed:
    """Where a packet goes that came in by `iif`, or (None) is sent from here.

    `ended`: look for what stops it, too.
    """
    index = iif.index if iif is not None else 0
    answer = lookup.route(v.sock, flow.question(iif=index, mark=mark))
    entry = answer.match
    if entry is None and answer.errno:
        # The input was refused before the table's word was told: forwarding, or its source.
        entry = lookup.fib_entry(v.sock, RouteQuestion(dst=flow.dst.packed, mark=mark))
    problem = _refusal(v, flow, iif, answer, entry) if ended else None
    kind = entry.kind if entry is not None else answer.kind
    if kind != RTN_UNICAST:
        return Routed((_delivered(v, flow, answer, entry, problem),), local=not answer.errno)
    out = v.interface(answer.ifindex) if answer.ifindex else None
    if ended and problem is None and out is not None:
        problem = _too_much(v, flow, iif, answer, out) or _next_link(v, flow, out)
    if ended and problem is None:
        problem = _forged(v, flow)
    decisions = [
        *_path_decision(v, flow, problem),
        _route_decision(v, flow, iif, mark, answer, entry, problem),
    ]
    if out is not None:
        via = ip_address(answer.via) if answer.via else flow.dst
        neighbor = resolved(v, out, via, ended=ended and problem is None)
        decisions += [neighbor] if neighbor is not None else []
    return Routed(tuple(decisions))


def _refusal(
    v: Vantage,
    flow: Flow,
    iif: InterfaceState | None,
    answer: RouteAnswer,
    entry: FibEntry | None,
) -> Problem | None:
    """What of routing itself stops it."""
    if entry is not None and entry.kind == RTN_BROADCAST:
        dev = v.dev(entry.ifindex)
        return v.problem(
            Cause.NOT_IN_USE,
            f"{flow.dst} is the broadcast address of {v.name}'s {dev}: no host has it",
            interface=dev,
            remedy="trace to an address of one host",
        )
    if (nobody := _blackholed(v, flow, entry)) is not None:
        return nobody
    own, wanted = v.intent.address(flow.dst), v.intent.way(flow.dst)
    is_local = entry is not None and entry.kind == RTN_LOCAL
    if own is not None:
        if not is_local:
            return lost_address(v, own)
    elif wanted is not None:
        # What a pod does with its own routes is its own business, as long as it has some.
        if entry is None or not (v.is_pod or v.follows(entry, wanted)):
            return way_problem(v, flow.dst, wanted, entry)
    elif entry is None and answer.errno:
        return no_way(v, flow.dst)
    if iif is None:
        return None
    passing = entry is not None and entry.kind == RTN_UNICAST
    if passing and (forwarding := forwarding_problem(v, flow, iif)) is not None:
        return forwarding
    return reverse_path_problem(v, flow, iif) if answer.errno else None


def _blackholed(v: Vantage, flow: Flow, entry: FibEntry | None) -> Problem | None:
    """It runs into the blackhole that this node keeps for what it may give away and has not."""
    wanted = v.intent.blackhole(flow.dst)
    if wanted is None or (entry is not None and entry.kind == RTN_UNICAST):
        return None
    return v.problem(
        Cause.NOT_IN_USE,
        f"no pod has {flow.dst}: {wanted.dst} is {v.name}'s, and what no pod of it has is a"
        " blackhole",
        remedy=f"is a pod of that address running? podwire explain ip {flow.dst}",
        why=wanted.why,
    )


def _path_decision(v: Vantage, flow: Flow, problem: Problem | None) -> list[Decision]:
    """Why this transport and not another, where the fabric has several; and which IP version
    carries it, where that is not its own."""
    found = v.intent.path(flow.dst) if not v.is_pod and problem is None else None
    if found is None:
        return []
    node, path = found
    return [
        Decision(
            kind="path",
            text=f"{path.kind}{over(path.version, path.via)} to {node.name} at {path.via}:"
            f" {path.reason}",
            command=f"podwire status --node {v.place.node}",
        )
    ]


def _too_much(
    v: Vantage, flow: Flow, iif: InterfaceState | None, answer: RouteAnswer, out: InterfaceState
) -> Problem | None:
    """Its TTL, or its size on the next link."""
    if iif is not None and flow.ttl <= 1:
        return v.problem(
            Cause.TTL,
            f"its TTL is {flow.ttl}, and {v.name} is one hop more",
            interface=iif.name,
            remedy="send it with a larger TTL; if that is the usual one, look for a routing loop",
        )
    # A learned path MTU binds IPv6 routers, not IPv4 ones; and no sender of probes.
    learned = answer.mtu if flow.version == 6 and iif is not None else 0
    known = answer.match.mtu if answer.match is not None else 0
    mtu = min([out.mtu, *(one for one in (learned, known) if one)])
    if flow.length <= mtu or not flow.dont_fragment:
        return None
    return too_big(v, flow.length, mtu, out.name)


def too_big(v: Vantage, length: int, mtu: int, dev: str) -> Problem:
    """A packet of `length` bytes does not fit into `mtu`; a device with another MTU than is wanted
    is to be given that."""
    link = v.intent.link(dev)
    drifted = link is not None and link.mtu is not None and link.mtu > mtu
    line = mend.link_line(v.sock, link) if link is not None and drifted and not v.is_pod else ""
    if link is not None and drifted and not line:
        line = f"ip link set {quote(dev)} mtu {link.mtu}"
    return v.problem(
        Cause.TOO_BIG,
        f"the packet has {length} bytes and DF, and {dev} of {v.name} takes {mtu} (its MTU)",
        interface=dev,
        line=line,
        remedy=f"send at most {mtu} bytes in a packet, or without DF",
        why=link.why if link is not None else None,
    )


def _next_link(v: Vantage, flow: Flow, out: InterfaceState) -> Problem | None:
    """What is wrong with the link that it is to leave by."""
    pod = v.intent.pod_at(flow.dst)
    if pod is not None and (cable := cable_problem(v, pod)) is not None:
        return cable
    if (device := device_problem(v, out.name)) is not None:
        return device
    if out.kind == "bridge" and not out.carrier:
        return unanswered(v, out, flow.dst)
    return None


def _forged(v: Vantage, flow: Flow) -> Problem | None:
    """A pod's node takes nothing from it with another source, not even the ARP before it."""
    config = v.node.intent.config if v.node is not None else None
    pod = v.node.intent.pod(v.place.pod) if v.node is not None else None
    if config is None or pod is None or not config.fabric.anti_spoofing or pod.may_spoof:
        return None
    own = [one.ip for one in pod.ips]
    if flow.src.is_unspecified or flow.src.is_link_local or flow.src in own:
        return None
    return v.problem(
        Cause.SPOOFED,
        f"{v.name} sends with the source {flow.src}, which is not its own: {config.node} drops"
        " that, and what it asks for by ARP or NDP with it",
        remedy="have it send with its own address, or let it: annotation"
        ' podwire.io/anti-spoofing: "off"',
    )


def _delivered(
    v: Vantage,
    flow: Flow,
    answer: RouteAnswer,
    entry: FibEntry | None,
    problem: Problem | None,
) -> Decision:
    own = v.intent.address(flow.dst)
    kind = entry.kind if entry is not None else answer.kind
    if kind == RTN_LOCAL:
        dev = f" of {v.dev(entry.ifindex)}" if entry is not None else ""
        text = f"{flow.dst} is an address{dev}: delivered to {v.name}"
    else:
        text = f"{flow.dst} is {ROUTE_TYPES.get(kind, 'special')}: delivered to {v.name}"
    return Decision(
        kind="local",
        text=text,
        command=iproute.route_command(flow.dst),
        why=own.why if own is not None else None,
        problem=problem,
    )


def _route_decision(
    v: Vantage,
    flow: Flow,
    iif: InterfaceState | None,
    mark: int,
    answer: RouteAnswer,
    entry: FibEntry | None,
    problem: Problem | None,
) -> Decision:
    if entry is not None:
        text = iproute.route_text(entry, v.dev)
    else:
        text = f"no route to {flow.dst}"
    if answer.mtu and not (entry is not None and entry.mtu):
        text += f" (learned path MTU {answer.mtu}, for {answer.expires_s:.0f} s more)"
    return Decision(
        kind="route",
        text=text,
        command=iproute.route_command(
            flow.dst, flow.src, iif.name if iif is not None else "", mark
        ),
        why=v.why_of(entry) if entry is not None else None,
        problem=problem,
    )
