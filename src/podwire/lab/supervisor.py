"""The supervisor of a lab: the one process that keeps it as its record says.

`python -m podwire.lab.supervisor NAME --listen-fd N`, started by `lifecycle`; N is the listening
socket of `control`. What lives here: starting, watching and restarting the lab's processes, and
answering requests. What does not: the nodes (`machines`), the command lines (`programs`).

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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from podwire.decoding import from_json
from podwire.errors import LabError, PodwireError
from podwire.files import write_atomically
from podwire.kernel.netns import open_netns
from podwire.lab import namespaces, nodes, processes, programs, underlay
from podwire.lab.child import Child
from podwire.lab.control import Request, Snapshot
from podwire.lab.faults import API
from podwire.lab.machines import Machines
from podwire.lab.programs import Program
from podwire.lab.registry import NETNS_DIR, LabInfo, LabRecord, NodeRecord

STOP_GRACE_S = 3.0


class Supervisor:
    """Keeps one lab. `run` returns when it has been told to stop."""

    def __init__(self, lab: LabInfo, listener: socket.socket) -> None:
        self._lab = lab
        self._record = self._read_record()
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._children: dict[str, Child] = {}
        self._wanted: dict[str, Program] = {}
        self._machines = Machines(lab, self._selector, self._node_ended)
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
        """End what a supervisor before this one left behind, but for the holders, and the tunnels,
        which agents take over."""
        left = processes.marked(self._record.id)
        processes.end(
            process
            for process, name in left.items()
            if name != "supervisor" and not name.endswith(("/holder", "/tunnel"))
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
        """Have what the record has: its nodes, those that live on, its processes, its faults.

        A process that runs with other options than it now has goes on with them, also over its own
        death, until it is its turn; see `_restart`.
        """
        record = self._record
        self._changed = True
        self._cut_off_api()
        self._wanted = programs.of_lab(self._lab, record)
        self._end_unwanted()
        if API in self._wanted:
            self._start(API)  # first: it takes longest to be ready
        living = {node.name for node in record.living}
        for name in [name for name in self._machines.names if name not in living]:
            self._machines.switch_off(name, for_good=record.node(name) is None)
        new = [node for node in record.living if node.name not in self._machines]
        self._machines.switch_on(record, new)
        underlay.cut(self._lab, record)
        for name in self._wanted:
            self._start(name)

    def _end_unwanted(self) -> None:
        """End processes that are no longer to run: the dead ones' at once, others gracefully."""
        dead = self._record.faults.dead
        for node in self._record.nodes:
            if node.name in dead:
                self._machines.cut_power(node.name)
        unwanted = [child for name, child in self._children.items() if name not in self._wanted]
        for child in unwanted:
            killed = {child.program.name, child.program.node} & set(dead)
            if child.process is not None:
                processes.end([child.process], grace_s=0.0 if killed else STOP_GRACE_S)
            self._unwatch(child)
            child.reap()
            del self._children[child.program.name]

    def _node_ended(self, node: NodeRecord) -> None:
        """A node without its holder has no process left: it starts again, like after a reset."""
        log("holder ended; the node starts again", node=node.name)
        with self._reported():
            self._machines.switch_on(self._record, [node])

    # -- faults -------------------------------------------------------------------------------

    def _cut_off_api(self) -> None:
        """Tell the API whose connections to refuse."""
        wanted = "".join(
            f"{NETNS_DIR / self._lab.netns(name)}\n" for name in self._record.faults.no_api
        ).encode()
        path = self._lab.api_cut
        if (path.read_bytes() if path.exists() else b"") == wanted:
            return
        write_atomically(path, wanted, 0o600)
        api = self._children.get(API)
        if api is not None and api.pid is not None:
            os.kill(api.pid, signal.SIGHUP)

    # -- processes ----------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        """Have this process, where it is not there yet."""
        if name not in self._children:
            self._children[name] = Child(self._wanted[name], self._lab.log(name))
            self._launch(self._children[name])

    def _launch(self, child: Child) -> None:
        program = child.program
        self._changed = True
        try:
            with self._namespaces_for(program) as (inside, of_it):
                environment = programs.environment(self._record.id, program.name)
                child.start(environment, inside=inside, namespaces=of_it)
        except (OSError, PodwireError) as error:
            log("cannot start", process=program.name, error=str(error))
            self._schedule(child)
            return
        log("started", process=program.name, pid=child.pid)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._child_ended(child))
        if child.report is not None:
            self._selector.register(
                child.report, selectors.EVENT_READ, lambda: self._child_reports(child)
            )

    @contextmanager
    def _namespaces_for(self, program: Program) -> Iterator[tuple[int | None, int]]:
        """What a program's process is to enter: a descriptor, and which namespaces of it."""
        if program.node is not None:
            fd = self._machines.pidfd(program.node)
            if fd is None:
                raise LabError(f"{program.node} is not on")
            yield fd, nodes.HOLDER_NAMESPACES
        elif program.netns is not None:
            fd = open_netns(program.netns)
            try:
                yield fd, namespaces.NEW_NET
            finally:
                os.close(fd)
        else:
            yield None, 0

    def _restart(self, name: str) -> None:
        """End a process and start it again, as the record now has it."""
        child = self._children.get(name)
        if child is None:
            raise LabError(f'there is no process "{name}"')
        if child.process is None:
            child.program = self._wanted[name]
            return  # it is about to be started
        processes.end([child.process], grace_s=STOP_GRACE_S)
        self._unwatch(child)
        child.reap()
        child.program = self._wanted[name]
        self._launch(child)

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
            request = from_json(line, Request) if line else None
        except (OSError, msgspec.DecodeError):
            request = None
        if request is None:
            self._hang_up(connection)
            return
        if request.op == "reload":
            with self._reported():
                self._error = None
                self._record = self._read_record()
                self._converge()
        if request.op == "restart":
            with self._reported():
                self._error = None
                self._restart(request.process)
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
        faults = self._record.faults
        cut_off = {node.name for node in self._record.nodes} if API in faults.dead else set()
        cut_off |= set(faults.no_api)
        return Snapshot(
            processes=tuple(
                msgspec.structs.replace(
                    child.status(), stale=child.program != self._wanted.get(child.program.name)
                )
                for child in self._children.values()
            ),
            nodes=tuple(node.name for node in self._record.living if node.name not in cut_off),
            faults=faults,
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
    pid = str(processes.Process.of(os.getpid())).encode()
    write_atomically(lab.supervisor_pid, pid, 0o600)
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.set_inheritable(options.listen_fd, False)
    Supervisor(lab, socket.socket(fileno=options.listen_fd)).run()


if __name__ == "__main__":
    main()
