"""The UDP transport: packets travel bare in UDP datagrams, sent and received by our own process.

    cni0 ─ route NETWORK dev flannel0 ─ podwire.tunnel ─ UDP 8285 ─ underlay: 28 bytes (48 on v6)

The layout is Flannel's: the device has the node's first address with the whole network's prefix,
and the tunnel's own table says which peer a packet is for. So peers take no kernel state here; the
agent gives them to the tunnel's process. Pure: values in, entries out.
"""

from __future__ import annotations

from ipaddress import ip_interface

from podwire.model.cluster import NetworkConfig, Node
from podwire.model.state import Address, Entry, Link, Tun, Why
from podwire.model.tunnel import OVERHEAD_V4, OVERHEAD_V6
from podwire.plan import carrier

BACKEND = "udp"

#: Outer IP + UDP 8, by IP version.
OVERHEAD = {4: OVERHEAD_V4, 6: OVERHEAD_V6}


def overhead(version: int) -> int:
    """Bytes that are added to each packet over an underlay of that IP version."""
    return OVERHEAD[version]


def device(config: NetworkConfig) -> Link:
    """The TUN device that the tunnel's process reads and writes."""
    return Link(
        name=config.fabric.udp_dev,
        kind=Tun(),
        mtu=config.mtu,
        alias=f"podwire tunnel of {config.node}",
        why=Why(f"Node/{config.node}", f"tunnels in UDP port {config.fabric.udp_port}"),
    )


def plan_node(config: NetworkConfig) -> tuple[Entry, ...]:
    """The device, which takes all of the pod network that is not this node's own."""
    link = device(config)
    entries: list[Entry] = [link]
    for network in config.network:
        base = carrier.own_base(config.lease.subnets, network.version)
        if base is not None:
            ip = ip_interface((base, network.prefixlen))
            entries.append(Address(dev=link.name, ip=ip, why=link.why))
    return tuple(entries)


def objections(config: NetworkConfig, peer: Node) -> list[str]:
    """Why a peer can't be reached through the tunnel."""
    lease, name = peer.lease, peer.name
    if lease is None:
        return []
    if other := carrier.other_backend(name, lease, BACKEND):
        return other
    found = carrier.unreachable(config, name, lease)
    if config.fabric.encrypt and lease.public_key is None:
        found.append(f"node {name} has published no key, and this node's tunnel is encrypted")
    elif lease.public_key is not None and not config.fabric.encrypt:
        found.append(f"node {name} encrypts its tunnel, and this node's is not encrypted")
    return found


def plan_peer(config: NetworkConfig, peer: Node) -> tuple[Entry, ...]:
    """Nothing: what the tunnel knows of peers is told to its process."""
    return ()
