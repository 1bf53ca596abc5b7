"""What a bridge and a cable do with a frame, and what of that stops it.

    in by a port:     the bridge's own MAC → up to the bridge; another → the port that has it
    out of a bridge:  the port that has the MAC
    out of a cable:   its other end

What lives here: those decisions. What does not: routing, above the bridge.
"""

from __future__ import annotations

from shlex import quote

from podwire.kernel.observe import lookup
from podwire.kernel.observe.interfaces import InterfaceState
from podwire.model.cluster import Attachment
from podwire.model.state import format_mac
from podwire.trace import iproute
from podwire.trace.decisions.devices import cable_problem, device_problem, port_problem
from podwire.trace.decisions.flow import Flow
from podwire.trace.decisions.straying import unbridged
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.model import Cause, Decision, Interface, Problem

#: A frame is passed on if it is no longer than the MTU, its header and a VLAN tag (the kernel's
#: is_skb_forwardable); that leaves an IP packet these bytes more than the MTU.
_SLACK = 4


def switched_in(v: Vantage, port: InterfaceState, flow: Flow, *, ended: bool) -> Decision:
    """A frame came in by a port of a bridge."""
    bridge = v.interface(port.master)
    name = v.dev(port.master)
    problem = None
    if ended and (bridge is None or not bridge.up):
        problem = device_problem(v, name)
    elif ended:
        problem = port_problem(v, port)
    return _switched(v, port.master, name, flow, ended=ended, problem=problem)


def switched_out(v: Vantage, bridge: InterfaceState, flow: Flow, *, ended: bool) -> Decision:
    """The node sends a frame out of its bridge."""
    return _switched(v, bridge.index, bridge.name, flow, ended=ended, problem=None)


def _switched(
    v: Vantage, bridge: int, name: str, flow: Flow, *, ended: bool, problem: Problem | None
) -> Decision:
    mac = format_mac(flow.target_mac)
    command = iproute.bridge_fdb_command(flow.target_mac, name)
    if flow.target_mac[:1] and flow.target_mac[0] & 1:
        return Decision(
            kind="bridge", text=f"{mac}: flooded to all ports of {name}", problem=problem
        )
    port = lookup.bridge_port(v.sock, bridge, flow.target_mac)
    if port == bridge:
        return Decision(
            kind="bridge",
            text=f"{mac} is {name} itself: up to the node",
            command=command,
            why=v.why_of_link(name),
            problem=problem,
        )
    if port is None:
        if ended:
            problem = problem or _unknown(v, name, flow)
        return Decision(
            kind="bridge",
            text=f"{mac} is unknown to {name}: flooded to all ports",
            command=command,
            problem=problem,
        )
    if ended:
        problem = problem or _egress(v, port, flow)
    dev = v.dev(port)
    known = v.intent.port_fdb(dev, flow.target_mac)
    return Decision(
        kind="bridge",
        text=f"{mac} dev {dev} master {name}",
        command=command,
        why=known.why if known is not None else v.why_of_link(dev),
        problem=problem,
    )


def _egress(v: Vantage, index: int, flow: Flow) -> Problem | None:
    """What keeps a bridge from sending by the port that it has chosen."""
    port = v.interface(index)
    if port is None:
        return None
    pod = v.intent.pod_at_port(port.name)
    found = cable_problem(v, pod) if pod is not None else port_problem(v, port)
    return found or _too_long(v, port.name, port.mtu, flow)


def flooded(pod: Vantage, flow: Flow) -> Problem | None:
    """A pod got a frame that is for another: its node's bridge did not know where that is."""
    config = pod.node.intent.config if pod.node is not None else None
    if pod.node is None or config is None:
        return None
    return _unknown(pod.node, config.bridge, flow)


def _unknown(v: Vantage, bridge: str, flow: Flow) -> Problem | None:
    """No port has the MAC: the bridge has forgotten its own, the pod or its cable is gone, or the
    sender believes a wrong MAC."""
    own = v.interface(bridge)
    if own is not None and own.mac == flow.target_mac:
        mac = format_mac(flow.target_mac)
        return v.problem(
            Cause.NO_FDB,
            f"{bridge} of {v.name} has no FDB entry for its own MAC {mac}: what is for the node"
            " goes to all ports",
            interface=bridge,
            remedy=v.remedies.by_hand(
                f"bridge fdb add {mac} dev {quote(bridge)} self permanent", v.where
            ),
            why=v.why_of_link(bridge),
        )
    pod, config = v.intent.pod_at(flow.dst), v.intent.config
    if pod is None:
        for tunnel in v.intent.tunnels():
            state = v.interface(tunnel.name)
            if v.intent.port_fdb(tunnel.name, flow.target_mac) is None:
                continue
            if state is None or not state.up:
                return device_problem(v, tunnel.name)
            if (alone := unbridged(v, state)) is not None:
                return alone
        if config is None or not any(flow.dst in one for one in config.lease.subnets):
            return _taken_for_gateway(v, own, flow)
        return v.problem(
            Cause.NOT_IN_USE,
            f"no pod of {v.name} has {flow.dst} now: what is for it goes to all ports",
            interface=bridge,
            remedy=f"is a pod of that address running? podwire explain ip {flow.dst}",
        )
    if (cable := cable_problem(v, pod)) is not None:
        return cable
    if pod.mac == flow.target_mac:
        return None
    return v.problem(
        Cause.WRONG_NEIGHBOR,
        f"the frame is for {format_mac(flow.target_mac)}: pod {pod.pod} at {flow.dst} has"
        f" {format_mac(pod.mac)}",
        interface=bridge,
        remedy=v.remedies.by_hand(
            f"ip neigh flush to {flow.dst}", "where it was sent from, or was routed last"
        ),
    )


