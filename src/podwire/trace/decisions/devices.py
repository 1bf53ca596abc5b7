"""Links that take no packets: gone, down, unplugged, no port of the bridge that they belong to.

What lives here: what is wrong with one link, and with the cable of one pod. What does not: whether
a packet needs it.
"""

from __future__ import annotations

from shlex import quote

from podwire.kernel.observe.interfaces import InterfaceState
from podwire.model.cluster import Attachment
from podwire.model.state import Tun
from podwire.trace.decisions import mend
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.model import Cause, Problem


def device_problem(v: Vantage, name: str) -> Problem | None:
    """Why a link of this place takes no packets; None where it does."""
    state, link = v.interface(name), v.intent.link(name)
    why = link.why if link is not None else None
    if state is None:
        return v.problem(
            Cause.LINK_MISSING,
            f"{name} does not exist {v.where}",
            interface=name,
            line=_line(v, name),
            remedy=v.remedies.attach_again(v.place.pod) if v.is_pod else "",
            why=why,
        )
    if not state.up:
        return v.problem(
            Cause.LINK_DOWN,
            f"{name} is down {v.where}",
            interface=name,
            line=_line(v, name) or f"ip link set {quote(name)} up",
            why=why,
        )
    if state.carrier or state.kind == "bridge":
        return None
    return _unplugged(v, state)


def _line(v: Vantage, name: str) -> str:
    """What makes it as it is wanted; a pod's own end comes and goes with its cable."""
    link = v.intent.link(name)
    return mend.link_line(v.sock, link) if link is not None and not v.is_pod else ""


def _unplugged(v: Vantage, state: InterfaceState) -> Problem | None:
    """Up, and the other end is not: for a pod that is the node's end of its cable."""
    link = v.intent.link(state.name)
    if link is not None and isinstance(link.kind, Tun):
        return v.problem(
            Cause.TUNNEL,
            f"no process reads {state.name} of {v.name}: that of the UDP tunnel is not there",
            interface=state.name,
            remedy=f"its agent starts it again; the agent's log tells why it did not  # {v.where}",
            why=link.why,
        )
    pod = v.node.intent.pod(v.place.pod) if v.node is not None else None
    if v.node is not None and pod is not None and (there := cable_problem(v.node, pod)) is not None:
        return there
    return v.problem(
        Cause.LINK_DOWN,
        f"{state.name} of {v.name} has no carrier ({state.operstate}): its other end is down",
        interface=state.name,
        remedy=f"bring up what {state.name} is connected to",
        why=v.why_of_link(state.name),
    )


def cable_problem(node: Vantage, pod: Attachment) -> Problem | None:
    """What is wrong with a pod's cable on the node's side, if anything."""
    name, link = pod.host_ifname, node.intent.link(pod.host_ifname)
    why = link.why if link is not None else None
    state = node.interface(name)
    if state is None:
        return node.problem(
            Cause.LINK_MISSING,
            f"{name}, the cable of pod {pod.pod}, does not exist on {node.name}",
            interface=name,
            remedy=node.remedies.attach_again(pod.pod),
            why=why,
        )
    if not state.up:
        return device_problem(node, name)
    master = link.master if link is not None else None
    if master is not None:
        bridge = node.interface(master)
        if bridge is None or not bridge.up:
            return device_problem(node, master)
        if state.master != bridge.index:
            return node.problem(
                Cause.LINK_MISSING,
                f"{name}, the cable of pod {pod.pod}, is no port of {master}",
                interface=name,
                line=f"ip link set {quote(name)} master {quote(master)}",
                why=why,
            )
    if not state.carrier:
        return node.problem(
            Cause.LINK_DOWN,
            f"{pod.ifname} is down in pod {pod.pod}: {name} has no carrier",
            interface=name,
            remedy=node.remedies.by_hand(f"ip link set {pod.ifname} up", f"in pod {pod.pod}"),
            why=why,
        )
    return port_problem(node, state)


def port_problem(node: Vantage, port: InterfaceState) -> Problem | None:
    """Why a bridge does not send by one of its ports, if it doesn't."""
    if not port.up:
        return device_problem(node, port.name)
    if not port.forwarding:
        line = f"bridge link set dev {quote(port.name)} state 3"
        return node.problem(
            Cause.LINK_DOWN,
            f"port {port.name} of its bridge is disabled or blocking",
            interface=port.name,
            remedy=node.remedies.by_hand(line, node.where),
            why=node.why_of_link(port.name),
        )
    return None if port.carrier else _unplugged(node, port)
