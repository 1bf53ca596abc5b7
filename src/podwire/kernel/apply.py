"""Differences applied: links, entries of tables, sysctls and nft transactions.

What lives here: sending what a comparison found, and telling what became of it in a `Report`. What
does not: finding it (`reconcile`). Nothing is tried twice: the next reconciliation does that.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from podwire.errors import KernelError
from podwire.kernel import nft_elements, sysctl
from podwire.kernel.guards import Guards, GuardValue
from podwire.kernel.link_queries import find_link
from podwire.kernel.links import LinkOp, refusal, unlike
from podwire.kernel.netlink import Failure, kernel_error
from podwire.kernel.nft_context import Nft
from podwire.kernel.read import Sockets
from podwire.kernel.report import Change, Report, Transaction
from podwire.kernel.tables import Names, Op, Sink
from podwire.model.state import Sysctl, Veth, Vxlan, Why

_ALREADY_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL}


class Applier:
    """Applies differences to one namespace. With `record`, `report.lines` says what was done."""

    def __init__(
        self, socks: Sockets, nft: Nft, ports: Guards, report: Report, *, record: bool = False
    ) -> None:
        self._socks = socks
        self._nft = nft
        self._guards = ports
        self._report = report
        self._record = record

    def links(self, ops: Sequence[LinkOp], indexes: dict[str, int]) -> None:
        """`indexes` of the links that are there follow what is done."""
        sock = self._socks.route
        for op in ops:
            if error := self._link(op, indexes):
                essential = op.link is not None and not isinstance(op.link.kind, Veth)
                (self._report.refused if essential else self._report.failures).append(error)
                continue
            self._done("link", op.action, op.line(), op.why)
            if op.action == "add":
                made = find_link(sock, op.name)
                if made is None or op.link is None:
                    continue
                indexes[op.name] = made.index
                if error := unlike(op.link, made):
                    self._report.refused.append(error)
            elif op.action == "delete":
                indexes.pop(op.name, None)

    def _link(self, op: LinkOp, indexes: Mapping[str, int]) -> str:
        """Empty when it went well."""
        for name in _refers_to(op):
            if name not in indexes:
                return f"link {op.name}: {name} does not exist"
        try:
            op.make(self._socks.route)
        except KernelError as error:
            return str(error)
        for failure in self._socks.route.request(op.message(indexes)):
            # A setting of IPv6, on a machine that has none.
            if failure.errno != errno.EAFNOSUPPORT:
                return refusal(op, failure)
        return ""

    def entries(self, ops: Iterable[Op], names: Callable[[], Names]) -> None:
        """`names` gives links' names by index, where something has to be told. Each sink gets what
        is its in one go, in the order of `Sink`: elements and guards before what leads to pods.

        What hangs on a link that could not be made would fail one by one: its link has said so,
        and it is left out."""
        ops = [op for op in ops if op.ifindex >= 0]
        for sink in Sink:
            if theirs := [op for op in ops if op.table.sink is sink]:
                failures = self._send(sink, [op.message() for op in theirs])
                self._entries(theirs, failures, names)

    def _send(self, sink: Sink, sent: Sequence[Any]) -> Sequence[Failure]:
        match sink:
            case Sink.NETFILTER:
                return nft_elements.transact(self._socks.netfilter, sent)
            case Sink.GUARDS:
                return self._set_guards(sent)
            case Sink.ROUTE:
                return self._socks.route.request(sent)

    def _set_guards(self, sent: Sequence[tuple[int, GuardValue | None]]) -> list[Failure]:
        sock, failures = self._socks.route, []
        for number, (index, value) in enumerate(sent):
            if value is None:
                failure = self._guards.remove(sock, index)
            else:
                failure = self._guards.add(sock, index, value)
            if failure is not None:
                failures.append(Failure(number, failure.errno, failure.text))
        return failures

    def _entries(
        self, ops: Sequence[Op], failures: Sequence[Failure], names: Callable[[], Names]
    ) -> None:
        failed = {failure.index for failure in failures}
        for failure in failures:
            op = ops[failure.index]
            if op.action != "delete" or failure.errno not in _ALREADY_GONE:
                self._report.failures.append(str(kernel_error(op.line(names()), failure)))
        self._report.changes += len(ops) - len(failed)
        if self._record:
            by_index = names()
            self._report.lines += [
                Change(op.table.kind, op.action, op.line(by_index), op.why)
                for number, op in enumerate(ops)
                if number not in failed
            ]

    def sysctls(self, wrong: Iterable[Sysctl]) -> None:
        for one in wrong:
            try:
                sysctl.write(one.key, one.value)
            except KernelError as error:
                self._report.failures.append(str(error))
                continue
            self._done("sysctl", "change", sysctl.line(one.key, one.value), one.why)

    def nft(self, transactions: Iterable[Transaction]) -> None:
        for one in transactions:
            try:
                self._nft.run(one.text)
            except KernelError as error:
                self._report.failures.append(str(error))
                continue
            self._done("nft", "change", one.text, one.why)

    def _done(self, kind: str, action: str, line: str, why: Why | None) -> None:
        self._report.changes += 1
        if self._record:
            self._report.lines.append(Change(kind, action, line, why))


def _refers_to(op: LinkOp) -> list[str]:
    """Names of other links that must exist for this operation."""
    if op.action == "delete" or op.link is None:
        return []
    names = [op.link.kind.dev] if isinstance(op.link.kind, Vxlan) else []
    if op.action == "add" or op.changes.get("master"):
        names += [op.link.master] if op.link.master is not None else []
    return names
