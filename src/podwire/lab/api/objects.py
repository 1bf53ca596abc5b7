"""What the verbs mean: create, update, patch and delete of objects, whoever asks.

What lives here: the life of an object (identity, preconditions, validation, generation, graceful
deletion, finalizers) over a `Store`. No HTTP; the REST handlers and the controllers both call this.
Everything is synchronous and happens within one transaction, so there is nothing to lock.

Objects handed out are the caller's own: each read decodes afresh.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from podwire.lab.api import status
from podwire.lab.api.kinds.meta import now
from podwire.lab.api.kinds.namespace import NAMESPACE
from podwire.lab.api.lifecycle import (
    SERVER_OWNED,
    Preconditions,
    check_finalizers,
    check_namespace,
    check_preconditions,
    check_type,
    generated,
    may_go,
    merged,
    metadata_of,
)
from podwire.lab.api.registry import Object, ResourceKind
from podwire.lab.api.schema import Causes
from podwire.lab.api.selectors import Selection
from podwire.lab.api.store import Compacted, Key, Store, Stored

_SCAN = 500
_ORDER = ("apiVersion", "kind", "metadata", "spec", "status")


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, as encoded bodies. `next_after` is where the following part begins."""

    bodies: list[bytes]
    revision: int
    next_after: tuple[str, str] | None = None
    remaining: int | None = None


