"""A lab's nodes as machines: switched on, switched off, and noticed when they go out by themselves.

What lives here: which nodes are on, and the watch over their holders. What does not: what a node
consists of (`nodes`, `underlay`), the processes that are started in it (`supervisor`).
"""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from podwire.errors import LabError
from podwire.lab import nodes, underlay
from podwire.lab.processes import Process
from podwire.lab.registry import LabInfo, LabRecord, NodeRecord


class Machines:
    """The nodes that are on, by name."""

    def __init__(
        self, lab: LabInfo, selector: selectors.BaseSelector, on_end: Callable[[NodeRecord], None]
    ) -> None:
        """`on_end` is called from the selector's callback when a node's holder has ended."""
        self._lab = lab
        self._selector = selector
        self._on_end = on_end
        self._on: dict[str, NodeRecord] = {}
        self._holders: dict[str, tuple[Process, int]] = {}  # with its pidfd

    def __contains__(self, name: str) -> bool:
        return name in self._on

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._on)

    def pidfd(self, name: str) -> int | None:
        """Of the node's holder; None while it has none."""
        return self._holders[name][1] if name in self._holders else None

    def switch_on(self, record: LabRecord, wanted: Sequence[NodeRecord]) -> None:
        """Have these nodes on: joined to the underlay, each with a holder. Raises PodwireError."""
        underlay.wire(self._lab, record, wanted)
        for node in wanted:
            self._on[node.name] = node
            self._hold(record, node)

    def _hold(self, record: LabRecord, node: NodeRecord) -> None:
        holder = nodes.holder(self._lab, node.name)
        if holder is None:
            holder = nodes.start_holder(self._lab, record, node)
        fd = holder.open()
        if fd is None:
            raise LabError(f"{node.name}: its holder does not stay alive")
        self._holders[node.name] = (holder, fd)
        self._selector.register(fd, selectors.EVENT_READ, lambda: self._holder_ended(node))

    def _holder_ended(self, node: NodeRecord) -> None:
        _reap(self._let_go(node.name))
        if node.name in self._on:
            self._on_end(node)

    def cut_power(self, name: str) -> None:
        """A node's link is gone and all of its processes are killed, at once.

        `switch_off` it when those that are children of ours have been reaped. One that is off stays
        so; one that a supervisor before us switched on goes off too.
        """
        holder, fd = self._holders.get(name, (nodes.holder(self._lab, name), None))
        if holder is None:
            return
        underlay.unplug(self._lab, name)
        if fd is None:
            holder.end()
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)

    def switch_off(self, name: str, *, for_good: bool) -> None:
        """End what is left of a node; with its disk, when it is not to come back.

        Its processes that are children of ours have been reaped by then: PID 1 of a namespace does
        not end before all others in it are.
        """
        self._on.pop(name, None)
        holder = self._let_go(name)
        if for_good:
            nodes.remove(self._lab, name)
        elif holder is not None:
            holder.end()
        _reap(holder)

    def _let_go(self, name: str) -> Process | None:
        """Stop watching a node's holder."""
        holder, fd = self._holders.pop(name, (None, -1))
        if holder is not None:
            self._selector.unregister(fd)
            os.close(fd)
        return holder


def _reap(holder: Process | None) -> None:
    """Reap an ended holder, where it is our own child and not of a supervisor before us."""
    if holder is not None:
        with suppress(ChildProcessError):
            os.waitpid(holder.pid, os.WNOHANG)
