"""What the kubelet keeps on disk about each pod, so that its successor can carry on.

What lives here: the records and their directory. What does not: any decision.

    /var/lib/kubelet/pods/UID/
      record.json                 PodRecord; written whole at each change
      hosts hostname resolv.conf  shown in the sandbox's /etc
      log/CONTAINER/N.log         what the container's N-th run wrote
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from podwire.decoding import from_json
from podwire.files import write_atomically
from podwire.lab.processes import Process
from podwire.lab.sandbox import Sandbox


class Termination(msgspec.Struct, frozen=True):
    """How a run of a container ended. Times are RFC 3339, as the API has them."""

    exit_code: int
    reason: str
    message: str
    started_at: str | None
    finished_at: str
    container_id: str


class ContainerRecord(msgspec.Struct):
    """One container of a pod. `waiting` has the reason and message of why it does not run."""

    name: str
    state: Literal["waiting", "running", "terminated"] = "waiting"
    reason: str = "ContainerCreating"
    message: str = ""
    id: str = ""
    pid: int = 0
    started: int = 0
    started_at: str | None = None
    ended: Termination | None = None
    last: Termination | None = None
    restarts: int = 0
    failures: int = 0
    """Ends that followed their start closely, in a row; what the back-off grows with."""
    retry_at: float = 0.0
    """Not to be started before this time (Unix seconds)."""

    @property
    def process(self) -> Process | None:
        return Process(self.pid, self.started) if self.state == "running" else None

    @property
    def ran(self) -> bool:
        return bool(self.id)


class PodRecord(msgspec.Struct):
    """A pod that this node has begun to run. `pod` is the object as last seen."""

    uid: str
    pod: dict[str, Any]
    start_time: str
    sandbox: Sandbox | None = None
    ips: tuple[str, ...] = ()
    attached: bool = False
    """Whether the sandbox has its network: until then it is in the making."""
    network: str = ""
    """Which pod network that is, as the kubelet was told it; empty where it was not."""
    keep_ips: tuple[str, ...] = ()
    """What to ask for when the sandbox is made anew."""
    containers: dict[str, ContainerRecord] = {}
    phase: Literal["Pending", "Running", "Succeeded", "Failed"] = "Pending"
    reason: str = ""
    message: str = ""

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    def container(self, name: str) -> ContainerRecord:
        """The record of a container, from now on kept."""
        return self.containers.setdefault(name, ContainerRecord(name))

    def known(self, name: str) -> ContainerRecord:
        """What is known of a container; of one that never ran, a record that is not kept."""
        return self.containers.get(name) or ContainerRecord(name)


class RecordStore:
    """The records of one node's kubelet."""

    def __init__(self, root: Path) -> None:
        self._pods = root / "pods"

    def directory(self, uid: str) -> Path:
        return self._pods / uid

    def log(self, uid: str, container: str, run: int) -> Path:
        """Log file of a container's run; runs count from 0."""
        return self.directory(uid) / "log" / container / f"{run}.log"

    def load(self) -> Iterator[PodRecord]:
        """Every pod on record. A damaged record is dropped: its pod starts anew."""
        for directory in self._pods.iterdir() if self._pods.is_dir() else ():
            try:
                yield from_json((directory / "record.json").read_bytes(), PodRecord)
            except (FileNotFoundError, msgspec.DecodeError):
                shutil.rmtree(directory, ignore_errors=True)

    def save(self, record: PodRecord) -> None:
        directory = self.directory(record.uid)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "record.json", msgspec.json.encode(record), 0o600)

    def remove(self, uid: str) -> None:
        shutil.rmtree(self.directory(uid), ignore_errors=True)


def new_id() -> str:
    """A container's id: 64 hexadecimal digits, as container runtimes have it."""
    return secrets.token_hex(32)


def now() -> str:
    """The time, as the API writes it (metav1.Time: whole seconds, UTC)."""
    return timestamp(time.time())


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
