"""The kernel's tables that are compared entry by entry: addresses, neighbours, FDBs, routes, the
elements of nft sets and the guards of pods' ports.

What lives here: for each table how a desired entry becomes a key and a value, what has to be sent,
and where, to add, change and delete one, and the same as the line that a person would type. The
comparison itself is generic over them (`diff`), and so is sending (`apply`). Links and nft tables,
few and intricate, have modules of their own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from enum import Enum, auto
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

import msgspec

from podwire.kernel import guards, messages, nft_elements
from podwire.kernel.guards import GuardKey, GuardValue
from podwire.kernel.messages import (
    ANY_MAC,
    IPV6_CONNECTED_METRIC,
    IPV6_DEFAULT_METRIC,
    RTN_BLACKHOLE,
    RTPROT_KERNEL,
    AddressKey,
    ConnectedKey,
    FdbKey,
    NeighborKey,
    PortFdbKey,
    RouteKey,
    RouteValue,
)
from podwire.kernel.nft_elements import ElementKey
from podwire.model.state import (
    Address,
    Blackhole,
    FdbEntry,
    Link,
    Neighbor,
    NftElement,
    PortFdbEntry,
    PortGuard,
    Route,
    Why,
    format_mac,
    link_local,
)

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

Pair = tuple[Any, Any]
Names = Mapping[int, str]


class SetName(NamedTuple):
    family: str
    table: str
    name: str


class Scope(dict[str, int]):
    """What wire forms depend on: interface indexes by name, and the types of the open sets.

    A link that is not there gets a negative index, which no kernel entry has.
    """

    def __init__(
        self,
        indexes: Mapping[str, int],
        sets: Mapping[SetName, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(indexes)
        self.sets = sets or {}

    def __missing__(self, name: str) -> int:
        self[name] = number = min(0, *self.values(), 0) - 1
        return number


class Sink(Enum):
    """Where changes of a table are sent."""

    #: Messages of nf_tables; all of them are one transaction.
    NETFILTER = auto()
    #: Pairs of a device's index and what may pass there, None for anything. No one message does it.
    GUARDS = auto()
    #: Messages of rtnetlink, as one batch.
    ROUTE = auto()


class Table(msgspec.Struct, frozen=True):
    """One table: its name and its ways to say a thing. `wire` maps an entry to (key, value).

    `kind` is what people call it. `add`, `change` and `delete` make what is sent to the `sink`.
    """

    name: str
    kind: str
    wire: Callable[[Any, Scope], Pair]
    add: Callable[[Any, Any], Any]
    change: Callable[[Any, Any], Any]
    delete: Callable[[Any, Any], Any]
    line: Callable[[str, Any, Any, Names], str]
    sink: Sink = Sink.ROUTE


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

    def message(self) -> Any:
        """What the table's sink is sent."""
        encode: Callable[[Any, Any], Any] = getattr(self.table, self.action)
        return encode(self.key, self.value)

    def line(self, names: Names) -> str:
        return self.table.line(self.action, self.key, self.value, names)

    @property
    def ifindex(self) -> int:
        """The link that it is about; 0 for none, negative for one that is not there."""
        if self.table.sink is Sink.NETFILTER:
            return 0
        index: int = self.value.ifindex if self.table is ROUTES else self.key.ifindex
        return index


def diff(table: Table, wanted: Mapping[Any, Wanted], actual: Mapping[Any, Any]) -> list[Op]:
    """The operations that turn `actual` into `wanted`; deletions first, to be out of the way."""
    ops = [Op(table, "delete", key, value) for key, value in actual.items() if key not in wanted]
    for key, want in wanted.items():
        if key not in actual:
            ops.append(Op(table, "add", key, want.value, want.why))
        elif actual[key] != want.value:
            ops += changes(table, key, actual[key], want)
    return ops


def changes(table: Table, key: Any, old: Any, want: Wanted) -> tuple[Op, ...]:
    """The operations that give an entry another value.

    One, but where an IPv6 route gets a next hop in its own destination, as VXLAN's have: that is
    refused while a route leads there by another device (`ip6_route_check_nh_onlink`), which is the
    old one.
    """
    change = Op(table, "change", key, want.value, want.why)
    if table is not ROUTES or key.family != socket.AF_INET6 or not want.value.via:
        return (change,)
    network = ip_network((key.dst, key.prefixlen))
    if old.ifindex == want.value.ifindex or ip_address(want.value.via) not in network:
        return (change,)
    return Op(table, "delete", key, old), Op(table, "add", key, want.value, want.why)


