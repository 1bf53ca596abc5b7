"""This node's lease: what is wanted of the store, and what is planned from with what it gave.

    own + underlay + fabric ─▶ wanted ─(store)▶ lease ─▶ NetworkConfig

Pure but for the random MAC of a node's very first VTEP.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import msgspec

from podwire.cluster.source import Own
from podwire.errors import InputError, PodwireError
from podwire.model.cluster import Endpoint, Lease, NetworkConfig, Underlay
from podwire.model.fabric import Fabric, Guard
from podwire.model.state import IPNetwork, within
from podwire.plan.node import pod_mtu
from podwire.plan.transport import transport_of


def relevant(underlay: Underlay, networks: tuple[IPNetwork, ...]) -> Underlay:
    """The underlay less what its pods' families do not need.

    Without pods of IPv6, tunnels over it would only cost 20 bytes of every packet. IPv4 stays: a
    peer may have nothing else.
    """
    if underlay.ip6 is None or any(network.version == 6 for network in networks):
        return underlay
    return msgspec.structs.replace(underlay, ip6=None)


def wanted_lease(
    fabric: Fabric,
    own: Own,
    underlay: Underlay,
    vtep_macs: Mapping[int, bytes],
    public_key: bytes | None = None,
) -> Lease:
    """What this node asks the store for; the subnets are for the store to say.

    `vtep_macs` are this node's own by the underlay's IP version, as they stand in the kernel or
    were used last, if known; what it published before comes first, since the peers have programmed
    that. Raises InputError.
    """
    overwrites = {ip.version: ip for ip in own.public_ips}
    versions = {ip.version for ip in underlay.ips}
    for version, ip in overwrites.items():
        if version not in versions:
            raise InputError(
                f"{ip} is of another family than the underlay's address {underlay.ip}",
                field="public-ip-overwrite",
                remedy="name the underlay with --iface, or remove the annotation",
            )
    published = own.node.lease
    endpoints = []
    for ip in underlay.ips:
        public_ip, mac = overwrites.get(ip.version, ip), None
        if fabric.uses_vxlan:
            before = published.endpoint(ip.version) if published is not None else None
            # At another address it may be of another node: in etcd nobody sees to unique names.
            known = before.vtep_mac if before is not None and before.ip == public_ip else None
            mac = known or vtep_macs.get(ip.version) or random_mac()
        endpoints.append(Endpoint(public_ip, mac))
    first, second = endpoints[0], endpoints[1] if len(endpoints) > 1 else None
    return Lease(
        subnets=(),
        backend=transport_of(fabric).BACKEND,
        public_ip=first.ip,
        vni=fabric.vni if fabric.uses_vxlan else 0,
        vtep_mac=first.vtep_mac,
        public_ip6=second.ip if second is not None else None,
        vtep_mac6=second.vtep_mac if second is not None else None,
        public_key=public_key,
    )


def check_subnets(
    node: str, networks: tuple[IPNetwork, ...], subnets: tuple[IPNetwork, ...]
) -> None:
    """That a node's subnets are of its network, in each of its families.

    Raises InputError for what somebody configured wrongly, PodwireError for what is still missing.
    """
    for subnet in subnets:
        if not any(within(subnet, network) for network in networks):
            raise InputError(
                f"{subnet} is outside of the cluster network {', '.join(map(str, networks))}",
                field="spec.podCIDR",
                remedy="give the agent the cluster's own pod network with --network",
            )
    for network in networks:
        if not any(subnet.version == network.version for subnet in subnets):
            raise PodwireError(
                f"node {node} has no subnet of IPv{network.version}, which the cluster network"
                f" {network} asks for",
                remedy=f"give nodes CIDRs of both families, or leave {network} out of --network",
            )


def check_mtu(fabric: Fabric, networks: tuple[IPNetwork, ...], underlay: Underlay) -> None:
    """That pods' packets have the size that their families ask for.

    The kernel takes IPv6 off a link of less (RFC 8200, section 5; RFC 791 for IPv4). Raises
    InputError.
    """
    version = max(network.version for network in networks)
    least = {4: 576, 6: 1280}[version]
    if fabric.mtu is not None and fabric.mtu < least:
        raise InputError(
            f"{fabric.mtu} bytes are too few for IPv{version}, which needs {least}",
            field="--mtu",
            remedy=f"give at least {least}, or leave it out",
        )
    left = pod_mtu(fabric, underlay)
    if left < least:
        taken = underlay.mtu - left
        raise InputError(
            f"{underlay.mtu} less {taken} for the transport {fabric.transport} leaves pods {left},"
            f" and IPv{version} needs {least}",
            field=f"MTU of {underlay.dev}",
            remedy=f"raise it to {least + taken}, or choose another transport",
        )


def network_config(
    node: str,
    fabric: Fabric,
    networks: tuple[IPNetwork, ...],
    lease: Lease,
    underlay: Underlay,
    *,
    masquerade: bool = True,
    guard: Guard = "nftables",
) -> NetworkConfig:
    """What this node is planned from."""
    return NetworkConfig(
        node=node,
        network=networks,
        lease=lease,
        underlay=underlay,
        mtu=pod_mtu(fabric, underlay),
        fabric=fabric,
        masquerade=masquerade,
        guard=guard,
    )


def random_mac() -> bytes:
    """A locally administered unicast address: bit 1 of the first byte set, bit 0 clear."""
    first, *rest = secrets.token_bytes(6)
    return bytes([(first | 0x02) & 0xFE, *rest])
