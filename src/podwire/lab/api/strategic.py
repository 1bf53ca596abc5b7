"""Strategic merge patch: a merge patch that merges lists by key.

What lives here: Kubernetes' own patch format, guided by a kind's schema: a `Listing` with a
`merge_key` is matched element by element, any other list is replaced. Arguments are not modified.

Directives, as `kubectl apply` and `kubectl edit` send them:
  {"$patch": "delete", KEY: ...}       in a keyed list: remove the element; in an object: empty it
  {"$patch": "replace", ...}           replace the object, or the whole list, by what stands beside
  "$deleteFromPrimitiveList/NAME"      remove these values from the list NAME
  "$setElementOrder/NAME"              the order of the merged list NAME
  "$retainKeys"                        drop all fields but these
Source: k8s.io/apimachinery/pkg/util/strategicpatch, and the API conventions' document on it.
"""

from __future__ import annotations

import copy
from typing import Any

from podwire.lab.api.patching import PatchError
from podwire.lab.api.schema import Listing, Record, Schema, StringMap

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"


def strategic_merge(target: Any, patch: Any, schema: Schema) -> Any:
    """`target` with `patch` merged in, lists as `schema` says; raises `PatchError`."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    directive = patch.get(_PATCH)
    if directive == "delete":
        return {}
    if directive == "replace":
        return _plain({name: value for name, value in patch.items() if name != _PATCH})
    if directive not in (None, "merge"):
        raise PatchError(f'unknown directive $patch: "{directive}"')
    merged: dict[str, Any] = dict(target) if isinstance(target, dict) else {}
    if _RETAIN in patch:
        retained = patch[_RETAIN]
        if not isinstance(retained, list):
            raise PatchError("$retainKeys must be an array of field names")
        merged = {name: value for name, value in merged.items() if name in retained}
    for name, value in patch.items():
        if name.startswith("$"):
            continue
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _field(merged.get(name), value, _schema_of(schema, name))
    _list_directives(merged, patch, schema)
    return merged


def _field(target: Any, value: Any, schema: Schema) -> Any:
    if isinstance(value, dict):
        return strategic_merge(target, value, schema)
    if isinstance(value, list):
        if not isinstance(schema, Listing) or schema.merge_key is None:
            return [_plain(element) for element in value if not _is_directive(element)]
        existing = target if isinstance(target, list) else []
        if schema.merge_key == "":
            return existing + [element for element in value if element not in existing]
        return _keyed(existing, value, schema.merge_key, schema.item)
    return value


def _keyed(target: list[Any], patch: list[Any], key: str, item: Schema) -> list[Any]:
    if any(_is_directive(element, "replace") for element in patch):
        return [_plain(element) for element in patch if not _is_directive(element)]
    merged = list(target)
    for element in patch:
        if not isinstance(element, dict) or key not in element:
            raise PatchError(f'each element must be an object with the merge key "{key}"')
        position = _position(merged, key, element[key])
        if element.get(_PATCH) == "delete":
            if position is not None:
                del merged[position]
        elif position is None:
            merged.append(strategic_merge({}, element, item))
        else:
            merged[position] = strategic_merge(merged[position], element, item)
    return merged


def _list_directives(merged: dict[str, Any], patch: dict[str, Any], schema: Schema) -> None:
    """Apply the directives that sit beside a list and name it."""
    for directive, value in patch.items():
        if directive.startswith((_DELETE, _ORDER)) and not isinstance(value, list):
            raise PatchError(f"{directive} must be an array")
        if directive.startswith(_DELETE):
            name = directive.removeprefix(_DELETE)
            if isinstance(merged.get(name), list):
                merged[name] = [element for element in merged[name] if element not in value]
        elif directive.startswith(_ORDER):
            name = directive.removeprefix(_ORDER)
            listing = _schema_of(schema, name)
            if isinstance(merged.get(name), list) and isinstance(listing, Listing):
                merged[name] = _ordered(merged[name], value, listing.merge_key or "")


def _ordered(elements: list[Any], order: list[Any], key: str) -> list[Any]:
    """The elements that `order` names, in its order; the others keep their positions."""

    def identity(element: Any) -> Any:
        return element.get(key) if key and isinstance(element, dict) else element

    wanted = [identity(element) for element in order]
    named = sorted(
        (element for element in elements if identity(element) in wanted),
        key=lambda element: wanted.index(identity(element)),
    )
    for position, element in enumerate(elements):
        if identity(element) not in wanted:
            named.insert(min(position, len(named)), element)
    return named


def _position(elements: list[Any], key: str, value: Any) -> int | None:
    for index, element in enumerate(elements):
        if isinstance(element, dict) and element.get(key) == value:
            return index
    return None


def _is_directive(element: Any, which: str | None = None) -> bool:
    """Whether a list element is nothing but `{"$patch": ...}`."""
    if not isinstance(element, dict) or set(element) != {_PATCH}:
        return False
    return which is None or element[_PATCH] == which


def _plain(value: Any) -> Any:
    """`value` without directives and nulls, as it lands where nothing was."""
    if isinstance(value, dict):
        return {
            name: _plain(item)
            for name, item in value.items()
            if not name.startswith("$") and item is not None
        }
    if isinstance(value, list):
        return [_plain(item) for item in value if not _is_directive(item)]
    return value


def _schema_of(schema: Schema, name: str) -> Schema:
    if isinstance(schema, Record) and name in schema.fields:
        return schema.fields[name].schema
    return schema.values if isinstance(schema, StringMap) else Schema()
