"""What a pod network is made of: nodes with their leases, the network itself, pods' attachments.

Values only, frozen, without I/O. `podwire.cluster` makes them out of Kubernetes objects,
`podwire.plan` computes kernel state from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from podwire.model.fabric import DEFAULT, Fabric, Guard
from podwire.model.state import IPAddress, IPInterface, IPNetwork


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """Where a node is reached over one family of the underlay, and its VXLAN device's MAC there."""

    ip: IPAddress
    vtep_mac: bytes | None = None


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A node's claim on pod subnets, and how its peers reach them.

    `public_ip` is the address that tunnels to the node end at; `vtep_mac` is of its VXLAN device,
    None for transports without one. A node whose underlay has both families has `public_ip` of
    IPv4, and those of IPv6 in `public_ip6` and `vtep_mac6`. `public_key` (X25519, 32 bytes) is of
    its UDP tunnel, where that is encrypted.

    `subnets` are more than one a family where blocks are claimed as needed; one of host length is
    an address borrowed from another node's block.
    """

    subnets: tuple[IPNetwork, ...]
    backend: str
    public_ip: IPAddress
    vni: int = 0
    vtep_mac: bytes | None = None
    public_ip6: IPAddress | None = None
    vtep_mac6: bytes | None = None
    public_key: bytes | None = None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """One a family of the underlay that the node is reached over, IPv4 first."""
        first = Endpoint(self.public_ip, self.vtep_mac)
        if self.public_ip6 is None:
            return (first,)
        return (first, Endpoint(self.public_ip6, self.vtep_mac6))

    def endpoint(self, version: int) -> Endpoint | None:
        """The one of that IP version."""
        return next((one for one in self.endpoints if one.ip.version == version), None)


class Node(msgspec.Struct, frozen=True, gc=False):
    """A node of the cluster. `lease` is None until its agent has published one.

    `created` is when its object came to be (RFC 3339, UTC), empty where that is not known.
    """

    name: str
    pod_cidrs: tuple[IPNetwork, ...] = ()
    internal_ips: tuple[IPAddress, ...] = ()
    lease: Lease | None = None
    created: str = ""


class Underlay(msgspec.Struct, frozen=True):
    """The link that carries the traffic between nodes: its name, our address on it, its MTU.

    Where it has both families, `ip` is the IPv4 address and `ip6` the other. `on_link` are the
    networks whose addresses are layer-2 neighbours there.
    """

    dev: str
    ip: IPAddress
    mtu: int
    ip6: IPAddress | None = None
    on_link: tuple[IPNetwork, ...] = ()

    @property
    def ips(self) -> tuple[IPAddress, ...]:
        """Our addresses, one a family, IPv4 first."""
        return (self.ip,) if self.ip6 is None else (self.ip, self.ip6)

    def ip_of(self, version: int) -> IPAddress | None:
        """Our address of that IP version."""
        return next((ip for ip in self.ips if ip.version == version), None)

    def is_neighbor(self, ip: IPAddress) -> bool:
        """Whether an address is reached without a router."""
        return any(ip in network for network in self.on_link)


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One node's view of the pod network: the profile's numbers and this node's own lease."""

    node: str
    network: tuple[IPNetwork, ...]
    lease: Lease
    underlay: Underlay
    mtu: int
    fabric: Fabric = DEFAULT
    masquerade: bool = True
    #: By what this node does anti-spoofing.
    guard: Guard = "nftables"

    @property
    def bridge(self) -> str:
        return self.fabric.bridge

    @property
    def vxlan_dev(self) -> str:
        """The VXLAN device over the underlay's first family."""
        return self.fabric.vxlan_dev_over(self.underlay.ip.version)

    @property
    def vxlan_port(self) -> int:
        return self.fabric.vxlan_port


class PodPlace(msgspec.Struct, frozen=True, gc=False):
    """Where a pod of the cluster is: `pod` is namespace/name."""

    pod: str
    node: str
    ips: tuple[IPAddress, ...]


class ClusterView(msgspec.Struct, frozen=True):
    """All that a plan is computed from: this node's configuration and every node by name.

    `blocked` are the peers that VXLAN is seen not to reach (`auto`), `pods` the cluster's pods by
    namespace/name, which only fabrics of one segment look at.
    """

    config: NetworkConfig
    nodes: Mapping[str, Node]
    blocked: frozenset[str] = frozenset()
    pods: Mapping[str, PodPlace] = msgspec.field(default_factory=dict)


def leaseholder(nodes: Iterable[Node], ip: IPAddress) -> tuple[Node, IPNetwork] | None:
    """The node that leases a subnet with `ip`, and that subnet: the longest, since single addresses
    of a block may be lent."""
    found = [
        (node, subnet)
        for node in nodes
        for subnet in (node.lease.subnets if node.lease is not None else ())
        if ip in subnet
    ]
    return max(found, key=lambda one: one[1].prefixlen, default=None)


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's interface: who it is for, and all that is needed to make it again.

    `ips` are the pod's addresses with the prefix length that it sees, `gateways` its next hops in
    the same order. `netns` is the path that the runtime gave. A pod that `may_spoof` may send with
    any address.
    """

    container_id: str
    ifname: str
    netns: str
    host_ifname: str
    mac: bytes
    ips: tuple[IPInterface, ...]
    gateways: tuple[IPAddress, ...]
    pod: str = ""
    mtu: int = 0
    may_spoof: bool = False
