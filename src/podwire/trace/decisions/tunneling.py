"""What a VXLAN device does with a packet, on the way out and in, and what of it stops one.

    out of flannel.1:  FDB: MAC → VTEP ─ encapsulated ─ route to the VTEP ─ its neighbour
    in by the underlay:  UDP port and VNI ─ decapsulated by flannel.1

What lives here: those decisions. What does not: the inner packet's own routing (`routing`), and
what the tunnel takes to the wrong place (`straying`).
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

import msgspec

from podwire.kernel.observe import lookup
from podwire.kernel.observe.interfaces import InterfaceState
from podwire.model.state import (
    IPAddress,
    Vxlan,
    format_mac,
)
from podwire.plan.transport.vxlan import OVERHEAD
from podwire.trace import iproute
from podwire.trace.decisions import mend
from podwire.trace.decisions.devices import device_problem
from podwire.trace.decisions.flow import Flow
from podwire.trace.decisions.routing import routed
from podwire.trace.decisions.straying import fdb_problem, next_hop_problem, tunnel_of
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.model import Cause, Decision, Problem

_DF_ALWAYS, _DF_AS_INNER = 1, 2


def sent(v: Vantage, tunnel: InterfaceState, flow: Flow, *, ended: bool) -> list[Decision]:
    """The packet is on its way out of a VXLAN device."""
    assert tunnel.vxlan is not None  # noqa: S101  asked of a VXLAN device only
    end = lookup.tunnel_end(v.sock, tunnel.index, flow.target_mac)
    problem = None
    if ended:
        problem = (
            device_problem(v, tunnel.name)
            or next_hop_problem(v, tunnel.name, flow)
            or fdb_problem(v, tunnel.name, flow, ip_address(end) if end else None)
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
    outer = _outer(tunnel, flow, ip_address(end))
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


def _outer(tunnel: InterfaceState, flow: Flow, end: IPAddress) -> Flow:
    """The packet around `flow`. An IPv6 one is never fragmented, an IPv4 one unless told so.

    A port of a bridge fragments nothing whose inside must not be, and answers that in the name of
    whom it is for (the kernel's skb_tunnel_check_pmtu).
    """
    vxlan = tunnel.vxlan
    assert vxlan is not None  # noqa: S101  asked of a VXLAN device only
    nowhere = bytes(4 if end.version == 4 else 16)
    as_inner = vxlan.df == _DF_AS_INNER or bool(tunnel.master)
    keeps_whole = vxlan.df == _DF_ALWAYS or (as_inner and flow.dont_fragment)
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
    # A bridge would drop it then, and tell nobody.
    drifted = drifted and not tunnel.master
    told = v.problem(
        Cause.TOO_BIG,
        f"{problem.text}: {flow.length} and the {more} of the tunnel",
        interface=problem.interface,
        line=mend.link_line(v.sock, link) if link is not None and drifted else "",
        remedy=f"give {problem.interface} its MTU of old, or the pods one that is {more} less",
        why=link.why if link is not None else None,
    )
    return msgspec.structs.replace(decision, problem=told)


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
        if state.vxlan is None or state.vxlan[:2] != (flow.vni, flow.dport):
            continue
        # Devices over IPv4 and IPv6 may have one number and one port.
        if not state.vxlan.local or len(state.vxlan.local) == len(flow.dst.packed):
            return state
    return None


def _nobody_takes(v: Vantage, flow: Flow, taker: InterfaceState | None) -> Problem:
    wanted = tunnel_of(v, flow)
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
