"""OpenAPI v3 documents: what kubectl reads before it sends a manifest.

What lives here: pure functions from the registry to /openapi/v3 and the document of a group and
version. kubectl looks whether a kind's PATCH takes `fieldValidation`, and then leaves validation to
the server; `kubectl explain` prints the schemas.
Source: k8s.io/kubectl/pkg/cmd/util (query_param_verifier_v3), the OpenAPI specification 3.0.
"""

from __future__ import annotations

from typing import Any

from podwire import __version__
from podwire.lab.api.registry import Registry, ResourceKind
from podwire.lab.api.schema import (
    Boolean,
    Integer,
    Listing,
    Quantity,
    Record,
    Schema,
    StringMap,
    Text,
)

_QUERY = ("dryRun", "fieldManager", "fieldValidation")


def index(registry: Registry) -> dict[str, Any]:
    """The document at /openapi/v3."""
    paths = {}
    for group, versions in registry.groups().items():
        for version in versions:
            path = _root(group, version)
            url = f"/openapi/v3/{path}?hash={__version__}"
            paths[path] = {"serverRelativeURL": url}
    return {"paths": paths}


def document(registry: Registry, group: str, version: str) -> dict[str, Any] | None:
    """The document of a group and version, None when it isn't served."""
    kinds = registry.of_version(group, version)
    if not kinds:
        return None
    return {
        "openapi": "3.0.0",
        "info": {"title": "Podwire lab", "version": __version__},
        "paths": {path: item for kind in kinds for path, item in _paths(kind).items()},
        "components": {"schemas": {_schema_name(kind): _kind_schema(kind) for kind in kinds}},
    }


def _root(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _paths(kind: ResourceKind) -> dict[str, Any]:
    namespace = "/namespaces/{namespace}" if kind.namespaced else ""
    collection = f"/{_root(kind.group, kind.version)}{namespace}/{kind.plural}"
    return {
        collection: {"get": _operation(kind, "list"), "post": _operation(kind, "post", _QUERY)},
        f"{collection}/{{name}}": {
            "get": _operation(kind, "get"),
            "put": _operation(kind, "put", _QUERY),
            "patch": _operation(kind, "patch", (*_QUERY, "force")),
            "delete": _operation(kind, "delete", ("dryRun",)),
        },
    }


def _operation(kind: ResourceKind, action: str, query: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _identity(kind),
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": "string"}} for name in query
        ],
        "responses": {
            "200": {
                "description": "OK",
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"#/components/schemas/{_schema_name(kind)}"}
                    }
                },
            }
        },
    }


def _identity(kind: ResourceKind) -> dict[str, str]:
    return {"group": kind.group, "version": kind.version, "kind": kind.kind}


def _schema_name(kind: ResourceKind) -> str:
    """As Kubernetes names it: io.k8s.api.core.v1.Pod."""
    group = kind.group.removesuffix(".k8s.io") or "core"
    return f"io.k8s.api.{group}.{kind.version}.{kind.kind}"


def _kind_schema(kind: ResourceKind) -> dict[str, Any]:
    schema = _schema(kind.schema)
    text = {"type": "string"}
    schema["properties"] = {"apiVersion": text, "kind": text, **schema["properties"]}
    schema["x-kubernetes-group-version-kind"] = [_identity(kind)]
    return schema


def _schema(schema: Schema) -> dict[str, Any]:
    match schema:
        case Text(allowed=allowed):
            return {"type": "string", "enum": list(allowed)} if allowed else {"type": "string"}
        case Integer():
            return {"type": "integer", "format": "int64"}
        case Boolean():
            return {"type": "boolean"}
        case Quantity():
            return {"type": "string"}
        case StringMap(values=values):
            return {"type": "object", "additionalProperties": _schema(values)}
        case Listing(item=item, merge_key=merge_key):
            listing: dict[str, Any] = {"type": "array", "items": _schema(item)}
            if merge_key is not None:
                listing["x-kubernetes-patch-strategy"] = "merge"
            if merge_key:
                listing["x-kubernetes-patch-merge-key"] = merge_key
            return listing
        case Record(fields=fields):
            record: dict[str, Any] = {
                "type": "object",
                "properties": {name: _schema(field.schema) for name, field in fields.items()},
            }
            if needed := [name for name, field in fields.items() if field.required]:
                record["required"] = needed
            return record
    return {}
