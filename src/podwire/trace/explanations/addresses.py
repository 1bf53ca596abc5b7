"""IP addresses: whose one is, on which node, and how this node would reach it."""

from __future__ import annotations

from ipaddress import IPv4Address

from podwire.kernel.observe.entries import addresses
from podwire.model.state import Address, IPAddress, IPNetwork
from podwire.plan.wiring import routed as routed_wiring
from podwire.plan.wiring.bridge import gateway
from podwire.trace.decisions import datagrams, tunneling
from podwire.trace.decisions.flow import NOWHERE, Flow
from podwire.trace.decisions.routing import routed
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.explanations.knowledge import Details, Explanation, Knowledge, endpoints
from podwire.trace.model import Decision

#: The label of a detail that only the cluster's API can tell: whoever asks may put that instead.
USE = "use"


def explain_ip(about: Knowledge, ip: IPAddress) -> Explanation:
    """Anything has an answer: what is nobody's is said to be that."""
    if _routes_pods(about) and ip in _GATEWAYS:
        return _proxied(about, ip)
    special = _special(about, ip)
    if special is not None:
        return (_here(about, ip) if ip.is_link_local else None) or special
    answer = _here(about, ip) or _in_a_lease(about, ip) or _elsewhere(about, ip)
    answer.details += _way(about, ip)
    return answer


_GATEWAYS = tuple(routed_wiring.gateway(version) for version in (4, 6))


def _routes_pods(about: Knowledge) -> bool:
    """Whether each pod is a network of its own here."""
    config = about.intent.config
    return config is not None and config.fabric.wiring == "routed"


def _proxied(about: Knowledge, ip: IPAddress) -> Explanation:
    how = "answers for it by proxy ARP" if ip.version == 4 else "has it, on each cable"
    return Explanation(
        text=f"the gateway of all pods: nobody's own; {about.node}'s end of each pod's cable {how}",
        without="pods would reach nothing",
        details=[],
    )


def _special(about: Knowledge, ip: IPAddress) -> Explanation | None:
    """Addresses that mean the same everywhere (RFC 6890)."""
    if ip.is_unspecified:
        return Explanation(text="the unspecified address: no address at all")
    if ip.is_loopback:
        return Explanation(text="the loopback: whoever uses it talks to itself")
    if ip.is_multicast:
        config = about.intent.config
        one_link = config is not None and config.fabric.transport == "l2-vxlan"
        far = "reach all nodes" if one_link else "do not leave their node"
        return Explanation(text=f"a multicast address: for groups on one link; pods' ones {far}")
    if ip == _BROADCAST:
        text = "the broadcast address: everybody on the link, and never routed"
        return Explanation(text=text)
    if ip.is_link_local:
        return Explanation(text="a link-local address: it means something on one link only")
    return None


_BROADCAST = IPv4Address(0xFFFFFFFF)


def _here(about: Knowledge, ip: IPAddress) -> Explanation | None:
    """This node's own, or one of its pods'."""
    pod = about.intent.pod_at(ip)
    if pod is not None:
        link = about.intent.link(pod.host_ifname)
        return Explanation(
            text=f"pod {pod.pod} on {about.node}",
            why=link.why if link is not None else None,
            without=f"pod {pod.pod} would not be reached",
            details=[
                ("pod", pod.pod),
                ("node", about.node),
                ("subnet", _subnet(about, ip)),
                ("cable", f"{pod.ifname} in the pod, {pod.host_ifname} on the node"),
            ],
        )
    wanted = about.intent.address(ip)
    if wanted is not None:
        return _own(about, wanted)
    index = addresses(about.sock).get(ip)
    if index is None:
        return None
    dev = about.vantage().dev(index)
    config = about.intent.config
    if ip.is_link_local:
        text = f"{about.node}'s own on {dev}, for that link alone"
    elif config is not None and dev == config.underlay.dev:
        text = f"{about.node} itself: its address on the underlay {dev}"
    else:
        text = f"{about.node} itself: its address on {dev}; not made by Podwire"
    return Explanation(text=text, details=[("node", about.node)])


def _subnet(about: Knowledge, ip: IPAddress) -> str:
    config = about.intent.config
    subnets = config.lease.subnets if config is not None else ()
    return next((str(one) for one in subnets if ip in one), "")


def _own(about: Knowledge, wanted: Address) -> Explanation:
    config = about.intent.config
    if config is not None and wanted.dev == config.bridge:
        text = f"the gateway of {about.node}'s pods: its own address on the bridge {wanted.dev}"
        without = f"pods of {about.node} would reach each other, and nothing else"
    else:
        text = (
            f"{about.node}'s own end of the tunnel {wanted.dev}: what it sends to pods of other"
            " nodes has this source"
        )
        without = f"pods of other nodes could not answer {about.node} itself"
    details = [("node", about.node)]
    return Explanation(text=text, why=wanted.why, without=without, details=details)


