"""The kernel's decisions at each hop of a packet, asked of it and explained.

What lives here: which decisions a hop needs, by the kind of its interface and the direction. What
does not: how each is asked for and what may be wrong with it (`podwire.trace.decisions`).

    out of  eth0 in a pod     route and neighbour (it was sent here) ─ the cable
            a bridge          the port that has the MAC
            a VXLAN device    FDB ─ encapsulated ─ outer route and neighbour
            the TUN device    the user-space tunnel's table ─ outer route and neighbour
            the underlay      the neighbour; it leaves the node
    in by   a pod's port      where it ended: what guards the port
            a bridge's port   up to the bridge, or another port
            anything else     for this place: decapsulated, or delivered; else route and neighbour

One `Decider` is made for a node's places and asked many questions; it keeps nothing that may
change. A question takes some 0.2 ms. It is for one thread at a time.

    decider = Decider(places, sockets, intent, held=False)
    decider.decide(question) -> tuple[Decision, …]

`places` are numbered as in questions, and the node's own is one of them; `sockets` are
NETLINK_ROUTE sockets inside them, in the same order. `intent` is the node's, with its attachments.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import msgspec

from podwire.errors import InputError
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe import lookup
from podwire.kernel.observe.interfaces import InterfaceState
from podwire.model.state import format_mac
from podwire.trace import iproute
from podwire.trace.decisions import datagrams, guarding, straying, switching, tunneling
from podwire.trace.decisions.devices import device_problem
from podwire.trace.decisions.flow import Flow, flow_of
from podwire.trace.decisions.mend import Remedies
from podwire.trace.decisions.neighbors import resolved
from podwire.trace.decisions.routing import routed
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.intent import Intent
from podwire.trace.model import Decision, Interface, Place
from podwire.trace.records import Question


class Decider:
    """Answers questions about the packets at a node's places (see above)."""

    def __init__(
        self,
        places: Sequence[Place],
        sockets: Sequence[NetlinkSocket],
        intent: Intent,
        *,
        held: bool = False,
    ) -> None:
        own = next(number for number, place in enumerate(places) if not place.pod)
        remedies = Remedies(places[own].node, held=held)
        node = Vantage(places[own], sockets[own], intent, remedies)
        self._vantages = [
            Vantage(place, sock, intent.of_pod(place.pod), remedies, node) if place.pod else node
            for place, sock in zip(places, sockets, strict=True)
        ]

    def decide(self, question: Question) -> tuple[Decision, ...]:
        """What sent the packet on from where it was, in order; what stopped it where it `ended`.

        Empty for what is no IP packet. Raises InputError for a question about no place or with
        addresses that are none, KernelError where the kernel can't be asked.
        """
        if not 0 <= question.place < len(self._vantages):
            raise InputError(f"there is no place {question.place}", field="place")
        v = self._vantages[question.place]
        try:
            flow = flow_of(question.packet.headers)
        except ValueError as error:
            raise InputError(str(error), field="packet") from None
        if flow is None:
            return ()
        if question.ifindex == 0:
            return routed(v, flow, ended=True, mark=question.mark).decisions
        state = v.interface(question.ifindex)
        if state is None:
            return (_gone(v, question),)
        if question.direction == "in":
            return tuple(self._in(v, state, flow, question))
        return tuple(self._out(v, state, flow, question))

    # --- out of an interface --------------------------------------------------------------

    def _out(
        self, v: Vantage, state: InterfaceState, flow: Flow, question: Question
    ) -> list[Decision]:
        decisions: list[Decision] = []
        if question.origin or _sent_here(v, state, flow):
            decisions += routed(v, flow, mark=question.mark).decisions
        if state.kind == "vxlan":
            decisions += tunneling.sent(v, state, flow, ended=question.ended)
        elif datagrams.is_tunnel(v, state):
            decisions += datagrams.sent(v, state, flow, ended=question.ended)
        elif state.kind == "bridge":
            decisions.append(switching.switched_out(v, state, flow, ended=question.ended))
        elif state.kind == "loopback":
            decisions.append(Decision(kind="local", text=f"{state.name}: back to {v.name} itself"))
        elif _is_cable(v, state):
            decisions.append(self._paired(v, state, flow, question))
        else:
            decisions.append(_leaves(v, state, flow, ended=question.ended))
        return decisions

    def _paired(
        self, v: Vantage, state: InterfaceState, flow: Flow, question: Question
    ) -> Decision:
        known = _described(v, state)
        far = None
        if known is not None and known.peer_place is not None:
            far = self._vantages[known.peer_place]
        return switching.paired(v, state, known, far, flow, ended=question.ended)

    # --- in by an interface ---------------------------------------------------------------

    def _in(
        self, v: Vantage, state: InterfaceState, flow: Flow, question: Question
    ) -> list[Decision]:
        ended = question.ended
        if ended and (dropped := guarding.refused(v, state, flow)) is not None:
            return [dropped]
        if state.master:
            return [switching.switched_in(v, state, flow, ended=ended)]
        if (ignored := _not_for_us(v, state, flow, ended=ended)) is not None:
            return [ignored]
        iif = state if state.kind != "loopback" else None
        way = routed(v, flow, iif=iif, ended=ended, mark=question.mark)
        if not way.local:
            return list(way.decisions)
        if flow.inner is not None and not v.is_pod:
            take = datagrams.received if flow.vni is None else tunneling.received
            return [take(v, flow, ended=ended)]
        return [*way.decisions, *(_answer(v, flow) if ended and way.problem is None else ())]


