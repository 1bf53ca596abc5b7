"""This node's lease: from the Node object and the underlay to a `NetworkConfig`, and published.

Pure but for the random MAC of a node's very first VTEP.
"""

from __future__ import annotations

import secrets

from podwire.agent.config import AgentConfig
from podwire.cluster.nodes import (
    NodeObject,
    node_from_object,
    public_ip_overwrite,
    published_vtep_mac,
)
from podwire.errors import InputError
from podwire.model.cluster import Lease, NetworkConfig, Underlay
from podwire.plan.transport import vxlan


def node_config(
    config: AgentConfig, obj: NodeObject, underlay: Underlay, vtep_mac: bytes | None
) -> NetworkConfig | str:
    """The configuration to plan from, or a sentence that says what is still missing.

    `vtep_mac` is this node's own as it stands in the kernel or was used last, if known; what it
    published before comes first, since the peers have programmed that.
    """
    node, _ = node_from_object(obj)
    if not node.pod_cidrs:
        return (
            f"node {node.name} has no spec.podCIDR yet: the cluster's controller manager has to"
            " allocate node CIDRs (--allocate-node-cidrs)"
        )
    for subnet in node.pod_cidrs:
        networks = [net for net in config.network if net.version == subnet.version]
        if not any(subnet.subnet_of(net) for net in networks):  # type: ignore[arg-type]
            raise InputError(
                f"{subnet} is outside of the cluster network {', '.join(map(str, config.network))}",
                field="spec.podCIDR",
                remedy="give the agent the cluster's own pod network with --network",
            )
    mac = published_vtep_mac(obj) or vtep_mac or random_mac()
    lease = Lease(
        subnets=node.pod_cidrs,
        backend=vxlan.BACKEND,
        public_ip=public_ip_overwrite(obj) or underlay.ip,
        vni=config.vni,
        vtep_mac=mac,
    )
    return NetworkConfig(
        node=config.node_name,
        network=config.network,
        lease=lease,
        underlay=underlay,
        mtu=vxlan.mtu(underlay.mtu, underlay.ip.version),
        vxlan_dev=f"flannel.{config.vni}",
        vxlan_port=config.vxlan_port,
        masquerade=config.masquerade,
    )


def random_mac() -> bytes:
    """A locally administered unicast address: bit 1 of the first byte set, bit 0 clear."""
    first, *rest = secrets.token_bytes(6)
    return bytes([(first | 0x02) & 0xFE, *rest])
