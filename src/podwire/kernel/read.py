"""What of the kernel's tables is ours: addresses, neighbours, FDB entries, routes, by key.

Only what Podwire alone makes: entries of its links, and routes of its protocol. The keys and values
are those of `podwire.kernel.tables`, which are compared with what is wanted.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from podwire.kernel import messages
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.tables import ADDRESSES, FDB, NEIGHBORS, ROUTES
from podwire.model.state import ROUTE_PROTOCOL

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Mine(msgspec.Struct, frozen=True):
    """Indexes of our bridges and tunnels, and of the tunnels among them."""

    links: frozenset[int]
    tunnels: tuple[int, ...]


def _addresses(sock: NetlinkSocket, mine: Mine) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for body in sock.dump(messages.RTM_GETADDR, messages.get_addresses()):
        key, scope = messages.parse_address(body)
        if key.ifindex in mine.links and scope == messages.RT_SCOPE_UNIVERSE:
            found[key] = None
    return found


def _neighbors(sock: NetlinkSocket, mine: Mine) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for index in mine.tunnels:
        for family in _FAMILIES:
            question = messages.get_neighbors(family, index)
            for body in sock.dump(messages.RTM_GETNEIGH, question):
                _, _, state, ip, mac = messages.parse_neighbor(body)
                if state & messages.NUD_PERMANENT:
                    found[messages.NeighborKey(index, family, ip)] = mac
    return found


def _fdb(sock: NetlinkSocket, mine: Mine) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for index in mine.tunnels:
        for body in sock.dump(messages.RTM_GETNEIGH, messages.get_fdb(index)):
            _, where, _, dst, mac = messages.parse_neighbor(body)
            if where == index and dst:
                found[messages.FdbKey(index, mac)] = dst
    return found


def _routes(sock: NetlinkSocket, _: Mine) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for family in _FAMILIES:
        for body in sock.dump(messages.RTM_GETROUTE, messages.get_routes(family)):
            key, value, protocol, table = messages.parse_route(body)
            if protocol == ROUTE_PROTOCOL and table == messages.RT_TABLE_MAIN:
                found[key] = value
    return found


#: By the table's name.
READERS: Mapping[str, Callable[[NetlinkSocket, Mine], dict[Any, Any]]] = {
    ADDRESSES.name: _addresses,
    NEIGHBORS.name: _neighbors,
    FDB.name: _fdb,
    ROUTES.name: _routes,
}
