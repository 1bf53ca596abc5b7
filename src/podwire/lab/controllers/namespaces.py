"""The built-in namespaces exist; a deleted namespace takes what is in it along.

A deleted Namespace lingers, Terminating, under its finalizer until all its objects are gone: pods
get their grace period from their nodes as always, everything else goes at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from podwire.lab.api.hub import Event
from podwire.lab.api.kinds import KINDS
from podwire.lab.api.kinds.namespace import NAMESPACE, PROTECTED
from podwire.lab.api.objects import Objects
from podwire.lab.api.registry import Object


def ensure_namespaces(objects: Objects) -> None:
    """Make the namespaces that every cluster has."""
    with objects.transaction():
        for name in sorted(PROTECTED):
            if objects.find(NAMESPACE, "", name) is None:
                new = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
                objects.create(NAMESPACE, "", new)


class NamespaceDeletion:
    """Empties namespaces that are being deleted."""

    kinds = tuple(kind.resource for kind in KINDS)

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._terminating: set[str] = set()

    def sync(self) -> None:
        self._terminating.clear()
        for namespace in self._objects.list(NAMESPACE):
            self._note(namespace)
        self._empty_all()

    def handle(self, events: Sequence[Event]) -> None:
        touched = False
        for event in events:
            if event.key.kind != NAMESPACE.resource:
                touched |= event.key.namespace in self._terminating
            elif event.type == "DELETED":
                self._terminating.discard(event.key.name)
            else:
                touched |= self._note(event.object)
        if touched:
            self._empty_all()

    def due(self) -> float | None:
        return None

    def tick(self) -> None:
        return None

    def _note(self, namespace: Object) -> bool:
        if "deletionTimestamp" not in namespace["metadata"]:
            return False
        self._terminating.add(namespace["metadata"]["name"])
        return True

    def _empty_all(self) -> None:
        for name in sorted(self._terminating):
            with self._objects.transaction():
                if self._empty(name) and (found := self._objects.find(NAMESPACE, "", name)):
                    found["spec"] = {"finalizers": []}
                    self._objects.update(NAMESPACE, "", name, found, subresource="finalize")

    def _empty(self, namespace: str) -> bool:
        """Delete what is in a namespace; whether nothing is left."""
        left = False
        for kind in KINDS:
            if not kind.namespaced:
                continue
            for obj in self._objects.list(kind, namespace):
                _, gone = self._objects.delete(kind, namespace, obj["metadata"]["name"])
                left |= not gone
        return not left
