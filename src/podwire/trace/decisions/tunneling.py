"""What a VXLAN device does with a packet, on the way out and in, and what of it stops one.

    out of flannel.1:  FDB: MAC → VTEP ─ encapsulated ─ route to the VTEP ─ its neighbour
    in by the underlay:  UDP port and VNI ─ decapsulated by flannel.1

What lives here: those decisions, and frames that the tunnel takes to the wrong place. What does
not: the inner packet's own routing (`routing`).
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

import msgspec

from podwire.kernel.observe import lookup
from podwire.kernel.observe.interfaces import InterfaceState, VxlanState
from podwire.model.state import (
    FdbEntry,
    IPAddress,
    IPNetwork,
    Link,
    Neighbor,
    Route,
    Vxlan,
    Why,
    format_mac,
)
from podwire.plan.transport.vxlan import OVERHEAD
from podwire.trace import iproute
from podwire.trace.decisions import mend
from podwire.trace.decisions.devices import device_problem
from podwire.trace.decisions.flow import Flow
from podwire.trace.decisions.routing import routed
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.decisions.ways import unleased_problem, way_problem
from podwire.trace.model import Cause, Decision, Problem

_DF_ALWAYS, _DF_AS_INNER = 1, 2
_NO_WHY = Why("", "")


def sent(v: Vantage, tunnel: InterfaceState, flow: Flow, *, ended: bool) -> list[Decision]:
    """The packet is on its way out of a VXLAN device."""
    assert tunnel.vxlan is not None  # noqa: S101  asked of a VXLAN device only
    end = lookup.tunnel_end(v.sock, tunnel.index, flow.target_mac)
    problem = None
    if ended:
        problem = (
            device_problem(v, tunnel.name)
            or next_hop_problem(v, tunnel.name, flow)
            or _fdb_problem(v, tunnel.name, flow, ip_address(end) if end else None)
        )
    wanted = v.intent.fdb(tunnel.name, flow.target_mac)
    as_wanted = wanted is not None and end == wanted.dst.packed
    mac = format_mac(flow.target_mac)
    fdb = Decision(
        kind="fdb",
        text=f"{mac} dev {tunnel.name} dst {ip_address(end)}"
        if end
        else f"{mac} dev {tunnel.name}: no entry",
        command=iproute.tunnel_fdb_command(flow.target_mac, tunnel.name),
        why=wanted.why if as_wanted and wanted is not None else None,
        problem=problem,
    )
    if not end:
        return [fdb]
    outer = _outer(tunnel.vxlan, flow, ip_address(end))
    way = routed(v, outer, ended=ended and problem is None)
    wrapped = Decision(
        kind="tunnel",
        text=f"{tunnel.name} encapsulates: VNI {tunnel.vxlan.vni}, UDP {outer.src} →"
        f" {outer.dst}:{outer.dport}, {outer.length - flow.length} bytes more",
        command=iproute.link_command(tunnel.name),
        why=v.why_of_link(tunnel.name),
    )
    decisions = [_in_the_tunnels_words(v, one, tunnel, flow, outer) for one in way.decisions]
    return [fdb, wrapped, *decisions]


def _outer(vxlan: VxlanState, flow: Flow, end: IPAddress) -> Flow:
    """The packet around `flow`. An IPv6 one is never fragmented, an IPv4 one unless told so."""
    nowhere = bytes(4 if end.version == 4 else 16)
    keeps_whole = vxlan.df == _DF_ALWAYS or (vxlan.df == _DF_AS_INNER and flow.dont_fragment)
    return Flow(
        src=ip_address(vxlan.local or nowhere),
        dst=end,
        protocol=socket.IPPROTO_UDP,
        dport=vxlan.port,
        length=flow.length + OVERHEAD[end.version],
        dont_fragment=end.version == 6 or keeps_whole,
    )


def _in_the_tunnels_words(
    v: Vantage, decision: Decision, tunnel: InterfaceState, flow: Flow, outer: Flow
) -> Decision:
    """A packet too big for the underlay is too big because of the tunnel; and without a route to
    the peer, the underlay itself may be down."""
    problem = decision.problem
    config = v.intent.config
    if problem is not None and problem.cause is Cause.NO_ROUTE and config is not None:
        device = device_problem(v, config.underlay.dev)
        return msgspec.structs.replace(decision, problem=device or problem)
    if problem is None or problem.cause is not Cause.TOO_BIG:
        return decision
    more = outer.length - flow.length
    link = v.intent.link(tunnel.name)
    drifted = link is not None and link.mtu is not None and tunnel.mtu > link.mtu
    told = v.problem(
        Cause.TOO_BIG,
        f"{problem.text}: {flow.length} and the {more} of the tunnel",
        interface=problem.interface,
        line=mend.link_line(v.sock, link) if link is not None and drifted else "",
        remedy=f"give {problem.interface} its MTU of old, or the pods one that is {more} less",
        why=link.why if link is not None else None,
    )
    return msgspec.structs.replace(decision, problem=told)


def next_hop_problem(v: Vantage, tunnel: str, flow: Flow) -> Problem | None:
    """The frame in the tunnel is not for the node that it should be for."""
    wanted = v.intent.way(flow.dst)
    if wanted is None:
        return None
    neighbor = None
    if isinstance(wanted, Route) and wanted.dev == tunnel:
        neighbor = v.intent.neighbor(tunnel, wanted.via if wanted.via is not None else flow.dst)
        if neighbor is not None and neighbor.mac == flow.target_mac:
            return None
    entry = v.sent_by(flow.dst)
    if entry is None or not v.follows(entry, wanted):
        return way_problem(v, flow.dst, wanted, entry)
    if neighbor is None:
        return None
    return v.problem(
        Cause.WRONG_NEIGHBOR,
        f"{neighbor.ip} has MAC {format_mac(flow.target_mac)} on {tunnel} of {v.name},"
        f" and not {format_mac(neighbor.mac)}",
        interface=tunnel,
        line=mend.entry_line(neighbor),
        why=neighbor.why,
    )


def _fdb_problem(v: Vantage, tunnel: str, flow: Flow, end: IPAddress | None) -> Problem | None:
    """The tunnel has no end for the frame's MAC, or not the right one."""
    wanted = v.intent.fdb(tunnel, flow.target_mac)
    if end is not None and (wanted is None or wanted.dst == end):
        return None
    mac = format_mac(flow.target_mac)
    text = f"{tunnel} of {v.name} has no FDB entry for {mac}"
    if end is not None and wanted is not None:
        text = f"{tunnel} of {v.name} sends frames for {mac} to {end}, and not to {wanted.dst}"
    return v.problem(
        Cause.NO_FDB if end is None else Cause.WRONG_FDB,
        text,
        interface=tunnel,
        line=mend.entry_line(wanted) if wanted is not None else "",
        remedy="no node that this one knows has that MAC: is the sender's neighbour entry right?",
        why=wanted.why if wanted is not None else None,
    )


