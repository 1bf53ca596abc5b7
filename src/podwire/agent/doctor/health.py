"""The agent itself: is it ready, does it see the cluster, can pods be wired by it?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from podwire.agent.doctor import disk
from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.cluster.kube.leases import KubeLeases
from podwire.cni import install
from podwire.cni.types import PLUGIN_TYPE
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe.interfaces import read_interfaces
from podwire.model.cluster import Attachment, NetworkConfig
from podwire.trace.wire import Checked

_find = Findings("agent")


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    agent, config, well = subject.agent, subject.agent.config, True
    if agent.not_ready is not None:
        well = False
        yield _find.fail(f"not ready: {agent.not_ready}")
    if not agent.connected:
        well = False
        yield _find.fail(
            f"{agent.source.title} is not being watched: changes of other nodes are not followed",
            "does it run, and may the agent read there? See its log",
        )
    if (finding := await asyncio.to_thread(disk.look, config.state_dir)) is not None:
        well = well and finding.level != "fail"
        yield finding
    if agent.network is not None:
        if unpublished := _unpublished(subject, agent.network):
            well = False
            yield _find.fail(
                f"the lease is not published as it is used: {named(unpublished)}",
                f"does something else change the annotations of node {subject.node}?"
                " The agent's log says why it could not publish them",
            )
        # An agent that is not ready has not announced itself to the runtime yet.
        missing = _installed(config.cni_bin_dir, config.cni_conf_dir) if well else []
        for finding in missing:
            well = False
            yield finding
        if strays := _strays(subject, agent.network):
            yield _find.warn(
                f"{named(strays)} have addresses outside of this node's lease: nobody else"
                " reaches them",
                "delete these pods, so that they get new ones",
            )
    for name, ifname in await asyncio.to_thread(_unplugged, agent.pods.attachments):
        yield _find.warn(
            f"{ifname} of pod {name} is down, in the pod itself: nothing reaches it",
            "bring it up in the pod; its routes have gone with it, so better delete the pod",
        )
    if agent.held:
        yield _find.warn(
            "held: the agent leaves the kernel as it is",
            "have it mend again",
            f"podwire agent resume --node {subject.node}",
        )
    if well and agent.network is not None:
        subnets = ", ".join(map(str, agent.network.lease.subnets))
        count = agent.nodes.leased_peers
        peers = f"{count} peer" if count == 1 else f"{count} peers"
        yield _find.ok(f"ready, lease {subnets} published, {peers}, CNI plugin installed")


def _unpublished(subject: Subject, network: NetworkConfig) -> list[str]:
    """The annotations that peers do not see as they should."""
    source = subject.agent.source
    return source.unpublished(network.lease) if isinstance(source, KubeLeases) else []


def _installed(bin_dir: Path, conf_dir: Path) -> list[Checked]:
    """What is wrong with the plugin's files."""
    found = []
    executable, conf = bin_dir / PLUGIN_TYPE, conf_dir / install.CONFLIST_NAME
    remedy = "restart the agent, or run `podwire cni install` on the node"
    if not os.access(executable, os.X_OK):
        found.append(_find.fail(f"the CNI executable {executable} is not there", remedy))
    try:
        if conf.read_bytes() != install.conflist():
            found.append(_find.fail(f"the CNI configuration {conf} was changed", remedy))
    except OSError as error:
        text = f"the CNI configuration {conf} can't be read: {error.strerror}"
        found.append(_find.fail(text, remedy))
    return found


def _unplugged(attachments: Iterable[Attachment]) -> list[tuple[str, str]]:
    """Pods whose end of the cable is down, with its name; the node's end is desired state."""
    with NetlinkSocket() as sock:
        states = {one.name: one for one in read_interfaces(sock)}
    return [
        (one.pod or one.container_id[:12], one.ifname)
        for one in attachments
        if (port := states.get(one.host_ifname)) is not None and port.up and not port.carrier
    ]


def _strays(subject: Subject, network: NetworkConfig) -> list[str]:
    return [
        f"pod {one.pod or one.container_id[:12]}"
        for one in subject.agent.pods.attachments
        if not any(ip.ip in subnet for ip in one.ips for subnet in network.lease.subnets)
    ]
