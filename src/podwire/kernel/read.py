"""What of the kernel's tables is ours: addresses, neighbours, FDB entries, routes, set elements.

Only what Podwire alone makes: entries of its links, routes of its protocols, elements of its sets.
The keys and values are those of `podwire.kernel.tables`, which are compared with what is wanted.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from podwire.kernel import guards, messages, nft_elements
from podwire.kernel.guards import GuardKey, Guards, GuardValue
from podwire.kernel.messages import (
    ANY_MAC,
    ConnectedKey,
    FdbKey,
    NeighborKey,
    PortFdbKey,
)
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.nft_elements import ElementKey
from podwire.kernel.tables import (
    ADDRESSES,
    CONNECTED,
    ELEMENTS,
    FDB,
    GUARDS,
    NEIGHBORS,
    PORT_FDB,
    ROUTES,
    SetName,
)

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Mine(msgspec.Struct, frozen=True):
    """What belongs to Podwire: indexes of all of its links and, among them, of those that are not
    pods' and of the VXLAN devices (`ports`: those in a bridge); routes' protocols; open sets with
    the types of their parts.

    `guards` are those that ports are to have; `kept` the addresses that are ours on links where
    others are not; `connected` the routes that the kernel makes with ours, and their sources.
    """

    links: frozenset[int]
    own: frozenset[int]
    tunnels: tuple[int, ...]
    ports: tuple[int, ...]
    protocols: frozenset[int]
    sets: Mapping[SetName, tuple[str, ...]]
    kept: frozenset[Any]
    connected: Mapping[ConnectedKey, bytes]
    guards: Mapping[GuardKey, GuardValue]


class Sockets(msgspec.Struct, frozen=True):
    """One of each family that is spoken, and the guards of ports, of which netlink tells half."""

    route: NetlinkSocket
    netfilter: NetlinkSocket
    guards: Guards


def _addresses(socks: Sockets, mine: Mine) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for body in socks.route.dump(messages.RTM_GETADDR, messages.get_addresses()):
        key, scope = messages.parse_address(body)
        if key in mine.kept or (key.ifindex in mine.own and scope == messages.RT_SCOPE_UNIVERSE):
            found[key] = None
    return found


def _neighbors(socks: Sockets, mine: Mine) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for family in _FAMILIES:
        # All at once: the kernel walks through all of them for each question.
        for body in socks.route.dump(messages.RTM_GETNEIGH, messages.get_neighbors(family)):
            index, state = messages.neighbor_head(body)
            if state & messages.NUD_PERMANENT and index in mine.links:
                _, _, _, ip, mac = messages.parse_neighbor(body)
                found[NeighborKey(index, family, ip)] = mac
    return found


def _fdb(socks: Sockets, mine: Mine) -> dict[Any, Any]:
    entries = _entries(socks, mine.tunnels)
    return {key: one.dst for one in entries if (key := fdb_key(one)) is not None}


def _port_fdb(socks: Sockets, mine: Mine) -> dict[Any, Any]:
    entries = _entries(socks, mine.ports)
    return {key: None for one in entries if (key := port_fdb_key(one)) is not None}


def _entries(socks: Sockets, devices: Iterable[int]) -> Iterator[messages.NeighborState]:
    """The forwarding entries of these devices, of both kinds."""
    for index in devices:
        for body in socks.route.dump(messages.RTM_GETNEIGH, messages.get_fdb(index)):
            one = messages.parse_neighbor_state(body)
            if one.ifindex == index:
                yield one


def fdb_key(one: messages.NeighborState) -> FdbKey | None:
    """The key of a VXLAN device's entry that somebody made; None for what it has learned."""
    if not one.dst or one.master or not one.state & (messages.NUD_PERMANENT | messages.NUD_NOARP):
        return None
    return FdbKey(one.ifindex, one.mac, one.dst if one.mac == ANY_MAC else b"")


def port_fdb_key(one: messages.NeighborState) -> PortFdbKey | None:
    """The key of a bridge's static entry; None for what it has learned, and for the ports' own
    MACs (`permanent`). Those of VLANs are copies."""
    if one.dst or not one.master or one.vlan or not one.state & messages.NUD_NOARP:
        return None
    return PortFdbKey(one.ifindex, one.mac)


def _routes(socks: Sockets, mine: Mine) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for protocol in sorted(mine.protocols):
        for family in _FAMILIES:
            question = messages.get_routes(family, protocol)
            for body in socks.route.dump(messages.RTM_GETROUTE, question):
                key, value, actual, table = messages.parse_route(body)
                if actual == protocol and table == messages.RT_TABLE_MAIN:
                    found[key] = value
    return found


def _connected(socks: Sockets, mine: Mine) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for family in sorted({key.route.family for key in mine.connected}):
        question = messages.get_routes(family, messages.RTPROT_KERNEL)
        for body in socks.route.dump(messages.RTM_GETROUTE, question):
            route, value, _, table = messages.parse_route(body)
            key = ConnectedKey(route, value.ifindex)
            if key not in mine.connected or table != messages.RT_TABLE_MAIN:
                continue
            # There may be another one beside it, with another source.
            if found.get(key) != mine.connected[key]:
                found[key] = value.src
    return found


def _elements(socks: Sockets, mine: Mine) -> dict[Any, Any]:
    return {
        ElementKey(*name, data, types): None
        for name, types in mine.sets.items()
        for data in nft_elements.read(socks.netfilter, *name)
    }


def _guards(socks: Sockets, mine: Mine) -> dict[Any, Any]:
    """One that is not as wanted, be it an older program for the same pod, has no value."""
    there = guards.guarded(socks.route)
    there = {index: found for index, found in there.items() if index in mine.links}
    right = socks.guards.right(there, mine.guards)
    keys = map(GuardKey, there)
    return {key: mine.guards[key] if key.ifindex in right else None for key in keys}


#: By the table's name.
READERS: Mapping[str, Callable[[Sockets, Mine], dict[Any, Any]]] = {
    ADDRESSES.name: _addresses,
    NEIGHBORS.name: _neighbors,
    FDB.name: _fdb,
    PORT_FDB.name: _port_fdb,
    ROUTES.name: _routes,
    CONNECTED.name: _connected,
    ELEMENTS.name: _elements,
    GUARDS.name: _guards,
}