def _gone(v: Vantage, question: Question) -> Decision:
    """The interface that it was seen at is not there any more."""
    name = v.dev(question.ifindex)
    return Decision(
        kind="pair",
        text=f"{name} is gone",
        command=f"ip link show {name}",
        problem=device_problem(v, name) if question.ended else None,
    )


def _sent_here(v: Vantage, state: InterfaceState, flow: Flow) -> bool:
    """Whether the place itself sent what leaves by an interface, told by its source address.

    On the underlay that may be a masqueraded packet of a pod, so there it has to be said; and what
    leaves by a bridge's port was sent by the bridge.
    """
    own = v.is_pod or (state.kind in ("vxlan", "tun") and not state.master)
    return own and v.had(flow.src)


def _described(v: Vantage, state: InterfaceState) -> Interface | None:
    return next((one for one in v.place.interfaces if one.index == state.index), None)


def _is_cable(v: Vantage, state: InterfaceState) -> bool:
    """Whether the other end of a veth is in a pod, or in the node for a pod's."""
    if state.kind != "veth":
        return False
    known = _described(v, state)
    if known is not None and known.underlay:
        return False
    if v.is_pod or bool(state.master) or v.intent.pod_at_port(state.name) is not None:
        return True
    return known is not None and known.peer_place is not None


def _leaves(v: Vantage, out: InterfaceState, flow: Flow, *, ended: bool) -> Decision:
    """The packet is on the wire: to the next machine."""
    entry = v.sent_by(flow.dst)
    ip = flow.dst
    if entry is not None and entry.via and entry.ifindex == out.index:
        ip = ip_address(entry.via)
    neighbor = resolved(v, out, ip, ended=False)
    text = f"{neighbor.text}; leaves {v.name}" if neighbor is not None else f"leaves {v.name}"
    router = ip != flow.dst and v.intent.node_at(ip) is None
    problem = (device_problem(v, out.name) or straying.strayed(v, out, flow)) if ended else None
    return Decision(
        kind="neigh",
        text=f"{text} by a router" if router else text,
        command=neighbor.command if neighbor is not None else "",
        problem=problem,
        router=str(ip) if router else "",
    )


def _not_for_us(v: Vantage, state: InterfaceState, flow: Flow, *, ended: bool) -> Decision | None:
    """A frame for another MAC than the interface's: the kernel drops it (`PACKET_OTHERHOST`)."""
    mac = flow.target_mac
    if not any(mac) or mac == state.mac or mac[0] & 1 or state.kind == "loopback":
        return None
    if state.kind == "bridge" and lookup.bridge_port(v.sock, state.index, mac) == state.index:
        return None  # The MACs of its ports are its own, too.
    problem = None
    if ended and state.kind == "vxlan":
        problem = straying.misdelivered(v, state, flow)
    elif ended and v.is_pod:
        problem = switching.flooded(v, flow)
    elif ended:
        problem = straying.astray(v, state, flow)
    return Decision(
        kind="local",
        text=f"the frame is for {format_mac(mac)}, and {state.name} is {state.mac_text}: ignored",
        command=iproute.link_command(state.name),
        problem=problem,
    )


def _answer(v: Vantage, flow: Flow) -> list[Decision]:
    """Why a packet that has arrived can't be answered: what stops the answer, if anything."""
    return [
        msgspec.structs.replace(
            one,
            problem=msgspec.structs.replace(
                one.problem, text=f"the answer to {flow.src}: {one.problem.text}"
            ),
        )
        for one in routed(v, flow.answer(), ended=True).decisions
        if one.problem is not None
    ]
