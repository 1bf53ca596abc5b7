"""What the user-space tunnel does with a packet, on the way out and in, and what of it stops one.

    out of flannel0:      its table: subnet → peer ─ bare in a UDP datagram ─ route to the peer
    in by the underlay:   a datagram of a peer ─ the packet is written to flannel0

What lives here: those decisions. The kernel only hands packets over; who decides is the tunnel's
process, whose table and counters the agent knows. What does not: VXLAN devices (`tunneling`).
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

from podwire.kernel.observe.interfaces import InterfaceState
from podwire.model.state import IPAddress, Tun, Why
from podwire.model.tunnel import OVERHEAD_ENCRYPTED, OVERHEAD_V4, OVERHEAD_V6
from podwire.trace.decisions.devices import device_problem
from podwire.trace.decisions.flow import NOWHERE, Flow
from podwire.trace.decisions.routing import routed
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.decisions.ways import unleased_problem
from podwire.trace.model import Cause, Decision, Problem
from podwire.trace.user_tunnel import UserTunnel, meaning

_OVERHEAD = {4: OVERHEAD_V4, 6: OVERHEAD_V6}
#: Reasons of the tunnel that a probe's own packet can have, on its way out and in. Others are for
#: what pods send all the time, such as multicast.
_SENDING = (
    "no_lease",
    "ttl_expired",
    "too_big",
    "send_overrun",
    "send_failed",
    "no_public_key",
    "no_key",
    "waiting_full",
    "unreachable",
    "tun_malformed",
)
_RECEIVING = (
    "not_a_peer",
    "foreign_source",
    "foreign_destination",
    "not_encrypted",
    "ttl_expired_inbound",
    "malformed",
    "tun_refused",
)
_CAUSES = {
    "no_lease": Cause.NO_ROUTE,
    "ttl_expired": Cause.TTL,
    "ttl_expired_inbound": Cause.TTL,
    "too_big": Cause.TOO_BIG,
    "foreign_source": Cause.SPOOFED,
}


_REMEDIES = {
    "send_failed": "can the node itself send there? podwire doctor --check tunnel; ip route; nft"
    " list ruleset",
    "too_big": "send less in a packet, or without DF",
    "not_encrypted": "start all nodes' agents with --encrypt, or none",
    "no_public_key": "start all nodes' agents with --encrypt, or none",
}


def is_tunnel(v: Vantage, state: InterfaceState) -> bool:
    """Whether an interface is the device of the user-space tunnel."""
    link = v.intent.link(state.name)
    return link is not None and isinstance(link.kind, Tun)


def sent(v: Vantage, device: InterfaceState, flow: Flow, *, ended: bool) -> list[Decision]:
    """The packet is on its way out of the tunnel's device, to the process."""
    tunnel = v.intent.tunnel
    if tunnel is None:
        return []
    found = tunnel.peer_for(flow.dst)
    if found is None:
        text = f"the tunnel's table has nothing for {flow.dst}"
        problem = _unread(v, tunnel, device) or _unknown(v, device, flow) if ended else None
        return [Decision(kind="tunnel", text=text, command=_COMMAND, problem=problem)]
    peer, subnet = found
    outer = _outer(tunnel, flow, ip_address(peer.address))
    more = outer.length - flow.length
    way = routed(v, outer, ended=ended)
    problem = _unread(v, tunnel, device) if ended else None
    if ended and problem is None:
        stopped = way.problem
        if stopped is not None and stopped.cause is Cause.TOO_BIG:
            stopped = _too_big(v, stopped, flow, more)
        problem = stopped or _dropped(v, tunnel, device.name, _SENDING)
    entry = Decision(
        kind="tunnel",
        text=f"the tunnel's table has {subnet} → {peer.name} {peer.address}",
        command=_COMMAND,
        why=Why(f"Node/{peer.name}", f"leases {subnet}"),
        problem=problem,
    )
    said = f"{device.name}'s process sends it in UDP {outer.src} → {outer.dst}:{peer.port}"
    said += f", {more} bytes more"
    if tunnel.encrypts and peer.public_key is not None:
        said = f"{said} (and padding), encrypted: nobody on the underlay can tell it from others"
    wrapped = Decision(kind="tunnel", text=said, why=v.why_of_link(device.name))
    return [entry, wrapped, *way.decisions]


_COMMAND = "podwire status"


def _outer(tunnel: UserTunnel, flow: Flow, end: IPAddress) -> Flow:
    """The datagram around `flow`, which is fragmented only where what is inside may be."""
    locals_ = [ip_address(text) for text in tunnel.config.local]
    own = next((one for one in locals_ if one.version == end.version), NOWHERE[end.version])
    added = _OVERHEAD[end.version] + (OVERHEAD_ENCRYPTED if tunnel.encrypts else 0)
    return Flow(
        src=own,
        dst=end,
        protocol=socket.IPPROTO_UDP,
        dport=tunnel.config.port,
        length=flow.length + added,
        dont_fragment=flow.dont_fragment,
    )