def strayed(v: Vantage, out: InterfaceState, flow: Flow) -> Problem | None:
    """Whether a packet that has left by a link of the underlay should have gone elsewhere."""
    inner = flow.inner
    if inner is not None:
        tunnel = _tunnel_of(v, flow)
        if tunnel is None:
            return None
        return next_hop_problem(v, tunnel.name, inner) or _fdb_problem(
            v, tunnel.name, inner, flow.dst
        )
    wanted = v.intent.way(flow.dst)
    if wanted is not None and wanted.dev == out.name:
        return None
    entry = v.sent_by(flow.dst)
    if wanted is None:
        return unleased_problem(v, flow.dst, entry)
    if v.intent.address(flow.dst) is not None or (entry is not None and v.follows(entry, wanted)):
        return None
    return way_problem(v, flow.dst, wanted, entry)


def _tunnel_of(v: Vantage, flow: Flow) -> Link | None:
    """The wanted VXLAN device that packets of this VNI and port belong to."""
    for link in v.intent.tunnels():
        kind = link.kind
        if isinstance(kind, Vxlan) and (kind.vni, kind.port) == (flow.vni, flow.dport):
            return link
    return None


def received(v: Vantage, flow: Flow, *, ended: bool) -> Decision:
    """The packet came in by the underlay for this place, with a frame in it: who takes it out?"""
    known = [one.index for one in v.place.interfaces if one.vni == flow.vni]
    states = [state for index in known if (state := v.interface(index)) is not None]
    taker = _taker(states, flow) or (_taker(v.interfaces(), flow) if ended or not states else None)
    if taker is not None and (taker.up or not ended):
        return Decision(
            kind="tunnel",
            text=f"{taker.name} decapsulates: VNI {flow.vni}, UDP port {flow.dport}",
            command=iproute.link_command(taker.name),
            why=v.why_of_link(taker.name),
        )
    problem = _nobody_takes(v, flow, taker) if ended else None
    return Decision(
        kind="tunnel",
        text=f"no VXLAN device takes VNI {flow.vni} on UDP port {flow.dport}",
        command="ip -d link show type vxlan",
        problem=problem,
    )


