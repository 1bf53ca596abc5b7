"""What would keep the node from forwarding pods' packets: settings, the reverse-path filter,
firewalls of others, a full connection table.

`net.ipv4.ip_forward` itself is part of the desired state.
"""

from __future__ import annotations

import asyncio
import errno
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping

from podwire.agent.doctor.firewall import FORWARD_HOOKS, culprit, forwarded_and_stopped
from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.agent.doctor.ways import Way, devices
from podwire.kernel import sysctl
from podwire.kernel.link_queries import find_link
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe import lookup
from podwire.kernel.observe.lookup_messages import RouteQuestion
from podwire.kernel.rules import Ruleset
from podwire.kernel.ruleset import read_ruleset
from podwire.model.cluster import NetworkConfig
from podwire.model.state import IPAddress
from podwire.plan.wiring import routed
from podwire.trace.wire import Checked

_find = Findings("forwarding")

_LOOSE = 2
_TABLE_FULL = 0.9


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    network = subject.network
    if network is None:
        return
    inside = _inside(subject, network)
    found = await asyncio.to_thread(_look, network, subject.ways, inside)
    for one in found:
        yield one
    if not found:
        families = sorted({f"IPv{one.version}" for one in network.network})
        versions = " and ".join(families)
        yield _find.ok(f"{versions} forwarded, by no firewall stopped, the way back accepted")


def _inside(subject: Subject, network: NetworkConfig) -> tuple[str, ...]:
    """The devices that pods' packets come from; of routed pods the links of two, or what those of
    this node would be called."""
    if network.fabric.wiring == "bridge":
        return (network.bridge,)
    links = [one.host_ifname for one in subject.agent.pods.attachments]
    return tuple(links[:2]) or (f"{network.fabric.port_prefix}0",)


def _look(
    network: NetworkConfig, found_ways: tuple[Way, ...], inside: tuple[str, ...]
) -> list[Checked]:
    ruleset = read_ruleset(FORWARD_HOOKS)
    with NetlinkSocket() as sock:
        return [
            *_gateway(network, sock),
            *_settings((network.underlay.dev, *devices(network), *inside), sock),
            *_reverse_path(network, sock, found_ways),
            *_firewalls(network, ruleset, found_ways, inside),
            *_connections(),
        ]


def _gateway(network: NetworkConfig, sock: NetlinkSocket) -> Iterator[Checked]:
    """Routed pods' gateway is nobody's address: proxy ARP answers for it, as for all that the node
    has a route to."""
    ipv4 = any(one.version == 4 for one in network.network)
    if network.fabric.wiring != "routed" or not ipv4:
        return
    gateway = routed.gateway(4)
    if lookup.fib_entry(sock, RouteQuestion(dst=gateway.packed)) is None:
        yield _find.fail(
            f"pods get no answer for their gateway, {gateway}: proxy ARP takes a route to it, and"
            " this node has none, and no default route",
            "give the node its default route, or this one",
            f"ip route add {gateway} dev lo",
        )


def _settings(devs: tuple[str, ...], sock: NetlinkSocket) -> Iterator[Checked]:
    """Forwarding of single interfaces, which IPv4 has; that of all is desired state."""
    if not lookup.general_settings(sock, 4).forwarding:
        return
    for dev in dict.fromkeys(devs):
        link = find_link(sock, dev)
        settings = lookup.settings(sock, 4, link.index) if link is not None else None
        if settings is not None and not settings.forwarding:
            line = sysctl.line(f"net/ipv4/conf/{dev}/forwarding", "1")
            yield _find.fail(f"what arrives at {dev} is not forwarded", "switch it on", line)


def _reverse_path(
    network: NetworkConfig, sock: NetlinkSocket, found_ways: tuple[Way, ...]
) -> Iterator[Checked]:
    """What the filter would drop: the kernel is asked, for packets of each peer."""
    underlay = network.underlay.dev
    asked: dict[tuple[str, str], dict[str, IPAddress | None]] = defaultdict(dict)
    for way in found_ways:
        if way.node.version != 4 and way.version != 4:
            continue  # IPv6 has no such filter.
        name = way.peer.name
        asked[underlay, _NODES].setdefault(name, way.node)
        if way.kind == "l2-vxlan":
            continue  # What comes out of it is bridged, and no routing looks at it.
        if way.dev != underlay:
            asked[way.dev, _VTEPS].setdefault(name, way.far)
            asked[way.dev, _NODES].setdefault(name, way.node)
        elif way.far is not None:
            asked[underlay, _PODS].setdefault(name, way.far)
    for (dev, whose), sources in asked.items():
        refused = _refused(network, sock, dev, sources)
        if not refused:
            continue
        # Peers use their VTEPs' there, unless a program has chosen otherwise.
        make = _find.warn if dev != underlay and whose == _NODES else _find.fail
        yield make(
            f"the reverse-path filter of {dev} drops what comes from {named(refused)} with {whose}",
            "have it filter loosely",
            sysctl.line(f"net/ipv4/conf/{dev}/rp_filter", str(_LOOSE)),
        )


#: Whose addresses packets have that are asked about.
_NODES, _VTEPS, _PODS = "a node's own address", "a VTEP's address", "an address of its pod network"


def _refused(
    network: NetworkConfig,
    sock: NetlinkSocket,
    dev: str,
    sources: Mapping[str, IPAddress | None],
) -> list[str]:
    """The peers whose packets with that source would be dropped, were they to come by `dev`."""
    own = network.underlay.ip
    link = find_link(sock, dev)
    if own.version != 4 or link is None or not _filtered(sock, link.index):
        return []
    found = []
    for name, source in sources.items():
        if source is None or source.version != 4:
            continue
        question = RouteQuestion(dst=own.packed, src=source.packed, iif=link.index)
        if lookup.route(sock, question).errno in (errno.EXDEV, errno.EINVAL):
            found.append(name)
    return found


def _filtered(sock: NetlinkSocket, ifindex: int) -> bool:
    """Whether there is such a filter: the larger of the interface's and the general setting."""
    own = lookup.settings(sock, 4, ifindex)
    return max(lookup.general_settings(sock, 4).rp_filter, own.rp_filter if own else 0) > 0


def _firewalls(
    network: NetworkConfig, ruleset: Ruleset, found_ways: tuple[Way, ...], inside: tuple[str, ...]
) -> Iterator[Checked]:
    """What others' rules stop. An accept in our table does not overrule a drop in theirs."""
    for ruling, stopped in forwarded_and_stopped(network, ruleset, found_ways, inside):
        versions = {flow.version for _, flow in stopped}
        networks = [net for net in network.network if net.version in versions]
        found = culprit(
            ruling, *(f"{way} {net} -j ACCEPT" for net in networks for way in ("-s", "-d"))
        )
        what = named(list(dict.fromkeys(what for what, _ in stopped)))
        make = _find.fail if ruling.unless is None else _find.warn
        yield make(
            f"what is forwarded {what} is dropped by {found.text}", found.remedy, *found.lines
        )


def _connections() -> Iterator[Checked]:
    count = sysctl.read("net/netfilter/nf_conntrack_count")
    most = sysctl.read("net/netfilter/nf_conntrack_max")
    if count and most and int(most) and int(count) >= _TABLE_FULL * int(most):
        line = sysctl.line("net/netfilter/nf_conntrack_max", str(2 * int(most)))
        yield _find.warn(
            f"the connection table holds {count} of {most}: when it is full, new connections"
            " are dropped",
            "make room for more, on the host itself",
            line,
        )
