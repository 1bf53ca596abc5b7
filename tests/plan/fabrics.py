"""Configurations and peers of any fabric, for the planners' tests."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec

from podwire.model.cluster import Attachment, Lease, NetworkConfig, Node, Underlay
from podwire.model.describe import describe
from podwire.model.fabric import Fabric
from podwire.model.state import Entry
from podwire.plan.node import pod_mtu
from podwire.plan.profiles import default_network, fabric
from podwire.plan.transport import transport_of
from podwire.plan.wiring import wiring_of

#: Which block of a node's number, by IPAM.
SUBNETS = {
    "node-subnet": {4: "10.244.{}.0/24", 6: "fd00:10:244:{}::/64"},
    "blocks": {4: "172.31.{}.64/26", 6: "fd00:172:31::{}:0/122"},
    "cluster-range": {4: "10.{}.0.0/18", 6: "fd00:10:32::{}:0:0:0/80"},
}


def subnet(made: Fabric, number: int, version: int) -> Any:
    low = 31 + number if made.ipam == "cluster-range" and version == 4 else number
    return ip_network(SUBNETS[made.ipam][version].format(low))


def lease(made: Fabric, number: int, versions: tuple[int, ...], **more: Any) -> Lease:
    ips = [
        ip_address({4: f"172.18.0.{10 + number}", 6: f"fd00:172:18::{number}"}[v]) for v in versions
    ]
    macs = [bytes([2, 0, 0, 0, v, number]) if made.uses_vxlan else None for v in versions]
    values: dict[str, Any] = {
        "subnets": tuple(subnet(made, number, version) for version in versions),
        "backend": transport_of(made).BACKEND,
        "public_ip": ips[0],
        "vni": made.vni,
        "vtep_mac": macs[0],
    }
    if len(ips) > 1:
        values |= {"public_ip6": ips[1], "vtep_mac6": macs[1]}
    return Lease(**values | more)


def config(
    profile: str = "flannel-vxlan", versions: tuple[int, ...] = (4,), **options: Any
) -> NetworkConfig:
    """Node1's."""
    made = fabric(profile, **options)
    own = lease(made, 1, versions)
    underlay = Underlay(
        "eth0",
        own.public_ip,
        1500,
        own.public_ip6,
        tuple(ip_network({4: "172.18.0.0/16", 6: "fd00:172:18::/64"}[v]) for v in versions),
    )
    return NetworkConfig(
        node="node1",
        network=default_network(made, versions),
        lease=own,
        underlay=underlay,
        mtu=pod_mtu(made, underlay),
        fabric=made,
    )


def peer(of: NetworkConfig, number: int = 2, **more: Any) -> Node:
    """Another node of the same fabric, a layer-2 neighbour."""
    versions = tuple(ip.version for ip in of.underlay.ips)
    return Node(f"node{number}", lease=lease(of.fabric, number, versions, **more))


def behind_a_router(of: NetworkConfig, number: int = 2) -> Node:
    """Another node of the same fabric, in another subnet of the underlay."""
    node = peer(of, number)
    assert node.lease is not None
    far = {"public_ip": ip_address(f"192.0.2.{number}")}
    if node.lease.public_ip.version == 6:
        far = {"public_ip": ip_address(f"2001:db8::{number}")}
    if node.lease.public_ip6 is not None:
        far["public_ip6"] = ip_address(f"2001:db8::{number}")
    return msgspec.structs.replace(node, lease=msgspec.structs.replace(node.lease, **far))


def attachment(of: NetworkConfig, *ips: str, **more: Any) -> Attachment:
    seen = [wiring_of(of.fabric).seen_by_pod(of, ip_address(ip)) for ip in ips]
    return Attachment(
        container_id="c1",
        ifname="eth0",
        netns="/run/netns/c1",
        host_ifname="veth1",
        mac=bytes.fromhex("0a580af40105"),
        ips=tuple(ip_interface(ip) for ip, _ in seen),
        gateways=tuple(via for _, via in seen),
        pod="default/a",
        **more,
    )


def lines(entries: tuple[Entry, ...]) -> list[str]:
    return [describe(entry) for entry in entries]
