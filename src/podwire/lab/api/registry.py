"""The table of resource kinds: what the server serves, as data.

What lives here: `ResourceKind`, the description of one kind, and `Registry`, the table that
discovery, paths and objects read. The kinds themselves are modules of `kinds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from podwire.lab.api.names import TextCheck, dns_subdomain
from podwire.lab.api.schema import Causes, Record

Object = dict[str, Any]
"""A decoded Kubernetes object."""


@dataclass(frozen=True)
class Column:
    """A column of the table that `kubectl get` prints. `wide`: only with `-o wide`."""

    name: str
    value: Callable[[Object], Any]
    type: str = "string"
    description: str = ""
    wide: bool = False


def _nothing(obj: Object) -> None:
    return None


def _no_rule(new: Object, old: Object, causes: Causes) -> None:
    return None


def _at_once(obj: Object, asked_s: int | None) -> int:
    return 0


def _never(obj: Object) -> bool:
    return False


@dataclass(frozen=True)
class ResourceKind:
    """Everything the server knows about a kind.

    fields: paths that field selectors may name, beside metadata.name and metadata.namespace.
    subresources: by name, the verbs that each takes.
    status_of_new: "reset" (the server's `prepare` says what it is), or "keep" what is sent.
    prepare: fills in, in a new object found valid, what the server decides.
    check_update: rules between the old and the new object, such as immutability.
    grace_s: seconds that a deletion lets the object linger, from it and what the request asks.
    check_delete: why the object may not be deleted, or None.
    lingers: whether something beside metadata.finalizers keeps a deleted object.
    mark_deleted: what deletion changes in an object that lingers.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    schema: Record
    columns: tuple[Column, ...]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    check_name: TextCheck = dns_subdomain
    status_of_new: str = "keep"
    prepare: Callable[[Object], None] = _nothing
    check_update: Callable[[Object, Object, Causes], None] = _no_rule
    grace_s: Callable[[Object, int | None], int] = _at_once
    check_delete: Callable[[Object], str | None] = _nothing
    lingers: Callable[[Object], bool] = _never
    mark_deleted: Callable[[Object], None] = _nothing

    @property
    def resource(self) -> str:
        """The name that keys, messages and API groups use: `leases.coordination.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """`v1`, `coordination.k8s.io/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        """The kind of a list of these."""
        return f"{self.kind}List"

    @property
    def has_status(self) -> bool:
        """Whether status is written through its own subresource only."""
        return "status" in self.subresources

    @property
    def selectable_fields(self) -> tuple[str, ...]:
        """All paths that field selectors may name."""
        own = ("metadata.name", "metadata.namespace") if self.namespaced else ("metadata.name",)
        return own + self.fields


class Registry:
    """Kinds, found by where they are served."""

    def __init__(self, kinds: Iterable[ResourceKind]) -> None:
        self.kinds = tuple(kinds)
        self._by_path = {(kind.group, kind.version, kind.plural): kind for kind in self.kinds}

    def find(self, group: str, version: str, plural: str) -> ResourceKind | None:
        """The kind served at /apis/GROUP/VERSION/PLURAL (group "" is /api)."""
        return self._by_path.get((group, version, plural))

    def groups(self) -> dict[str, list[str]]:
        """Versions by group, in the order of the table."""
        found: dict[str, list[str]] = {}
        for kind in self.kinds:
            versions = found.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        return found

    def of_version(self, group: str, version: str) -> list[ResourceKind]:
        """The kinds of one group and version."""
        return [kind for kind in self.kinds if (kind.group, kind.version) == (group, version)]
