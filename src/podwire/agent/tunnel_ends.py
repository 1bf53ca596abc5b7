"""What the UDP tunnel is told of its two ends: this node's, and each peer's. Pure."""

from __future__ import annotations

import msgspec

from podwire.model.cluster import NetworkConfig, Node
from podwire.model.tunnel import TunnelConfig, TunnelPeer
from podwire.plan import carrier
from podwire.plan.claims import Claims
from podwire.plan.node import objections
from podwire.plan.transport import transport_of


def tunnel_config(network: NetworkConfig, private_key: bytes | None) -> TunnelConfig | None:
    """This end of the tunnel; None where the fabric has none."""
    fabric = network.fabric
    if not fabric.uses_udp:
        return None
    return TunnelConfig(
        dev=fabric.udp_dev,
        local=tuple(str(ip) for ip in network.underlay.ips),
        subnets=tuple(map(str, network.lease.subnets)),
        port=fabric.udp_port,
        private_key=private_key if fabric.encrypt else None,
        require_encryption=fabric.encrypt,
    )


def tunnel_peer(network: NetworkConfig, peer: Node, claims: Claims) -> TunnelPeer | None:
    """The other end, a node to whose lease there are no objections; None where it has no tunnel."""
    lease = peer.lease
    if lease is None or not network.fabric.uses_udp:
        return None
    if lease.backend != transport_of(network.fabric).BACKEND or objections(network, peer, claims):
        return None
    endpoint = carrier.carrier(network, lease, network.underlay.ip.version)
    if endpoint is None:
        return None
    return TunnelPeer(
        name=peer.name,
        subnets=tuple(map(str, lease.subnets)),
        address=str(endpoint.ip),
        port=network.fabric.udp_port,
        public_key=lease.public_key if network.fabric.encrypt else None,
    )


def place(config: TunnelConfig) -> TunnelConfig:
    """All but what it may be told while packets flow on."""
    return msgspec.structs.replace(config, subnets=())