def _in_a_lease(about: Knowledge, ip: IPAddress) -> Explanation | None:
    """In the subnet that a node leases, in use or not."""
    found = about.leaseholder(ip)
    if found is None:
        return None
    node, subnet = found
    what = _place_in(about, subnet, ip)
    details = [("node", node.name), ("subnet", str(subnet))]
    if node.name == about.node:
        who = what or "no pod has it"
        text = f"an address of {node.name}'s subnet {subnet}: {who}"
        return Explanation(text=text, details=details)
    config = about.intent.config
    # In one segment of all pods each has entries of its own.
    own = about.intent.neighbor(config.bridge, ip) if config is not None else None
    wanted = own or about.intent.way(ip)
    text = {
        _BASE: f"{node.name}'s end of the tunnel: next hop of the routes to its pods",
        _GATEWAY: f"the gateway of {node.name}'s pods: its address on its bridge",
    }.get(what, f"an address of {node.name}'s subnet {subnet}" + (f": {what}" if what else ""))
    if not what:
        details.append((USE, "which pod has it, if any, the cluster's API knows"))
    return Explanation(
        text=text,
        why=wanted.why if wanted is not None else None,
        details=[*details, ("reached", f"at {' and '.join(sorted(map(str, endpoints(node))))}")],
    )


_BASE, _GATEWAY = "the subnet's own address", "the gateway"


def _place_in(about: Knowledge, subnet: IPNetwork, ip: IPAddress) -> str:
    """What an address is by its place in a subnet; empty where it may be any pod's."""
    config = about.intent.config
    if config is None or subnet.prefixlen == subnet.max_prefixlen:
        return ""
    fabric = config.fabric
    has_base = (fabric.uses_vxlan or fabric.uses_udp) and not fabric.is_one_segment
    if ip == subnet.network_address and has_base:
        return _BASE
    if fabric.wiring != "bridge" or fabric.is_one_segment:
        return ""
    if ip == gateway(subnet):
        return _GATEWAY
    if ip.version == 4 and ip == subnet.broadcast_address:
        return "the subnet's broadcast address, which no pod gets"
    return ""


def _elsewhere(about: Knowledge, ip: IPAddress) -> Explanation:
    """Neither here nor in a lease: another node's own, a CIDR without a lease, or outside."""
    node = about.node_at(ip)
    if node is not None:
        text = f"node {node.name} itself"
        if node.lease is None:
            text += ", whose agent has published no lease"
        return Explanation(text=text, details=[("node", node.name)])
    assigned = about.assigned(ip)
    if assigned is not None:
        node, cidr = assigned
        return Explanation(
            text=f"in {cidr}, which the cluster has given to {node.name}; its agent has published"
            " no lease, so nobody reaches it",
            without="",
            details=[
                ("node", node.name),
                ("subnet", str(cidr)),
            ],
        )
    config = about.intent.config
    network = next((one for one in config.network if ip in one), None) if config else None
    if network is not None:
        return Explanation(
            text=f"in the pod network {network}, and in no node's subnet: nobody's", details=[]
        )
    text = "outside of the pod network, and no node's own"
    return Explanation(text=text, details=_as_seen_outside(about, ip))


def _as_seen_outside(about: Knowledge, ip: IPAddress) -> Details:
    """With which address pods get there. The kernel takes one of the node's of that family."""
    config = about.intent.config
    if config is None:
        return []
    if not any(network.version == ip.version for network in config.network):
        return [("pods", f"have no IPv{ip.version} address, and don't reach it")]
    own = config.underlay.ip_of(ip.version)
    if not config.masquerade or own is None:
        return []
    return [("pods", f"those of {about.node} reach it as {own} (masqueraded)")]


def _way(about: Knowledge, ip: IPAddress) -> list[tuple[str, str]]:
    """How this node would reach it: each entry on the way, and the first thing that is wrong."""
    v = about.vantage()
    flow = Flow(src=NOWHERE[ip.version], dst=ip)
    way = routed(v, flow, ended=True)
    decisions = list(way.decisions)
    decisions += _through_a_tunnel(v, flow, decisions) if way.problem is None else []
    found = [("way", f"from {about.node}:")]
    found += [(one.kind, one.text) for one in decisions]
    for one in decisions:
        if one.problem is not None:
            return [*found, ("wrong", one.problem.text), ("mend", one.problem.remedy)]
    return found


def _through_a_tunnel(v: Vantage, flow: Flow, decisions: list[Decision]) -> list[Decision]:
    way = v.intent.way(flow.dst)
    device = v.interface(way.dev) if way is not None else None
    if device is not None and datagrams.is_tunnel(v, device):
        return datagrams.sent(v, device, flow, ended=True)
    neighbor = v.tunnel_neighbor(flow.dst)
    if neighbor is None:
        return []
    tunnel = v.interface(neighbor.dev)
    if tunnel is None or tunnel.vxlan is None:
        return []
    framed = Flow(src=flow.src, dst=flow.dst, target_mac=neighbor.mac)
    return tunneling.sent(v, tunnel, framed, ended=True)
