"""Which controllers there are, and their settings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from podwire.errors import InputError
from podwire.lab.api.hub import Hub
from podwire.lab.api.objects import Objects
from podwire.lab.controllers.events import EventExpiry
from podwire.lab.controllers.loop import Controller, run
from podwire.lab.controllers.namespaces import NamespaceDeletion
from podwire.lab.controllers.node_lifecycle import NodeHealth, NodeRemoval
from podwire.lab.controllers.pod_cidrs import PodCidrs, Pool
from podwire.lab.controllers.scheduler import Scheduler

_NODE_MASK_V6 = 64


@dataclass(frozen=True)
class ControllerSettings:
    """cluster_cidrs: nodes' subnets are cut from these, a network for each IP family; the first is
    the primary. None where pods' addresses come from elsewhere.

    node_mask: prefix length of a node's IPv4 block (IPv6: /64). lease_s: how long a node's Lease
    may go without renewal. orphan_s: how long a pod may name a node that there isn't.
    """

    cluster_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    node_mask: int = 24
    lease_s: float = 40.0
    orphan_s: float = 40.0

    def pools(self) -> list[Pool]:
        """The pools of node blocks; raises `InputError`."""
        networks = [ip_network(cidr) for cidr in self.cluster_cidrs]
        if len({network.version for network in networks}) != len(networks):
            raise InputError("expected one network for each IP family", field="cluster-cidr")
        return [
            Pool(network, self.node_mask if network.version == 4 else _NODE_MASK_V6)
            for network in networks
        ]


def make_controllers(objects: Objects, settings: ControllerSettings) -> list[Controller]:
    """All controllers; raises `InputError` for settings that make no sense."""
    pools = settings.pools()
    return [
        NamespaceDeletion(objects),
        *([PodCidrs(objects, pools)] if pools else []),
        NodeRemoval(objects, orphan_s=settings.orphan_s),
        NodeHealth(objects, lease_s=settings.lease_s),
        Scheduler(objects),
        EventExpiry(objects),
    ]


async def run_controllers(controllers: Sequence[Controller], hub: Hub) -> None:
    """Run controllers until the hub closes."""
    async with asyncio.TaskGroup() as group:
        for controller in controllers:
            group.create_task(run(controller, hub))
