"""The parts of an object's life that need no store, as pure functions.

What lives here: what a request must agree with (type, namespace, preconditions), which part of an
object an update may write, and when a deleted object is gone. `objects` puts them together.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from podwire.lab.api import status
from podwire.lab.api.registry import Object, ResourceKind
from podwire.lab.api.schema import Causes

SERVER_OWNED = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "resourceVersion",
    "selfLink",
    "managedFields",
)
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_GENERATED_BASE = 58


@dataclass(frozen=True, slots=True)
class Preconditions:
    """What must be true of the object for a deletion to happen."""

    uid: str | None = None
    resource_version: str | None = None


def metadata_of(kind: ResourceKind, obj: Object) -> dict[str, Any]:
    """The object's metadata, made if absent; raises `InvalidError` when it is no object."""
    if obj.get("metadata") is None:
        obj["metadata"] = {}
    if not isinstance(obj["metadata"], dict):
        causes = Causes()
        causes.wrong_type("metadata", obj["metadata"], "an object")
        raise status.invalid(kind, "", causes)
    metadata: dict[str, Any] = obj["metadata"]
    return metadata


def check_type(kind: ResourceKind, obj: Object) -> None:
    """The body must say what it is, and be what the path says; it then does."""
    given = (obj.get("apiVersion"), obj.get("kind"))
    if given != (kind.api_version, kind.kind):
        raise status.bad_request(
            f"the object provided is {given[1] or 'of no kind'} in {given[0] or 'no apiVersion'}, "
            f"this path takes {kind.kind} in {kind.api_version}"
        )


def check_namespace(kind: ResourceKind, obj: Object, namespace: str) -> None:
    """The body's namespace, if it names one, must be the path's; it then does name it."""
    if not kind.namespaced:
        return
    given = obj["metadata"].get("namespace")
    if given and given != namespace:
        raise status.bad_request(
            f"the namespace of the provided object ({given}) does not match the namespace sent on "
            f"the request ({namespace})"
        )
    obj["metadata"]["namespace"] = namespace


def check_preconditions(
    kind: ResourceKind, metadata: dict[str, Any], wanted: Preconditions
) -> None:
    """Raise `ConflictError` unless the object's metadata are as wanted."""
    name = metadata["name"]
    if wanted.uid and wanted.uid != metadata["uid"]:
        why = f"UID in precondition: {wanted.uid}, UID in object meta: {metadata['uid']}"
        raise status.conflict(kind, name, f"Precondition failed: {why}")
    if wanted.resource_version not in (None, "", "0", metadata["resourceVersion"]):
        why = "the object has been modified; please apply your changes to the latest version"
        raise status.conflict(kind, name, f"{why} and try again")


def check_finalizers(new: Object, old: Object, causes: Causes) -> None:
    """A deleted object takes no further finalizers."""
    if "deletionTimestamp" not in old["metadata"]:
        return
    before = old["metadata"].get("finalizers") or []
    after = new["metadata"].get("finalizers")
    added = [name for name in after if name not in before] if isinstance(after, list) else []
    if added:
        why = f"no new finalizers can be added if the object is being deleted, found: {added}"
        causes.forbidden("metadata.finalizers", why)


def merged(kind: ResourceKind, old: Object, asked: Object, subresource: str) -> Object:
    """What the update makes: the part that may be written from `asked`, the rest from `old`."""
    if subresource == "finalize":
        spec = asked.get("spec")
        finalizers = spec.get("finalizers") if isinstance(spec, dict) else None
        return {**old, "spec": {**(old.get("spec") or {}), "finalizers": finalizers or []}}
    if subresource == "status":
        # Metadata goes along, as in Kubernetes: Flannel writes its annotations this way.
        new = {**old, "metadata": asked["metadata"], "status": asked.get("status") or {}}
    else:
        new = asked
        if kind.has_status:
            new = {name: value for name, value in asked.items() if name != "status"}
            if "status" in old:
                new["status"] = old["status"]
    metadata = {k: v for k, v in new["metadata"].items() if k not in SERVER_OWNED}
    metadata |= {k: old["metadata"][k] for k in SERVER_OWNED if k in old["metadata"]}
    metadata["name"] = old["metadata"]["name"]
    return {**new, "metadata": metadata}


def may_go(kind: ResourceKind, obj: Object) -> bool:
    """Whether a deleted object has nothing left to wait for."""
    metadata = obj["metadata"]
    return (
        "deletionTimestamp" in metadata
        and not metadata.get("deletionGracePeriodSeconds")
        and not metadata.get("finalizers")
        and not kind.lingers(obj)
    )


def generated(base: str) -> str:
    """A name that begins with `base`, a generateName."""
    return base[:_GENERATED_BASE] + "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))
