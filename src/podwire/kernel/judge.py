"""Notifications judged: whether the kernel tells of something other than what is wanted.

What lives here: reading rtnetlink and nf_tables notifications against what is wanted. What does
not: mending, which a full reconciliation does. Echoes of our own changes agree with what is wanted,
so they are never amiss.

Some losses the kernel does not tell of: IPv4 routes that go when their link is down, or has lost
its last address. So links of others that our routes use are watched for coming up again.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any

from podwire.kernel import guards, link_messages, links, messages, nft, nft_elements, sysctl
from podwire.kernel.guards import GuardKey
from podwire.kernel.holdings import Holdings
from podwire.kernel.link_messages import LinkState
from podwire.kernel.link_queries import find_link
from podwire.kernel.messages import ConnectedKey, NeighborKey, RouteKey, RouteValue
from podwire.kernel.netlink import Message
from podwire.kernel.nft_context import Nft
from podwire.kernel.nft_elements import ElementKey
from podwire.kernel.read import Sockets, fdb_key, port_fdb_key
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
    Table,
)
from podwire.model.state import Sysctl, Veth, Vxlan

_NFT_NEW_TABLE = 10 << 8

#: Of rtnetlink: the groups whose notifications are judged.
ROUTE_GROUPS = (
    messages.RTNLGRP_LINK,
    messages.RTNLGRP_NEIGH,
    messages.RTNLGRP_IPV4_IFADDR,
    messages.RTNLGRP_IPV4_ROUTE,
    messages.RTNLGRP_IPV6_IFADDR,
    messages.RTNLGRP_IPV6_ROUTE,
    messages.RTNLGRP_IPV4_NETCONF,
    messages.RTNLGRP_IPV6_NETCONF,
    guards.RTNLGRP_TC,
)


class Judge:
    """Judges notifications of one namespace; used by the thread of its `Holdings`."""

    def __init__(self, holdings: Holdings, socks: Sockets, context: Nft) -> None:
        self._holdings = holdings
        self._socks = socks
        self._nft = context

    def any_amiss(self, notifications: Iterable[Message]) -> bool:
        """Whether any of these shows something other than what is wanted."""
        tables: set[tuple[str, str]] = set()
        for one in notifications:
            if one.type < _NFT_NEW_TABLE:
                if self._route_amiss(one.type, one.payload):
                    return True
            elif one.type in (nft_elements.NEW_ELEMENTS, nft_elements.DELETED_ELEMENTS):
                if self._elements_amiss(one.type, one.payload, tables):
                    return True
            elif (table := nft.notified_table(one.type, one.payload)) is not None:
                if table in self._holdings.nft_tables:
                    tables.add(table)
                elif one.type == _NFT_NEW_TABLE and table[1] == nft.TABLE:
                    return True
        return any(map(self._table_amiss, tables))

    # --- rtnetlink ------------------------------------------------------------------------

    def _route_amiss(self, kind: int, payload: bytes) -> bool:
        match kind:
            case messages.RTM_NEWLINK | messages.RTM_DELLINK:
                return self._link_amiss(link_messages.parse_link(payload))
            case messages.RTM_NEWADDR | messages.RTM_DELADDR:
                return self._address_amiss(payload, gone=kind == messages.RTM_DELADDR)
            case messages.RTM_NEWROUTE | messages.RTM_DELROUTE:
                key, value, protocol, table = messages.parse_route(payload)
                if table != messages.RT_TABLE_MAIN:
                    return False
                ours = protocol in self._holdings.protocols
                gone = kind == messages.RTM_DELROUTE
                if self._connected_amiss(key, value, protocol, gone=gone):
                    return True
                if self._entry_amiss(ROUTES, key, value, gone=gone, ours=ours):
                    return key in self._wanted(ROUTES) or not self.is_pods(value.ifindex)
                return False
            case messages.RTM_NEWNEIGH | messages.RTM_DELNEIGH:
                one = messages.parse_neighbor_state(payload)
                gone = kind == messages.RTM_DELNEIGH
                if one.master and self._is_taken(one):
                    return not gone
                if one.ifindex not in self._holdings.ours:
                    return False
                if one.family == messages.AF_BRIDGE:
                    return self._fdb_amiss(one, gone=gone)
                neighbor = NeighborKey(one.ifindex, one.family, one.dst)
                permanent = bool(one.state & messages.NUD_PERMANENT)
                mac = one.mac if permanent else b""
                return self._entry_amiss(NEIGHBORS, neighbor, mac, gone=gone, ours=permanent)
            case messages.RTM_NEWNETCONF:
                index = messages.netconf_index(payload)
                return index is not None and any(self.wrong_sysctls(index))
            case guards.RTM_NEWTFILTER | guards.RTM_DELTFILTER | guards.RTM_DELQDISC:
                return self._guard_amiss(guards.index_of(payload))
        return False

    def _guard_amiss(self, index: int) -> bool:
        """Looks at the port as it is now; of one that is gone, its link tells."""
        want = self._wanted(GUARDS).get(GuardKey(index))
        if want is None:
            return False
        sock = self._socks.route
        found = guards.guard_at(sock, index)
        if found is not None:
            return not self._socks.guards.right({index: found}, {GuardKey(index): want.value})
        return find_link(sock, index) is not None

    def _link_amiss(self, notified: LinkState) -> bool:
        """Looks at the link as it is now: our own making of one is notified in several steps."""
        holdings, name = self._holdings, notified.name
        link = holdings.links.get(name)
        if link is None:
            return self._others_link_amiss(notified)
        below = link.kind.dev if isinstance(link.kind, Vxlan) else None
        actual = {}
        for one in filter(None, (name, below, link.master)):
            if (found := find_link(self._socks.route, one)) is not None:
                actual[one] = found
        if not isinstance(link.kind, Veth):
            # Addresses, neighbours and FDB entries hang on the index.
            now = holdings.indexes_of(actual).get(name, -1)
            if now != max(holdings.scope.get(name, -1), -1):
                return True
        difference = links.diff({name: link}, actual)
        return bool(difference.missing or any(op.name == name for op in difference.ops))

    def _others_link_amiss(self, notified: LinkState) -> bool:
        """What is ours and hangs on it, as a tunnel on the underlay, may have gone with it."""
        holdings, name, index = self._holdings, notified.name, notified.index
        known = holdings.scope.get(name)
        if known is None:
            return holdings.is_underlay(name)
        if not notified.up:
            holdings.down.add(index)
        came_up = notified.up and index in holdings.down
        if came_up:
            holdings.down.discard(index)
        return (came_up or index != known) and holdings.depends_on(name, known)

    def _address_amiss(self, payload: bytes, *, gone: bool) -> bool:
        key, scope = messages.parse_address(payload)
        wanted = key in self._wanted(ADDRESSES)
        if wanted or key.ifindex in self._holdings.ours:
            link_is_own = key.ifindex in self._holdings.ours and not self._is_pods_end(key.ifindex)
            ours = link_is_own and scope == messages.RT_SCOPE_UNIVERSE
            if self._entry_amiss(ADDRESSES, key, None, gone=gone, ours=ours):
                return True
        # With the last address of a link go its routes, silently.
        return (
            key.family == socket.AF_INET and not wanted and self._holdings.routes_use(key.ifindex)
        )

    def _fdb_amiss(self, one: messages.NeighborState, *, gone: bool) -> bool:
        if one.master:
            if one.vlan:
                return False
            ours = port_fdb_key(one) is not None
            if messages.PortFdbKey(one.ifindex, one.mac) in self._wanted(PORT_FDB):
                return gone or not ours
            return ours and not gone and self._is_tunnel(one.ifindex)
        entry = fdb_key(one)
        if entry is None:
            return messages.FdbKey(one.ifindex, one.mac) in self._wanted(FDB)
        return self._entry_amiss(FDB, entry, one.dst, gone=gone, ours=True)

    def _connected_amiss(
        self, route: RouteKey, value: RouteValue, protocol: int, *, gone: bool
    ) -> bool:
        """Whether this tells that a route which the kernel makes with an address is gone, or that
        somebody else's has taken its place, which is not told."""
        wanted = self._wanted(CONNECTED)
        if protocol != messages.RTPROT_KERNEL:
            return not gone and any(key.route == route for key in wanted)
        want = wanted.get(ConnectedKey(route, value.ifindex))
        # One with another source goes with the address that we have just replaced.
        return want is not None and (want.value == value.src) is gone

    def _is_taken(self, one: messages.NeighborState) -> bool:
        """Whether a bridge's MAC, which it has once, is to be at another port than this."""
        wanted = self._wanted(PORT_FDB)
        return bool(wanted) and any(
            index != one.ifindex and messages.PortFdbKey(index, one.mac) in wanted
            for index in self._holdings.ours
        )

    def _entry_amiss(
        self, table: Table, key: Any, value: Any, *, gone: bool, ours: bool = False
    ) -> bool:
        """`ours`: an entry of this kind that nobody wants is one that would be removed."""
        want = self._wanted(table).get(key)
        if want is None:
            return ours and not gone
        return gone or (value is not None and want.value != value)

    def _wanted(self, table: Table) -> dict[Any, Any]:
        return self._holdings.wanted[table.name]

    # --- nf_tables ------------------------------------------------------------------------

    def _table_amiss(self, name: tuple[str, str]) -> bool:
        wanted = self._holdings.nft_tables[name]
        return nft.read(self._nft, wanted) != nft.wanted_state(wanted)

    def _elements_amiss(self, kind: int, payload: bytes, tables: set[tuple[str, str]]) -> bool:
        family, table, name, keys = nft_elements.parse_elements(payload)
        types = self._holdings.scope.sets.get(SetName(family, table, name))
        if types is None:
            if (family, table) in self._holdings.nft_tables:
                tables.add((family, table))
            return False
        wanted = self._wanted(ELEMENTS)
        for data in keys:
            key = ElementKey(family, table, name, data, types)
            if (key in wanted) is (kind == nft_elements.DELETED_ELEMENTS) and (
                key in wanted or not self.is_pods(nft_elements.ifname_of(key))
            ):
                return True
        return False

    # --- looked up ------------------------------------------------------------------------

    def wrong_sysctls(self, index: int | None = None) -> Iterator[Sysctl]:
        """Settings that are not as wanted: all of them, or those of a link (of the whole stack with
        NETCONFA_IFINDEX_ALL). Of a link that is not there nothing is wrong."""
        for name, by_key in self._holdings.sysctls.items():
            if index is not None:
                where = self._holdings.scope.get(name) if name else messages.NETCONFA_IFINDEX_ALL
                if where != index:
                    continue
            for one in by_key.values():
                value = sysctl.read(one.key)
                if value != one.value and not (name and value is None):
                    yield one

    def is_pods(self, which: str | int) -> bool:
        """Whether a link, by name or index, is a pod's that nobody wants: one that is just being
        attached, or is to go in a moment. What hangs on it is left to whoever does that."""
        if not which:
            return False
        link = find_link(self._socks.route, which)
        if link is None or link.name in self._holdings.links:
            return False
        return link.ours and link.kind == "veth"

    def _is_pods_end(self, index: int) -> bool:
        return isinstance(self._kind(index), Veth)

    def _is_tunnel(self, index: int) -> bool:
        return isinstance(self._kind(index), Vxlan)

    def _kind(self, index: int) -> object:
        """Of a link of ours."""
        for name, link in self._holdings.links.items():
            if self._holdings.scope.get(name) == index:
                return link.kind
        return None