def _taker(states: list[InterfaceState], flow: Flow) -> InterfaceState | None:
    for state in states:
        if state.vxlan is not None and state.vxlan[:2] == (flow.vni, flow.dport):
            return state
    return None


def _nobody_takes(v: Vantage, flow: Flow, taker: InterfaceState | None) -> Problem:
    wanted = _tunnel_of(v, flow)
    name = taker.name if taker is not None else wanted.name if wanted is not None else ""
    if name and (device := device_problem(v, name)) is not None:
        return device
    own = next(iter(v.intent.tunnels()), None)
    text = f"{v.name} has no VXLAN device for VNI {flow.vni} on UDP port {flow.dport}"
    line, remedy = "", "do both nodes have the same VNI and port?"
    if wanted is not None:
        line = mend.link_line(v.sock, wanted)
    elif own is not None and isinstance(own.kind, Vxlan):
        text += f"; its {own.name} has VNI {own.kind.vni} on port {own.kind.port}"
    link = wanted or own
    return v.problem(
        Cause.LINK_MISSING,
        text,
        interface=link.name if link is not None else "",
        line=line,
        remedy=remedy,
        why=link.why if link is not None else None,
    )


def astray(v: Vantage, underlay: InterfaceState, flow: Flow) -> Problem | None:
    """A frame with a packet of the tunnel in it came by, and is for another machine: its sender
    takes a wrong address, or a wrong MAC, for this node's."""
    config, inner = v.intent.config, flow.inner
    if config is None or inner is None or inner.target_mac != config.lease.vtep_mac:
        return None
    senders = v.intent.fdb_to(flow.src)
    node = senders[0].why.object.removeprefix("Node/") if senders else str(flow.src)
    own = config.lease.public_ip
    if flow.dst != own:
        tunnel = config.vxlan_dev
        mac = format_mac(inner.target_mac)
        cause, interface, why = Cause.WRONG_FDB, tunnel, v.why_of_link(tunnel)
        text = f"{node} sends frames for {mac} to {flow.dst}, and not to {own}"
        entry = FdbEntry(dev=tunnel, mac=inner.target_mac, dst=own, why=why or _NO_WHY)
        remedy = v.remedies.there(mend.entry_line(entry), node)
    else:
        cause, interface, why = Cause.WRONG_NEIGHBOR, underlay.name, None
        text = (
            f"{node} takes {format_mac(flow.target_mac)} for the MAC of {own}, which is"
            f" {underlay.mac_text}"
        )
        remedy = v.remedies.by_hand(f"ip neigh flush to {own}", f"on {node}")
    return Problem(cause=cause, text=text, place=node, interface=interface, remedy=remedy, why=why)


def misdelivered(v: Vantage, tunnel: InterfaceState, flow: Flow) -> Problem | None:
    """The frame that came out of the tunnel is for another MAC: its sender has a wrong entry."""
    mac = flow.target_mac
    if not mac or mac == tunnel.mac or mac[0] & 1:
        return None
    sender = v.intent.fdb(tunnel.name, flow.source_mac)
    node = sender.why.object.removeprefix("Node/") if sender is not None else "the sender"
    meant = v.intent.fdb(tunnel.name, flow.target_mac)
    own = next((one for one in _own_subnets(v) if flow.dst in one), None)
    text = (
        f"a frame for {format_mac(flow.target_mac)} came to {tunnel.name}, which is"
        f" {format_mac(tunnel.mac)}: {node} has a wrong"
    )
    why, line = v.why_of_link(tunnel.name), ""
    if meant is not None and own is None:
        why, line = meant.why, mend.entry_line(meant)
        cause, text = Cause.WRONG_FDB, f"{text} FDB entry, the frame is for {meant.why.object}"
    else:
        cause, text = Cause.WRONG_NEIGHBOR, f"{text} neighbour entry"
        if own is not None:
            base = own.network_address
            entry = Neighbor(dev=tunnel.name, ip=base, mac=tunnel.mac, why=why or _NO_WHY)
            line = mend.entry_line(entry)
    return Problem(
        cause=cause,
        text=text,
        place=node if sender is not None else "",
        interface=tunnel.name,
        remedy=v.remedies.there(line, node) if line else "",
        why=why,
    )


def _own_subnets(v: Vantage) -> tuple[IPNetwork, ...]:
    return v.intent.config.lease.subnets if v.intent.config is not None else ()
