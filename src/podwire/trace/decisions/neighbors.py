"""The neighbour that a packet needs: the entry in words, and what is wrong with it.

What lives here: ARP and NDP entries, wanted ones (of the tunnel) and those that the kernel asks
for. What does not: who is to be asked for, which is the route's doing.
"""

from __future__ import annotations

from podwire.kernel.observe import lookup
from podwire.kernel.observe.interfaces import InterfaceState
from podwire.kernel.observe.lookup_messages import NUD_FAILED, NUD_INCOMPLETE, NeighborAnswer
from podwire.model.cluster import Attachment
from podwire.model.state import IPAddress, Neighbor, format_mac
from podwire.plan.wiring import routed
from podwire.trace import iproute
from podwire.trace.decisions import mend
from podwire.trace.decisions.devices import cable_problem, device_problem
from podwire.trace.decisions.straying import unbridged
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.decisions.ways import lost_address
from podwire.trace.intent import Intent
from podwire.trace.model import Cause, Decision, Problem


def resolved(v: Vantage, out: InterfaceState, ip: IPAddress, *, ended: bool) -> Decision | None:
    """The decision about the next hop's MAC; None on links that need none."""
    if not out.arp or out.kind == "loopback" or ip.is_multicast:
        return None
    answer = lookup.neighbor(v.sock, out.index, ip.packed)
    wanted = v.intent.neighbor(out.name, ip)
    as_wanted = wanted is not None and answer is not None and answer.mac == wanted.mac
    return Decision(
        kind="neigh",
        text=iproute.neighbor_text(ip, out.name, answer)
        + (" yet" if answer is None and wanted is None else ""),
        command=iproute.neighbor_command(ip, out.name),
        why=wanted.why if as_wanted and wanted is not None else None,
        problem=_problem(v, out, ip, answer) if ended else None,
    )


def _problem(
    v: Vantage, out: InterfaceState, ip: IPAddress, answer: NeighborAnswer | None
) -> Problem | None:
    wanted = v.intent.neighbor(out.name, ip)
    if wanted is not None:
        if answer is not None and answer.mac == wanted.mac and answer.usable:
            return None
        known = answer is not None and answer.usable
        text = f"{out.name} of {v.name} has no neighbour entry for {ip}"
        if known and answer is not None:
            text = (
                f"{ip} has MAC {format_mac(answer.mac)} on {out.name} of {v.name},"
                f" and not {format_mac(wanted.mac)}"
            )
        return v.problem(
            Cause.WRONG_NEIGHBOR if known else Cause.NO_NEIGHBOR,
            text,
            interface=out.name,
            line=mend.entry_line(wanted),
            why=wanted.why,
        )
    if answer is None or not answer.state & (NUD_INCOMPLETE | NUD_FAILED):
        # Without an entry nobody has asked yet: something else kept the packet from coming here.
        return None
    return unanswered(v, out, ip)


def unanswered(v: Vantage, out: InterfaceState, ip: IPAddress) -> Problem:
    """Nobody answers for `ip` on a link: because its owner can't hear, or because it has none."""
    if v.is_pod and v.node is not None:
        owner = _at_the_node(v, v.node, ip)
    else:
        pod = v.intent.pod_at(ip)
        owner = cable_problem(v, pod) if pod is not None else None
    if owner is not None:
        return owner
    home = (v.node or v).intent
    asked = f"{'ARP' if ip.version == 4 else 'NDP'} for {ip} on {out.name} was not answered"
    who, why = f"{ip} is not in use", None
    remedy = f"is a pod of that address running? podwire explain ip {ip}"
    if home.config is not None and not any(ip in one for one in home.config.network):
        remedy = f"is a host of that address up, and on the same network as {out.name}?"
    if (remote := _elsewhere(home, ip)) is not None:
        who, why = f"{remote.why.object} has it, and {remote.why.reason}", remote.why
        remedy = f"is that pod up? podwire explain ip {ip}"
    elif (pod := home.pod_at(ip)) is not None:
        who = f"pod {pod.pod} is wired to {pod.host_ifname} and does not answer"
        remedy = v.remedies.by_hand(f"ip address show {pod.ifname}", f"in pod {pod.pod}")
    elif v.is_pod and ip == routed.gateway(ip.version):
        who = f"{v.where.partition(' ')[2]}'s node did not hear it, or not in time"
        remedy = "trace again"
    elif peers := home.fdb_to(ip):
        why = peers[0].why
        who = f"{why.object} is down, or not on this network"
        remedy = f"look whether {ip} is up, and on the same network as {out.name}"
    return v.problem(
        Cause.NOT_IN_USE,
        f"{asked} ({v.name} asked): {who}",
        interface=out.name,
        remedy=remedy,
        why=why,
    )


