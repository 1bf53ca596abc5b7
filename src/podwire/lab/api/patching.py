"""Merge patch (RFC 7386) and JSON patch (RFC 6902), as functions on JSON values.

What lives here: the two standard patch formats. The third, Kubernetes' own, is `strategic`. None of
them knows objects, and none modifies its arguments.
"""

from __future__ import annotations

import copy
from typing import Any


class PatchError(Exception):
    """The patch is malformed, or does not apply to the document."""


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: objects merge, null deletes, everything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def json_patch(document: Any, operations: Any) -> Any:
    """RFC 6902: the operations in order; raises `PatchError` naming the one that fails."""
    if not isinstance(operations, list):
        raise PatchError("a JSON patch is an array of operations")
    document = copy.deepcopy(document)
    for index, operation in enumerate(operations):
        try:
            document = _apply(document, operation)
        except PatchError as error:
            raise PatchError(f"operation {index}: {error}") from None
    return document


def _apply(document: Any, operation: Any) -> Any:
    if not isinstance(operation, dict):
        raise PatchError("must be an object")
    verb, path = operation.get("op"), _tokens(operation.get("path"))
    if verb in ("add", "replace", "test") and "value" not in operation:
        raise PatchError(f'"{verb}" needs a value')
    match verb:
        case "add":
            return _add(document, path, copy.deepcopy(operation["value"]))
        case "remove":
            return _remove(document, path)[0]
        case "replace":
            if not path:
                return copy.deepcopy(operation["value"])
            document, _ = _remove(document, path)
            return _add(document, path, copy.deepcopy(operation["value"]))
        case "move":
            source = _tokens(operation.get("from"), "from")
            if path[: len(source)] == source and path != source:
                raise PatchError("cannot move a value into itself")
            document, value = _remove(document, source)
            return _add(document, path, value)
        case "copy":
            value = _find(document, _tokens(operation.get("from"), "from"))
            return _add(document, path, copy.deepcopy(value))
        case "test":
            if not _equal(_find(document, path), operation["value"]):
                raise PatchError(f'test failed at "{operation["path"]}"')
            return document
    raise PatchError(f'unknown op "{verb}": expected add, remove, replace, move, copy or test')


def _tokens(pointer: Any, name: str = "path") -> list[str]:
    """RFC 6901."""
    if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
        raise PatchError(f'"{name}" must be a JSON pointer, such as /metadata/labels/app')
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def _index(array: list[Any], step: str, *, end: bool = False) -> int:
    if step == "-" and end:
        return len(array)
    if not step.isascii() or not step.isdigit() or (len(step) > 1 and step[0] == "0"):
        raise PatchError(f'"{step}" is not an array index')
    index = int(step)
    if index > len(array) - (not end):
        raise PatchError(f"index {index} is out of range")
    return index


def _find(document: Any, path: list[str]) -> Any:
    for token in path:
        if isinstance(document, list):
            document = document[_index(document, token)]
        elif isinstance(document, dict) and token in document:
            document = document[token]
        else:
            raise PatchError(f'there is no "{token}"')
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _find(document, path[:-1])
    if isinstance(parent, list):
        parent.insert(_index(parent, path[-1], end=True), value)
    elif isinstance(parent, dict):
        parent[path[-1]] = value
    else:
        raise PatchError(f'cannot add "{path[-1]}" to a {type(parent).__name__}')
    return document


def _remove(document: Any, path: list[str]) -> tuple[Any, Any]:
    if not path:
        return None, document
    value = _find(document, path)
    parent = _find(document, path[:-1])
    if isinstance(parent, list):
        del parent[_index(parent, path[-1])]
    else:
        del parent[path[-1]]
    return document, value


def _equal(one: Any, other: Any) -> bool:
    """JSON equality: unlike Python's, true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
