"""Links: of the pod network, of pods, and others."""

from __future__ import annotations

from ipaddress import ip_address

from podwire.kernel import guards
from podwire.kernel.observe.interfaces import InterfaceState, read_interfaces
from podwire.model.state import Bridge, Link, Tun, Veth, Vxlan
from podwire.trace import iproute
from podwire.trace.decisions import mend
from podwire.trace.explanations.knowledge import Explanation, Knowledge


def explain_link(about: Knowledge, name: str = "", mac: bytes = b"") -> Explanation:
    """A link by its name, or by its MAC."""
    states = read_interfaces(about.sock)
    by_index = {one.index: one for one in states}
    state = next((one for one in states if one.name == name or (mac and one.mac == mac)), None)
    link = about.intent.link(state.name if state is not None else name)
    if state is None and link is None:
        known = ", ".join(one.name for one in states[:_NAMED])
        more = " …" if len(states) > _NAMED else ""
        what = name or mac.hex(":")
        return Explanation(
            found=False, text=f"{about.node} has no link {what}; it has {known}{more}"
        )
    answer = Explanation(text="", details=[])
    if state is not None:
        answer.details += _details(state, by_index)
    if link is not None:
        _ours(about, answer, link)
        if line := mend.link_line(about.sock, link):
            wrong = "is not as it is wanted" if state is not None else "does not exist"
            answer.details.append(("wrong", f"{link.name} {wrong}"))
            answer.details.append(("mend", about.remedies.here(line)))
        elif state is not None:
            _guard(about, answer, state)
        else:
            pod = about.intent.pod_at_port(link.name)
            answer.details.append(("wrong", f"{link.name} does not exist"))
            answer.details.append(("mend", about.remedies.attach_again(pod.pod if pod else "")))
    elif state is not None:
        _theirs(about, answer, state)
    answer.details.append(("show", iproute.link_command(state.name if state else name)))
    return answer


#: So many links are named to who asked for another one.
_NAMED = 12


def _details(state: InterfaceState, by_index: dict[int, InterfaceState]) -> list[tuple[str, str]]:
    shape = f"{state.name} {state.kind}, {'up' if state.up else 'DOWN'}"
    if state.up and not state.carrier:
        shape += ", NO CARRIER"
    shape += f", mtu {state.mtu}"
    if any(state.mac):
        shape += f", {state.mac_text}"
    found = [("entry", shape)]
    if state.vxlan is not None:
        below = by_index.get(state.vxlan.underlay)
        local = str(ip_address(state.vxlan.local)) if state.vxlan.local else "any address"
        found.append(
            (
                "tunnel",
                f"VNI {state.vxlan.vni}, UDP port {state.vxlan.port}, from {local}"
                + (f" over {below.name}" if below is not None else ""),
            )
        )
    if state.addresses:
        found.append(("address", ", ".join(state.addresses)))
    if (master := by_index.get(state.master)) is not None:
        blocked = "" if state.forwarding else ", which does not forward"
        found.append(("port", f"of {master.name}{blocked}"))
    ports = [one.name for one in by_index.values() if one.master == state.index]
    if state.kind == "bridge":
        found.append(("ports", ", ".join(ports) or "none"))
    return found


def _ours(about: Knowledge, answer: Explanation, link: Link) -> None:
    answer.why = link.why
    config = about.intent.config
    match link.kind:
        case Bridge():
            gateways = [str(one.ip.ip) for one in about.intent.addresses_of(link.name)]
            answer.text = f"the bridge that {about.node}'s pods are ports of"
            answer.text += f"; their gateway is {' and '.join(gateways)}" if gateways else ""
            answer.without = f"no pod of {about.node} would reach anything"
        case Vxlan(vni=vni, port=port, local=local):
            answer.text = (
                f"the tunnel to the other nodes: VXLAN number {vni}, from {local} by UDP port"
                f" {port}"
            )
            answer.without = f"{about.node} and its pods would not reach pods of other nodes"
        case Tun():
            answer.text = (
                "the UDP tunnel to the other nodes: what is routed there is taken and sent by its"
                " process"
            )
            answer.without = f"{about.node} and its pods would not reach pods of other nodes"
        case Veth(peer=peer):
            pod = about.intent.pod_at_port(link.name)
            who = f"pod {pod.pod}" if pod is not None else "a pod"
            answer.text = f"the node's end of the cable to {who}, where it is {peer}"
            answer.without = f"{who} would have no network"
    if config is not None and link.mtu is not None:
        answer.details.append(("mtu", _mtu(about, link)))


def _guard(about: Knowledge, answer: Explanation, state: InterfaceState) -> None:
    """The program that a pod's port is to have, and whether it does."""
    wanted = about.intent.guard(state.name)
    if wanted is None:
        return
    passes = f"passes what comes from {', '.join(map(str, wanted.ips))}"
    answer.details.append(("guard", f"{passes}: {iproute.guard_command(state.name)}"))
    found = guards.guard_at(about.sock, state.index)
    if found is None or not found.lets_pass(guards.wire(wanted)):
        answer.details.append(("wrong", f"{state.name} has no guard, or another one"))
        line = f"podwire doctor --node {about.node} --fix"
        answer.details.append(("mend", about.remedies.here(line)))


def _mtu(about: Knowledge, link: Link) -> str:
    config = about.intent.config
    if config is None or link.mtu != config.mtu:
        return f"{link.mtu} is wanted"
    less = config.underlay.mtu - config.mtu
    return f"{link.mtu} is wanted: {config.underlay.mtu} of {config.underlay.dev} less {less}"


def _theirs(about: Knowledge, answer: Explanation, state: InterfaceState) -> None:
    config = about.intent.config
    if config is not None and state.name == config.underlay.dev:
        answer.text = f"the underlay: carries what {about.node} exchanges with other nodes"
        answer.without = f"{about.node} would be cut off, and its tunnel with it"
    elif state.kind == "loopback":
        answer.text = f"the loopback: what {about.node} sends to itself"
    elif state.ours:
        answer.text = "made by Podwire once; nobody wants it any more"
        answer.details.append(("alias", state.alias))
        return
    else:
        answer.text = "not made by Podwire (it is not in its device group)"
        answer.without = "nothing of the pod network, as far as this node knows"
    if state.alias:
        answer.details.append(("alias", state.alias))
    if state.group:
        answer.details.append(("group", str(state.group)))
