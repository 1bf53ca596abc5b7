"""The way to each peer: does the tunnel get through, both ways, and what plain routes carry?

The peer's own address answers and that at the far end of the way (its VTEP's, which is reached
through the tunnel only) does not: then something on the way or on either node drops the tunnel's
packets. Which rule of this node
does is looked up in its ruleset; the peer's rules are for the doctor there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from shlex import quote

from podwire.agent.doctor.firewall import TUNNEL_HOOKS, culprit, tunnelled_and_stopped
from podwire.agent.doctor.measure import Path
from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.agent.doctor.ways import Way
from podwire.kernel.link_queries import find_link
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe import lookup
from podwire.kernel.observe.interfaces import find_interface
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
    if cut_off := await asyncio.to_thread(_cut_off, network):
        yield cut_off
        return
    ill = False
    async for finding in _own_process(subject, network):
        ill = ill or finding.level == "fail"
        yield finding
    paths = (await subject.measure()).paths
    broken = [path for path in paths if not (path.far or path.node).answers]
    if not broken:
        yield _find.ok(_all_well(paths))
        return
    for way in _by_port(broken):
        if way.kind == "udp":
            continue  # That is our own process's.
        if holder := await asyncio.to_thread(_port_holder, way.port, way.node.version):
            yield _find.fail(
                f"UDP port {way.port} is held by {holder}, so {way.dev} can't receive on it",
                f"stop that program, or choose another --vxlan-port on all nodes than {way.port}",
            )
    blocked = [path for path in broken if path.node.answers and path.far and path.far.lost]
    local: set[int] = set()
    if blocked:
        ruleset = await asyncio.to_thread(read_ruleset, TUNNEL_HOOKS)
        told: set[str] = set()
        for way in _by_port(blocked):
            for ruling, direction in tunnelled_and_stopped(network, ruleset, way):
                local.add(way.port)
                found = culprit(ruling, f"-p udp --dport {way.port} -j ACCEPT")
                text = f"UDP {way.port} {direction} is dropped on this node by {found.text}"
                # One rule may be for both IP versions.
                if text not in told:
                    told.add(text)
                    yield _find.fail(text, found.remedy, *found.lines)
    differing = await _differing(subject)
    astray = await asyncio.to_thread(_astray, broken)
    for path in broken:
        lines: tuple[str, ...] = ()
        text, remedy = _judge(network, path, path.way.port in local)
        # Then it is no wonder, and says nothing about the way.
        if differing & {"", path.peer.name, network.node}:
            remedy = "first what this node holds has to be as it should be: see `desired`"
        elif ill and path.way.kind == "udp":
            remedy = "first the UDP tunnel's process of this node has to work"
        elif path.peer.name in astray:
            remedy = f"it is not even sent {path.way.words}: see `overlap`, or ask"
            lines = (f"podwire explain ip {path.way.far} --node {network.node}",)
        yield _find.fail(text, remedy, *lines, peer=path.peer.name)


def _cut_off(network: NetworkConfig) -> Checked | None:
    """Why nobody can be reached from this node at all: its interface on the underlay."""
    dev = network.underlay.dev
    with NetlinkSocket() as sock:
        state = find_interface(sock, dev)
    if state is None:
        return _find.fail(f"{dev}, this node's interface to the others, does not exist")
    if not state.up:
        text = f"{dev}, this node's interface to the others, is down"
        return _find.fail(text, "bring it up", f"ip link set {quote(dev)} up")
    if not state.carrier:
        text = f"{dev}, this node's interface to the others, has no carrier ({state.operstate})"
        return _find.fail(text, "is its cable plugged in, and the other end up?")
    return None


async def _own_process(subject: Subject, network: NetworkConfig) -> AsyncIterator[Checked]:
    """The UDP tunnel's, where there has to be one; and who is reached by it for want of VXLAN."""
    if not network.fabric.uses_udp:
        return
    if network.fabric.transport == "auto":
        slow = [way for way in subject.ways if way.kind == "udp"]
        if slow:
            names = named(sorted({way.peer.name for way in slow}))
            yield _find.warn(
                f"VXLAN does not get through to {names}: the slower {slow[0].dev} is used",
                f"let UDP {network.fabric.vxlan_port} pass between the nodes, both ways",
            )
    tunnel = subject.agent.peering.tunnel
    problem = tunnel.problem
    if problem is None and await tunnel.stats() is None:
        problem = "the UDP tunnel does not forward: its process does not answer"
    if problem is not None:
        yield _find.fail(problem, "the agent starts it anew; its log tells why that did not help")


