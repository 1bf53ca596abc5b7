"""Desired against actual: read the kernel, compare, apply the difference.

A `Reconciler` holds what one network namespace should hold, by cause. It is used by one thread,
which is in that namespace.

- `reconcile` reads everything and applies what differs: at start, and when something is amiss.
- `update` replaces one cause's entries and touches only those: what a changed node costs does
  not grow with the number of nodes.
- `note` is told what somebody else has just applied, as an attachment of a pod.
- `is_amiss` tells from kernel notifications whether somebody changed what we want otherwise.

Entries of Podwire that nobody wants any more are recognised by what only Podwire makes: routes by
their protocol, links by their group, neighbours and FDB entries by the device, nft by the table.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from podwire.kernel import links, nft, nft_elements, read, sysctl, tables
from podwire.kernel.apply import Applier
from podwire.kernel.guards import Guards
from podwire.kernel.holdings import Holdings, Pairs
from podwire.kernel.judge import Judge
from podwire.kernel.link_queries import find_link
from podwire.kernel.link_queries import links as read_links
from podwire.kernel.netlink import NETLINK_NETFILTER, Message, NetlinkSocket
from podwire.kernel.nft_context import Nft
from podwire.kernel.nft_counters import Counts, read_counters
from podwire.kernel.report import Change, Report, Transaction
from podwire.kernel.tables import (
    ADDRESSES,
    BY_NAME,
    CONNECTED,
    ELEMENTS,
    FDB,
    GUARDS,
    NEIGHBORS,
    PORT_FDB,
    ROUTES,
    TABLES,
    Op,
)
from podwire.model.state import Desired, Entry, Link, Sysctl

__all__ = ["Change", "Reconciler", "Report"]


class Reconciler:
    """Keeps one network namespace as desired. Make it in the thread that will use it."""

    def __init__(self, protocols: Iterable[int] = ()) -> None:
        """`protocols`: routes of these are ours as well, from an earlier life."""
        #: What hangs programs to pods' ports, and has what they count.
        self.guards = Guards()
        netfilter = NetlinkSocket(NETLINK_NETFILTER)
        self._socks = read.Sockets(NetlinkSocket(), netfilter, self.guards)
        self._nft = Nft()
        self._holdings = Holdings(protocols)
        self._judge = Judge(self._holdings, self._socks, self._nft)

    def close(self) -> None:
        self._socks.route.close()
        self._socks.netfilter.close()
        self._nft.close()
        self.guards.close()

    @property
    def desired(self) -> Mapping[str, tuple[Entry, ...]]:
        return self._holdings.desired

    @property
    def protocols(self) -> frozenset[int]:
        """Routes of these are ours: those that are desired, and what was told from before."""
        return frozenset(self._holdings.protocols)

    def own_protocol(self, protocol: int) -> None:
        """Take routes of this protocol to be ours from now on."""
        self._holdings.protocols.add(protocol)

    def replace(self, desired: Desired) -> None:
        """Want exactly this from now on; nothing is read or applied until `reconcile`."""
        self._holdings.desired = dict(desired.by_cause)

    # --- the whole ------------------------------------------------------------------------

    def plan(self) -> list[Change]:
        """The difference between desired and actual, as a person would type it; changes nothing."""
        holdings = self._holdings
        actual = read_links(self._socks.route)
        holdings.index()
        link_diff = links.diff(holdings.links, actual)
        changes = [Change("link", "refuse", f"# {text}", None) for text in link_diff.refused]
        changes += [Change("link", op.action, op.line(), op.why) for op in link_diff.ops]
        changes += [
            Change("link", "add", f"# {link.name} is gone: its pod is attached anew", link.why)
            for link in link_diff.missing
        ]
        holdings.number(actual)
        mine, names = holdings.mine(actual), holdings.names()
        made: set[tuple[str, str, str]] = set()
        for found in self._nft_transactions():
            line = f"nft -f - <<'END'\n{found.text}END"
            changes.append(Change("nft", "change", line, found.why))
            made |= found.sets
        # What the kernel makes by itself, once these are up and have their addresses.
        coming = {holdings.scope.get(op.name, 0) for op in link_diff.ops}
        for table in TABLES:
            for op in self._diff(table, mine):
                if table is ADDRESSES:
                    coming.add(op.ifindex)
                # A set that is made has its elements from the beginning.
                follows = table is CONNECTED and op.ifindex in coming
                if not follows and (table is not ELEMENTS or op.key[:3] not in made):
                    changes.append(Change(table.kind, op.action, op.line(names), op.why))
        for one in self._judge.wrong_sysctls():
            changes.append(Change("sysctl", "change", sysctl.line(one.key, one.value), one.why))
        return changes

    def reconcile(self, *, record: bool = False) -> Report:
        """Read everything, apply the difference. `record` fills in `Report.lines`."""
        started = time.perf_counter()
        report = Report()
        holdings = self._holdings
        applier = Applier(self._socks, self._nft, self.guards, report, record=record)
        actual = read_links(self._socks.route)
        holdings.index()
        link_diff = links.diff(holdings.links, actual)
        report.refused += link_diff.refused
        report.missing = link_diff.missing
        if link_diff.ops:
            applier.links(link_diff.ops, holdings.indexes_of(actual))
            actual = read_links(self._socks.route)
        report.failures += report.refused
        holdings.number(actual)
        names = holdings.names
        report.failures += holdings.strays.values()
        mine = holdings.mine(actual)
        # Guards first, then what they guard; of one kind before those of the other are gone.
        programs = self._diff(GUARDS, mine)
        applier.entries((op for op in programs if op.action != "delete"), names)
        applier.nft(self._nft_transactions())
        applier.entries(self._diff(ELEMENTS, mine), names)
        applier.entries((op for op in programs if op.action == "delete"), names)
        applier.sysctls(self._judge.wrong_sysctls())
        applier.entries(self._diff(ADDRESSES, mine), names)
        # Read after the addresses are right: changing one makes the kernel drop routes.
        rest = (
            op
            for table in (NEIGHBORS, FDB, PORT_FDB, ROUTES, CONNECTED)
            for op in self._diff(table, mine)
        )
        applier.entries(rest, names)
        report.seconds = time.perf_counter() - started
        return report

    def _diff(self, table: tables.Table, mine: read.Mine) -> list[Op]:
        actual = read.READERS[table.name](self._socks, mine)
        ops = tables.diff(table, self._holdings.wanted[table.name], actual)
        if table not in (ROUTES, ELEMENTS, GUARDS):
            return ops
        spared: dict[str | int, bool] = {}
        return [op for op in ops if op.action != "delete" or not self._is_pods(op, spared)]

    def _is_pods(self, op: Op, known: dict[str | int, bool]) -> bool:
        """Whether what nobody wants is of a pod that is just being attached."""
        which = nft_elements.ifname_of(op.key) if op.table is ELEMENTS else op.ifindex
        if which not in known:
            known[which] = self._judge.is_pods(which)
        return known[which]

    def _nft_transactions(self) -> Iterator[Transaction]:
        """The nft commands that are needed; our tables go when nobody wants them."""
        wanted = self._holdings.nft_tables
        there = nft_elements.tables(self._socks.netfilter)
        for name, table in wanted.items():
            actual = nft.read(self._nft, table) if name in there else None
            if text := nft.transaction(table, actual, partial(self._elements, *name)):
                made = frozenset((*name, one) for one in nft.open_sets_made(table, actual))
                yield Transaction(text, table.why, made)
        for name in there:
            if name[1] == nft.TABLE and name not in wanted:
                yield Transaction(nft.removal(*name), None)

    def _elements(self, family: str, table: str, name: str) -> list[str]:
        """What an open set is to hold, in nft's language."""
        return [
            nft_elements.text(key)
            for key in self._holdings.wanted[ELEMENTS.name]
            if key[:3] == (family, table, name)
        ]

    # --- one cause ------------------------------------------------------------------------

    def want(self, cause: str, entries: tuple[Entry, ...]) -> None:
        """Want `entries` for `cause` from now on; nothing is applied until `reconcile`."""
        self._holdings.want(cause, entries)

    def update(self, cause: str, entries: tuple[Entry, ...]) -> Report | None:
        """Want `entries` for `cause` from now on, and apply just that difference.

        None where the whole has to be compared: for changed links, addresses and nft tables, and
        for what another cause wants as well. Then `reconcile` does it.
        """
        started = time.perf_counter()
        holdings = self._holdings
        before = holdings.desired.get(cause, ())
        holdings.want(cause, entries)
        if before == entries:
            return Report()
        if not holdings.is_exact or not holdings.is_narrow(before, entries):
            return None
        holdings.strays.pop(cause, None)
        gone, new = holdings.wire(before, cause), holdings.wire(entries, cause)
        if holdings.is_contested(gone, cause) or holdings.is_contested(new, cause):
            return None
        report = Report()
        ops = _ops(gone, new)
        holdings.remove(gone)
        holdings.add(new)
        holdings.replace_few(before, entries)
        if cause in holdings.strays:
            report.failures.append(holdings.strays[cause])
        applier = Applier(self._socks, self._nft, self.guards, report)
        applier.entries(ops, holdings.names)
        applier.sysctls(
            one
            for one in entries
            if isinstance(one, Sysctl) and sysctl.read(one.key) not in (one.value, None)
        )
        report.seconds = time.perf_counter() - started
        return report

    def note(self, cause: str, entries: tuple[Entry, ...]) -> None:
        """Want what has just been applied by whoever attached a pod; nothing of a detached one.

        What does not go with the pod's link, as elements of nft sets, is removed here.
        """
        holdings = self._holdings
        before = holdings.desired.get(cause, ())
        holdings.want(cause, entries)
        if not holdings.is_numbered:
            return
        gone = holdings.wire(before, cause)
        for entry in entries:
            if isinstance(entry, Link) and (link := find_link(self._socks.route, entry.name)):
                holdings.scope[entry.name] = link.index
        new = holdings.wire(entries, cause)
        if holdings.is_contested(gone, cause) or holdings.is_contested(new, cause):
            holdings.is_exact = False
        ops = _ops(gone, new)
        holdings.remove(gone)
        holdings.add(new)
        holdings.replace_few(before, entries)
        for op in ops:
            if op.action == "delete" and op.table is GUARDS:
                self.guards.forget(op.ifindex)
        if left := [op for op in ops if op.action == "delete" and op.table is ELEMENTS]:
            applier = Applier(self._socks, self._nft, self.guards, Report())
            applier.entries(left, holdings.names)

    # --- notifications and counters -------------------------------------------------------

    def is_amiss(self, kind: int, payload: bytes) -> bool:
        """Whether a notification, of rtnetlink or nf_tables, shows something other than wanted."""
        return self._judge.any_amiss([Message(kind, 0, payload)])

    def any_amiss(self, notifications: Iterable[Message]) -> bool:
        """Whether any of these notifications does; cheaper than one by one."""
        return self._judge.any_amiss(notifications)

    def counters(self) -> Counts:
        """(packets, bytes) of the counters in our nft tables, by (family, table, counter)."""
        return read_counters(self._socks.netfilter)


def _ops(gone: Pairs, new: Pairs) -> list[Op]:
    """What turns the one into the other: deletions first, last made first gone."""
    additions: list[Op] = []
    deletions: list[Op] = []
    for name, keys in new.items():
        table, old = BY_NAME[name], gone.get(name, {})
        for key, want in keys.items():
            before = old.get(key)
            if before is None:
                additions.append(Op(table, "add", key, want.value, want.why))
            elif before.value != want.value:
                additions += tables.changes(table, key, before.value, want)
    for name, keys in gone.items():
        stay = new.get(name, {})
        for key, old_want in keys.items():
            if key not in stay:
                op = Op(BY_NAME[name], "delete", key, old_want.value, old_want.why)
                deletions.append(op)
    return [*reversed(deletions), *additions]
