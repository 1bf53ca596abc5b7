"""Which family of the underlay carries pods' packets to a peer, and where to.

The family of the packets themselves where both nodes are there, else the other one. The rule looks
at nothing but the two leases, so both ends answer alike. Pure.
"""

from __future__ import annotations

from podwire.model.cluster import Endpoint, Lease, NetworkConfig
from podwire.model.state import IPAddress, IPNetwork, Why

OTHER = {4: 6, 6: 4}


def carrier(config: NetworkConfig, lease: Lease, version: int) -> Endpoint | None:
    """The peer's endpoint that pods' packets of an IP version go to; None where there is none."""
    for wanted in (version, OTHER[version]):
        theirs = lease.endpoint(wanted)
        if theirs is not None and config.lease.endpoint(wanted) is not None:
            return theirs
    return None


def versions(subnets: tuple[IPNetwork, ...]) -> tuple[int, ...]:
    """The IP versions among subnets, IPv4 first."""
    return tuple(sorted({subnet.version for subnet in subnets}))


def other_backend(name: str, lease: Lease, backend: str, known: tuple[str, ...] = ()) -> list[str]:
    """One sentence where a peer has none of the `known` backends; by default this node's alone."""
    if lease.backend in (known or (backend,)):
        return []
    return [f"node {name} has backend {lease.backend or 'none'}, this node {backend}"]


def unreachable(config: NetworkConfig, name: str, lease: Lease) -> list[str]:
    """One sentence where the underlay has no family in common with a peer."""
    if any(carrier(config, lease, version) for version in (4, 6)):
        return []
    theirs = " and ".join(str(endpoint.ip) for endpoint in lease.endpoints)
    ours = " and ".join(str(endpoint.ip) for endpoint in config.lease.endpoints)
    return [f"node {name} is at {theirs}, and this node at {ours}: no family in common"]


def base(subnets: tuple[IPNetwork, ...], version: int) -> IPAddress | None:
    """What peers call a node's VTEP: the first address of its first subnet of that IP version.

    Borrowed addresses, of host length, are pods'; one of them has to do where there is no other,
    as the next hop of routes. No device of the node itself may have it, see `own_base`.
    """
    found = own_base(subnets, version)
    if found is None:
        first = next((subnet for subnet in subnets if subnet.version == version), None)
        found = first.network_address if first is not None else None
    return found


def own_base(subnets: tuple[IPNetwork, ...], version: int) -> IPAddress | None:
    """The address of this node's tunnel; None where all that it has are borrowed addresses."""
    own = (subnet for subnet in subnets if subnet.version == version)
    whole = next((subnet for subnet in own if subnet.prefixlen < subnet.max_prefixlen), None)
    return whole.network_address if whole is not None else None


def leases(name: str, subnet: IPNetwork) -> Why:
    """Why there are entries for a peer's subnet."""
    return Why(f"Node/{name}", f"leases {subnet}")