def _taken_for_gateway(v: Vantage, own: InterfaceState | None, flow: Flow) -> Problem | None:
    """A pod sends to a MAC that nobody has what is not for this node's pods."""
    pod = v.intent.pod_at(flow.src)
    if pod is None or own is None:
        return None
    remote = v.intent.neighbor(own.name, flow.dst)
    mac, whose = (remote.mac, flow.dst) if remote is not None else (own.mac, "its gateway")
    return v.problem(
        Cause.WRONG_NEIGHBOR,
        f"pod {pod.pod} takes {format_mac(flow.target_mac)} for the MAC of {whose}, which is"
        f" {format_mac(mac)}",
        interface=own.name,
        remedy=v.remedies.by_hand(f"ip neigh flush dev {pod.ifname}", f"in pod {pod.pod}"),
    )


def _into_another(v: Vantage, cable: InterfaceState, flow: Flow) -> Problem | None:
    """What a bridge sent into the cable of a pod, and is for another one of the node."""
    pod = v.intent.pod_at_port(cable.name)
    group = bool(flow.target_mac[:1]) and flow.target_mac[0] & 1
    if pod is None or group:
        return None
    if not cable.master:
        return _taken_for_another(v, cable, pod, flow)
    if flow.dst in [one.ip for one in pod.ips]:
        return None
    return _unknown(v, v.dev(cable.master), flow)


def _taken_for_another(
    v: Vantage, cable: InterfaceState, pod: Attachment, flow: Flow
) -> Problem | None:
    """The node routed it to a pod, and has another MAC for that."""
    if pod.mac == flow.target_mac:
        return None
    line = f"ip neigh del {flow.dst} dev {quote(cable.name)}"
    return v.problem(
        Cause.WRONG_NEIGHBOR,
        f"{flow.dst} has MAC {format_mac(flow.target_mac)} on {cable.name} of {v.name}, and pod"
        f" {pod.pod} has {format_mac(pod.mac)}",
        interface=cable.name,
        line=line,
        why=v.why_of_link(cable.name),
    )


def paired(
    v: Vantage,
    cable: InterfaceState,
    known: Interface | None,
    far: Vantage | None,
    flow: Flow,
    *,
    ended: bool,
) -> Decision:
    """A frame leaves by one end of a cable. `known` is that end as the place describes it, `far`
    the place of the other end where that is observed too."""
    other = far.interface(known.peer) if far is not None and known is not None else None
    problem = None
    if other is not None and far is not None:
        to = f"{other.name} in {far.name}"
        if ended:
            problem = device_problem(far, other.name) or _too_long(far, other.name, other.mtu, flow)
    elif (pod := v.intent.pod_at_port(cable.name)) is not None:
        to = f"{pod.ifname} in pod {pod.pod}"
    else:
        to = "its other end"
    if ended and problem is None:
        problem = device_problem(v, cable.name) or _into_another(v, cable, flow)
    return Decision(
        kind="pair",
        text=f"{cable.name} is a cable to {to}",
        command=iproute.link_command(cable.name),
        why=v.why_of_link(cable.name),
        problem=problem,
    )


def _too_long(v: Vantage, dev: str, mtu: int, flow: Flow) -> Problem | None:
    """Bridges and cables know no fragments: what is too long for the next end is dropped."""
    if flow.length <= mtu + _SLACK:
        return None
    link = v.intent.link(dev)
    wanted = link.mtu if link is not None else None
    line = f"ip link set {quote(dev)} mtu {wanted}" if wanted is not None and wanted > mtu else ""
    return v.problem(
        Cause.TOO_BIG,
        f"the packet has {flow.length} bytes, and {dev} of {v.name} takes {mtu} (its MTU)",
        interface=dev,
        line=line,
        remedy=f"give both ends of the cable, and the bridge, one MTU; or send at most {mtu} bytes",
        why=link.why if link is not None else None,
    )
