"""What a change from one fabric to another means: for pods that run, told before it is made; and
for settings of devices, which no comparison finds once nobody wants them.

Pure: two fabrics in, sentences or keys out.
"""

from __future__ import annotations

from podwire.model.fabric import Fabric
from podwire.plan.transport import transport_of

_NUMBERS = ("vni", "vxlan_port", "udp_port", "encrypt", "gbp")


def interruptions(before: Fabric, after: Fabric, *, other_network: bool = False) -> list[str]:
    """One sentence for each thing that stops, pauses or has to be done; none where nothing is.

    `other_network`: the pod network is another one, too.
    """
    found = []
    if speaks_otherwise(before, after):
        found.append(
            "nodes that have changed and nodes that have not do not reach each other's pods"
            " until the last one has"
        )
    if other_network:
        found.append(
            "pods keep addresses that nobody routes any more: all of them must be recreated"
        )
        return found
    if before.ipam != after.ipam:
        found.append(
            f"pods keep their addresses where {after.ipam} can claim them for their node; those"
            " that it can't must be recreated"
        )
    if before.wiring != after.wiring:
        found.append(
            f"each pod's interface is made anew ({before.wiring} to {after.wiring}), with its"
            " addresses: its connections pause for a moment"
        )
    elif _room(after) < _room(before):
        found.append(
            "pods that run keep an MTU that is larger than what the new transport leaves: recreate"
            " them, or large packets are lost"
        )
    if before.uses_udp and not after.uses_udp:
        found.append("the UDP tunnel's process ends")
    return found


def given_up(before: Fabric, after: Fabric) -> tuple[str, ...]:
    """Settings of devices that are in both, which only the first one has otherwise than any device:
    keys below /proc/sys."""
    if before.transport != "auto" or after.transport == "auto":
        return ()
    devices = {
        dev
        for fabric in (before, after)
        for dev in (fabric.vxlan_dev, fabric.vxlan_dev6, fabric.udp_dev)
    }
    return tuple(f"net/ipv4/conf/{dev}/rp_filter" for dev in sorted(devices))


def speaks_otherwise(before: Fabric, after: Fabric) -> bool:
    """Whether nodes of one and nodes of the other refuse or do not understand each other."""
    if transport_of(before).BACKEND != transport_of(after).BACKEND:
        return True
    ours, theirs = (
        [getattr(one, name) for name in _NUMBERS if _matters(before, name)]
        for one in (before, after)
    )
    return ours != theirs


def _matters(fabric: Fabric, number: str) -> bool:
    return fabric.uses_udp if number in ("udp_port", "encrypt") else fabric.uses_vxlan


def _room(fabric: Fabric) -> int:
    """How much less than the underlay's MTU pods have, as a negative number of bytes."""
    return -transport_of(fabric).overhead(4) - (1 if fabric.encrypt else 0)