def _address_wire(entry: Address | Link, scope: Scope) -> Pair:
    if isinstance(entry, Link):
        if entry.mac is None:
            raise ValueError(f"link {entry.name}: a link-local address takes a MAC")
        packed = link_local(entry.mac).packed
        return AddressKey(scope[entry.name], socket.AF_INET6, packed, 64), None
    ip = entry.ip
    key = AddressKey(scope[entry.dev], _FAMILY[ip.version], ip.ip.packed, ip.network.prefixlen)
    return key, None


def _address_line(action: str, key: AddressKey, _: None, names: Names) -> str:
    verb, tail = "replace", ""
    if action == "delete":
        verb = "del"
    elif key.family == socket.AF_INET6:
        tail = " nodad"
    elif key.prefixlen < 31:
        tail = " brd +"
    dev = names[key.ifindex]
    return f"ip address {verb} {ip_address(key.ip)}/{key.prefixlen} dev {dev}{tail}"


def _neighbor_wire(entry: Neighbor, scope: Scope) -> Pair:
    ip = entry.ip
    return NeighborKey(scope[entry.dev], _FAMILY[ip.version], ip.packed), entry.mac


def _neighbor_line(action: str, key: NeighborKey, mac: bytes, names: Names) -> str:
    ip, dev = ip_address(key.ip), names[key.ifindex]
    if action == "delete":
        return f"ip neigh del {ip} dev {dev}"
    return f"ip neigh replace {ip} lladdr {format_mac(mac)} dev {dev} nud permanent"


def _fdb_wire(entry: FdbEntry, scope: Scope) -> Pair:
    dst = entry.dst.packed
    several = dst if entry.mac == ANY_MAC else b""
    return FdbKey(scope[entry.dev], entry.mac, several), dst


def _fdb_line(action: str, key: FdbKey, dst: bytes, names: Names) -> str:
    verb = "append" if key.dst else "replace"
    where = f"dev {names[key.ifindex]} dst {ip_address(dst)} self"
    if action == "delete":
        return f"bridge fdb del {format_mac(key.mac)} {where}"
    return f"bridge fdb {verb} {format_mac(key.mac)} {where} permanent"


def _port_fdb_wire(entry: PortFdbEntry, scope: Scope) -> Pair:
    return PortFdbKey(scope[entry.dev], entry.mac), None


def _port_fdb_line(action: str, key: PortFdbKey, _: None, names: Names) -> str:
    verb, tail = ("del", "") if action == "delete" else ("replace", " static")
    return f"bridge fdb {verb} {format_mac(key.mac)} dev {names[key.ifindex]} master{tail}"


def _route_wire(entry: Route | Blackhole, scope: Scope) -> Pair:
    dst = entry.dst
    metric = 0 if dst.version == 4 else IPV6_DEFAULT_METRIC
    key = RouteKey(_FAMILY[dst.version], dst.network_address.packed, dst.prefixlen, metric)
    if isinstance(entry, Blackhole):
        return key, RouteValue(0, protocol=entry.protocol, kind=RTN_BLACKHOLE)
    value = RouteValue(
        scope[entry.dev],
        entry.via.packed if entry.via is not None else b"",
        entry.src.packed if entry.src is not None else b"",
        entry.onlink,
        True,
        entry.protocol,
    )
    return key, value


def makes_route(entry: Address) -> bool:
    """Whether the kernel makes a route with an address, to its network. It takes it away with the
    address, and does not make it anew for one who deletes it.

    Not of a network of one address, which needs none.
    """
    return entry.ip.network.prefixlen < entry.ip.max_prefixlen


def _connected_wire(entry: Address, scope: Scope) -> Pair:
    network, is_ipv4 = entry.ip.network, entry.ip.version == 4
    metric = 0 if is_ipv4 else IPV6_CONNECTED_METRIC
    dst = network.network_address.packed
    route = RouteKey(_FAMILY[network.version], dst, network.prefixlen, metric)
    return ConnectedKey(route, scope[entry.dev]), entry.ip.ip.packed if is_ipv4 else b""


