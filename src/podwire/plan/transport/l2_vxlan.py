"""The layer-2 VXLAN transport: all pods in one broadcast domain (Weave's way).

    eth0@pod ─ weave ─ vxlan-6784 ─ VXLAN ─ underlay ─ vxlan-6784 ─ weave ─ eth0@pod

The VXLAN device is a port of the bridge, so pods' Ethernet frames themselves cross: ARP, broadcast,
multicast, and no TTL is spent. Three tables keep the flooding down:

- FDB of the VXLAN device: a known pod's MAC → its node; zeros (broadcast, multicast, unknown MACs)
  → every peer, a copy each (head-end replication). What is learned fills in the rest.
- FDB of the bridge: a known remote pod's MAC → the VXLAN port.
- Neighbours on the bridge: from these the bridge answers ARP and NDP for a known remote pod right
  here, since its VXLAN port has `neigh_suppress`.

One device, over the underlay's first family: a second one would make loops of the copies.
Pure: values in, entries out.
"""

from __future__ import annotations

import msgspec

from podwire.model.cluster import NetworkConfig, Node, PodPlace
from podwire.model.state import Entry, FdbEntry, Neighbor, PortFdbEntry, Why
from podwire.plan import carrier
from podwire.plan.macs import mac_for
from podwire.plan.transport import vxlan

BACKEND = "l2-vxlan"

#: In the FDB of a VXLAN device: every MAC that has no entry of its own.
FLOOD = bytes(6)


def overhead(version: int) -> int:
    """Bytes that are added to each packet over an underlay of that IP version."""
    return vxlan.OVERHEAD[version]


def plan_node(config: NetworkConfig) -> tuple[Entry, ...]:
    """The VTEP as a port of the bridge."""
    link = vxlan.device(config, config.lease.endpoints[0])
    port = msgspec.structs.replace(link, master=config.bridge, neigh_suppress=True)
    return (port,)


def objections(config: NetworkConfig, peer: Node) -> list[str]:
    """Why a peer's frames can't be exchanged."""
    lease, name = peer.lease, peer.name
    if lease is None:
        return []
    if other := carrier.other_backend(name, lease, BACKEND):
        return other
    found = []
    if lease.vni != config.lease.vni:
        found.append(f"node {name} is in VNI {lease.vni}, this node in {config.lease.vni}")
    version = config.underlay.ip.version
    if lease.endpoint(version) is None:
        found.append(
            f"node {name} is at {lease.public_ip}, this node's segment is over IPv{version}"
        )
    return found


def plan_peer(config: NetworkConfig, peer: Node) -> tuple[Entry, ...]:
    """A copy of all that is flooded goes to the peer."""
    endpoint = peer.lease.endpoint(config.underlay.ip.version) if peer.lease is not None else None
    if endpoint is None:
        return ()
    why = Why(f"Node/{peer.name}", f"is in the segment, at {endpoint.ip}")
    return (FdbEntry(dev=config.vxlan_dev, mac=FLOOD, dst=endpoint.ip, why=why),)


def plan_pod(config: NetworkConfig, place: PodPlace, peer: Node) -> tuple[Entry, ...]:
    """What this node knows of a pod on a peer: where its MAC is, and the answer to its ARP."""
    endpoint = peer.lease.endpoint(config.underlay.ip.version) if peer.lease is not None else None
    if endpoint is None or not place.ips:
        return ()
    mac, dev = mac_for(place.ips[0]), config.vxlan_dev
    why = Why(f"Pod/{place.pod}", f"runs on {place.node}")
    return (
        FdbEntry(dev=dev, mac=mac, dst=endpoint.ip, why=why),
        PortFdbEntry(dev=dev, mac=mac, why=why),
        *(Neighbor(dev=config.bridge, ip=ip, mac=mac, why=why) for ip in place.ips),
    )
