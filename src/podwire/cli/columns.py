"""The columns of `get`, kind by kind, and how a cell comes out of an object.

Pure: objects in, strings out. Columns and words are kubectl's (k8s.io/kubernetes
pkg/printers/internalversion/printers.go), plus a node's POD-CIDR, which is what a person looks
for here. Kinds without an entry get NAME and AGE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from podwire.cli.podstatus import ready_containers, restarts, status_word
from podwire.cli.printing import NONE, UNKNOWN, Object, age
from podwire.cluster.kube import Resource

_ROLE_LABEL = "node-role.kubernetes.io/"


@dataclass(frozen=True, slots=True)
class Column:
    """A header and the cell under it; `wide` ones show with `-o wide` only."""

    header: str
    cell: Callable[[Object], str]
    wide: bool = False


def field(obj: Object, path: str) -> Any:
    """The value at a dotted path, or None where anything on the way is missing."""
    value: Any = obj
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(path: str, empty: str = NONE) -> Callable[[Object], str]:
    return lambda obj: str(field(obj, path) or empty)


def _age(obj: Object) -> str:
    return age(field(obj, "metadata.creationTimestamp"))


def node_status(node: Object) -> str:
    """`Ready`, `NotReady` or `Unknown`, with `SchedulingDisabled` for a cordoned node."""
    conditions = field(node, "status.conditions") or ()
    ready = next((c.get("status") for c in conditions if c.get("type") == "Ready"), None)
    word = "Unknown" if ready is None else "Ready" if ready == "True" else "NotReady"
    return f"{word},SchedulingDisabled" if field(node, "spec.unschedulable") else word


def node_roles(node: Object) -> str:
    """Roles from the node's labels, sorted."""
    labels = field(node, "metadata.labels") or {}
    roles = {key.removeprefix(_ROLE_LABEL) for key in labels if key.startswith(_ROLE_LABEL)}
    roles |= {value for key, value in labels.items() if key == "kubernetes.io/role"}
    return ",".join(sorted(roles - {""})) or NONE


def node_addresses(node: Object, kind: str) -> str:
    """The node's addresses of `kind` (`InternalIP`), one a family."""
    addresses = field(node, "status.addresses") or ()
    return ",".join(str(a.get("address")) for a in addresses if a.get("type") == kind) or NONE


def _pod_ips(pod: Object) -> str:
    ips = [str(entry.get("ip")) for entry in field(pod, "status.podIPs") or ()]
    return ",".join(ips) or _text("status.podIP")(pod)


def _node_cidrs(node: Object) -> str:
    cidrs = field(node, "spec.podCIDRs") or [field(node, "spec.podCIDR")]
    return ",".join(filter(None, cidrs)) or NONE


def last_seen(event: Object) -> str | None:
    """When an event last happened, whichever of the API's two ways of saying so it uses."""
    for path in ("series.lastObservedTime", "lastTimestamp", "eventTime", "firstTimestamp"):
        if value := field(event, path):
            return str(value)
    created: str | None = field(event, "metadata.creationTimestamp")
    return created


def event_order(event: Object) -> tuple[str, int]:
    """Sorts events by time, and those of the same second by when they were written."""
    version = str(field(event, "metadata.resourceVersion") or "")
    return last_seen(event) or "", int(version) if version.isdecimal() else 0


def event_source(event: Object) -> str:
    """Who reported an event."""
    component = field(event, "source.component") or event.get("reportingComponent")
    host = field(event, "source.host") or event.get("reportingInstance")
    return ", ".join(str(part) for part in (component, host) if part)


def _event_object(event: Object) -> str:
    kind = str(field(event, "involvedObject.kind") or "").lower()
    return f"{kind}/{field(event, 'involvedObject.name') or ''}"


def _config_map_size(config_map: Object) -> str:
    return str(len(config_map.get("data") or {}) + len(config_map.get("binaryData") or {}))


def _borrowed(block: Object) -> str:
    """How many of a block's addresses other nodes than its own have."""
    owner = field(block, "spec.node")
    allocations = field(block, "spec.allocations") or ()
    return str(sum(one.get("node") != owner for one in allocations))