def _connected_line(action: str, key: ConnectedKey, src: bytes, names: Names) -> str:
    route, dev = key.route, names.get(key.ifindex, "?")
    verb = "del" if action == "delete" else "prepend"
    parts = [f"ip route {verb} {ip_address(route.dst)}/{route.prefixlen} dev {dev}"]
    if src:
        parts.append(f"src {ip_address(src)}")
    if route.metric:
        parts.append(f"metric {route.metric}")
    return f"{' '.join(parts)} proto {RTPROT_KERNEL}"


def _route_line(action: str, key: RouteKey, value: RouteValue, names: Names) -> str:
    verb = {"add": "add", "change": "replace", "delete": "del"}[action]
    parts = [f"ip route {verb}"]
    if value.kind == RTN_BLACKHOLE:
        parts.append("blackhole")
    parts.append(f"{ip_address(key.dst)}/{key.prefixlen}")
    if value.via:
        parts.append(f"via {ip_address(value.via)}")
    if value.ifindex:
        parts.append(f"dev {names.get(value.ifindex, '?')}")
    if value.src:
        parts.append(f"src {ip_address(value.src)}")
    if value.onlink and action != "delete":
        parts.append("onlink")
    parts.append(f"proto {value.protocol}")
    return " ".join(parts)


def _element_wire(entry: NftElement, scope: Scope) -> Pair:
    types = scope.sets.get(SetName(entry.family, entry.table, entry.set))
    if types is None:
        raise LookupError(f"nft {entry.family} {entry.table} has no set {entry.set}")
    return nft_elements.key_of(entry, types), None


def _element_line(action: str, key: ElementKey, _: None, __: Names) -> str:
    return nft_elements.line("delete" if action == "delete" else "add", key)


def _guard_wire(entry: PortGuard, scope: Scope) -> Pair:
    return GuardKey(scope[entry.dev]), guards.wire(entry)


def _guard_line(action: str, key: GuardKey, value: GuardValue, names: Names) -> str:
    return guards.line(action, names.get(key.ifindex, "?"), value)


ADDRESSES = Table(
    "address",
    "address",
    _address_wire,
    lambda key, _: messages.add_address(key),
    lambda key, _: messages.add_address(key),
    lambda key, _: messages.delete_address(key),
    _address_line,
)
NEIGHBORS = Table(
    "neigh",
    "neigh",
    _neighbor_wire,
    messages.set_neighbor,
    messages.set_neighbor,
    lambda key, _: messages.delete_neighbor(key),
    _neighbor_line,
)
FDB = Table(
    "fdb", "fdb", _fdb_wire, messages.set_fdb, messages.set_fdb, messages.delete_fdb, _fdb_line
)
PORT_FDB = Table(
    "port fdb",
    "fdb",
    _port_fdb_wire,
    lambda key, _: messages.set_port_fdb(key),
    lambda key, _: messages.set_port_fdb(key),
    lambda key, _: messages.delete_port_fdb(key),
    _port_fdb_line,
)
ROUTES = Table(
    "route",
    "route",
    _route_wire,
    lambda key, value: messages.add_route(key, value, replace=False),
    lambda key, value: messages.add_route(key, value, replace=True),
    messages.delete_route,
    _route_line,
)
CONNECTED = Table(
    "connected",
    "route",
    _connected_wire,
    messages.add_connected_route,
    messages.add_connected_route,
    messages.delete_connected_route,
    _connected_line,
)
ELEMENTS = Table(
    "element",
    "nft",
    _element_wire,
    lambda key, _: nft_elements.add(key),
    lambda key, _: nft_elements.add(key),
    lambda key, _: nft_elements.delete(key),
    _element_line,
    sink=Sink.NETFILTER,
)
GUARDS = Table(
    "guard",
    "tc",
    _guard_wire,
    lambda key, value: (key.ifindex, value),
    lambda key, value: (key.ifindex, value),
    lambda key, _: (key.ifindex, None),
    _guard_line,
    sink=Sink.GUARDS,
)

#: In the order in which entries are added: a route is the last to appear, when what it leads to
#: is there, and the first to go.
TABLES = (ADDRESSES, GUARDS, ELEMENTS, NEIGHBORS, FDB, PORT_FDB, ROUTES, CONNECTED)
BY_NAME = {table.name: table for table in TABLES}

TABLE_OF: dict[type, Table] = {
    Address: ADDRESSES,
    Neighbor: NEIGHBORS,
    FdbEntry: FDB,
    PortFdbEntry: PORT_FDB,
    Route: ROUTES,
    Blackhole: ROUTES,
    NftElement: ELEMENTS,
    PortGuard: GUARDS,
}
