"""Desired against actual: read the kernel, compare, apply the difference.

A `Reconciler` holds what one network namespace should hold, by cause. It is used by one thread,
which is in that namespace.

- `reconcile` reads everything and applies what differs: at start, and when something is amiss.
- `update` replaces one cause's entries and touches only those: what a changed node costs does
  not grow with the number of nodes.
- `is_amiss` tells from a kernel notification whether somebody changed what we want otherwise.
  Echoes of our own changes agree with what is wanted, so they never do.

Entries of Podwire that nobody wants any more are recognised by what only Podwire makes: routes by
their protocol, links by their group, neighbours and FDB entries by the device, nft by the table.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from podwire.errors import KernelError
from podwire.kernel import links, messages, nft, read, sysctl, tables
from podwire.kernel.attach import links as read_links
from podwire.kernel.messages import LinkState
from podwire.kernel.netlink import NetlinkSocket, kernel_error
from podwire.kernel.tables import ADDRESSES, FDB, NEIGHBORS, ROUTES, TABLES, Op, Wanted
from podwire.model.state import (
    ROUTE_PROTOCOL,
    Bridge,
    Desired,
    Entry,
    Link,
    NftTable,
    Sysctl,
    Veth,
    Vxlan,
    Why,
)


class Change(msgspec.Struct, frozen=True):
    """A difference for a person: what kind, what is done, the line to type, and why."""

    kind: str
    action: str
    line: str
    why: Why | None


class Report(msgspec.Struct):
    """What a reconciliation did. `changes` are applied ones, `failures` one sentence each.

    `refused` are those failures without whose mending no pod can be wired: a bridge or a tunnel
    could not be made. `missing` are the pods' links that are gone and have to be attached anew.
    """

    changes: int = 0
    failures: list[str] = []
    refused: list[str] = []
    missing: list[Link] = []
    seconds: float = 0.0
    lines: list[Change] = []


class Reconciler:
    """Keeps one network namespace as desired. Make it in the thread that will use it."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket()
        self._nft = nft.Nft()
        self._desired: dict[str, tuple[Entry, ...]] = {}
        self._wanted: dict[str, dict[Any, Wanted]] = {table.name: {} for table in TABLES}
        #: Keys of `_wanted`, with the table's name, that more than one cause asks for.
        self._contested: set[tuple[str, Any]] = set()
        self._links: dict[str, Link] = {}
        self._indexes: dict[str, int] = {}
        self._nft_tables: dict[str, NftTable] = {}
        #: Indexes of our tunnels, and the names of the links below them.
        self._overlay: frozenset[int] = frozenset()
        self._underlays: frozenset[str] = frozenset()

    def close(self) -> None:
        self._socket.close()
        self._nft.close()

    @property
    def desired(self) -> Mapping[str, tuple[Entry, ...]]:
        return self._desired

    def replace(self, desired: Desired) -> None:
        """Want exactly this from now on; nothing is read or applied until `reconcile`."""
        self._desired = dict(desired.by_cause)

    # --- the whole ------------------------------------------------------------------------

    def plan(self) -> list[Change]:
        """The difference between desired and actual, as a person would type it; changes nothing."""
        actual_links = read_links(self._socket)
        self._index_desired()
        link_diff = links.diff(self._links, actual_links)
        changes = [Change("link", "refuse", f"# {text}", None) for text in link_diff.refused]
        changes += [Change("link", op.action, op.line(), op.why) for op in link_diff.ops]
        changes += [
            Change("link", "add", f"# {link.name} is gone: its pod is attached anew", link.why)
            for link in link_diff.missing
        ]
        names = self._number(actual_links)
        mine = self._mine(actual_links)
        for table in TABLES:
            for op in self._diff(table, mine):
                changes.append(Change(table.name, op.action, op.line(names), op.why))
        for one in self._wrong_sysctls():
            changes.append(Change("sysctl", "change", sysctl.line(one.key, one.value), one.why))
        for text, why in self._nft_transactions():
            changes.append(Change("nft", "change", f"nft -f - <<'END'\n{text}END", why))
        return changes

    def reconcile(self, *, record: bool = False) -> Report:
        """Read everything, apply the difference. `record` fills in `Report.lines`."""
        started = time.perf_counter()
        report = Report()
        actual_links = read_links(self._socket)
        self._index_desired()
        link_diff = links.diff(self._links, actual_links)
        report.refused += link_diff.refused
        report.missing = link_diff.missing
        if link_diff.ops:
            self._apply_links(link_diff.ops, actual_links, report, record)
            actual_links = read_links(self._socket)
        report.failures += report.refused
        names = self._number(actual_links)
        self._apply_sysctls(report, record)
        mine = self._mine(actual_links)
        self._apply(self._diff(ADDRESSES, mine), names, report, record)
        # Read after the addresses are right: changing one makes the kernel drop routes.
        rest = [op for table in (NEIGHBORS, FDB, ROUTES) for op in self._diff(table, mine)]
        self._apply(rest, names, report, record)
        self._apply_nft(report, record)
        report.seconds = time.perf_counter() - started
        return report

    # --- one cause ------------------------------------------------------------------------

    def want(self, cause: str, entries: tuple[Entry, ...]) -> None:
        """Want `entries` for `cause` from now on; nothing is applied until `reconcile`."""
        if entries:
            self._desired[cause] = entries
        else:
            self._desired.pop(cause, None)

    def update(self, cause: str, entries: tuple[Entry, ...]) -> Report | None:
        """Want `entries` for `cause` from now on, and apply just that difference.

        None where the whole has to be compared: for this node's own links, addresses and nft
        tables, and for what another cause wants as well. Then `reconcile` does it.
        """
        started = time.perf_counter()
        before = self._desired.get(cause, ())
        self.want(cause, entries)
        if before == entries:
            return Report()
        if not self._indexes or not all(
            type(entry) in tables.TABLE_OF and tables.TABLE_OF[type(entry)] is not ADDRESSES
            for entry in (*before, *entries)
        ):
            return None
        gone, new = self._wire(before, cause), self._wire(entries, cause)
        if self._is_contested(gone, cause) or self._is_contested(new, cause):
            return None
        report = Report()
        ops: list[Op] = []
        for name, pairs in new.items():
            table, wanted = _BY_NAME[name], self._wanted[name]
            for key, want in pairs.items():
                old = gone.get(name, {}).pop(key, None)
                if old is None:
                    ops.append(Op(table, "add", key, want.value, want.why))
                elif old.value != want.value:
                    ops.append(Op(table, "change", key, want.value, want.why))
                wanted[key] = want
        deletions: list[Op] = []
        for name, pairs in gone.items():
            for key, old in pairs.items():
                del self._wanted[name][key]
                deletions.insert(0, Op(_BY_NAME[name], "delete", key, old.value, old.why))
        self._apply([*deletions, *ops], {}, report, record=False)
        report.seconds = time.perf_counter() - started
        return report

    def _is_contested(self, pairs: Mapping[str, Mapping[Any, Wanted]], cause: str) -> bool:
        """Whether another cause wants any of these keys too."""
        return any(
            (name, key) in self._contested or self._wanted[name].get(key, want).cause != cause
            for name, keys in pairs.items()
            for key, want in keys.items()
        )

    def note_link(self, cause: str, link: Link | None) -> None:
        """Want (or no longer want) a pod's link that has just been attached (or detached)."""
        for entry in self._desired.get(cause, ()):
            if isinstance(entry, Link):
                self._links.pop(entry.name, None)
        if link is None:
            self._desired.pop(cause, None)
        else:
            self._desired[cause] = (link,)
            self._links[link.name] = link

    # --- notifications --------------------------------------------------------------------

    def is_amiss(self, kind: int, payload: bytes) -> bool:
        """Whether an rtnetlink notification shows something other than what is wanted."""
        match kind:
            case messages.RTM_NEWLINK | messages.RTM_DELLINK:
                return self._link_is_amiss(messages.parse_link(payload))
            case messages.RTM_NEWADDR | messages.RTM_DELADDR:
                address, _ = messages.parse_address(payload)
                gone = kind == messages.RTM_DELADDR
                return self._entry_is_amiss(ADDRESSES.name, address, None, gone=gone)
            case messages.RTM_NEWROUTE | messages.RTM_DELROUTE:
                key, value, protocol, table = messages.parse_route(payload)
                if table != messages.RT_TABLE_MAIN:
                    return False
                gone = kind == messages.RTM_DELROUTE
                ours = protocol == ROUTE_PROTOCOL
                return self._entry_is_amiss(ROUTES.name, key, value, gone=gone, ours=ours)
            case messages.RTM_NEWNEIGH | messages.RTM_DELNEIGH:
                family, index, state, dst, mac = messages.parse_neighbor(payload)
                if index not in self._overlay:
                    return False
                gone = kind == messages.RTM_DELNEIGH
                ours = bool(state & messages.NUD_PERMANENT)
                if family == messages.AF_BRIDGE:
                    fdb = messages.FdbKey(index, mac)
                    return self._entry_is_amiss(FDB.name, fdb, dst, gone=gone, ours=ours)
                neighbor = messages.NeighborKey(index, family, dst)
                return self._entry_is_amiss(NEIGHBORS.name, neighbor, mac, gone=gone, ours=ours)
            case messages.RTM_NEWNETCONF:
                return messages.netconf_is_general(payload) and bool(self._wrong_sysctls())
        return False

    def nft_is_amiss(self, table: str) -> bool:
        """Whether the nft table of a notification is one of ours and not as it should be."""
        wanted = self._nft_tables.get(table)
        if wanted is None:
            return False
        return self._nft.read(wanted.family, wanted.name) != nft.wanted_state(wanted)

    def _link_is_amiss(self, notified: LinkState) -> bool:
        """Looks at the link as it is now: our own making of one is notified in several steps."""
        link = self._links.get(notified.name)
        if link is None:
            # The underlay may have come back with another index: our tunnel hangs on it.
            known = self._indexes.get(notified.name)
            return notified.name in self._underlays and notified.index != known
        refers_to = link.kind.dev if isinstance(link.kind, Vxlan) else link.master
        actual = {}
        for name in filter(None, (link.name, refers_to)):
            found = self._socket.get(messages.RTM_GETLINK, messages.get_link(name))
            if found is not None:
                actual[name] = messages.parse_link(found)
        if not isinstance(link.kind, Veth):
            # Addresses, neighbours and FDB entries hang on the index.
            now = self._indexes_of(actual).get(link.name, -1)
            if now != max(self._indexes.get(link.name, -1), -1):
                return True
        difference = links.diff({link.name: link}, actual)
        return bool(difference.missing or any(op.name == link.name for op in difference.ops))

    def _entry_is_amiss(
        self, table: str, key: Any, value: Any, *, gone: bool, ours: bool = False
    ) -> bool:
        """`ours`: an entry of this kind that nobody wants is one that would be removed."""
        want = self._wanted[table].get(key)
        if want is None:
            return ours and not gone
        return gone or (value is not None and want.value != value)

    # --- reading --------------------------------------------------------------------------

    def _index_desired(self) -> None:
        """Sort the desired entries that are few into links, sysctls and nft tables."""
        self._links = {}
        self._nft_tables = {}
        for entry in self._entries():
            if isinstance(entry, Link):
                self._links[entry.name] = entry
            elif isinstance(entry, NftTable):
                self._nft_tables[entry.name] = entry

    def _number(self, actual: Mapping[str, LinkState]) -> dict[int, str]:
        """Fix interface indexes, and put desired entries into the form that they are compared in.

        Links that are not there get negative indexes, which no kernel entry has. Returns the
        names by index.
        """
        indexes = self._indexes_of(actual)
        for number, name in enumerate(sorted(self._links.keys() - indexes.keys()), 1):
            indexes[name] = -number
        tunnels = {
            link.name: link.kind for link in self._links.values() if isinstance(link.kind, Vxlan)
        }
        self._overlay = frozenset(indexes[name] for name in tunnels)
        self._underlays = frozenset(kind.dev for kind in tunnels.values())
        self._indexes = indexes
        self._wanted = {table.name: {} for table in TABLES}
        self._contested = set()
        for cause, entries in self._desired.items():
            for name, pairs in self._wire(entries, cause).items():
                wanted = self._wanted[name]
                for key, want in pairs.items():
                    other = wanted.setdefault(key, want)
                    if other is not want:
                        # The first by name, so that it is no matter in which order they came.
                        wanted[key] = min(other, want, key=lambda one: one.cause)
                        self._contested.add((name, key))
        return {index: name for name, index in indexes.items()}

    def _indexes_of(self, actual: Mapping[str, LinkState]) -> dict[str, int]:
        """By name. A link of somebody else under a name that we want is as good as not there."""
        return {
            name: state.index
            for name, state in actual.items()
            if state.ours or name not in self._links
        }

    def _wire(self, entries: Iterable[Entry], cause: str) -> dict[str, dict[Any, Wanted]]:
        found: dict[str, dict[Any, Wanted]] = {}
        for entry in entries:
            table = tables.TABLE_OF.get(type(entry))
            if table is None:
                continue
            key, value = table.wire(entry, self._indexes)
            found.setdefault(table.name, {})[key] = Wanted(value, entry.why, cause)
        return found

    def _mine(self, actual: Mapping[str, LinkState]) -> read.Mine:
        """Our bridges and tunnels; pods' links have nothing in the tables."""
        there = {
            state.index: isinstance(link.kind, Vxlan)
            for name, link in self._links.items()
            if (state := actual.get(name)) is not None
            and state.ours
            and not isinstance(link.kind, Veth)
        }
        return read.Mine(
            links=frozenset(there),
            tunnels=tuple(index for index, is_tunnel in there.items() if is_tunnel),
        )

    def _diff(self, table: tables.Table, mine: read.Mine) -> list[Op]:
        actual = read.READERS[table.name](self._socket, mine)
        return tables.diff(table, self._wanted[table.name], actual)

    def _wrong_sysctls(self) -> list[Sysctl]:
        return [
            entry
            for entry in self._entries()
            if isinstance(entry, Sysctl) and sysctl.read(entry.key) != entry.value
        ]

    def _entries(self) -> Iterable[Entry]:
        for entries in self._desired.values():
            yield from entries

    # --- applying -------------------------------------------------------------------------

    def _apply_links(
        self,
        ops: list[links.LinkOp],
        actual: Mapping[str, LinkState],
        report: Report,
        record: bool,
    ) -> None:
        indexes = self._indexes_of(actual)
        for op in ops:
            if error := self._apply_link(op, indexes):
                essential = op.link is not None and not isinstance(op.link.kind, Veth)
                (report.refused if essential else report.failures).append(error)
                continue
            report.changes += 1
            if record:
                report.lines.append(Change("link", op.action, op.line(), op.why))
            if op.action == "add":
                found = self._socket.get(messages.RTM_GETLINK, messages.get_link(op.name))
                if found is not None:
                    indexes[op.name] = messages.parse_link(found).index
            elif op.action == "delete":
                indexes.pop(op.name, None)

    def _apply_link(self, op: links.LinkOp, indexes: dict[str, int]) -> str:
        """Empty when it went well."""
        for name in _refers_to(op):
            if name not in indexes:
                return f"link {op.name}: {name} does not exist"
        for failure in self._socket.request(op.message(indexes)):
            # A setting of IPv6, on a machine that has none.
            if failure.errno != errno.EAFNOSUPPORT:
                return str(kernel_error(f"{op.action} {op.name}", failure))
        return ""

    def _apply(self, ops: list[Op], names: Mapping[int, str], report: Report, record: bool) -> None:
        # What hangs on a link that could not be made would fail one by one: its link has said so.
        ops = [op for op in ops if _ifindex(op) > 0]
        if not ops:
            return
        failures = self._socket.request([op.message() for op in ops])
        failed = {failure.index for failure in failures}
        for failure in failures:
            op = ops[failure.index]
            if op.action == "delete" and failure.errno in _ALREADY_GONE:
                continue
            line = op.line(names or {index: name for name, index in self._indexes.items()})
            report.failures.append(str(kernel_error(line, failure)))
        report.changes += len(ops) - len(failed)
        if record:
            report.lines += [
                Change(op.table.name, op.action, op.line(names), op.why)
                for number, op in enumerate(ops)
                if number not in failed
            ]

    def _apply_sysctls(self, report: Report, record: bool) -> None:
        for one in self._wrong_sysctls():
            try:
                sysctl.write(one.key, one.value)
            except KernelError as error:
                report.failures.append(str(error))
                continue
            report.changes += 1
            if record:
                line = sysctl.line(one.key, one.value)
                report.lines.append(Change("sysctl", "change", line, one.why))

    def _nft_transactions(self) -> Iterable[tuple[str, Why | None]]:
        """The nft commands that are needed, with their why; our table goes when nobody wants it."""
        for table in self._nft_tables.values():
            if text := nft.transaction(table, self._nft.read(table.family, table.name)):
                yield text, table.why
        if nft.TABLE not in self._nft_tables and self._nft.read(nft.FAMILY, nft.TABLE) is not None:
            yield nft.removal(nft.FAMILY, nft.TABLE), None

    def _apply_nft(self, report: Report, record: bool) -> None:
        for text, why in self._nft_transactions():
            try:
                self._nft.run(text)
            except KernelError as error:
                report.failures.append(str(error))
                continue
            report.changes += 1
            if record:
                report.lines.append(Change("nft", "change", text, why))


_BY_NAME = {table.name: table for table in TABLES}
_ALREADY_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL}


def _ifindex(op: Op) -> int:
    index: int = op.value.ifindex if op.table is ROUTES else op.key.ifindex
    return index


def _refers_to(op: links.LinkOp) -> list[str]:
    """Names of other links that must exist for this operation."""
    if op.action == "delete" or op.link is None:
        return []
    names = [op.link.kind.dev] if isinstance(op.link.kind, Vxlan) else []
    if isinstance(op.link.kind, Bridge):
        return names
    if op.changes.get("master"):
        names.append(op.link.master or "")
    return names
