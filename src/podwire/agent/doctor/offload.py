"""Checksums of tunnelled packets, which a NIC that offloads them may get wrong.

What is known: some drivers and hypervisors announce that they can make the checksums inside of
VXLAN and do not do it for every port or kernel (reported most of all for vmxnet3 on VMware). The
receiver drops such packets without a word. Pings pass, since their checksum is made by the kernel,
while TCP and UDP between nodes do not. Switching the offload off cures it, at the price of some
CPU time.

So a TCP connection to a port where nothing listens is attempted, to each peer's own address and to
its VTEP's. Refused is what it should be; and nobody should count wrong checksums meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from podwire.agent.doctor.measure import Path
from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.errors import KernelError
from podwire.kernel import ethtool
from podwire.trace.wire import Checked

_find = Findings("offload")

_TUNNEL_FEATURES = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
_CHECKSUM = "tx-checksum-ip-generic"


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    network = subject.network
    if network is None:
        return
    measured = await subject.measure()
    paths, wrong = measured.paths, measured.wrong_checksums
    driver, features = await asyncio.to_thread(_look, network.underlay.dev)
    tunnel_dev = next((path.way.dev for path in paths if "vxlan" in path.way.kind), "")
    if not tunnel_dev:
        yield _find.ok(f"no VXLAN is used: {network.underlay.dev} has nothing to get wrong inside")
        return
    _, tunnel = await asyncio.to_thread(_look, tunnel_dev)
    dev = f"{network.underlay.dev} (driver {driver or 'unknown'})"
    suspected = [path.peer.name for path in paths if _suspicious(path)]
    lines = _switch_off(network.underlay.dev, features, tunnel_dev, tunnel)
    if wrong:
        make = _find.fail if suspected else _find.warn
        yield make(
            f"{wrong} packets with wrong checksums arrived while the peers were probed",
            "if it goes on, switch off the offload of the NIC on the nodes that send them",
            *lines,
        )
    if suspected:
        yield _find.warn(
            f"pings pass through the tunnel to {named(suspected)} and TCP does not, while TCP to"
            f" the nodes' own addresses does: as when a NIC gets checksums inside of VXLAN wrong."
            f" This node's is {dev}",
            f"try it without the offload, on both nodes; a firewall that drops TCP from"
            f" {tunnel_dev} looks the same",
            *lines,
        )
    if not suspected and not wrong:
        names = {path.peer.name for path in paths}
        failed = {path.peer.name for path in paths if not _passes_tcp(path)}
        passed = len(names - failed)
        through = f"TCP passes the tunnel to {passed} of {len(names)} peers"
        yield _find.ok(f"{through if passed else 'not measured'}; no wrong checksums; {dev}")


def _passes_tcp(path: Path) -> bool:
    return path.far is not None and path.far.tcp.outcome in ("refused", "replied")


def _suspicious(path: Path) -> bool:
    far = path.far if "vxlan" in path.way.kind else None
    through = far is not None and far.answers and far.tcp.outcome == "timeout"
    return through and path.node.tcp.outcome in ("refused", "replied")


def _switch_off(
    dev: str, features: frozenset[str], tunnel: str, tunnel_features: frozenset[str]
) -> list[str]:
    """The lines that switch off what is on."""
    lines = [f"ethtool -K {tunnel} {_CHECKSUM} off"] if _CHECKSUM in tunnel_features else []
    on = [name for name in _TUNNEL_FEATURES if name in features]
    if on:
        lines.append(f"ethtool -K {dev} " + " ".join(f"{name} off" for name in on))
    return lines


def _look(device: str) -> tuple[str, frozenset[str]]:
    """A device's driver and what it offloads; nothing for one that is not there."""
    try:
        return ethtool.driver(device), ethtool.active_features(device)
    except KernelError:
        return "", frozenset()
