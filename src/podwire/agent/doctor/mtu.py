"""The largest packet that the underlay and the tunnel carry, and what the pods think it is.

The tunnel's MTU is the underlay link's less what the encapsulation takes. Where the network
between two nodes carries less than that link says, small packets pass and large ones vanish.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator

from podwire.agent.doctor.measure import Path
from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.model.cluster import NetworkConfig
from podwire.plan.transport import vxlan
from podwire.trace.wire import Checked

_find = Findings("mtu")


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    network = subject.network
    if network is None:
        return
    paths = (await subject.measure()).paths
    too_small: dict[tuple[int, bool], list[str]] = defaultdict(list)
    for path in paths:
        if found := _narrow(path):
            too_small[found].append(path.peer.name)
    for (largest, by_tunnel), peers in sorted(too_small.items()):
        yield _too_small(network, largest, by_tunnel, peers)
    large = _too_large_pods(subject, network)
    if large:
        yield large
    if not too_small and not large:
        carried = sum(path.vtep.carries for path in paths)
        to = f", measured to {carried} of {len(paths)} peers" if carried else ", not measured"
        yield _find.ok(
            f"{network.underlay.dev} carries {network.underlay.mtu} bytes,"
            f" {network.vxlan_dev} {network.mtu}{to}"
        )


def _narrow(path: Path) -> tuple[int, bool] | None:
    """The largest packet that passes where that is too little; by the tunnel, not the underlay?"""
    if path.node.largest is not None:
        return path.node.largest, False
    if path.vtep.largest is not None:
        return path.vtep.largest, True
    return None


def _too_small(network: NetworkConfig, largest: int, by_tunnel: bool, peers: list[str]) -> Checked:
    dev = network.underlay.dev
    overhead = vxlan.OVERHEAD[network.underlay.ip.version]
    underlay = largest + overhead if by_tunnel else largest
    if by_tunnel:
        text = (
            f"the tunnel to {named(peers)} carries packets of {largest} bytes, not the"
            f" {network.mtu} of {network.vxlan_dev}"
        )
    else:
        text = (
            f"the network to {named(peers)} carries packets of {largest} bytes, not the"
            f" {network.underlay.mtu} of {dev}: larger ones vanish"
        )
    return _find.fail(
        text,
        f"set the MTU of {dev} to {underlay}, here and on the other side; the pod network's"
        f" follows ({underlay - overhead}), for new pods",
        f"ip link set dev {dev} mtu {underlay}",
    )


def _too_large_pods(subject: Subject, network: NetworkConfig) -> Checked | None:
    """Pods keep the MTU that they were made with."""
    pods = [
        f"{one.pod or one.container_id[:12]} ({one.mtu})"
        for one in subject.agent.pods.attachments
        if one.mtu > network.mtu
    ]
    if not pods:
        return None
    return _find.warn(
        f"{named(pods)} have a larger MTU than the tunnel, which carries {network.mtu}",
        "delete these pods, so that new ones get the right one",
    )
