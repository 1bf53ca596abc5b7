"""The kernel's tables that are compared entry by entry: addresses, neighbours, FDB, routes.

What lives here: for each table how a desired entry becomes a key and a value, the messages that
add, change and delete one, and the same as the line that a person would type. The comparison
itself is generic over them (`diff`). Links and nft tables, few and intricate, have modules of
their own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

import msgspec

from podwire.kernel import messages
from podwire.kernel.messages import AddressKey, FdbKey, NeighborKey, RouteKey, RouteValue
from podwire.model.state import (
    ROUTE_PROTOCOL,
    Address,
    FdbEntry,
    Neighbor,
    Route,
    Why,
    format_mac,
)

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

BulkEntry = Address | Neighbor | FdbEntry | Route
Key = AddressKey | NeighborKey | FdbKey | RouteKey
Pair = tuple[Any, Any]
Names = Mapping[int, str]


class Table(msgspec.Struct, frozen=True):
    """One table: its name and its ways to say a thing. `wire` maps an entry to (key, value)."""

    name: str
    wire: Callable[[Any, Mapping[str, int]], Pair]
    add: Callable[[Any, Any], bytes]
    change: Callable[[Any, Any], bytes]
    delete: Callable[[Any, Any], bytes]
    line: Callable[[str, Any, Any, Names], str]


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """A desired entry in its wire form, with the cause that it is kept under."""

    value: Any
    why: Why
    cause: str


class Op(msgspec.Struct, frozen=True):
    """One change of one table. `action` is add, change or delete; a deletion of what nobody asked
    for has no why."""

    table: Table
    action: str
    key: Any
    value: Any
    why: Why | None = None

    def message(self) -> bytes:
        encode: Callable[[Any, Any], bytes] = getattr(self.table, self.action)
        return encode(self.key, self.value)

    def line(self, names: Names) -> str:
        return self.table.line(self.action, self.key, self.value, names)


def diff(table: Table, wanted: Mapping[Any, Wanted], actual: Mapping[Any, Any]) -> list[Op]:
    """The operations that turn `actual` into `wanted`; deletions first, to be out of the way."""
    ops = [Op(table, "delete", key, value) for key, value in actual.items() if key not in wanted]
    for key, want in wanted.items():
        if key not in actual:
            ops.append(Op(table, "add", key, want.value, want.why))
        elif actual[key] != want.value:
            ops.append(Op(table, "change", key, want.value, want.why))
    return ops


def _address_wire(entry: Address, indexes: Mapping[str, int]) -> Pair:
    ip = entry.ip
    key = AddressKey(indexes[entry.dev], _FAMILY[ip.version], ip.ip.packed, ip.network.prefixlen)
    return key, None


def _address_line(action: str, key: AddressKey, _: None, names: Names) -> str:
    verb = "del" if action == "delete" else "replace"
    broadcast = " brd +" if key.family == socket.AF_INET and key.prefixlen < 31 else ""
    tail = "" if action == "delete" else broadcast
    return f"ip address {verb} {ip_address(key.ip)}/{key.prefixlen}{tail} dev {names[key.ifindex]}"


def _neighbor_wire(entry: Neighbor, indexes: Mapping[str, int]) -> Pair:
    ip = entry.ip
    return NeighborKey(indexes[entry.dev], _FAMILY[ip.version], ip.packed), entry.mac


def _neighbor_line(action: str, key: NeighborKey, mac: bytes, names: Names) -> str:
    ip, dev = ip_address(key.ip), names[key.ifindex]
    if action == "delete":
        return f"ip neigh del {ip} dev {dev}"
    return f"ip neigh replace {ip} lladdr {format_mac(mac)} dev {dev} nud permanent"


def _fdb_wire(entry: FdbEntry, indexes: Mapping[str, int]) -> Pair:
    return FdbKey(indexes[entry.dev], entry.mac), entry.dst.packed


def _fdb_line(action: str, key: FdbKey, dst: bytes, names: Names) -> str:
    verb = "del" if action == "delete" else "replace"
    where = f"dev {names[key.ifindex]} dst {ip_address(dst)} self"
    tail = "" if action == "delete" else " permanent"
    return f"bridge fdb {verb} {format_mac(key.mac)} {where}{tail}"


def _route_wire(entry: Route, indexes: Mapping[str, int]) -> Pair:
    dst = entry.dst
    metric = 0 if dst.version == 4 else messages.IPV6_DEFAULT_METRIC
    key = RouteKey(_FAMILY[dst.version], dst.network_address.packed, dst.prefixlen, metric)
    value = RouteValue(
        indexes[entry.dev],
        entry.via.packed if entry.via is not None else b"",
        entry.src.packed if entry.src is not None else b"",
        entry.onlink,
    )
    return key, value


def _route_line(action: str, key: RouteKey, value: RouteValue, names: Names) -> str:
    verb = {"add": "add", "change": "replace", "delete": "del"}[action]
    parts = [f"ip route {verb} {ip_address(key.dst)}/{key.prefixlen}"]
    if value.via:
        parts.append(f"via {ip_address(value.via)}")
    parts.append(f"dev {names.get(value.ifindex, '?')}")
    if value.src:
        parts.append(f"src {ip_address(value.src)}")
    if value.onlink and action != "delete":
        parts.append("onlink")
    parts.append(f"proto {ROUTE_PROTOCOL}")
    return " ".join(parts)


def _add_route(key: RouteKey, value: RouteValue) -> bytes:
    return messages.add_route(key, value, replace=False, protocol=ROUTE_PROTOCOL)


def _change_route(key: RouteKey, value: RouteValue) -> bytes:
    return messages.add_route(key, value, replace=True, protocol=ROUTE_PROTOCOL)


def _delete_route(key: RouteKey, value: RouteValue) -> bytes:
    return messages.delete_route(key, value, protocol=ROUTE_PROTOCOL)


ADDRESSES = Table(
    "address",
    _address_wire,
    lambda key, _: messages.add_address(key),
    lambda key, _: messages.add_address(key),
    lambda key, _: messages.delete_address(key),
    _address_line,
)
NEIGHBORS = Table(
    "neigh",
    _neighbor_wire,
    messages.set_neighbor,
    messages.set_neighbor,
    lambda key, _: messages.delete_neighbor(key),
    _neighbor_line,
)
FDB = Table("fdb", _fdb_wire, messages.set_fdb, messages.set_fdb, messages.delete_fdb, _fdb_line)
ROUTES = Table("route", _route_wire, _add_route, _change_route, _delete_route, _route_line)

#: In the order in which entries are added: a route is the last to appear, when what it leads to
#: is there, and the first to go.
TABLES = (ADDRESSES, NEIGHBORS, FDB, ROUTES)

TABLE_OF: dict[type, Table] = {
    Address: ADDRESSES,
    Neighbor: NEIGHBORS,
    FdbEntry: FDB,
    Route: ROUTES,
}