class Objects:
    """The objects of a cluster."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def revision(self) -> int:
        """The newest revision: what a list reports as resourceVersion."""
        return self._store.revision

    @property
    def oldest_revision(self) -> int:
        """The oldest revision from which a watch can still start."""
        return self._store.compacted

    def transaction(self) -> AbstractContextManager[None]:
        """Group several changes into one commit."""
        return self._store.transaction()

    # --- reading ---

    def get_body(self, kind: ResourceKind, namespace: str, name: str) -> bytes:
        """The encoded object; raises `NotFoundError`."""
        return self._stored(kind, namespace, name).body

    def get(self, kind: ResourceKind, namespace: str, name: str) -> Object:
        """The object; raises `NotFoundError`."""
        return _decode(self.get_body(kind, namespace, name))

    def find(self, kind: ResourceKind, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        stored = self._store.get(Key(kind.resource, namespace, name))
        return _decode(stored.body) if stored else None

    def list(
        self, kind: ResourceKind, namespace: str | None = None, selection: Selection | None = None
    ) -> list[Object]:
        """All selected objects (of a namespace), decoded."""
        found = (_decode(stored.body) for stored in self._store.scan(kind.resource, namespace))
        return [obj for obj in found if selection is None or selection.matches(obj)]

    def page(
        self,
        kind: ResourceKind,
        namespace: str | None = None,
        selection: Selection | None = None,
        *,
        limit: int = 0,
        at: int | None = None,
        after: tuple[str, str] = ("", ""),
    ) -> Page:
        """Selected objects beyond `after`, as of revision `at`; raises `GoneError`.

        Pages read at the revision of the first are together one consistent snapshot.
        """
        revision = self._store.revision if at is None else at
        bodies: list[bytes] = []
        last = after
        # One more than asked for tells whether there is a following page.
        step = -1 if not limit else max(limit + 1, _SCAN) if selection else limit + 1
        while True:
            try:
                found = self._store.scan(
                    kind.resource, namespace, at=revision, after=last, limit=step
                )
            except Compacted:
                raise status.expired(revision, self._store.compacted) from None
            for stored in found:
                if limit and len(bodies) == limit:
                    left = None
                    if not selection:
                        left = self._store.count(kind.resource, namespace, at=revision, after=last)
                    return Page(bodies, revision, last, left)
                last = (stored.key.namespace, stored.key.name)
                if not selection or selection.matches(_decode(stored.body)):
                    bodies.append(stored.body)
            if not limit or len(found) < step:
                return Page(bodies, revision)

    def _stored(self, kind: ResourceKind, namespace: str, name: str) -> Stored:
        stored = self._store.get(Key(kind.resource, namespace, name))
        if stored is None:
            raise status.not_found(kind, name)
        return stored

    # --- writing ---

    def create(
        self, kind: ResourceKind, namespace: str, obj: Object, *, dry_run: bool = False
    ) -> Object:
        """Validate, complete and store a new object, and return it as stored."""
        obj = copy.deepcopy(obj)
        metadata = metadata_of(kind, obj)
        check_type(kind, obj)
        check_namespace(kind, obj, namespace)
        if metadata.get("resourceVersion"):
            raise status.bad_request("resourceVersion should not be set on objects to be created")
        for name in SERVER_OWNED:
            metadata.pop(name, None)
        base = metadata.get("generateName")
        if not metadata.get("name") and isinstance(base, str) and base:
            metadata["name"] = generated(base)
        if kind.status_of_new == "reset":
            obj.pop("status", None)
        self._validate(kind, obj)
        if kind.namespaced:
            self._check_namespace_open(kind, namespace, metadata["name"])
        key = Key(kind.resource, namespace, metadata["name"])
        if self._store.get(key):
            raise status.already_exists(kind, metadata["name"])
        kind.prepare(obj)
        kind.schema.normalise(obj)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now()
        if kind.has_status:
            metadata["generation"] = 1
        return obj if dry_run else self._write(key, obj, None)

    def update(
        self,
        kind: ResourceKind,
        namespace: str,
        name: str,
        obj: Object,
        *,
        subresource: str = "",
        dry_run: bool = False,
    ) -> Object:
        """Replace an object, or its part `subresource`; raises `ConflictError` when stale."""
        return self.modify(
            kind, namespace, name, lambda old: obj, subresource=subresource, dry_run=dry_run
        )

    def modify(
        self,
        kind: ResourceKind,
        namespace: str,
        name: str,
        change: Callable[[Object], Object | None],
        *,
        subresource: str = "",
        dry_run: bool = False,
        trusted: bool = False,
    ) -> Object:
        """Replace an object by what `change` makes of it (None: it changed its argument in place).

        `trusted`: the server's own change, to which the rules against changing fields don't apply.
        A change that comes to nothing is not written.
        """
        stored = self._stored(kind, namespace, name)
        old = _decode(stored.body)
        asked = _decode(stored.body)
        asked = copy.deepcopy(change(asked) or asked)
        self._check_identity(kind, asked, old)
        check_namespace(kind, asked, namespace)
        new = merged(kind, old, asked, subresource)
        causes = Causes()
        if not trusted:
            check_finalizers(new, old, causes)
        self._validate(kind, new, causes)
        kind.schema.normalise(new)
        if not trusted and not subresource:
            kind.check_update(new, old, causes)
            if causes:
                raise status.invalid(kind, name, causes)
        if new == old:
            return old
        metadata = new["metadata"]
        if kind.has_status and new.get("spec") != old.get("spec"):
            metadata["generation"] = metadata.get("generation", 0) + 1
        if dry_run:
            return new
        if may_go(kind, new):
            return self._remove(stored, new)
        return self._write(stored.key, new, stored)

    def delete(
        self,
        kind: ResourceKind,
        namespace: str,
        name: str,
        *,
        grace_s: int | None = None,
        preconditions: Preconditions | None = None,
        dry_run: bool = False,
    ) -> tuple[Object, bool]:
        """Delete an object, at once or gracefully; returns it and whether it is gone.

        `grace_s`: seconds that whoever runs the object gets to end it, None for the kind's own.
        """
        stored = self._stored(kind, namespace, name)
        obj = _decode(stored.body)
        metadata = obj["metadata"]
        check_preconditions(kind, metadata, preconditions or Preconditions())
        if why := kind.check_delete(obj):
            raise status.forbidden(kind, name, why)
        grace = kind.grace_s(obj, grace_s)
        was_deleted = "deletionTimestamp" in metadata
        left = metadata.get("deletionGracePeriodSeconds") or 0
        if not was_deleted or grace < left:
            begin = datetime.fromisoformat(metadata["deletionTimestamp"] if was_deleted else now())
            end = begin + timedelta(seconds=grace - left)
            metadata["deletionTimestamp"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata["deletionGracePeriodSeconds"] = grace
            kind.mark_deleted(obj)
            if kind.has_status and not was_deleted:
                metadata["generation"] = metadata.get("generation", 0) + 1
        elif not may_go(kind, obj):
            return obj, False
        gone = may_go(kind, obj)
        if dry_run:
            return obj, gone
        if gone:
            return self._remove(stored, obj), True
        return self._write(stored.key, obj, stored), False

    # --- parts ---

    def _validate(self, kind: ResourceKind, obj: Object, causes: Causes | None = None) -> None:
        causes = causes or Causes()
        kind.schema.check(obj, "", causes)
        if not kind.namespaced and obj["metadata"].get("namespace"):
            causes.forbidden("metadata.namespace", "not allowed on this type")
        if causes:
            raise status.invalid(kind, str(obj["metadata"].get("name") or ""), causes)

    def _check_namespace_open(self, kind: ResourceKind, namespace: str, name: str) -> None:
        found = self.get(NAMESPACE, "", namespace)
        if "deletionTimestamp" in found["metadata"]:
            raise status.forbidden(
                kind,
                name,
                f"unable to create new content in namespace {namespace} "
                "because it is being terminated",
            )

    def _check_identity(self, kind: ResourceKind, asked: Object, old: Object) -> None:
        metadata, name = metadata_of(kind, asked), old["metadata"]["name"]
        check_type(kind, asked)
        if metadata.get("name", name) != name:
            raise status.bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL "
                f"({name})"
            )
        wanted = Preconditions(metadata.get("uid"), metadata.get("resourceVersion"))
        check_preconditions(kind, old["metadata"], wanted)

    def _write(self, key: Key, obj: Object, previous: Stored | None) -> Object:
        obj = _numbered(obj, self._store.revision + 1)
        self._store.put(key, msgspec.json.encode(obj), previous)
        return obj

    def _remove(self, stored: Stored, obj: Object) -> Object:
        obj = _numbered(obj, self._store.revision + 1)
        self._store.remove(stored, msgspec.json.encode(obj))
        return obj


def _decode(body: bytes) -> Object:
    obj: Object = msgspec.json.decode(body)
    return obj


def _numbered(obj: Object, revision: int) -> Object:
    """`obj` with that resourceVersion, its usual fields first."""
    obj["metadata"]["resourceVersion"] = str(revision)
    ordered = {name: obj[name] for name in _ORDER if name in obj}
    return ordered | obj
