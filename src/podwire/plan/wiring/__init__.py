"""The wirings by name: each is one module with the same functions, written to be read alone."""

from __future__ import annotations

from typing import Protocol

from podwire.model.cluster import Attachment, NetworkConfig
from podwire.model.fabric import Fabric
from podwire.model.state import Entry, IPAddress, IPInterface
from podwire.plan.wiring import bridge, routed
from podwire.plan.wiring.pods import PodPlan


class Module(Protocol):
    """What a wiring's module has."""

    def plan_node(self, config: NetworkConfig) -> tuple[Entry, ...]:
        """What the node holds for all of its pods."""

    def plan_attachment(self, config: NetworkConfig, attachment: Attachment) -> PodPlan:
        """What the node and the pod hold for one interface of a pod."""

    def seen_by_pod(self, config: NetworkConfig, ip: IPAddress) -> tuple[IPInterface, IPAddress]:
        """A pod's address with the prefix length that it gets, and its gateway."""


_MODULES: dict[str, Module] = {"bridge": bridge, "routed": routed}


def wiring_of(fabric: Fabric) -> Module:
    """The module that plans a fabric's wiring."""
    return _MODULES[fabric.wiring]


def plan_attachment(config: NetworkConfig, attachment: Attachment) -> PodPlan:
    """What the node and the pod hold for one interface of a pod, as the fabric wires them."""
    return wiring_of(config.fabric).plan_attachment(config, attachment)


__all__ = ["Module", "PodPlan", "plan_attachment", "wiring_of"]
