"""The supervisor of a lab: the one process that keeps it as its record says.

`python -m podwire.lab.supervisor NAME --listen-fd N`, started by `lifecycle`; N is the listening
socket of `control`. What lives here: starting, watching and restarting the lab's processes, and
answering requests. What does not: what the nodes consist of (`nodes`), the command lines
(`programs`).

How it works: one thread, one selector, no asyncio, so that it is there within milliseconds. It
waits on the pidfd of each process and holder, the pipe on which each reports that it is ready, the
control socket and its connections, a wake-up pipe for signals, and the time of the next restart.

The API server, agents and kubelets are its children and die with it (parent-death signal). The
holders and so the pods outlive it: a new supervisor takes them over.
"""

from __future__ import annotations

import argparse
import heapq
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from podwire.errors import LabError, PodwireError
from podwire.lab import nodes, processes, programs
from podwire.lab.child import Child
from podwire.lab.control import Request, Snapshot
from podwire.lab.processes import Process
from podwire.lab.programs import Program
from podwire.lab.registry import LabInfo, LabRecord, NodeRecord, write_atomically

STOP_GRACE_S = 3.0


class Supervisor:
    """Keeps one lab. `run` returns when it has been told to stop."""

    def __init__(self, lab: LabInfo, listener: socket.socket) -> None:
        self._lab = lab
        self._record = self._read_record()
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._children: dict[str, Child] = {}
        self._holders: dict[str, tuple[Process, int]] = {}  # by node; with its pidfd
        self._nodes: dict[str, NodeRecord] = {}
        self._watchers: set[socket.socket] = set()
        self._changed = False
        self._due: list[tuple[float, str]] = []  # (monotonic time, child) to start again
        self._stopping = False
        self._error: PodwireError | None = None

    # -- life ---------------------------------------------------------------------------------

    def run(self) -> None:
        self._listen()
        try:
            self._end_predecessors()
            self._start(programs.api(self._lab, self._record))
            self._converge()
        except PodwireError as error:
            self._error = error
            log("cannot make the lab", error=str(error))
        self._changed = True
        while not self._stopping:
            self._tell_watchers()
            for key, _ in self._selector.select(self._until_due()):
                key.data()
            self._restart_due()
        self._stop()

    def _listen(self) -> None:
        wake_r, wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_w)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._selector.register(wake_r, selectors.EVENT_READ, lambda: self._signalled(wake_r))
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _signalled(self, wake: int) -> None:
        os.read(wake, 64)
        self._stopping = True

    def _end_predecessors(self) -> None:
        """End what a supervisor before this one left behind, but for the holders."""
        left = processes.marked(self._record.id)
        processes.end(
            process
            for process, name in left.items()
            if name != "supervisor" and not name.endswith("/holder")
        )

    def _stop(self) -> None:
        """End the children: the nodes' first, that they can still tell the API."""
        of_nodes = [child for child in self._children.values() if child.program.node]
        rest = [child for child in self._children.values() if not child.program.node]
        for group in (of_nodes, rest):
            processes.end((child.process for child in group if child.process), grace_s=STOP_GRACE_S)
            for child in group:
                child.reap()
        for path in (self._lab.supervisor_socket, self._lab.supervisor_pid):
            path.unlink(missing_ok=True)

    # -- nodes --------------------------------------------------------------------------------

    def _read_record(self) -> LabRecord:
        record = self._lab.record()
        if record is None:
            raise LabError(
                f"{self._lab.dir}/lab.json is missing or damaged",
                remedy=f"remove the lab with `podwire lab down {self._lab.name}`",
            )
        return record

    def _converge(self) -> None:
        """Add and remove nodes until they are those of the record."""
        wanted = {node.name: node for node in self._record.nodes}
        for name in [name for name in self._nodes if name not in wanted]:
            self._remove_node(name)
        added = [node for name, node in wanted.items() if name not in self._nodes]
        if not added:
            return
        nodes.wire(self._lab, added)
        for node in added:
            self._nodes[node.name] = node
            self._hold(node)
        for node in added:
            for program in programs.of_node(node):
                self._start(program)

    def _hold(self, node: NodeRecord) -> None:
        """Have a holder for the node, and notice its end."""
        holder = nodes.holder(self._lab, node.name)
        if holder is None:
            holder = nodes.start_holder(self._lab, self._record.id, node)
        fd = holder.open()
        if fd is None:
            raise LabError(f"{node.name}: its holder does not stay alive")
        self._holders[node.name] = (holder, fd)
        self._selector.register(fd, selectors.EVENT_READ, lambda: self._holder_ended(node))

    def _release(self, name: str) -> Process | None:
        """Stop watching a node's holder."""
        holder, fd = self._holders.pop(name, (None, -1))
        if holder is not None:
            self._selector.unregister(fd)
            os.close(fd)
        return holder

    def _holder_ended(self, node: NodeRecord) -> None:
        """A node without its holder has no process left: it starts again, like after a reset."""
        if node.name not in self._nodes:
            return
        log("holder ended; the node starts again", node=node.name)
        _reap(self._release(node.name))
        with self._reported():
            nodes.wire(self._lab, [node])
            self._hold(node)

    def _remove_node(self, name: str) -> None:
        node = self._nodes.pop(name)
        mine = [child for child in self._children.values() if child.program.node == name]
        processes.end((child.process for child in mine if child.process), grace_s=STOP_GRACE_S)
        for child in mine:
            # Before the holder: PID 1 of a namespace does not end before all others in it are
            # reaped, and these are for us to reap.
            self._unwatch(child)
            child.reap()
            del self._children[child.program.name]
        holder = self._release(name)
        nodes.remove(self._lab, node)
        _reap(holder)
        self._changed = True

    # -- processes ----------------------------------------------------------------------------

    def _start(self, program: Program) -> None:
        self._children[program.name] = Child(program, self._lab.log(program.name))
        self._launch(self._children[program.name])

    def _launch(self, child: Child) -> None:
        node = child.program.node
        self._changed = True
        try:
            child.start(
                programs.environment(self._record.id, child.program.name),
                inside=self._holders[node][1] if node else None,
                namespaces=nodes.HOLDER_NAMESPACES if node else 0,
            )
        except (OSError, PodwireError, KeyError) as error:
            log("cannot start", process=child.program.name, error=str(error))
            self._schedule(child)
            return
        log("started", process=child.program.name, pid=child.pid)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._child_ended(child))
        if child.report is not None:
            self._selector.register(
                child.report, selectors.EVENT_READ, lambda: self._child_reports(child)
            )

    def _unwatch(self, child: Child) -> None:
        for fd in (child.pidfd, child.report):
            if fd is not None:
                with suppress(KeyError, ValueError):
                    self._selector.unregister(fd)

    def _child_ended(self, child: Child) -> None:
        self._unwatch(child)
        log("ended", process=child.program.name, status=child.reap())
        self._schedule(child)

    def _schedule(self, child: Child) -> None:
        heapq.heappush(self._due, (time.monotonic() + child.back_off(), child.program.name))
        self._changed = True

    def _child_reports(self, child: Child) -> None:
        if not child.read_report() and child.report is not None:
            self._selector.unregister(child.report)
        self._changed = True

    def _until_due(self) -> float | None:
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def _restart_due(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, name = heapq.heappop(self._due)
            child = self._children.get(name)
            if child is not None and child.process is None:
                self._launch(child)

    # -- requests -----------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # hung up already
        connection.settimeout(2.0)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._serve(connection))

    def _serve(self, connection: socket.socket) -> None:
        try:
            line = connection.recv(4096)
            request = msgspec.json.decode(line, type=Request) if line else None
        except (OSError, msgspec.MsgspecError):
            request = None
        if request is None:
            self._hang_up(connection)
            return
        if request.op == "reload":
            with self._reported():
                self._error = None
                self._record = self._read_record()
                self._converge()
        if request.op == "watch":
            self._watchers.add(connection)
        self._send(connection, self._snapshot())

    def _reported(self) -> _Reported:
        return _Reported(self._set_error)

    def _set_error(self, error: PodwireError) -> None:
        log("cannot make the lab as recorded", error=str(error))
        self._error = error
        self._changed = True

    def _tell_watchers(self) -> None:
        if self._changed:
            self._changed = False
            for connection in list(self._watchers):
                self._send(connection, self._snapshot())

    def _send(self, connection: socket.socket, snapshot: Snapshot) -> None:
        try:
            connection.sendall(msgspec.json.encode(snapshot) + b"\n")
        except OSError:
            self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        self._watchers.discard(connection)
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection)
        connection.close()

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            processes=tuple(child.status() for child in self._children.values()),
            nodes=tuple(node.name for node in self._record.nodes),
            error=self._error.message if self._error else None,
            remedy=self._error.remedy if self._error else None,
        )


class _Reported:
    """A block whose failure is the lab's to report and not the supervisor's end."""

    def __init__(self, report: Callable[[PodwireError], None]) -> None:
        self._report = report

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> bool:
        if isinstance(error, PodwireError):
            self._report(error)
            return True
        return False


def _reap(holder: Process | None) -> None:
    """Reap an ended holder, where it is our own child and not of a supervisor before us."""
    if holder is not None:
        with suppress(ChildProcessError):
            os.waitpid(holder.pid, os.WNOHANG)


def log(event: str, **fields: object) -> None:
    """One event, one line, on standard error (the supervisor's log file)."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    print(stamp, event, *(f"{key}={value}" for key, value in fields.items()), file=sys.stderr)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m podwire.lab.supervisor")
    parser.add_argument("lab")
    parser.add_argument("--listen-fd", type=int, required=True)
    options = parser.parse_args(list(arguments) if arguments is not None else None)
    lab = LabInfo(options.lab)
    write_atomically(lab.supervisor_pid, str(processes.Process.of(os.getpid())).encode())
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.set_inheritable(options.listen_fd, False)
    Supervisor(lab, socket.socket(fileno=options.listen_fd)).run()


if __name__ == "__main__":
    main()
