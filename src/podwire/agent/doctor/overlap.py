"""Ranges that overlap: pod network, leases, nodes' addresses, and others' routes on this node.

Where two want the same address, the more specific route wins, and the other's traffic goes astray.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping

from podwire.agent.doctor.subject import Findings, Subject
from podwire.agent.doctor.ways import Way, devices
from podwire.kernel import messages
from podwire.kernel.link_queries import links
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe import lookup
from podwire.kernel.observe.lookup_messages import FibEntry, RouteQuestion, parse_fib_entry
from podwire.model.cluster import NetworkConfig, Node
from podwire.model.state import ROUTE_PROTOCOL, IPAddress, IPNetwork, within
from podwire.plan.node import objections, unreached
from podwire.trace.wire import Checked

_find = Findings("overlap")

_LOCAL_TABLE = 255


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    network = subject.network
    if network is None:
        return
    found = [*_leases(subject, network), *_node_addresses(subject, network)]
    found += await asyncio.to_thread(_routes, network, subject.ways)
    for one in found:
        yield one
    if not found:
        yield _find.ok(f"nothing overlaps {', '.join(map(str, network.network))}")


def _leases(subject: Subject, network: NetworkConfig) -> Iterator[Checked]:
    """Leases of peers that are not believed."""
    nodes = subject.agent.nodes
    remedy = "correct spec.podCIDR or the annotations of node {name}, or its agent's options"
    if not network.underlay.on_link:
        remedy = f"is {network.underlay.dev} up here, with its address? See `tunnel`"
    for name, node in sorted(nodes.by_name.items()):
        if name == network.node:
            continue
        for text in objections(network, node, nodes.claims):
            yield _find.fail(f"{text}: its lease is not used", remedy.format(name=name))
        for text in unreached(network, node, nodes.claims):
            yield _find.fail(
                f"{text}: its lease is used for the other IP version only",
                f"see to the addresses of {network.node} and {name} on the underlay, or take vxlan",
            )


def _node_addresses(subject: Subject, network: NetworkConfig) -> Iterator[Checked]:
    """Nodes inside of the pod network, to which the tunnel would lead through itself."""
    for name, node in sorted(subject.agent.nodes.by_name.items()):
        ips = {*node.internal_ips, *_endpoints(node)}
        for ip in sorted(ips, key=str):
            if any(ip in net for net in network.network):
                yield _find.fail(
                    f"the address {ip} of node {name} is inside of the pod network",
                    "give the cluster another pod network (--network, and the node CIDRs)",
                )


# --- routes -----------------------------------------------------------------------------------


def _routes(network: NetworkConfig, found: tuple[Way, ...]) -> list[Checked]:
    leases = dict.fromkeys(network.lease.subnets, f"{network.node}'s")
    leases |= {net: f"{way.peer.name}'s" for way in found for net in _subnets(way)}
    with NetlinkSocket() as sock:
        names = {link.index: name for name, link in links(sock).items()}
        return [
            *_foreign_routes(network, sock, names, leases),
            *_led_astray(sock, names, found),
        ]


def _foreign_routes(
    network: NetworkConfig,
    sock: NetlinkSocket,
    names: Mapping[int, str],
    leases: Mapping[IPNetwork, str],
) -> Iterator[Checked]:
    """Routes of the main table that are not ours and lead into the pod network."""
    own = devices(network)
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in sock.dump(messages.RTM_GETROUTE, messages.get_routes(family, 0)):
            entry = parse_fib_entry(body)
            dev = names.get(entry.ifindex, "")
            if entry.protocol in (ROUTE_PROTOCOL, network.fabric.route_protocol) or dev in own:
                continue
            if not any(within(entry.dst, net) for net in network.network):
                continue  # Elsewhere, or broader: then ours are more specific.
            yield _foreign(entry, dev, leases)


def _foreign(entry: FibEntry, dev: str, leases: Mapping[IPNetwork, str]) -> Checked:
    route = f"{entry.dst}{f' dev {dev}' if dev else ''}"
    line = f"ip route del {route}"
    taken = next((whose for subnet, whose in leases.items() if within(entry.dst, subnet)), None)
    if taken is not None:
        return _find.fail(
            f"the route {route} takes what is for {taken} pods",
            "delete it, or have whatever made it use another range",
            line,
        )
    return _find.warn(
        f"the route {route} is inside of the pod network: what a node leases there won't be"
        " reached by whatever uses it",
        "have whatever made it use another range",
        line,
    )


def _led_astray(
    sock: NetlinkSocket, names: Mapping[int, str], found: tuple[Way, ...]
) -> Iterator[Checked]:
    """Peers' subnets that policy routing (`ip rule`) takes elsewhere before the main table."""
    for way in found:
        for subnet in _subnets(way):
            pod = subnet[-3] if subnet.num_addresses > 2 else subnet[0]
            match = lookup.fib_entry(sock, RouteQuestion(dst=pod.packed))
            if match is None or match.table in (messages.RT_TABLE_MAIN, _LOCAL_TABLE):
                continue
            if (dev := names.get(match.ifindex, "nowhere")) != way.dev:
                yield _find.fail(
                    f"what is for {way.peer.name}'s pods ({subnet}) goes to {dev}, by routing table"
                    f" {match.table}",
                    f"except {subnet} from the rules that lead there (ip rule)",
                    "ip rule",
                )


def _subnets(way: Way) -> Iterator[IPNetwork]:
    """What the peer leases of the way's IP version."""
    lease = way.peer.lease
    yield from (one for one in lease.subnets if one.version == way.version) if lease else ()


def _endpoints(node: Node) -> Iterator[IPAddress]:
    yield from (one.ip for one in node.lease.endpoints) if node.lease is not None else ()
