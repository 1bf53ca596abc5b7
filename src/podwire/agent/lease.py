"""This node's lease: from the Node object and the underlay to a `NetworkConfig`, and published.

Pure but for the random MAC of a node's very first VTEP.
"""

from __future__ import annotations

import secrets

from podwire.agent.config import AgentConfig
from podwire.cluster.nodes import (
    PUBLIC_IP_OVERWRITE,
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
    node, problems = node_from_object(obj)
    unread = [problem for problem in problems if problem.startswith("spec.")]
    if unread:
        raise InputError("; ".join(unread), field="spec.podCIDR")
    if not node.pod_cidrs:
        return (
            f"node {node.name} has no spec.podCIDR yet: the cluster's controller manager has to"
            " allocate node CIDRs (--allocate-node-cidrs)"
        )
    if len({subnet.version for subnet in node.pod_cidrs}) != len(node.pod_cidrs):
        cidrs = ", ".join(map(str, node.pod_cidrs))
        raise InputError(f"{cidrs} are two of one family", field="spec.podCIDRs")
    for subnet in node.pod_cidrs:
        networks = [net for net in config.network if net.version == subnet.version]
        if not any(subnet.subnet_of(net) for net in networks):  # type: ignore[arg-type]
            raise InputError(
                f"{subnet} is outside of the cluster network {', '.join(map(str, config.network))}",
                field="spec.podCIDR",
                remedy="give the agent the cluster's own pod network with --network",
            )
    public_ip = public_ip_overwrite(obj) or underlay.ip
    if public_ip.version != underlay.ip.version:
        raise InputError(
            f"{public_ip} is of another family than the underlay's address {underlay.ip}",
            field=f"metadata.annotations[{PUBLIC_IP_OVERWRITE}]",
            remedy="name the underlay with --iface, or remove the annotation",
        )
    mac = published_vtep_mac(obj) or vtep_mac or random_mac()
    lease = Lease(
        subnets=node.pod_cidrs,
        backend=vxlan.BACKEND,
        public_ip=public_ip,
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