def _no_proxy(node: Vantage, pod: Attachment, ip: IPAddress) -> Problem | None:
    """Why the node's end of a routed pod's cable does not answer for the gateway."""
    dev = pod.host_ifname
    if ip.version == 6:
        link = node.intent.link(dev)
        state = next((one for one in node.interfaces() if one.name == dev), None)
        if link is None or state is None or any(_is(text, ip) for text in state.addresses):
            return None
        text, why = f"{dev} of {node.name} has lost its address {ip}", link.why
        line = mend.link_line(node.sock, link)
    else:
        key = f"net/ipv4/conf/{dev}/proxy_arp"
        wanted = node.intent.sysctl(key)
        if wanted is None:
            return None
        if lookup.sysctl_value(node.sock, key) == wanted.value:
            return _nothing_to_proxy(node, pod, ip)
        text = f"{key.replace('/', '.')} of {node.name} is off"
        line, why = mend.sysctl_line(key, wanted.value), wanted.why
    return node.problem(
        Cause.NO_NEIGHBOR,
        f"nobody answers for {ip}, the gateway of pod {pod.pod}: {text}",
        interface=dev,
        line=line,
        why=why,
    )


def _nothing_to_proxy(node: Vantage, pod: Attachment, ip: IPAddress) -> Problem | None:
    """Proxy ARP answers only for what the node itself has a route to."""
    if node.sent_by(ip) is not None:
        return None
    return node.problem(
        Cause.NO_NEIGHBOR,
        f"nobody answers for {ip}, the gateway of pod {pod.pod}: proxy ARP takes a route to it on"
        f" {node.name}, which has none, and no default route",
        interface=pod.host_ifname,
        remedy=node.remedies.by_hand(
            f"ip route add default via GATEWAY, or: ip route add {ip} dev lo", node.where
        ),
    )


def _is(text: str, ip: IPAddress) -> bool:
    return text.partition("/")[0] == str(ip)


def _at_the_node(v: Vantage, node: Vantage, ip: IPAddress) -> Problem | None:
    """What on the node keeps a pod from hearing of `ip`: its own cable, the gateway, the other."""
    own = node.intent.pod(v.place.pod)
    if own is not None and (cable := cable_problem(node, own)) is not None:
        return cable
    gateway = node.intent.address(ip)
    if gateway is not None:
        if (device := device_problem(node, gateway.dev)) is not None:
            return device
        return None if node.has(ip) else lost_address(node, gateway)
    if own is not None and ip == routed.gateway(ip.version):
        return _no_proxy(node, own, ip)
    other = node.intent.pod_at(ip)
    if other is not None:
        return cable_problem(node, other)
    return _cut_off(node) if _elsewhere(node.intent, ip) is not None else None


def _elsewhere(intent: Intent, ip: IPAddress) -> Neighbor | None:
    """The entry for a pod of another node, in one segment of all pods: it is answered for here."""
    config = intent.config
    return intent.neighbor(config.bridge, ip) if config is not None else None


def _cut_off(node: Vantage) -> Problem | None:
    """What keeps the segment's VXLAN device from its bridge."""
    for link in node.intent.tunnels():
        state = node.interface(link.name)
        if state is None or not state.up:
            return device_problem(node, link.name)
        if (alone := unbridged(node, state)) is not None:
            return alone
    return None
