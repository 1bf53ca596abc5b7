"""Frames and packets that the tunnel takes to the wrong place, or that never went into it.

What lives here: finding that by what a packet carries, at the sender (`next_hop_problem`,
`fdb_problem`, `strayed`) and where it came by mistake (`astray`, `misdelivered`). What does not:
what a VXLAN device does (`tunneling`).
"""

from __future__ import annotations

from podwire.kernel.observe.interfaces import InterfaceState
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
from podwire.trace.decisions import mend
from podwire.trace.decisions.flow import Flow
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.decisions.ways import unleased_problem, way_problem
from podwire.trace.model import Cause, Problem

_NO_WHY = Why("", "")


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


def fdb_problem(v: Vantage, tunnel: str, flow: Flow, end: IPAddress | None) -> Problem | None:
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
        tunnel = tunnel_of(v, flow)
        if tunnel is None:
            return None
        return next_hop_problem(v, tunnel.name, inner) or fdb_problem(
            v, tunnel.name, inner, flow.dst
        )
    wanted = v.intent.way(flow.dst)
    entry = v.sent_by(flow.dst)
    if wanted is None:
        return unleased_problem(v, flow.dst, entry)
    if v.intent.address(flow.dst) is not None or (entry is not None and v.follows(entry, wanted)):
        return None
    return way_problem(v, flow.dst, wanted, entry)


def tunnel_of(v: Vantage, flow: Flow) -> Link | None:
    """The wanted VXLAN device that packets of this VNI, port and IP version belong to."""
    for link in v.intent.tunnels():
        kind = link.kind
        if not isinstance(kind, Vxlan) or (kind.vni, kind.port) != (flow.vni, flow.dport):
            continue
        if kind.local is None or kind.local.version == flow.version:
            return link
    return None


def astray(v: Vantage, underlay: InterfaceState, flow: Flow) -> Problem | None:
    """A frame with a packet of the tunnel in it came by, and is for another machine: its sender
    takes a wrong address, or a wrong MAC, for this node's."""
    config, inner = v.intent.config, flow.inner
    endpoint = config.lease.endpoint(flow.version) if config is not None else None
    if config is None or inner is None or endpoint is None:
        return None
    if endpoint.vtep_mac is None or inner.target_mac != endpoint.vtep_mac:
        return None
    senders = v.intent.fdb_to(flow.src)
    node = senders[0].why.object.removeprefix("Node/") if senders else str(flow.src)
    own = endpoint.ip
    if flow.dst != own:
        tunnel = config.fabric.vxlan_dev_over(flow.version)
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
    if (alone := unbridged(v, tunnel)) is not None:
        return alone
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


def unbridged(v: Vantage, tunnel: InterfaceState) -> Problem | None:
    """The VXLAN device of one segment of all pods is to be a port of the bridge, and is not."""
    link = v.intent.link(tunnel.name)
    bridge = v.interface(link.master) if link is not None and link.master else None
    if link is None or bridge is None or tunnel.master == bridge.index:
        return None
    return v.problem(
        Cause.LINK_MISSING,
        f"{tunnel.name} of {v.name} is no port of {bridge.name}: no frames get from other nodes to"
        " pods here, nor back",
        interface=tunnel.name,
        line=mend.link_line(v.sock, link),
        why=link.why,
    )


def _own_subnets(v: Vantage) -> tuple[IPNetwork, ...]:
    return v.intent.config.lease.subnets if v.intent.config is not None else ()
