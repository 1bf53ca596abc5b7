"""Recording Events, and forgetting them after an hour.

The same thing happening again to the same object is one Event with a count, as it is in Kubernetes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic

from podwire.errors import ForbiddenError, NotFoundError
from podwire.lab.api.hub import Event
from podwire.lab.api.kinds.event import EVENT
from podwire.lab.api.kinds.meta import now
from podwire.lab.api.objects import Objects
from podwire.lab.api.registry import Object

_KEPT = timedelta(hours=1)
_SWEEP_S = 300.0


def record(
    objects: Objects, about: Object, type_: str, reason: str, message: str, component: str
) -> None:
    """Record that something happened to the object `about`; `type_` is Normal or Warning."""
    metadata = about["metadata"]
    namespace = metadata.get("namespace") or "default"
    said = f"{metadata['uid']} {type_} {reason} {message}"
    suffix = hashlib.sha256(said.encode()).hexdigest()[:16]
    name = f"{metadata['name'][:236]}.{suffix}"
    time = now()

    def again(event: Object) -> None:
        event["count"] = int(event.get("count") or 1) + 1
        event["lastTimestamp"] = time

    if objects.find(EVENT, namespace, name):
        objects.modify(EVENT, namespace, name, again)
        return
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name},
        "involvedObject": {
            "kind": about["kind"],
            "apiVersion": about["apiVersion"],
            "namespace": metadata.get("namespace", ""),
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "type": type_,
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "source": {"component": component},
        "reportingComponent": component,
    }
    # Refused when the namespace is going or gone, and with it whoever would have read this.
    with contextlib.suppress(ForbiddenError, NotFoundError):
        objects.create(EVENT, namespace, event)


class EventExpiry:
    """Deletes Events that are older than an hour."""

    kinds: tuple[str, ...] = ()

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._due = monotonic()

    def sync(self) -> None:
        self.tick()

    def handle(self, events: Sequence[Event]) -> None:
        return None

    def due(self) -> float | None:
        return self._due

    def tick(self) -> None:
        self._due = monotonic() + _SWEEP_S
        oldest = (datetime.now(UTC) - _KEPT).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._objects.transaction():
            for event in self._objects.list(EVENT):
                metadata = event["metadata"]
                last = event.get("lastTimestamp") or metadata["creationTimestamp"]
                if last < oldest:
                    self._objects.delete(EVENT, metadata["namespace"], metadata["name"])