def _by_port(paths: list[Path]) -> list[Way]:
    """One way for each tunnel's port and IP version among these."""
    found: dict[tuple[int, int], Way] = {}
    for path in paths:
        if path.way.port:
            found.setdefault((path.way.port, path.way.node.version), path.way)
    return list(found.values())


async def _differing(subject: Subject) -> set[str]:
    """For whose sake this node should hold what it does not; empty for what nobody wants."""
    worker = subject.agent.worker
    changes = await worker.call(worker.reconciler.plan)
    whys = [change.why.object if change.why is not None else "" for change in changes]
    return {why.removeprefix("Node/") for why in whys if why.startswith("Node/") or not why}


def _astray(paths: list[Path]) -> set[str]:
    """The peers whose far ends this node would not send to by their device."""
    with NetlinkSocket() as sock:
        indexes = {dev: find_link(sock, dev) for dev in {path.way.dev for path in paths}}
        found = set()
        for path in paths:
            link = indexes[path.way.dev]
            if path.far is None or path.way.kind == "l2-vxlan":
                continue  # The bridge is what leads there.
            taken = lookup.route(sock, RouteQuestion(dst=path.far.ip.packed)).ifindex
            if link is None or taken != link.index:
                found.add(path.peer.name)
        return found


def _all_well(paths: tuple[Path, ...]) -> str:
    if not paths:
        return "there is no other node to reach"
    by_words: dict[str, list[str]] = {}
    for path in paths:
        port = f", UDP {path.way.port}" if path.way.port else ""
        peers = by_words.setdefault(path.way.words + port, [])
        if path.peer.name not in peers:
            peers.append(path.peer.name)
    told = [
        f"{len(peers)} peers answer {words}" if len(peers) > 1 else f"{peers[0]} answers {words}"
        for words, peers in by_words.items()
    ]
    slowest = max((path.far or path.node).small.rtt_us or 0 for path in paths)
    return f"{'; '.join(told)} (≤ {slowest / 1000:.1f} ms)"


def _judge(network: NetworkConfig, path: Path, dropped_here: bool) -> tuple[str, str]:
    """Why the far end of one peer does not answer, and what to do about it."""
    name, node, far, way = path.peer.name, path.node, path.far, path.way
    up = f"is {name} up, and connected to the network between the nodes?"
    if not node.lost:
        up = f"it could not be sent: does this node have its routes? ip route get {node.ip}"
    if far is None:
        why = "" if node.lost else f" ({node.small.text})"
        return f"{name} does not answer at {node.ip}{why}", up
    there = f"{far.ip} {way.words}"
    if not far.lost:
        return (
            f"{name} can't be reached at {there}: {far.small.text}",
            "the checks `desired` and `overlap` tell what is wrong on this node",
        )
    if not node.answers:
        why = "" if node.lost else f" ({node.small.text})"
        return f"{name} answers neither at {node.ip}{why} nor at {there}", up
    text = f"{name} answers at {node.ip}, and not at {there}"
    if dropped_here:
        return text, ""
    own = network.underlay.ip_of(node.ip.version)
    if not way.port:
        return text, (
            f"packets with pods' addresses do not get through between {own} and {node.ip}: does a"
            f" cloud check sources there, or a firewall on {name}? (podwire doctor --node {name})"
        )
    return text, (
        f"UDP {way.port} does not get through between {own} and {node.ip}: let it pass,"
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
