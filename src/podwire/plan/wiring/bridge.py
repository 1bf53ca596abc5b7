"""The bridge wiring: pods of a node are ports of one Linux bridge (the kubenet and Flannel way).

    eth0@pod ── veth… ─┐
                       cni0 (gateway address) ── routing ── transport
    eth0@pod ── veth… ─┘

On the same node a packet is switched, and its TTL stays; to anywhere else it goes to the
gateway address on the bridge and is routed by the node. In a fabric of one segment (Weave's) the
transport's device is a port of the same bridge, and the whole network is on-link.
Pure: values in, entries out.
"""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

from podwire.model.cluster import Attachment, NetworkConfig
from podwire.model.state import (
    Address,
    Bridge,
    Entry,
    IPAddress,
    IPInterface,
    IPNetwork,
    Link,
    Route,
    Sysctl,
    Why,
)
from podwire.plan import spoofing
from podwire.plan.macs import mac_for
from podwire.plan.wiring.pods import PodPlan, has, no_routers, owner, veth


def gateway(subnet: IPNetwork) -> IPAddress:
    """The first usable address of a node's subnet: the bridge's own."""
    return subnet.network_address + 1


def gateways(config: NetworkConfig) -> tuple[IPInterface, ...]:
    """The bridge's addresses, one a family, with the prefix length of what is on-link there."""
    found: dict[int, IPInterface] = {}
    for subnet in config.lease.subnets:
        on_link = _on_link(config, subnet)
        found.setdefault(subnet.version, ip_interface((gateway(subnet), on_link.prefixlen)))
    return tuple(found.values())


def seen_by_pod(config: NetworkConfig, ip: IPAddress) -> tuple[IPInterface, IPAddress]:
    """A pod's address with the prefix length that it gets, and its gateway."""
    via = next(one for one in gateways(config) if one.version == ip.version)
    return ip_interface((ip, via.network.prefixlen)), via.ip


def plan_node(config: NetworkConfig) -> tuple[Entry, ...]:
    """The bridge itself, its addresses and forwarding between it and the rest of the node."""
    fabric, subnets = config.fabric, config.lease.subnets
    why = Why(f"Node/{config.node}", "leases " + ", ".join(map(str, subnets)))
    own = gateways(config)
    entries: list[Entry] = [
        Link(
            name=config.bridge,
            # Multicast crosses a segment without anyone who would ask for its listeners.
            kind=Bridge(multicast_snooping=False if fabric.is_one_segment else None),
            mtu=config.mtu,
            # A bridge without an address of its own takes over its lowest port's, and pods'
            # ARP entries for the gateway would go stale with every pod that comes or goes.
            mac=mac_for(own[0].ip),
            promiscuous=True if fabric.promiscuous else None,
            alias=f"podwire pods of {config.node}",
            why=why,
        ),
        no_routers(config.bridge, why),
    ]
    for ip in own:
        entries.append(Address(dev=config.bridge, ip=ip, why=why))
        key = "net/ipv4/ip_forward" if ip.version == 4 else "net/ipv6/conf/all/forwarding"
        entries.append(Sysctl(key=key, value="1", why=why))
    return tuple(entries)


def plan_attachment(config: NetworkConfig, attachment: Attachment) -> PodPlan:
    """One pod's veth pair, addresses and routes."""
    why = has(attachment)
    inside: list[Address | Route] = []
    for ip, via in zip(attachment.ips, attachment.gateways, strict=True):
        anywhere = ip_network("0.0.0.0/0" if ip.version == 4 else "::/0")
        inside.append(Address(dev=attachment.ifname, ip=ip, why=why))
        inside.append(Route(dst=anywhere, via=via, dev=attachment.ifname, why=why))
        inside.extend(
            # The network's own route beside the default one keeps pods reaching each other
            # when something in the pod (a VPN, a second interface) moves the default.
            Route(dst=network, via=via, dev=attachment.ifname, why=why)
            for network in config.network
            if network.version == ip.version and network != ip.network
        )
    port = plan_port(config, attachment)
    guards = spoofing.plan_attachment(config, attachment)
    return PodPlan(host=(port, *guards), pod=tuple(inside))


def plan_port(config: NetworkConfig, attachment: Attachment) -> Link:
    """The host end of a pod's veth pair: a port of the bridge."""
    return Link(
        name=attachment.host_ifname,
        kind=veth(config, attachment),
        mtu=attachment.mtu or config.mtu,
        master=config.bridge,
        # A pod may reach itself through a Service: its frame leaves by the port it came from.
        # Both would give a pod its own frames twice.
        hairpin=config.fabric.hairpin and not config.fabric.promiscuous,
        alias=f"podwire pod {owner(attachment)} {attachment.ifname}",
        why=has(attachment),
    )


def _on_link(config: NetworkConfig, subnet: IPNetwork) -> IPNetwork:
    if not config.fabric.is_one_segment:
        return subnet
    return next((one for one in config.network if one.version == subnet.version), subnet)
