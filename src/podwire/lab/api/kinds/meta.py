"""What all kinds share: the schema of `metadata`, of conditions, and the usual columns."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from podwire.durations import human_duration
from podwire.lab.api.names import (
    TextCheck,
    dns_label,
    label_value,
    qualified_name,
    timestamp,
)
from podwire.lab.api.registry import Column, Object
from podwire.lab.api.schema import (
    Boolean,
    Causes,
    Integer,
    Json,
    Listing,
    Record,
    StringMap,
    Text,
    optional,
    required,
)

_ANNOTATIONS_LIMIT = 256 * 1024

LABELS = StringMap(Text(label_value), check_key=qualified_name)
TIME = Text(timestamp)


def _metadata_rules(metadata: dict[str, Json], path: str, causes: Causes) -> None:
    annotations = metadata.get("annotations") or {}
    size = sum(len(key) + len(value or "") for key, value in annotations.items())
    if size > _ANNOTATIONS_LIMIT:
        causes.too_long(f"{path}.annotations", _ANNOTATIONS_LIMIT)


_OWNER = Record(
    {
        "apiVersion": required(Text()),
        "kind": required(Text()),
        "name": required(Text()),
        "uid": required(Text()),
        "controller": optional(Boolean()),
        "blockOwnerDeletion": optional(Boolean()),
    }
)


def metadata_schema(check_name: TextCheck, *, namespaced: bool) -> Record:
    """The schema of `metadata`; `check_name` is the kind's grammar of names."""
    fields = {
        "name": required(Text(check_name), "name or generateName is required"),
        "generateName": optional(Text(lambda value: check_name(value.rstrip("-.") or "-"))),
        "labels": optional(LABELS),
        "annotations": optional(StringMap(check_key=lambda key: qualified_name(key.lower()))),
        "finalizers": optional(Listing(Text(qualified_name), merge_key="")),
        "ownerReferences": optional(Listing(_OWNER, merge_key="uid")),
        "resourceVersion": optional(Text()),
        "uid": optional(Text()),
        "generation": optional(Integer(0)),
        "creationTimestamp": optional(TIME),
        "deletionTimestamp": optional(TIME),
        "deletionGracePeriodSeconds": optional(Integer(0)),
    }
    if namespaced:
        fields["namespace"] = required(Text(dns_label))
    return Record(fields, also=_metadata_rules)


CONDITIONS = Listing(
    Record(
        {
            "type": required(Text(qualified_name)),
            "status": required(Text(allowed=("True", "False", "Unknown"))),
            "reason": optional(Text()),
            "message": optional(Text()),
            "lastTransitionTime": optional(TIME),
            "lastHeartbeatTime": optional(TIME),
            "lastProbeTime": optional(TIME),
            "lastUpdateTime": optional(TIME),
            "observedGeneration": optional(Integer(0)),
        }
    ),
    merge_key="type",
    unique=("type",),
)


def condition(obj: Object, type_: str) -> dict[str, Any]:
    """The status condition of that type, {} when there is none."""
    for entry in (obj.get("status") or {}).get("conditions") or []:
        if entry.get("type") == type_:
            return dict(entry)
    return {}


def now() -> str:
    """This second as `metav1.Time`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(when: str | None) -> str:
    """Time since `when`, as kubectl shortens it."""
    if not when:
        return "<unknown>"
    return human_duration(max(0.0, time.time() - datetime.fromisoformat(when).timestamp()))


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _age(obj: Object) -> str:
    return age(obj["metadata"].get("creationTimestamp"))


NAME = Column("Name", _name, description="Name must be unique within a namespace.")
AGE = Column("Age", _age, description="Time since the object was created.")


def at(*path: str, otherwise: str = "<none>") -> Callable[[Object], Any]:
    """A column's value: what is found at `path` in the object."""

    def value(obj: Object) -> Any:
        found: Any = obj
        for name in path:
            found = (found or {}).get(name)
        return otherwise if found in (None, "") else found

    return value
