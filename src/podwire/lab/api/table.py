"""Lists and objects in the forms that clients can ask for: Table and PartialObjectMetadata.

What lives here: pure transformations. Source: k8s.io/apimachinery/pkg/apis/meta/v1 (Table).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from podwire.lab.api.registry import Object, ResourceKind


def table(
    kind: ResourceKind,
    objects: Iterable[Object],
    list_metadata: dict[str, Any],
    include: str = "Metadata",
) -> dict[str, Any]:
    """A meta.k8s.io/v1 Table; `include` is what each row carries: None, Metadata or Object."""
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata,
        "columnDefinitions": [
            {
                "name": column.name,
                "type": column.type,
                "format": "name" if column.name == "Name" else "",
                "description": column.description,
                "priority": int(column.wide),
            }
            for column in kind.columns
        ],
        "rows": [_row(kind, obj, include) for obj in objects],
    }


def _row(kind: ResourceKind, obj: Object, include: str) -> dict[str, Any]:
    row: dict[str, Any] = {"cells": [column.value(obj) for column in kind.columns]}
    if include == "Object":
        row["object"] = obj
    elif include == "Metadata":
        row["object"] = partial(obj)
    return row


def partial(obj: Object) -> dict[str, Any]:
    """The object's metadata, as an object of its own."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": obj["metadata"],
    }


def partial_list(objects: Iterable[Object], list_metadata: dict[str, Any]) -> dict[str, Any]:
    """The objects' metadata, as a list."""
    return {
        "kind": "PartialObjectMetadataList",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata,
        "items": [partial(obj) for obj in objects],
    }
