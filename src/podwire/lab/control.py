"""What a lab's supervisor says and is asked: the messages on `supervisor.sock`.

What lives here: the messages, and the client's side. What does not: the supervisor.

One JSON object a line, over a Unix stream socket. A request is `{"op": ...}`:

    status   answered with one Snapshot
    watch    answered with a Snapshot now and after each change, until either side hangs up
    reload   the supervisor reads `lab.json` again, adds, removes, kills and boots nodes, makes and
             lifts partitions, answers with a Snapshot (`error` says what did not work)
    restart  the `process` is ended and started again, with the options that are now in `lab.json`
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Literal

import msgspec

from podwire.errors import LabError
from podwire.lab.faults import API, Faults
from podwire.lab.registry import LabInfo

State = Literal["starting", "waiting", "ready", "backoff"]
"""`waiting`: runs, and says what for in `message`. `backoff`: ended, is started again soon."""


class ProcessStatus(msgspec.Struct, frozen=True):
    """One process of the lab; `since` is the time of the last change of state (Unix seconds).

    One that is `stale` was started with other options than the lab's record has now.
    """

    name: str
    state: State
    pid: int | None
    restarts: int
    since: float
    message: str = ""
    stale: bool = False


class Snapshot(msgspec.Struct, frozen=True):
    """A lab as its supervisor sees it. `error` is set when it could not make the lab so.

    `nodes` are those that can become ready: not the dead, nor those that are cut off from the API.
    """

    processes: tuple[ProcessStatus, ...] = ()
    nodes: tuple[str, ...] = ()
    faults: Faults = Faults()
    error: str | None = None
    remedy: str | None = None

    def process(self, name: str) -> ProcessStatus | None:
        return next((process for process in self.processes if process.name == name), None)

    def node_ready(self, node: str) -> bool:
        """Whether its kubelet says so (which it does once its Node object is Ready)."""
        kubelet = self.process(f"{node}/kubelet")
        return kubelet is not None and kubelet.state == "ready"

    @property
    def ready(self) -> bool:
        """Whether all that can be ready is."""
        return all(
            process.state == "ready" for process in self.processes if process.name == API
        ) and all(self.node_ready(node) for node in self.nodes)


class Request(msgspec.Struct, frozen=True):
    op: Literal["status", "watch", "reload", "restart"]
    process: str = ""


class Control:
    """A connection to a lab's supervisor."""

    def __init__(self, lab: LabInfo, *, timeout_s: float = 10.0) -> None:
        """Raises LabError when no supervisor answers."""
        self._lab = lab
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(lab.supervisor_socket))
        except OSError as error:
            self._socket.close()
            raise self._gone() from error
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lines.close()
        self._socket.close()

    def request(self, op: Literal["status", "reload", "restart"], process: str = "") -> Snapshot:
        """Ask, and return the answer. Raises LabError also for an answer that is an error."""
        self._send(Request(op, process))
        try:
            snapshot = self._receive()
        except TimeoutError:
            raise LabError(
                f'the supervisor of lab "{self._lab.name}" has not answered for'
                f" {self._socket.gettimeout():g} s",
                remedy=f"see `podwire --lab {self._lab.name} lab logs supervisor`; is it stopped?",
            ) from None
        if snapshot.error is not None:
            raise LabError(snapshot.error, remedy=snapshot.remedy)
        return snapshot

    def watch(self, *, timeout_s: float) -> Iterator[Snapshot]:
        """The present state and then each change; ends by raising.

        Raises TimeoutError when nothing has changed for `timeout_s`, LabError when the supervisor
        ends.
        """
        self._send(Request("watch"))
        last = None
        deadline = time.monotonic() + timeout_s
        while True:
            # A socket without time to wait would not block at all.
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            snapshot = self._receive()
            # Kubelets say again and again how they are, which is no news.
            if snapshot != last:
                yield snapshot
                last, deadline = snapshot, time.monotonic() + timeout_s
            elif time.monotonic() > deadline:
                raise TimeoutError

    def _send(self, request: Request) -> None:
        try:
            self._socket.sendall(msgspec.json.encode(request) + b"\n")
        except OSError as error:
            raise self._gone() from error

    def _receive(self) -> Snapshot:
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise
        except OSError as error:
            raise self._gone() from error
        if not line:
            raise self._gone()
        return msgspec.json.decode(line, type=Snapshot)

    def _gone(self) -> LabError:
        return LabError(
            f'the supervisor of lab "{self._lab.name}" does not run',
            remedy=f"start the lab again with `podwire lab up --name {self._lab.name}`",
        )
