"""What another pod network means for a lab that runs: told before anything is changed.

What lives here: sentences for a person, and which pods they are about. What does not: the change
itself (`rollout`), what fabrics mean to each other (`plan.change`).
"""

from __future__ import annotations

from collections.abc import Sequence

from podwire.errors import LabError
from podwire.lab.addressing import addresses
from podwire.lab.faults import API, ETCD
from podwire.lab.readiness import enumerated
from podwire.lab.registry import UNDERLAY_MTU, LabRecord
from podwire.lab.shape import Shape
from podwire.model.cluster import Underlay
from podwire.plan.change import speaks_otherwise
from podwire.plan.node import pod_mtu

#: What becomes of the addresses of pods that are made anew in a network that has them.
_KEPT = {
    "node-subnet": "with their addresses where these are in their nodes' subnets",
    "blocks": "with their addresses where no other node claims these blocks",
    "cluster-range": "with their addresses where these are in their nodes' ranges",
}


def remade(before: Shape, after: Shape) -> bool:
    """Whether the change has kubelets make pods anew."""
    return before.pod_network != after.pod_network


def consequences(before: Shape, after: Shape, pods: Sequence[str]) -> list[str]:
    """What is interrupted for these pods, which have the network, one sentence each."""
    old, new = before.resolved, after.resolved
    found = []
    if speaks_otherwise(old, new):
        found.append(
            "Nodes change one after the other, which takes about a second each. Until the last one"
            " has, pods on nodes that have and on nodes that have not do not reach each other."
        )
    if not pods:
        return [*found, "No pod runs in the pod network."]
    if before.network != after.network:
        return [*found, f"Made anew, with other addresses: {enumerated(pods)}."]
    if remade(before, after):
        return [
            *found,
            f"Made anew, {_KEPT[new.ipam]}: {enumerated(pods)}.",
        ]
    found.append("Pods go on running, with their addresses.")
    if old.wiring != new.wiring:
        found.append(
            f"Each one's interface is replaced ({old.wiring} to {new.wiring}): its connections"
            " pause for a moment."
        )
        return found
    was, fits = (_pod_mtu(one) for one in (before, after))
    if fits < was:
        found.append(
            f"Those with a larger MTU than the {fits} that fits then keep it. Nodes tell them when"
            " a packet is too large, but it is better to recreate them."
        )
    return found


def out_of_reach(shape: Shape) -> str | None:
    """What a person should know of nodes that are no peers in this shape, if there are any."""
    if shape.underlay != "routed" or shape.resolved.transport != "direct":
        return None
    return (
        "plain routes lead to nodes of the same link only, and this underlay has two: pods on"
        " node1 and node2 don't reach each other. --transport auto reaches all"
    )


def check_reachable(record: LabRecord) -> None:
    """Raises LabError where agents could not be given another network: they need the API."""
    faults = record.faults
    away = [f"{name} is dead" for name in (API, ETCD) if name in faults.dead]
    away += [f"{node} is without the API" for node in faults.no_api]
    if away:
        raise LabError(
            f"{', '.join(away)}, and agents need it to change",
            remedy=f"run `podwire --lab {record.name} lab heal` first",
        )


def _pod_mtu(shape: Shape) -> int:
    first, *second = (one.ip for one in addresses(shape.underlay, shape.underlay_versions, 1))
    return pod_mtu(
        shape.resolved, Underlay("eth0", first, UNDERLAY_MTU, second[0] if second else None)
    )
