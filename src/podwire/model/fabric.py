"""A pod network as a point in a small space: who hands out addresses × how pods are wired × how
packets travel between nodes, with the names and numbers that belong to it.

Values only, frozen, without I/O. The named points (profiles), and which points make sense, are in
`podwire.plan.profiles`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from podwire.model.state import ROUTE_PROTOCOL

#: Who hands out pods' addresses: a subnet a node, blocks claimed as needed, or ranges of one big
#: layer-2 network.
Ipam: TypeAlias = Literal["node-subnet", "blocks", "cluster-range"]

#: A pod to its node: as a port of a bridge, or by a route of its own.
Wiring: TypeAlias = Literal["bridge", "routed"]

#: Node to node: by plain routes, in VXLAN at layer 3 or layer 2, in UDP by user space, or by what
#: works for each peer.
Transport: TypeAlias = Literal["direct", "vxlan", "l2-vxlan", "udp", "auto"]

#: What keeps a pod to its own addresses: programs at its port, or nftables.
Guard: TypeAlias = Literal["ebpf", "nftables"]


class Fabric(msgspec.Struct, frozen=True, kw_only=True):
    """All that does not differ between the nodes of one pod network.

    Devices of tunnels are named by the family of the underlay: `vxlan_dev` over IPv4, `vxlan_dev6`
    over IPv6. `port_prefix` begins the names of pods' host ends. `mtu` is the pods' at most, None
    for what the underlay leaves; `block_len` and `block_len6` are prefix lengths.
    """

    #: Its name; "custom" where the parts were chosen freely.
    profile: str = "flannel-vxlan"
    ipam: Ipam = "node-subnet"
    wiring: Wiring = "bridge"
    transport: Transport = "vxlan"
    #: Peers that are layer-2 neighbours get a plain route instead of the tunnel (Flannel's
    #: DirectRouting, Calico's CrossSubnet).
    cross_subnet: bool = False

    bridge: str = "cni0"
    port_prefix: str = "veth"
    vxlan_dev: str = "flannel.1"
    vxlan_dev6: str = "flannel-v6.1"
    vni: int = 1
    vxlan_port: int = 8472
    learning: bool = False
    #: Group Based Policy: the packet's mark travels in the VXLAN header (IFLA_VXLAN_GBP).
    gbp: bool = False
    udp_dev: str = "flannel0"
    udp_port: int = 8285
    #: Packets of the UDP transport are encrypted, and others are refused.
    encrypt: bool = False
    #: Of routes to remote subnets: what a person sees as `proto`.
    route_protocol: int = ROUTE_PROTOCOL
    mtu: int | None = None

    hairpin: bool = True
    promiscuous: bool = False
    #: Pods and their own node can't talk to each other.
    isolate_host: bool = False
    #: A pod sends with its own addresses only.
    anti_spoofing: bool = True

    block_len: int = 26
    block_len6: int = 122

    @property
    def uses_vxlan(self) -> bool:
        """Whether nodes have a VXLAN device."""
        return self.transport in ("vxlan", "l2-vxlan", "auto")

    @property
    def uses_udp(self) -> bool:
        """Whether nodes run the user-space tunnel."""
        return self.transport in ("udp", "auto")

    @property
    def uses_direct(self) -> bool:
        """Whether some peers are reached by a plain route over the underlay."""
        return self.transport in ("direct", "auto") or self.cross_subnet

    @property
    def is_one_segment(self) -> bool:
        """Whether all pods are in one broadcast domain."""
        return self.transport == "l2-vxlan"

    def vxlan_dev_over(self, version: int) -> str:
        """The VXLAN device whose outer packets are of that IP version."""
        return self.vxlan_dev if version == 4 else self.vxlan_dev6


#: What a node has that was told nothing else.
DEFAULT = Fabric()
