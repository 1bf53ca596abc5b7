"""The routed wiring: every pod is a network of its own behind its node (Calico's way).

    eth0@pod (/32, default via 169.254.1.1) ── cali… (ee:ee:ee:ee:ee:ee) ── routing ── anything

No bridge: each packet, to the neighbour pod too, is routed by the node, and its TTL drops. Nobody
has 169.254.1.1; the host end answers for it by proxy ARP. For IPv6 the gateway is the host end's
own link-local address. Each own subnet is a blackhole, so that what is for an address of no pod
stops here instead of going out by the default route. Pure: values in, entries out.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network

from podwire.model.cluster import Attachment, NetworkConfig
from podwire.model.state import (
    Address,
    Blackhole,
    Entry,
    IPAddress,
    IPInterface,
    Link,
    Route,
    Sysctl,
    Why,
    link_local,
)
from podwire.plan import spoofing
from podwire.plan.wiring.pods import PodPlan, has, no_routers, owner, veth

#: Of every host end, so that pods' neighbour entries outlive whatever happens on the node.
HOST_MAC = bytes([0xEE] * 6)

#: The next hop that pods are given. Link-local (RFC 3927), so it is nobody's elsewhere.
GATEWAY4 = IPv4Address("169.254.1.1")
GATEWAY6: IPv6Address = link_local(HOST_MAC)


def gateway(version: int) -> IPAddress:
    """A pod's next hop, by IP version."""
    return GATEWAY4 if version == 4 else GATEWAY6


def seen_by_pod(config: NetworkConfig, ip: IPAddress) -> tuple[IPInterface, IPAddress]:
    """A pod's address, which is all that is on its link, and its gateway."""
    return ip_interface((ip, ip.max_prefixlen)), gateway(ip.version)


def plan_node(config: NetworkConfig) -> tuple[Entry, ...]:
    """Forwarding, a blackhole for each own subnet, and a way to the gateway that nobody has."""
    why = Why(f"Node/{config.node}", "leases " + ", ".join(map(str, config.lease.subnets)))
    forwarding = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
    versions = sorted({network.version for network in config.network})
    return (
        *(Sysctl(key=forwarding[version], value="1", why=why) for version in versions),
        *(
            Blackhole(dst=subnet, why=why, protocol=config.fabric.route_protocol)
            for subnet in config.lease.subnets
            if subnet.prefixlen < subnet.max_prefixlen  # That one is a pod's own.
        ),
        *_way_to_gateway(config),
    )


def _way_to_gateway(config: NetworkConfig) -> tuple[Route, ...]:
    """The kernel answers ARP by proxy only for what it has a route to, by another link than the one
    it was asked on. The default route is one; without IPv4 on the underlay there is none.
    """
    has_pods = any(network.version == 4 for network in config.network)
    if not has_pods or config.underlay.ip_of(4) is not None:
        return ()
    why = Why(
        f"Node/{config.node}", f"answers for its pods' gateway, {GATEWAY4}, and has no IPv4 itself"
    )
    protocol = config.fabric.route_protocol
    return (Route(dst=ip_network(GATEWAY4), dev="lo", protocol=protocol, why=why),)


def plan_attachment(config: NetworkConfig, attachment: Attachment) -> PodPlan:
    """One pod's veth pair, the routes on both of its ends, and the answers to its ARP."""
    why, dev = has(attachment), attachment.ifname
    inside: list[Address | Route] = []
    for ip in attachment.ips:
        via = gateway(ip.version)
        anywhere = ip_network("0.0.0.0/0" if ip.version == 4 else "::/0")
        inside.append(Address(dev=dev, ip=ip_interface((ip.ip, ip.max_prefixlen)), why=why))
        if ip.version == 4:  # An IPv6 link-local address is on-link everywhere.
            inside.append(Route(dst=ip_network(via), dev=dev, why=why))
        inside.append(Route(dst=anywhere, via=via, dev=dev, why=why))
    return PodPlan(
        host=(
            plan_port(config, attachment),
            no_routers(attachment.host_ifname, why),
            *_answers(attachment),
            *_routes(config, attachment),
            *spoofing.plan_attachment(config, attachment),
        ),
        pod=tuple(inside),
    )


def plan_port(config: NetworkConfig, attachment: Attachment) -> Link:
    """The host end of a pod's veth pair."""
    return Link(
        name=attachment.host_ifname,
        kind=veth(config, attachment),
        mtu=attachment.mtu or config.mtu,
        mac=HOST_MAC,
        link_local=any(ip.version == 6 for ip in attachment.ips),
        alias=f"podwire pod {owner(attachment)} {attachment.ifname}",
        why=has(attachment),
    )


def _answers(attachment: Attachment) -> list[Sysctl]:
    """The host end answers ARP for whatever the pod asks for, and at once."""
    if not any(ip.version == 4 for ip in attachment.ips):
        return []
    why, dev = has(attachment), attachment.host_ifname
    return [
        Sysctl(key=f"net/ipv4/conf/{dev}/proxy_arp", value="1", why=why),
        # By default proxied answers are delayed by up to 0.8 s, which a pod's first packet pays.
        Sysctl(key=f"net/ipv4/neigh/{dev}/proxy_delay", value="0", why=why),
    ]


def _routes(config: NetworkConfig, attachment: Attachment) -> list[Route]:
    return [
        Route(
            dst=ip_network(ip.ip),
            dev=attachment.host_ifname,
            protocol=config.fabric.route_protocol,
            why=has(attachment),
        )
        for ip in attachment.ips
    ]
