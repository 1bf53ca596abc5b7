"""Whom to ask whether VXLAN gets through: the VTEPs of peers that have another way, too. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from podwire.kernel.solicit import Question
from podwire.model.cluster import Endpoint, Lease, NetworkConfig, Node
from podwire.model.state import IPAddress
from podwire.plan import carrier
from podwire.plan.claims import Claims
from podwire.plan.node import objections
from podwire.plan.transport import auto

#: A peer's name, and the IP version of its pods.
Key: TypeAlias = tuple[str, int]


class Target(NamedTuple):
    """What a peer is asked, on which VXLAN device of ours."""

    version: int
    dev: str
    question: Question


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
        endpoint = carrier.carrier(config, lease, version)
        own_ip = carrier.base(config.lease.subnets, version)
        if endpoint is None or endpoint.vtep_mac is None or own_ip is None:
            continue
        own, ip = config.lease.endpoint(endpoint.ip.version), _of_peer(lease, endpoint, version)
        if own is None or own.vtep_mac is None or ip is None:
            continue
        if auto.kind(config, peer, version, blocked=False) == "vxlan":
            question = Question(ip.packed, endpoint.vtep_mac, own_ip.packed, own.vtep_mac)
            dev = config.fabric.vxlan_dev_over(endpoint.ip.version)
            found[peer.name, version] = Target(version, dev, question)
    return found


def _of_peer(lease: Lease, endpoint: Endpoint, version: int) -> IPAddress | None:
    """An address that the peer itself has, and answers for on its VXLAN device.

    Where all that it has are borrowed ones, which are its pods', its node's address does: ARP is
    answered for any that the machine has.
    """
    return carrier.own_base(lease.subnets, version) or (
        endpoint.ip if endpoint.ip.version == version == 4 else None
    )