def _asked_by(found: Object) -> str:
    return ",".join(field(found, "spec.askedBy") or ()) or NONE


_NAME = Column("NAME", _text("metadata.name"))
_AGE = Column("AGE", _age)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "Pod": (
        _NAME,
        Column("READY", ready_containers),
        Column("STATUS", status_word),
        Column("RESTARTS", restarts),
        _AGE,
        Column("IP", _pod_ips, wide=True),
        Column("NODE", _text("spec.nodeName"), wide=True),
    ),
    "Node": (
        _NAME,
        Column("STATUS", node_status),
        Column("ROLES", node_roles),
        _AGE,
        Column("VERSION", _text("status.nodeInfo.kubeletVersion", UNKNOWN)),
        Column("INTERNAL-IP", lambda node: node_addresses(node, "InternalIP"), wide=True),
        Column("POD-CIDR", _node_cidrs, wide=True),
        Column("OS-IMAGE", _text("status.nodeInfo.osImage", UNKNOWN), wide=True),
        Column("KERNEL-VERSION", _text("status.nodeInfo.kernelVersion", UNKNOWN), wide=True),
        Column(
            "CONTAINER-RUNTIME",
            _text("status.nodeInfo.containerRuntimeVersion", UNKNOWN),
            wide=True,
        ),
    ),
    "Namespace": (_NAME, Column("STATUS", _text("status.phase", UNKNOWN)), _AGE),
    "ConfigMap": (_NAME, Column("DATA", _config_map_size), _AGE),
    "Lease": (_NAME, Column("HOLDER", _text("spec.holderIdentity", "")), _AGE),
    "IPPool": (
        _NAME,
        Column("CIDR", _text("spec.cidr")),
        Column("BLOCK-SIZE", _text("spec.blockSize")),
        Column("DISABLED", lambda pool: str(bool(field(pool, "spec.disabled"))).lower()),
        Column("NODE-SELECTOR", _text("spec.nodeSelector", "all()"), wide=True),
        _AGE,
    ),
    "IPAMBlock": (
        _NAME,
        Column("CIDR", _text("spec.cidr")),
        Column("NODE", _text("spec.node")),
        Column("USED", _text("spec.used", "0")),
        _AGE,
        Column("BORROWED", _borrowed, wide=True),
    ),
    "IPAMRange": (
        _NAME,
        Column("NETWORK", _text("spec.network")),
        Column("FIRST", _text("spec.first")),
        Column("NODE", _text("spec.node")),
        Column("ASKED-BY", _asked_by),
        _AGE,
    ),
    "Event": (
        Column("LAST SEEN", lambda event: age(last_seen(event))),
        Column("TYPE", _text("type", "")),
        Column("REASON", _text("reason", "")),
        Column("OBJECT", _event_object),
        Column("SOURCE", event_source, wide=True),
        Column("MESSAGE", lambda event: " ".join(str(event.get("message") or "").split())),
        Column("COUNT", lambda event: str(event.get("count") or 1), wide=True),
        Column("NAME", _text("metadata.name"), wide=True),
    ),
}


@dataclass(frozen=True, slots=True)
class View:
    """The columns of one kind, as asked for."""

    columns: tuple[Column, ...]

    @property
    def headers(self) -> list[str]:
        return [column.header for column in self.columns]

    def rows(self, objects: Iterable[Object]) -> list[Sequence[str]]:
        return [[column.cell(obj) for column in self.columns] for obj in objects]


def view(
    resource: Resource, *, wide: bool = False, namespaces: bool = False, kinds: bool = False
) -> View:
    """The table of a kind.

    `namespaces` puts a NAMESPACE column in front; `kinds` prefixes each name with its kind, for
    output of several kinds.
    """
    known = _COLUMNS.get(resource.kind, (_NAME, _AGE))
    columns = [column for column in known if wide or not column.wide]
    if kinds:
        prefixed = Column("NAME", lambda obj: f"{resource.qualified_name}/{_NAME.cell(obj)}")
        columns = [prefixed if column.header == "NAME" else column for column in columns]
    if namespaces and resource.namespaced:
        columns.insert(0, Column("NAMESPACE", _text("metadata.namespace")))
    return View(tuple(columns))
