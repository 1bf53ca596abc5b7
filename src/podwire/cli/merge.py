"""The three-way merge behind `apply`, as pure functions on JSON values.

    original   what was applied last time (from the annotation)
    modified   what the manifest says now
    current    what the server has: defaults, status, other people's fields

A field in the manifest wins; a field that was in the last manifest and is not in this one is
removed; everything else is left as it is. `apply` then sends the difference between current and
wanted as a JSON merge patch, which any server takes.

A JSON merge patch replaces lists whole, so lists of objects are merged here, item by item, by the
key that Kubernetes declares for them (`patchMergeKey` in k8s.io/api): otherwise applying a pod
would drop the volume mounts that the server added to its containers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Annotation that holds the manifest applied last, as JSON."""

Json = Any
Place = tuple[str, str]
"""The names of a list and of the object that holds it."""

_KEYS_BY_NAME: dict[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "taints": "key",
    "conditions": "type",
    "ownerReferences": "uid",
}
_KEYS_BY_PLACE: dict[Place, str] = {
    ("containers", "ports"): "containerPort",
    ("initContainers", "ports"): "containerPort",
    ("spec", "ports"): "port",
}
"""Where the name alone does not tell: the ports of a container and of a Service."""


def without_nulls(value: Json) -> Json:
    """`value` without fields that are null, which in a manifest is the same as not there."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def three_way(
    original: Mapping[str, Json], modified: Mapping[str, Json], current: Mapping[str, Json]
) -> dict[str, Json]:
    """What `current` should become. None of the three may hold nulls in `modified`."""
    return _merge_maps(original, modified, current, "")


def merge_patch(current: Mapping[str, Json], wanted: Mapping[str, Json]) -> dict[str, Json]:
    """The JSON merge patch (RFC 7386) that turns `current` into `wanted`; {} when equal."""
    patch: dict[str, Json] = {key: None for key in current if key not in wanted}
    for key, value in wanted.items():
        present = current.get(key)
        if isinstance(value, dict) and isinstance(present, dict):
            below = merge_patch(present, value)
            if below:
                patch[key] = below
        elif key not in current or not same(present, value):
            patch[key] = value
    return patch


def same(left: Json, right: Json) -> bool:
    """Equality as JSON has it: unlike in Python, `true` is not 1. 1 and 1.0 are the same."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _merge_maps(
    original: Mapping[str, Json],
    modified: Mapping[str, Json],
    current: Mapping[str, Json],
    place: str,
) -> dict[str, Json]:
    merged = {
        key: value for key, value in current.items() if key in modified or key not in original
    }
    for key, value in modified.items():
        merged[key] = _merge_values(original.get(key), value, current.get(key), (place, key))
    return merged


def _merge_values(original: Json, modified: Json, current: Json, place: Place) -> Json:
    if isinstance(modified, dict):
        before = original if isinstance(original, dict) else {}
        present = current if isinstance(current, dict) else {}
        return _merge_maps(before, modified, present, place[1])
    key = _KEYS_BY_PLACE.get(place) or _KEYS_BY_NAME.get(place[1])
    if key is not None and _is_keyed(modified, key) and _is_keyed(current, key):
        before_items = original if _is_keyed(original, key) else []
        return _merge_lists(before_items, modified, current, key, place[1])
    return modified


def _merge_lists(
    original: Sequence[Json],
    modified: Sequence[Json],
    current: Sequence[Json],
    key: str,
    place: str,
) -> list[Json]:
    """Items of the manifest in its order, then those that others added, in theirs."""
    before = {item[key]: item for item in original}
    present = {item[key]: item for item in current}
    wanted = {item[key] for item in modified}
    merged = [
        _merge_maps(before.get(item[key], {}), item, present.get(item[key], {}), place)
        for item in modified
    ]
    added = [item for item in current if item[key] not in wanted and item[key] not in before]
    return merged + added


def _is_keyed(value: Json, key: str) -> bool:
    """Whether `value` is a list of objects that `key` tells apart."""
    if not isinstance(value, list):
        return False
    names = [item.get(key) for item in value if isinstance(item, dict)]
    known = [name for name in names if isinstance(name, str | int)]
    return len(known) == len(value) == len(set(known))
