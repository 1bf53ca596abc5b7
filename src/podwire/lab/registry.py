"""Which labs there are on this machine, and what is written down about each.

What lives here: names, addresses and paths of a lab, its record on disk (`lab.json`), and the
rule by which a command finds its lab. What does not: anything running.

    /var/lib/podwire/labs/NAME/
      lab.json         the record: what the lab should consist of
      supervisor.pid   the lab's supervisor, while it runs
      supervisor.sock  requests to it (`podwire.lab.control`)
      api.db           every Kubernetes object
      kubeconfig       credentials for the host (kubectl, podwire)
      api/             the API's Unix socket; appears in each node as /run/podwire-api
      nodes/NODE/      one node's disk: etc, opt, run, var-lib; kubelet.sock; holder.pid
      etcd/            etcd's data, in a lab whose leases are kept there
      api.cut          which nodes' connections the API refuses (`podwire.lab.api.cuts`)
      log/             one file a process
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from podwire.decoding import from_json
from podwire.errors import InputError, LabError
from podwire.files import write_atomically
from podwire.lab.addressing import Segment, mac, readdressed, segment
from podwire.lab.faults import Faults
from podwire.lab.shape import Shape
from podwire.model.state import IPInterface

LABS = Path("/var/lib/podwire/labs")
NETNS_DIR = Path("/run/netns")
"""Where `ip netns` keeps the names of network namespaces."""

MAX_NODES = 100
MAX_NAME = 32
"""A lab's name is part of namespace names and of socket paths, which end at 107 bytes."""

UNDERLAY_MTU = 1500

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_RECORD = "lab.json"


class NodeRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One node of a lab. `index` counts from 1 and is never given twice.

    `moved_to` are addresses that it has instead of those that go with its index.
    """

    name: str
    index: int
    moved_to: tuple[str, ...] = ()


class LabRecord(msgspec.Struct, frozen=True):
    """What a lab should consist of; `lab.json`. `id` marks the lab's processes."""

    id: str
    name: str
    created: float
    nodes: tuple[NodeRecord, ...]
    api_port: int = 0
    """Loopback TCP port of the API; 0 until it has been given one."""
    shape: Shape = Shape()
    faults: Faults = Faults()

    def node(self, name: str) -> NodeRecord | None:
        return next((node for node in self.nodes if node.name == name), None)

    def segment(self, node: NodeRecord) -> Segment:
        """The link of the underlay that a node is on."""
        return segment(self.shape.underlay, self.shape.underlay_versions, node.index)

    def addresses(self, node: NodeRecord) -> tuple[IPInterface, ...]:
        """A node's addresses on the underlay, one a family, IPv4 first."""
        shape = self.shape
        return readdressed(shape.underlay, shape.underlay_versions, node.index, node.moved_to)

    def ips(self, node: NodeRecord) -> tuple[str, ...]:
        """The same, without the prefix lengths."""
        return tuple(str(address.ip) for address in self.addresses(node))

    def mac(self, node: NodeRecord) -> str:
        """MAC of the node's eth0, which stays when its addresses change."""
        return mac(self.shape.underlay, node.index)

    @property
    def living(self) -> tuple[NodeRecord, ...]:
        """The nodes that are not dead."""
        return tuple(node for node in self.nodes if node.name not in self.faults.dead)


class LabInfo:
    """A lab by its name: where its things are. Exists also where the lab does not (yet)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dir = LABS / name

    @property
    def kubeconfig(self) -> Path:
        return self.dir / "kubeconfig"

    @property
    def certificate(self) -> Path:
        """The API server's own, which it makes when it first starts."""
        return self.dir / "tls" / "tls.crt"

    @property
    def api_dir(self) -> Path:
        return self.dir / "api"

    @property
    def api_socket(self) -> Path:
        return self.api_dir / "api.sock"

    @property
    def nodes_dir(self) -> Path:
        return self.dir / "nodes"

    @property
    def supervisor_pid(self) -> Path:
        return self.dir / "supervisor.pid"

    @property
    def supervisor_socket(self) -> Path:
        return self.dir / "supervisor.sock"

    @property
    def underlay(self) -> str:
        """Name of the network namespace that holds the underlay's bridge."""
        return f"{self.name}-underlay"

    @property
    def api_cut(self) -> Path:
        return self.dir / "api.cut"

    @property
    def partitions(self) -> Path:
        """Is there while the underlay may have rules that cut nodes off."""
        return self.dir / "partitions"

    def node_dir(self, node: str) -> Path:
        return self.nodes_dir / node

    def netns(self, node: str) -> str:
        """Name of a node's network namespace."""
        return f"{self.name}-{node}"

    def log(self, process: str) -> Path:
        """Log file of a process named as in `lab status`: `api`, `supervisor`, `node1/agent`."""
        return self.dir / "log" / f"{process.replace('/', '-')}.log"

    def record(self) -> LabRecord | None:
        """What is written down about the lab, or None (no lab, or one made only in part)."""
        try:
            return from_json((self.dir / _RECORD).read_bytes(), LabRecord)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None

    def write(self, record: LabRecord) -> None:
        content = msgspec.json.format(msgspec.json.encode(record))
        write_atomically(self.dir / _RECORD, content, 0o600)


def check_name(name: str) -> str:
    """The name itself, when it may name a lab. Raises InputError."""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is not a lab name",
            field="name",
            remedy=f"use at most {MAX_NAME} lower-case letters, digits and '-', "
            "beginning and ending with a letter or digit",
        )
    return name


def list_labs() -> list[LabInfo]:
    """The labs of this machine by name, running or not, half-made ones included."""
    return sorted(_found(), key=lambda lab: lab.name)


def _found() -> Iterator[LabInfo]:
    try:
        entries = list(os.scandir(LABS))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir() and _NAME.fullmatch(entry.name):
            yield LabInfo(entry.name)


def resolve(name: str | None) -> LabInfo:
    """The lab a command means: by name, by PODWIRE_LAB, or the only one there is.

    Raises LabError when there is none of that name, none at all, or several to choose from.
    """
    name = name or os.environ.get("PODWIRE_LAB") or None
    labs = list_labs()
    names = ", ".join(lab.name for lab in labs)
    if name is not None:
        for lab in labs:
            if lab.name == check_name(name):
                return lab
        raise LabError(
            f'no lab is named "{name}"' + (f" (there is {names})" if labs else ""),
            remedy=f"make it with `podwire lab up --name {name}`",
        )
    if not labs:
        raise LabError("there is no lab on this machine", remedy="make one with `podwire lab up`")
    if len(labs) > 1:
        raise LabError(
            f"there are several labs: {names}", remedy="choose one with --lab or PODWIRE_LAB"
        )
    return labs[0]
