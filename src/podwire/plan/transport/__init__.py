"""The transports by name: each is one module with the same functions, written to be read alone."""

from __future__ import annotations

from typing import Protocol

from podwire.model.cluster import NetworkConfig, Node
from podwire.model.fabric import Fabric
from podwire.model.state import Entry
from podwire.plan.transport import auto, direct, l2_vxlan, udp, vxlan


class Module(Protocol):
    """What a transport's module has."""

    #: What its nodes publish with their leases (Flannel's backend type).
    BACKEND: str

    def overhead(self, version: int) -> int:
        """Bytes that it adds to each packet over an underlay of that IP version."""

    def plan_node(self, config: NetworkConfig) -> tuple[Entry, ...]:
        """What this node holds for its own sake."""

    def objections(self, config: NetworkConfig, peer: Node) -> list[str]:
        """Why a peer's lease can't be used, one sentence each."""

    def plan_peer(self, config: NetworkConfig, peer: Node) -> tuple[Entry, ...]:
        """What this node holds to reach a peer to whose lease there are no objections."""


_MODULES: dict[str, Module] = {
    "direct": direct,
    "vxlan": vxlan,
    "l2-vxlan": l2_vxlan,
    "udp": udp,
    "auto": auto,
}


def transport_of(fabric: Fabric) -> Module:
    """The module that plans a fabric's transport."""
    return _MODULES[fabric.transport]
