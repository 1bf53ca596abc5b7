"""The VXLAN transport, laid out as Flannel's, so that nodes of both share one network.

    cni0 ─ route SUBNET via SUBNET_BASE dev flannel.1 onlink
         ─ neighbour SUBNET_BASE → VTEP_MAC of the peer      ─ Ethernet header
         ─ FDB VTEP_MAC → NODE_IP of the peer                ─ VXLAN, UDP, IP: 50 bytes (70 on v6)
         ─ underlay

Three permanent entries a peer and subnet, and the kernel never has to ask for one: learning is off.
Where the underlay has both families there is a device over each (flannel.1, flannel-v6.1), and
pods' packets take the one of their own family. With `cross_subnet`, peers that are layer-2
neighbours get a plain route instead (Flannel's DirectRouting, Calico's CrossSubnet).
Pure: values in, entries out.
"""

from __future__ import annotations

from ipaddress import ip_interface

from podwire.model.cluster import Endpoint, NetworkConfig, Node
from podwire.model.state import (
    Address,
    Entry,
    FdbEntry,
    IPAddress,
    IPNetwork,
    Link,
    Neighbor,
    Route,
    Vxlan,
    Why,
    format_mac,
)
from podwire.plan import carrier
from podwire.plan.transport import direct

BACKEND = "vxlan"

#: Outer IP + UDP 8 + VXLAN 8 + inner Ethernet 14 (RFC 7348, figure 1), by IP version.
OVERHEAD = {4: 20 + 8 + 8 + 14, 6: 40 + 8 + 8 + 14}


def overhead(version: int) -> int:
    """Bytes that are added to each packet over an underlay of that IP version."""
    return OVERHEAD[version]


def mtu(underlay_mtu: int, ip_version: int) -> int:
    """The largest packet that still fits into the underlay's MTU once encapsulated."""
    return underlay_mtu - OVERHEAD[ip_version]


def device(config: NetworkConfig, endpoint: Endpoint, *, size: int | None = None) -> Link:
    """This node's own VTEP over the family of `endpoint`. `size` is the device's MTU."""
    version = endpoint.ip.version
    local = config.underlay.ip_of(version)
    assert local is not None  # noqa: S101  the lease is made from the underlay
    fabric, lease = config.fabric, config.lease
    return Link(
        name=fabric.vxlan_dev_over(version),
        kind=Vxlan(
            vni=lease.vni,
            port=fabric.vxlan_port,
            local=local,
            dev=config.underlay.dev,
            learning=fabric.learning,
            gbp=fabric.gbp,
        ),
        mtu=size if size is not None else mtu(config.underlay.mtu, version),
        mac=endpoint.vtep_mac,
        alias=f"podwire VTEP of {config.node}",
        why=Why(f"Node/{config.node}", f"is the VTEP {endpoint.ip} of VNI {lease.vni}"),
    )


def plan_node(config: NetworkConfig) -> tuple[Entry, ...]:
    """This node's own VTEPs: the devices and, on each, the base address of its own subnets."""
    entries: list[Entry] = []
    lease = config.lease
    for endpoint in lease.endpoints:
        size = config.mtu if len(lease.endpoints) == 1 else None
        link = device(config, endpoint, size=size)
        entries.append(link)
        # A node's own packets to remote pods leave with this address, which peers can route back.
        entries += [
            Address(dev=link.name, ip=ip_interface((base, base.max_prefixlen)), why=link.why)
            for version in carrier.versions(lease.subnets)
            if (base := carrier.own_base(lease.subnets, version)) is not None
            and (carrier.carrier(config, lease, version) or endpoint).ip == endpoint.ip
        ]
    return tuple(entries)


def objections(config: NetworkConfig, peer: Node, *, backends: tuple[str, ...] = ()) -> list[str]:
    """Why a peer can't be reached through this node's tunnel. `backends` are those it may have."""
    lease, name = peer.lease, peer.name
    if lease is None:
        return []
    if other := carrier.other_backend(name, lease, BACKEND, backends):
        return other
    found: list[str] = []
    own = {one.vtep_mac for one in config.lease.endpoints if one.vtep_mac is not None}
    clones = [one.vtep_mac for one in lease.endpoints if one.vtep_mac in own]
    if not any(one.vtep_mac for one in lease.endpoints):
        found.append(f"node {name} has published no VTEP MAC")
    elif lease.vni != config.lease.vni:
        found.append(f"node {name} is in VNI {lease.vni}, this node in {config.lease.vni}")
    elif clones and clones[0] is not None:
        mac = format_mac(clones[0])
        found.append(f"node {name} has this node's own VTEP MAC {mac}: is it a clone?")
    return found + carrier.unreachable(config, name, lease)


def plan_vtep(config: NetworkConfig, peer: Node) -> tuple[Entry, ...]:
    """How the peer's VTEPs are found: a neighbour a family of its pods, and an FDB entry a VTEP."""
    lease = peer.lease
    if lease is None:
        return ()
    entries: list[Entry] = []
    used: dict[IPAddress, Endpoint] = {}
    for version in carrier.versions(lease.subnets):
        endpoint = carrier.carrier(config, lease, version)
        base = carrier.base(lease.subnets, version)
        if endpoint is None or endpoint.vtep_mac is None or base is None:
            continue
        subnet = next(one for one in lease.subnets if base in one)
        dev = config.fabric.vxlan_dev_over(endpoint.ip.version)
        why = carrier.leases(peer.name, subnet)
        entries.append(Neighbor(dev=dev, ip=base, mac=endpoint.vtep_mac, why=why))
        used[endpoint.ip] = endpoint
    for ip, endpoint in used.items():
        assert endpoint.vtep_mac is not None  # noqa: S101  only those with one are used
        dev = config.fabric.vxlan_dev_over(ip.version)
        reached = Why(f"Node/{peer.name}", f"is reached at {ip}")
        entries.append(FdbEntry(dev=dev, mac=endpoint.vtep_mac, dst=ip, why=reached))
    return tuple(entries)


def route(config: NetworkConfig, peer: Node, subnet: IPNetwork) -> Route | None:
    """The route to one subnet of a peer through the tunnel; None where it has no VTEP for it."""
    if peer.lease is None:
        return None
    endpoint = carrier.carrier(config, peer.lease, subnet.version)
    if endpoint is None or endpoint.vtep_mac is None:
        return None
    return Route(
        dst=subnet,
        via=carrier.base(peer.lease.subnets, subnet.version),
        dev=config.fabric.vxlan_dev_over(endpoint.ip.version),
        onlink=True,
        protocol=config.fabric.route_protocol,
        why=carrier.leases(peer.name, subnet),
    )


def plan_peer(config: NetworkConfig, peer: Node) -> tuple[Entry, ...]:
    """The entries that reach one peer's pods, to whose lease there are no `objections`."""
    lease = peer.lease
    if lease is None:
        return ()
    routes: list[Entry] = []
    tunnelled = False
    for subnet in lease.subnets:
        if config.fabric.cross_subnet and direct.is_neighbor(config, peer, subnet.version):
            routes.append(direct.route(config, peer, subnet))
        elif (through := route(config, peer, subnet)) is not None:
            routes.append(through)
            tunnelled = True
    # What a route leads to comes before it.
    return (*(plan_vtep(config, peer) if tunnelled else ()), *routes)
