"""The VXLAN transport, laid out as Flannel's, so that nodes of both share one network.

    cni0 ─ route SUBNET via SUBNET_BASE dev flannel.1 onlink
         ─ neighbour SUBNET_BASE → VTEP_MAC of the peer      ─ Ethernet header
         ─ FDB VTEP_MAC → NODE_IP of the peer                ─ VXLAN, UDP, IP: 50 bytes (70 on v6)
         ─ underlay

Three permanent entries a peer and subnet, and the kernel never has to ask for one: learning is off.
Pure: values in, entries out.
"""

from __future__ import annotations

from ipaddress import ip_interface

from podwire.model.cluster import Lease, NetworkConfig, Node
from podwire.model.state import (
    Address,
    Entry,
    FdbEntry,
    Link,
    Neighbor,
    NftChain,
    NftHook,
    NftRule,
    Route,
    Vxlan,
    Why,
    format_mac,
)

BACKEND = "vxlan"

_RAW = -300  # nft's name for the priority before conntrack

#: Outer IP + UDP 8 + VXLAN 8 + inner Ethernet 14 (RFC 7348, figure 1), by IP version.
OVERHEAD = {4: 20 + 8 + 8 + 14, 6: 40 + 8 + 8 + 14}


def mtu(underlay_mtu: int, ip_version: int) -> int:
    """The largest packet that still fits into the underlay's MTU once encapsulated."""
    return underlay_mtu - OVERHEAD[ip_version]


def plan_node(config: NetworkConfig) -> tuple[Entry, ...]:
    """This node's own VTEP: the device and, on it, the base address of each own subnet."""
    lease = config.lease
    why = Why(f"Node/{config.node}", f"is the VTEP {lease.public_ip} of VNI {lease.vni}")
    device = Link(
        name=config.vxlan_dev,
        kind=Vxlan(
            vni=lease.vni,
            port=config.vxlan_port,
            local=config.underlay.ip,
            dev=config.underlay.dev,
        ),
        mtu=config.mtu,
        mac=lease.vtep_mac,
        alias=f"podwire VTEP of {config.node}",
        why=why,
    )
    # A node's own packets to remote pods leave with this address, which peers can route back.
    addresses = tuple(
        Address(
            dev=config.vxlan_dev,
            ip=ip_interface((subnet.network_address, subnet.max_prefixlen)),
            why=why,
        )
        for subnet in lease.subnets
    )
    return (device, *addresses)


def plan_chains(config: NetworkConfig) -> tuple[NftChain, ...]:
    """Tunnel packets between nodes bypass conntrack.

    Their source ports spread over many (RFC 7348, section 5, for the underlay's load balancing),
    so tracking them fills the table with entries that nothing ever looks at, at a price for each
    packet. What is inside is tracked as usual.
    """
    name = f"Node/{config.node}"
    rule = NftRule(
        text=f'iifname "{config.underlay.dev}" udp dport {config.vxlan_port} notrack',
        why=Why(name, "receives tunnel packets, which need no conntrack"),
    )
    sent = NftRule(
        text=f"udp dport {config.vxlan_port} notrack",
        why=Why(name, "sends tunnel packets, which need no conntrack"),
    )
    return (
        NftChain(
            name="tunnel_in",
            hook=NftHook(type="filter", hook="prerouting", priority=_RAW),
            rules=(rule,),
        ),
        NftChain(
            name="tunnel_out",
            hook=NftHook(type="filter", hook="output", priority=_RAW),
            rules=(sent,),
        ),
    )


def objections(config: NetworkConfig, name: str, lease: Lease) -> list[str]:
    """Why the node of that name can't be reached through this node's tunnel."""
    if lease.backend != BACKEND:
        return [f"node {name} has backend {lease.backend or 'none'}, this node {BACKEND}"]
    found: list[str] = []
    if lease.vni != config.lease.vni:
        found.append(f"node {name} is in VNI {lease.vni}, this node in {config.lease.vni}")
    elif lease.vtep_mac == config.lease.vtep_mac and lease.vtep_mac is not None:
        mac = format_mac(lease.vtep_mac)
        found.append(f"node {name} has this node's own VTEP MAC {mac}: is it a clone?")
    if lease.public_ip.version != config.underlay.ip.version:
        here = f"IPv{config.underlay.ip.version}"
        found.append(f"node {name} is at {lease.public_ip}, this node's tunnel is over {here}")
    return found


def plan_peer(config: NetworkConfig, peer: Node) -> tuple[Entry, ...]:
    """The entries that reach one peer's pods, to whose lease there are no `objections`."""
    lease = peer.lease
    if lease is None or lease.vtep_mac is None:
        return ()
    dev = config.vxlan_dev
    entries: list[Entry] = []
    for subnet in lease.subnets:
        why = Why(f"Node/{peer.name}", f"leases {subnet}")
        base = subnet.network_address
        entries.append(Neighbor(dev=dev, ip=base, mac=lease.vtep_mac, why=why))
        entries.append(Route(dst=subnet, via=base, dev=dev, onlink=True, why=why))
    reached = Why(f"Node/{peer.name}", f"is reached at {lease.public_ip}")
    entries.append(FdbEntry(dev=dev, mac=lease.vtep_mac, dst=lease.public_ip, why=reached))
    return tuple(entries)