def _unread(v: Vantage, tunnel: UserTunnel, device: InterfaceState) -> Problem | None:
    """Why nobody takes packets out of the device."""
    if (unread := device_problem(v, device.name)) is not None:
        return unread
    return not_forwarding(v, device.name) if tunnel.problem is not None else None


def _unknown(v: Vantage, device: InterfaceState, flow: Flow) -> Problem:
    """No peer is for that address."""
    return unleased_problem(v, flow.dst, None) or v.problem(
        Cause.NO_ROUTE,
        f"no peer of {v.name}'s tunnel leases a subnet with {flow.dst}",
        interface=device.name,
        remedy="is it of a node whose agent has never been ready, or whose lease is not used?"
        " podwire status tells",
    )


def _too_big(v: Vantage, problem: Problem, flow: Flow, more: int) -> Problem:
    """What is too big for the underlay is so because of the tunnel."""
    return v.problem(
        Cause.TOO_BIG,
        f"{problem.text}: {flow.length} and the {more} of the tunnel",
        interface=problem.interface,
        remedy=f"give {problem.interface} its MTU of old, or the pods one that is {more} less",
    )


def received(v: Vantage, flow: Flow, *, ended: bool) -> Decision:
    """A datagram came in by the underlay for this place, with a packet in it."""
    tunnel = v.intent.tunnel
    if tunnel is None or tunnel.config.port != flow.dport:
        problem = None
        if ended:
            problem = v.problem(
                Cause.TUNNEL,
                f"{v.name} has no tunnel on UDP port {flow.dport}",
                remedy="do both nodes have the same transport and port? podwire status",
            )
        text = f"no tunnel takes UDP port {flow.dport}"
        return Decision(kind="tunnel", text=text, command=f"ss -uapn sport = {flow.dport}",
                        problem=problem)  # fmt: skip
    peer = tunnel.peer_at(flow.src)
    who = f"{peer.name} ({flow.src})" if peer is not None else f"{flow.src}, which is no peer"
    dev = tunnel.config.dev
    return Decision(
        kind="tunnel",
        text=f"{dev}'s process takes it out of UDP port {flow.dport}, from {who}",
        command=_COMMAND,
        why=v.why_of_link(dev),
        problem=_not_taken(v, tunnel, flow) if ended else None,
    )


def _not_taken(v: Vantage, tunnel: UserTunnel, flow: Flow) -> Problem | None:
    dev = tunnel.config.dev
    if tunnel.problem is not None:
        return not_forwarding(v, dev)
    if (device := device_problem(v, dev)) is not None:
        return device
    peer = tunnel.peer_at(flow.src)
    if peer is None:
        return v.problem(
            Cause.TUNNEL,
            f"{flow.src} is no peer of {v.name}'s tunnel: datagrams of strangers are dropped",
            interface=dev,
            remedy="podwire status tells whose leases are not used, and why",
        )
    source = flow.inner.src if flow.inner is not None else None
    if source is not None and not _is_of(tunnel, peer.name, source):
        return v.problem(
            Cause.SPOOFED,
            f"its source {source} is not in {peer.name}'s lease ({', '.join(peer.subnets)}), and"
            f" {v.name}'s tunnel takes nothing else from there",
            interface=dev,
            remedy=f"look who sends with that source on {peer.name}",
        )
    return _dropped(v, tunnel, dev, _RECEIVING)


def _is_of(tunnel: UserTunnel, peer: str, source: IPAddress) -> bool:
    found = tunnel.peer_for(source)
    return found is not None and found[0].name == peer


def not_forwarding(v: Vantage, dev: str) -> Problem:
    """The tunnel's process is not there, or can't work."""
    tunnel = v.intent.tunnel
    said = (
        tunnel.problem if tunnel is not None and tunnel.problem is not None else "it is not there"
    )
    return v.problem(
        Cause.TUNNEL,
        f"the UDP tunnel of {v.name} does not forward: {said}",
        interface=dev,
        remedy=f"its agent starts it again by itself; its log tells why it did not  # {v.where}",
        why=v.why_of_link(dev),
    )


def _dropped(v: Vantage, tunnel: UserTunnel, dev: str, reasons: tuple[str, ...]) -> Problem | None:
    """The tunnel's own word, as far as it has counted a drop since this was watched for."""
    for reason in reasons:
        if tunnel.dropped.get(reason):
            return v.problem(
                _CAUSES.get(reason, Cause.TUNNEL),
                f"the tunnel of {v.name} dropped it: {meaning(reason)} ({reason})",
                interface=dev,
                remedy=_REMEDIES.get(reason, f"podwire doctor --node {v.place.node}"),
                why=v.why_of_link(dev),
            )
    return None
