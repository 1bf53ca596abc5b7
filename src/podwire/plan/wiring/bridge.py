"""The bridge wiring: pods of a node are ports of one Linux bridge (the kubenet and Flannel way).

    eth0@pod ── veth… ─┐
                       cni0 (gateway address) ── routing ── transport
    eth0@pod ── veth… ─┘

On the same node a packet is switched, and its TTL stays; to anywhere else it goes to the
gateway address on the bridge and is routed by the node. Pure: values in, entries out.
"""

from __future__ import annotations

from ipaddress import IPv4Address, ip_interface, ip_network

import msgspec

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
    Veth,
    Why,
)


class PodPlan(msgspec.Struct, frozen=True):
    """A pod's interface: the `host` end of the veth pair, and what its namespace holds."""

    host: Link
    pod: tuple[Address | Route, ...]


def gateway(subnet: IPNetwork) -> IPAddress:
    """The first usable address of a node's subnet: the bridge's own."""
    return subnet.network_address + 1


def gateway_interface(subnet: IPNetwork) -> IPInterface:
    """The bridge's address with the subnet's prefix length, as it is put on the bridge."""
    return ip_interface(f"{gateway(subnet)}/{subnet.prefixlen}")


def mac_for(ip: IPAddress) -> bytes:
    """A locally administered MAC derived from an address, so that it is as unique and as stable.

    IPv4: 0a:58 and the four bytes, as kubenet and the CNI plugins did; IPv6: the last four bytes.
    """
    return b"\x0a\x58" + ip.packed[-4:]


def plan_node(config: NetworkConfig) -> tuple[Entry, ...]:
    """The bridge itself, its addresses and forwarding between it and the rest of the node."""
    why = Why(f"Node/{config.node}", "leases " + ", ".join(map(str, config.lease.subnets)))
    subnets = config.lease.subnets
    entries: list[Entry] = [
        Link(
            name=config.bridge,
            kind=Bridge(),
            mtu=config.mtu,
            # A bridge without an address of its own takes over its lowest port's, and pods'
            # ARP entries for the gateway would go stale with every pod that comes or goes.
            mac=mac_for(gateway(subnets[0])),
            alias=f"podwire pods of {config.node}",
            why=why,
        )
    ]
    for subnet in subnets:
        entries.append(Address(dev=config.bridge, ip=gateway_interface(subnet), why=why))
        key = "net/ipv4/ip_forward" if subnet.version == 4 else "net/ipv6/conf/all/forwarding"
        entries.append(Sysctl(key=key, value="1", why=why))
    return tuple(entries)


def plan_attachment(config: NetworkConfig, attachment: Attachment) -> PodPlan:
    """One pod's veth pair, addresses and routes."""
    pod = attachment.pod or attachment.container_id[:12]
    why = Why(f"Pod/{pod}", f"has {', '.join(str(ip.ip) for ip in attachment.ips)}")
    host = plan_port(config, attachment)
    entries: list[Address | Route] = []
    for ip, via in zip(attachment.ips, attachment.gateways, strict=True):
        anywhere = ip_network("0.0.0.0/0" if isinstance(via, IPv4Address) else "::/0")
        entries.append(Address(dev=attachment.ifname, ip=ip, why=why))
        entries.append(Route(dst=anywhere, via=via, dev=attachment.ifname, why=why))
        entries.extend(
            # The network's own route beside the default one keeps pods reaching each other
            # when something in the pod (a VPN, a second interface) moves the default.
            Route(dst=network, via=via, dev=attachment.ifname, why=why)
            for network in config.network
            if network.version == ip.version
        )
    return PodPlan(host=host, pod=tuple(entries))


def plan_port(config: NetworkConfig, attachment: Attachment) -> Link:
    """The host end of a pod's veth pair: a port of the bridge."""
    pod = attachment.pod or attachment.container_id[:12]
    return Link(
        name=attachment.host_ifname,
        kind=Veth(peer=attachment.ifname, peer_mac=attachment.mac),
        mtu=attachment.mtu or config.mtu,
        master=config.bridge,
        # A pod may reach itself through a Service: its frame leaves by the port it came from.
        hairpin=True,
        alias=f"podwire pod {pod} {attachment.ifname}",
        why=Why(f"Pod/{pod}", f"has {', '.join(str(ip.ip) for ip in attachment.ips)}"),
    )
