"""What a pod network is made of: nodes with their leases, the network itself, pods' attachments.

Values only, frozen, without I/O. `podwire.cluster` makes them out of Kubernetes objects,
`podwire.plan` computes kernel state from them.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from podwire.model.state import IPAddress, IPInterface, IPNetwork


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A node's claim on pod subnets, and how its peers reach them.

    `public_ip` is the address that tunnels to the node end at; `vtep_mac` is of its VXLAN device,
    None for transports without one.
    """

    subnets: tuple[IPNetwork, ...]
    backend: str
    public_ip: IPAddress
    vni: int = 0
    vtep_mac: bytes | None = None


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
    """The link that carries the traffic between nodes: its name, our address on it, its MTU."""

    dev: str
    ip: IPAddress
    mtu: int


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One node's view of the pod network: the profile's numbers and this node's own lease."""

    node: str
    network: tuple[IPNetwork, ...]
    lease: Lease
    underlay: Underlay
    mtu: int
    bridge: str = "cni0"
    vxlan_dev: str = "flannel.1"
    vxlan_port: int = 8472
    masquerade: bool = True


class ClusterView(msgspec.Struct, frozen=True):
    """All that a plan is computed from: this node's configuration and every node by name."""

    config: NetworkConfig
    nodes: Mapping[str, Node]


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's interface: who it is for, and all that is needed to make it again.

    `ips` are the pod's addresses with the subnet's prefix length, `gateways` the addresses of the
    bridge in the same order. `netns` is the path that the runtime gave.
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
