"""What a namespace should hold, by cause and by the kernel's own keys.

What lives here: the desired entries, and indexes over them that keep up with a change of one cause.
What does not: the kernel. `Reconciler` compares and applies, `Judge` looks things up here that were
notified. Used by one thread.

Wire forms depend on interface indexes and on the types of nft sets, both of which `number` fixes;
before the first call of it nothing is wanted by key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from podwire.kernel import nft_elements, sysctl
from podwire.kernel.link_messages import LinkState
from podwire.kernel.read import Mine
from podwire.kernel.tables import (
    ADDRESSES,
    CONNECTED,
    GUARDS,
    ROUTES,
    TABLE_OF,
    TABLES,
    Scope,
    SetName,
    Wanted,
    makes_route,
)
from podwire.model.state import (
    ROUTE_PROTOCOL,
    Address,
    Entry,
    Link,
    NftElement,
    NftTable,
    Sysctl,
    Veth,
    Vxlan,
)

#: By table and key.
Pairs = dict[str, dict[Any, Wanted]]

#: What a change of concerns more than itself: links number others, tables hold elements.
_WIDE: frozenset[type] = frozenset({Link, Address, NftTable})


class Holdings:
    """The desired state of one namespace, indexed."""

    def __init__(self, protocols: Iterable[int] = ()) -> None:
        self.desired: dict[str, tuple[Entry, ...]] = {}
        #: Routes of these are ours: the usual one, and what we were told or were asked to make.
        self.protocols: set[int] = {ROUTE_PROTOCOL, *protocols}
        self.wanted: Pairs = {table.name: {} for table in TABLES}
        self.links: dict[str, Link] = {}
        self.nft_tables: dict[tuple[str, str], NftTable] = {}
        #: By the link that they are of, empty for those of the whole stack, and by key.
        self.sysctls: dict[str, dict[str, Sysctl]] = {}
        self.scope = Scope({})
        #: Indexes of our links that are there.
        self.ours: frozenset[int] = frozenset()
        #: Links of whomever that were down when they were read, or have been since.
        self.down: set[int] = set()
        #: Sentences about entries that can't be, by cause.
        self.strays: dict[str, str] = {}
        self.is_numbered = False
        #: Whether `wanted` follows from `desired`; not after a pod took what another one had.
        self.is_exact = False
        #: Keys of `wanted`, with the table's name, that more than one cause asks for.
        self._contested: set[tuple[str, Any]] = set()

    def want(self, cause: str, entries: tuple[Entry, ...]) -> None:
        """Want `entries` for `cause` from now on; the indexes do not know yet."""
        if entries:
            self.desired[cause] = entries
        else:
            self.desired.pop(cause, None)

    # --- all ------------------------------------------------------------------------------

    def index(self) -> None:
        """Sort the desired entries that are few into links, sysctls and nft tables."""
        self.links = {}
        self.nft_tables = {}
        self.sysctls = {}
        for entries in self.desired.values():
            self._sort(entries)

    def _sort(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if isinstance(entry, Link):
                self.links[entry.name] = entry
            elif isinstance(entry, Sysctl):
                self.sysctls.setdefault(sysctl.interface_of(entry.key), {})[entry.key] = entry
            elif isinstance(entry, NftTable):
                self.nft_tables[entry.family, entry.name] = entry

    def number(self, actual: Mapping[str, LinkState]) -> None:
        """Fix interface indexes, and put the desired entries into wire form."""
        sets = {
            SetName(*table, one.name): nft_elements.types_of(one.type)
            for table, wanted in self.nft_tables.items()
            for one in wanted.open_sets
        }
        self.scope = Scope(self.indexes_of(actual), sets)
        self.down = {state.index for state in actual.values() if not state.up}
        self.wanted = {table.name: {} for table in TABLES}
        self.strays = {}
        self._contested = set()
        for cause, entries in self.desired.items():
            self.add(self.wire(entries, cause))
        self._number_ours()
        self.is_numbered = self.is_exact = True

    def _number_ours(self) -> None:
        self.ours = frozenset(
            index for name in self.links if (index := self.scope.get(name, -1)) > 0
        )

    def names(self) -> dict[int, str]:
        """Links by their indexes."""
        return {index: name for name, index in self.scope.items()}

    def indexes_of(self, actual: Mapping[str, LinkState]) -> dict[str, int]:
        """By name. A link of somebody else under a name that we want is as good as not there."""
        return {
            name: state.index
            for name, state in actual.items()
            if state.ours or name not in self.links
        }

    def mine(self, actual: Mapping[str, LinkState]) -> Mine:
        """What of the kernel's tables is ours."""
        there = {
            state.index: link
            for name, link in self.links.items()
            if (state := actual.get(name)) is not None and state.ours
        }
        tunnels = [(index, link) for index, link in there.items() if isinstance(link.kind, Vxlan)]
        return Mine(
            links=frozenset(there),
            own=frozenset(
                index for index, link in there.items() if not isinstance(link.kind, Veth)
            ),
            tunnels=tuple(index for index, _ in tunnels),
            ports=tuple(index for index, link in tunnels if link.master is not None),
            protocols=frozenset(self.protocols),
            sets=self.scope.sets,
            kept=frozenset(self.wanted[ADDRESSES.name]),
            connected={key: want.value for key, want in self.wanted[CONNECTED.name].items()},
            guards={key: want.value for key, want in self.wanted[GUARDS.name].items()},
        )

    # --- one cause ------------------------------------------------------------------------

    @staticmethod
    def is_narrow(before: tuple[Entry, ...], after: tuple[Entry, ...]) -> bool:
        """Whether a change of a cause's entries concerns nothing but them."""
        wide = [entry for entry in before if type(entry) in _WIDE]
        return wide == [entry for entry in after if type(entry) in _WIDE]

    def wire(self, entries: Iterable[Entry], cause: str) -> Pairs:
        """The entries of a cause by table and key."""
        found: Pairs = {}
        scope = self.scope
        for entry in entries:
            table = TABLE_OF.get(type(entry))
            if table is None:
                if not isinstance(entry, Link) or not entry.link_local:
                    continue
                table = ADDRESSES
            elif (
                isinstance(entry, NftElement)
                and (entry.family, entry.table, entry.set) not in scope.sets
            ):
                where = f"{entry.family} {entry.table} {entry.set}"
                self.strays[cause] = f"{cause}: no nft set {where} is planned"
                continue
            key, value = table.wire(entry, scope)
            if table is ROUTES:
                self.protocols.add(value.protocol)
            found.setdefault(table.name, {})[key] = Wanted(value, entry.why, cause)
            if isinstance(entry, Address) and makes_route(entry):
                key, value = CONNECTED.wire(entry, scope)
                found.setdefault(CONNECTED.name, {})[key] = Wanted(value, entry.why, cause)
        return found

    def is_contested(self, pairs: Pairs, cause: str) -> bool:
        """Whether another cause wants any of these keys too."""
        return any(
            (name, key) in self._contested or self.wanted[name].get(key, want).cause != cause
            for name, keys in pairs.items()
            for key, want in keys.items()
        )

    def add(self, pairs: Pairs) -> None:
        for name, keys in pairs.items():
            wanted = self.wanted[name]
            for key, want in keys.items():
                other = wanted.setdefault(key, want)
                if other is want:
                    continue
                if other.cause != want.cause:
                    # The first by name, so that it is no matter in which order they came.
                    want = min(other, want, key=lambda one: one.cause)
                    self._contested.add((name, key))
                wanted[key] = want

    def remove(self, pairs: Pairs) -> None:
        for name, keys in pairs.items():
            for key in keys:
                wanted = self.wanted[name]
                if key in wanted and wanted[key].cause == keys[key].cause:
                    del wanted[key]

    def replace_few(self, before: Iterable[Entry], after: Iterable[Entry]) -> None:
        """Links, sysctls and tables of a cause, in the indexes."""
        for entry in before:
            if isinstance(entry, Link):
                self.links.pop(entry.name, None)
            elif isinstance(entry, Sysctl):
                interface = sysctl.interface_of(entry.key)
                of_link = self.sysctls.get(interface, {})
                of_link.pop(entry.key, None)
                if not of_link:
                    self.sysctls.pop(interface, None)
        self._sort(after)
        self._number_ours()

    # --- questions ------------------------------------------------------------------------

    def is_underlay(self, name: str) -> bool:
        """Whether a tunnel of ours is on this link."""
        return any(
            isinstance(one.kind, Vxlan) and one.kind.dev == name for one in self.links.values()
        )

    def routes_use(self, index: int) -> bool:
        """Whether any route leads over this link. Looks at all of them."""
        return any(want.value.ifindex == index for want in self.wanted[ROUTES.name].values())

    def depends_on(self, name: str, index: int) -> bool:
        """Whether anything hangs on this link of somebody else's, which had that index."""
        return self.is_underlay(name) or name in self.sysctls or self.routes_use(index)
