"""A pod's interface in the kernel compared with what it was made as: every fault, in a sentence."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from podwire.kernel import guards, messages, nft_elements, sysctl
from podwire.kernel.attach import PodEntry, of_pod, port_of
from podwire.kernel.link_messages import LinkState
from podwire.kernel.link_queries import find_link
from podwire.kernel.messages import NeighborKey
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket, socket_in
from podwire.kernel.tables import TABLE_OF, Scope
from podwire.model.state import Address, Entry, Link, Neighbor, NftElement, PortGuard, Route, Sysctl


def check(
    sock: NetlinkSocket, host: Link | Sequence[Entry], pod: Sequence[PodEntry], netns_fd: int
) -> list[str]:
    """What is wrong with a pod's interface, one sentence a fault; empty when all is as planned."""
    entries = (host,) if isinstance(host, Link) else host
    port, veth = port_of(entries)
    state = find_link(sock, port.name)
    if state is None:
        return [f"{port.name} does not exist on the node"]
    faults = _host_faults(sock, port, state, entries)
    with socket_in(netns_fd) as inside:
        link = find_link(inside, veth.peer)
        if link is None:
            return [*faults, f"{veth.peer} does not exist in the pod"]
        if not link.up:
            faults.append(f"{veth.peer} is down in the pod")
        if link.mac != veth.peer_mac:
            faults.append(f"{veth.peer} has MAC {link.mac.hex(':')} in the pod")
        faults += _missing(inside, pod, Scope({veth.peer: link.index}), "in the pod")
    return faults


def _host_faults(
    sock: NetlinkSocket, port: Link, state: LinkState, entries: Sequence[Entry]
) -> list[str]:
    faults: list[str] = []
    if port.master is not None:
        bridge = find_link(sock, port.master)
        if bridge is None or state.master != bridge.index:
            faults.append(f"{port.name} is not a port of {port.master}")
    elif state.master:
        faults.append(f"{port.name} is a port of a bridge")
    if not state.up:
        faults.append(f"{port.name} is down")
    faults += [
        f"sysctl {one.key} is not {one.value}"
        for one in entries
        if isinstance(one, Sysctl) and sysctl.is_amiss(one.key, one.value)
    ]
    keys = [nft_elements.untyped_key(one) for one in entries if isinstance(one, NftElement)]
    if keys:
        with NetlinkSocket(NETLINK_NETFILTER) as netfilter:
            faults += [
                f"{nft_elements.text(key)} is missing in nft set {key.table} {key.set}"
                for key in keys
                if not nft_elements.is_there(netfilter, key)
            ]
    for one in entries:
        if isinstance(one, PortGuard):
            found = guards.guard_at(sock, state.index)
            if found is None or not found.lets_pass(guards.wire(one)):
                faults.append(f"{port.name} has no guard, or another one (tc filter show)")
    return faults + _missing(sock, entries, Scope({port.name: state.index}), "on the node")


def _missing(sock: NetlinkSocket, entries: Sequence[Entry], scope: Scope, where: str) -> list[str]:
    """The addresses, routes and neighbours of a link that are not there."""
    (index,) = scope.values()
    found: set[Any] = set()
    for body in sock.dump(messages.RTM_GETADDR, messages.get_addresses()):
        found.add((messages.parse_address(body)[0], None))
    for family in (socket.AF_INET, socket.AF_INET6):
        question = messages.get_routes(family, 0, ifindex=index)
        for body in sock.dump(messages.RTM_GETROUTE, question):
            key, value, _, _ = messages.parse_route(body)
            found.add((key, of_pod(value)))
        question = messages.get_neighbors(family, index)
        for body in sock.dump(messages.RTM_GETNEIGH, question):
            _, _, state, ip, mac = messages.parse_neighbor(body)
            if state & messages.NUD_PERMANENT:
                found.add((NeighborKey(index, family, ip), mac))
    faults = []
    for entry in entries:
        if not isinstance(entry, Address | Route | Neighbor):
            continue
        key, value = TABLE_OF[type(entry)].wire(entry, scope)
        if (key, of_pod(value)) in found:
            continue
        if isinstance(entry, Address):
            faults.append(f"address {entry.ip} is missing {where}")
        elif isinstance(entry, Neighbor):
            faults.append(f"neighbour {entry.ip} is missing {where}")
        else:
            via = f" via {entry.via}" if entry.via is not None else ""
            faults.append(f"route {entry.dst}{via} is missing {where}")
    return faults
