"""Whom to ask whether VXLAN gets through: the VTEPs of peers that have another way, too. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from podwire.model.cluster import NetworkConfig, Node
from podwire.plan import carrier
from podwire.plan.claims import Claims
from podwire.plan.node import objections
from podwire.plan.transport import auto

#: A peer's name, and the IP version of its pods.
Key: TypeAlias = tuple[str, int]


class Target(NamedTuple):
    """The address that a peer's VXLAN device has, and the device of ours that it is behind."""

    version: int
    ip: str
    dev: str


def targets(config: NetworkConfig, peer: Node, claims: Claims) -> dict[Key, Target]:
    """One for each family of the peer's pods that VXLAN may carry; none where nothing would follow
    from an answer."""
    lease = peer.lease
    if config.fabric.transport != "auto" or lease is None or lease.backend != auto.BACKEND:
        return {}
    if objections(config, peer, claims):
        return {}
    found: dict[Key, Target] = {}
    for version in carrier.versions(lease.subnets):
        base = carrier.base(lease.subnets, version)
        endpoint = carrier.carrier(config, lease, version)
        if base is None or endpoint is None:
            continue
        if auto.kind(config, peer, version, blocked=False) == "vxlan":
            dev = config.fabric.vxlan_dev_over(endpoint.ip.version)
            found[peer.name, version] = Target(version, str(base), dev)
    return found
