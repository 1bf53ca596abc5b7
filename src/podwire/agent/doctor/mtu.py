"""The largest packet that the underlay and the tunnel carry, and what the pods think it is.

The tunnel's MTU is the underlay link's less what the encapsulation takes. Where the network
between two nodes carries less than that link says, small packets pass, and large ones vanish or,
where a router is too narrow for them, are answered with ICMP errors (fragmentation needed).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from podwire.agent.doctor.measure import Path
from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.agent.lease import check_mtu
from podwire.errors import InputError
from podwire.model.cluster import NetworkConfig
from podwire.trace.wire import Checked

_find = Findings("mtu")


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    network = subject.network
    if network is None:
        return
    paths = (await subject.measure()).paths
    too_small: dict[_Narrow, list[str]] = defaultdict(list)
    for path in paths:
        if (found := _narrow(path)) and path.peer.name not in too_small[found]:
            too_small[found].append(path.peer.name)
    for narrow, peers in sorted(too_small.items()):
        yield _too_small(network, narrow, peers)
    large = _too_large_pods(subject, network)
    if large:
        yield large
    if not too_small and not large:
        all_peers = {path.peer.name for path in paths}
        less = {path.peer.name for path in paths if not (path.far or path.node).carries}
        carried = len(all_peers - less)
        to = f", measured to {carried} of {len(all_peers)} peers" if carried else ", not measured"
        devs = sorted({path.way.dev for path in paths} - {network.underlay.dev})
        inner = f"{named(devs)} {network.mtu}" if devs else f"pods have {network.mtu}"
        yield _find.ok(f"{network.underlay.dev} carries {network.underlay.mtu} bytes, {inner}{to}")


class _Narrow(NamedTuple):
    """The largest packet that passes, where that is too little: through the device `dev` of a
    tunnel that adds `added` bytes, else over the underlay itself. `refused`: somebody there tells
    the senders of larger ones."""

    largest: int
    dev: str
    added: int
    refused: bool = False


def _narrow(path: Path) -> _Narrow | None:
    way = path.way
    if path.node.largest is not None:
        return _Narrow(path.node.largest, "", way.added, path.node.full.outcome != "timeout")
    if path.far is not None and path.far.largest is not None:
        return _Narrow(path.far.largest, way.dev, way.added)
    return None


def _too_small(network: NetworkConfig, narrow: _Narrow, peers: list[str]) -> Checked:
    dev, largest, overhead = network.underlay.dev, narrow.largest, narrow.added
    underlay = largest + overhead if narrow.dev else largest
    if narrow.dev:
        text = (
            f"the tunnel to {named(peers)} carries packets of {largest} bytes, not the"
            f" {network.mtu} of {narrow.dev}"
        )
    else:
        text = (
            f"the network to {named(peers)} carries packets of {largest} bytes, not the"
            f" {network.underlay.mtu} of {dev}: larger ones"
            f" {'are answered with ICMP errors' if narrow.refused else 'vanish'}"
        )
    try:
        there = msgspec.structs.replace(network.underlay, mtu=underlay)
        check_mtu(network.fabric, network.network, there)
    except InputError as error:
        # With that MTU on the link no pod could be wired any more.
        return _find.fail(text, f"have the network carry more: {error.message}; {error.remedy}")
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
    have = "has" if len(pods) == 1 else "have"
    return _find.warn(
        f"{named(pods)} {have} a larger MTU than the way to other nodes, which carries"
        f" {network.mtu}",
        "delete these pods, so that new ones get the right one",
    )
