"""Neighbours (ARP, NDP) and forwarding entries, of bridges and of the tunnel."""

from __future__ import annotations

from ipaddress import ip_address

from podwire.kernel.observe.entries import FdbState, fdb_of, neighbors_of
from podwire.model.state import FdbEntry, IPAddress, Neighbor, Why, format_mac
from podwire.plan.transport import l2_vxlan
from podwire.trace import iproute
from podwire.trace.decisions import mend
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.explanations.knowledge import Explanation, Knowledge, node_name

Thing = IPAddress | bytes


def explain_neighbor(about: Knowledge, thing: Thing, dev: str = "") -> Explanation:
    """The entries of an IP address, or with a MAC; with `dev`, of that interface only."""
    v = about.vantage()
    found = [one for one in neighbors_of(about.sock, thing) if dev in ("", v.dev(one.ifindex))]
    wanted = [one for one in _wanted_neighbors(about, thing) if dev in ("", one.dev)]
    if not found and not wanted:
        text = f"{about.node} has no neighbour entry for {_words(thing)}"
        return Explanation(found=False, text=text + (f" on {dev}" if dev else ""))
    answer = Explanation(text="", details=[])
    for one in found:
        entry = iproute.neighbor_text(ip_address(one.ip), v.dev(one.ifindex), one)
        answer.details.append(("entry", entry))
    if wanted:
        _tunnel_neighbor(about, answer, wanted[0])
    else:
        ip = ip_address(found[0].ip)
        answer.text = f"{_whose(about, ip)} on {v.dev(found[0].ifindex)}; the kernel asked for it"
        answer.without = "nothing: the kernel asks again when it is needed"
    for want in wanted:
        has = [one for one in found if (v.dev(one.ifindex), one.ip) == (want.dev, want.ip.packed)]
        if not any(one.mac == want.mac and one.usable for one in has):
            text = f"{want.dev} is to have {want.ip} lladdr {format_mac(want.mac)} PERMANENT"
            answer.details.append(("wrong", text))
            answer.details.append(("mend", about.remedies.here(mend.entry_line(want))))
    if not isinstance(thing, bytes):
        answer.details.append(("show", f"ip neigh show {thing}"))
    return answer


def _wanted_neighbors(about: Knowledge, thing: Thing) -> list[Neighbor]:
    if isinstance(thing, bytes):
        return about.intent.neighbors_with(thing)
    config = about.intent.config
    devs = [link.name for link in about.intent.tunnels()]
    devs += [config.bridge] if config is not None else []
    found = [about.intent.neighbor(dev, thing) for dev in devs]
    return [one for one in found if one is not None]


def _tunnel_neighbor(about: Knowledge, answer: Explanation, wanted: Neighbor) -> None:
    peer = node_name(wanted.why)
    answer.why = wanted.why
    if (pod := _pod_of(wanted.why)) is not None:
        answer.text = f"pod {pod}, on another node: {wanted.dev} answers ARP and NDP for it here"
        answer.without = f"whoever asks for {wanted.ip} would be heard by all nodes"
        return
    answer.text = f"the far end of {wanted.dev} at {peer}: the next hop of routes to its pods"
    answer.without = (
        f"{about.node} would ask for {wanted.ip} in the tunnel, where nobody answers:"
        f" {peer}'s pods would not be reached"
    )


