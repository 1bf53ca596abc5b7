"""The tunnel to each peer: does UDP on the VXLAN port get through, both ways?

The peer's own address answers and its VTEP's, which is reached through the tunnel only, does not:
then something on the way or on either node drops the tunnel's packets. Which rule of this node
does is looked up in its ruleset; the peer's rules are for the doctor there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path as FilePath

from podwire.agent.doctor.firewall import TUNNEL_HOOKS, culprit, tunnelled_and_stopped
from podwire.agent.doctor.measure import Path
from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.kernel.attach import find_link
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe import lookup
from podwire.kernel.observe.lookup_messages import RouteQuestion
from podwire.kernel.ruleset import read_ruleset
from podwire.model.cluster import NetworkConfig
from podwire.trace.wire import Checked

_find = Findings("tunnel")


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    network = subject.network
    if network is None:
        return
    unleased = [
        name
        for name, node in sorted(subject.agent.nodes.by_name.items())
        if node.lease is None and name != network.node
    ]
    if unleased:
        yield _find.warn(
            f"{named(unleased)} {'has' if len(unleased) == 1 else 'have'} published no lease:"
            " pods there can't be reached",
            "is the agent running there? Has it ever been ready?",
        )
    paths = (await subject.measure()).paths
    broken = [path for path in paths if not path.vtep.answers]
    if not broken:
        yield _find.ok(_all_well(network, paths))
        return
    port = network.vxlan_port
    if holder := await asyncio.to_thread(_port_holder, port, network.underlay.ip.version):
        yield _find.fail(
            f"UDP port {port} is held by {holder}, so {network.vxlan_dev} can't receive on it",
            f"stop that program, or choose another --vxlan-port on all nodes than {port}",
        )
    blocked = [path for path in broken if path.node.answers and path.vtep.lost]
    local = []
    if blocked:
        ruleset = await asyncio.to_thread(read_ruleset, TUNNEL_HOOKS)
        local = tunnelled_and_stopped(network, ruleset, blocked[0].peer)
    for ruling, direction in local:
        found = culprit(ruling, f"-p udp --dport {port} -j ACCEPT")
        text = f"UDP {port} {direction} is dropped on this node by {found.text}"
        yield _find.fail(text, found.remedy, *found.lines)
    differing = await _differing(subject)
    astray = await asyncio.to_thread(_astray, network, broken)
    for path in broken:
        text, remedy = _judge(network, path, bool(local))
        # Then it is no wonder, and says nothing about the way.
        if differing & {"", path.peer.name, network.node}:
            remedy = "first what this node holds has to be as it should be: see `desired`"
        elif path.peer.name in astray:
            remedy = f"it is not even sent through {network.vxlan_dev}: see `overlap`"
        yield _find.fail(text, remedy, peer=path.peer.name)


async def _differing(subject: Subject) -> set[str]:
    """For whose sake this node should hold what it does not; empty for what nobody wants."""
    worker = subject.agent.worker
    changes = await worker.call(worker.reconciler.plan)
    whys = [change.why.object if change.why is not None else "" for change in changes]
    return {why.removeprefix("Node/") for why in whys if why.startswith("Node/") or not why}


def _astray(network: NetworkConfig, paths: list[Path]) -> set[str]:
    """The peers whose VTEPs this node would not send to through the tunnel."""
    with NetlinkSocket() as sock:
        tunnel = find_link(sock, network.vxlan_dev)
        index = tunnel.index if tunnel is not None else 0
        return {
            path.peer.name
            for path in paths
            if lookup.route(sock, RouteQuestion(dst=path.vtep.ip.packed)).ifindex != index
        }


def _all_well(network: NetworkConfig, paths: tuple[Path, ...]) -> str:
    if not paths:
        return "there is no other node to reach"
    peers = f"{len(paths)} peers answer" if len(paths) > 1 else f"{paths[0].peer.name} answers"
    slowest = max(path.vtep.small.rtt_us or 0 for path in paths)
    return (
        f"{peers} through {network.vxlan_dev}, UDP {network.vxlan_port} (≤ {slowest / 1000:.1f} ms)"
    )


def _judge(network: NetworkConfig, path: Path, dropped_here: bool) -> tuple[str, str]:
    """Why the VTEP of one peer does not answer, and what to do about it."""
    name, node, vtep, port = path.peer.name, path.node, path.vtep, network.vxlan_port
    through = f"{vtep.ip} through {network.vxlan_dev}"
    if not vtep.lost:
        return (
            f"{name} can't be reached at {through}: {vtep.small.text}",
            "the checks `desired` and `overlap` tell what is wrong on this node",
        )
    if not node.answers:
        why = "" if node.lost else f" ({node.small.text})"
        return (
            f"{name} answers neither at {node.ip}{why} nor at {through}",
            f"is {name} up, and connected to the network between the nodes?",
        )
    text = f"{name} answers at {node.ip}, and not at {through}"
    if dropped_here:
        return text, ""
    return text, (
        f"UDP {port} does not get through between {network.underlay.ip} and {node.ip}: let it pass,"
        f" both ways, on the way and on {name} (podwire doctor --node {name})"
    )


def _port_holder(port: int, version: int) -> str:
    """The process that has the UDP port open, empty where none has: the kernel's own has no owner.

    Sees as far as the agent's view of /proc goes.
    """
    table = FilePath("/proc/net/udp" if version == 4 else "/proc/net/udp6")
    inodes = set()
    for line in table.read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    for process in FilePath("/proc").glob("[0-9]*") if inodes else ():
        try:
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue  # It has ended, or is not ours to look at.
    return ""