def explain_fdb(about: Knowledge, thing: Thing, dev: str = "") -> Explanation:
    """The entries for a MAC, or that lead to a VTEP's address; with `dev`, of that device."""
    v = about.vantage()
    found = [one for one in fdb_of(about.sock, thing) if dev in ("", v.dev(one.ifindex))]
    wanted = [one for one in _wanted_fdb(about, thing) if dev in ("", one.dev)]
    if not found and not wanted:
        text = f"{about.node} has no forwarding entry for {_words(thing)}"
        return Explanation(found=False, text=text + (f" on {dev}" if dev else ""))
    answer = Explanation(text="", details=[])
    answer.details += [("entry", _fdb_text(v, one)) for one in found]
    if wanted:
        _tunnel_fdb(about, answer, wanted[0])
    else:
        _bridge_fdb(about, answer, v, found[0])
    for want in wanted:
        if not any(
            (v.dev(one.ifindex), one.mac, one.dst) == (want.dev, want.mac, want.dst.packed)
            for one in found
        ):
            text = f"{want.dev} is to have {format_mac(want.mac)} dst {want.dst}"
            answer.details.append(("wrong", text))
            answer.details.append(("mend", about.remedies.here(mend.entry_line(want))))
    shown = format_mac(thing) if isinstance(thing, bytes) else str(thing)
    answer.details.append(("show", f"bridge fdb show | grep {shown}"))
    return answer


def _pod_of(why: Why) -> str | None:
    """`default/a` of `Pod/default/a`."""
    kind, _, name = why.object.partition("/")
    return name if kind == "Pod" else None


def _wanted_fdb(about: Knowledge, thing: Thing) -> list[FdbEntry]:
    if not isinstance(thing, bytes):
        return about.intent.fdb_to(thing)
    found = [about.intent.fdb(link.name, thing) for link in about.intent.tunnels()]
    return [one for one in found if one is not None]


def _tunnel_fdb(about: Knowledge, answer: Explanation, wanted: FdbEntry) -> None:
    peer = node_name(wanted.why)
    answer.why = wanted.why
    if (pod := _pod_of(wanted.why)) is not None:
        answer.text = f"frames in {wanted.dev} for pod {pod} go to its node at {wanted.dst}"
        answer.without = f"frames for {pod} would go to all nodes, until its place is learned"
        return
    if wanted.mac == l2_vxlan.FLOOD:
        answer.text = (
            f"a copy of what is for everybody, or for a MAC that {wanted.dev} does not know, goes"
            f" to {peer} at {wanted.dst}"
        )
        answer.without = f"broadcast and multicast of {about.node}'s pods would not get to {peer}"
        return
    answer.text = f"frames in {wanted.dev} for {peer}'s end of it go to {wanted.dst}"
    answer.without = (
        f"frames for {peer}'s pods would be dropped by {wanted.dev}: {about.behind([wanted.dst])}"
        " would not be reached"
    )


def _bridge_fdb(about: Knowledge, answer: Explanation, v: Vantage, found: FdbState) -> None:
    """Of a bridge, or what somebody has put into a tunnel."""
    dev = v.dev(found.ifindex)
    pod = about.intent.pod_at_port(dev)
    if found.dst:
        answer.text = "not made by Podwire"
        answer.without = "nothing of the pod network, as far as this node knows"
    elif pod is not None and found.mac == pod.mac:
        link = about.intent.link(dev)
        answer.text = f"pod {pod.pod} is at port {dev}; the bridge learned it from its frames"
        answer.why = link.why if link is not None else None
        answer.without = "nothing: frames for it would go to all ports, until it is learned again"
    elif found.permanent:
        answer.text = f"the MAC of {dev} itself; the kernel keeps it"
    else:
        answer.text = f"learned at port {dev}"


def _fdb_text(v: Vantage, one: FdbState) -> str:
    dst = f" dst {ip_address(one.dst)}" if one.dst else ""
    return f"{format_mac(one.mac)} dev {v.dev(one.ifindex)}{dst}" + (
        " permanent" if one.permanent else ""
    )


def _whose(about: Knowledge, ip: IPAddress) -> str:
    if (pod := about.intent.pod_at(ip)) is not None:
        return f"pod {pod.pod} ({ip})"
    if (node := about.node_at(ip)) is not None:
        return f"{node.name} ({ip})"
    return str(ip)


def _words(thing: Thing) -> str:
    return format_mac(thing) if isinstance(thing, bytes) else str(thing)
