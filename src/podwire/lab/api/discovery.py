"""Discovery: what the server serves, told to clients.

What lives here: pure functions from the registry to the documents at /version, /api, /apis and
below. Source: k8s.io/apimachinery/pkg/apis/meta/v1 (APIVersions, APIGroupList, APIResourceList).
"""

from __future__ import annotations

import platform
from typing import Any

from podwire import __version__
from podwire.lab.api.registry import Registry, ResourceKind

_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_SUBRESOURCE_KINDS = {
    "exec": ("", "v1", "PodExecOptions"),
    "binding": ("", "v1", "Binding"),
}


def version() -> dict[str, str]:
    """The document at /version: the Kubernetes version whose protocol this is, and ours."""
    return {
        "major": "1",
        "minor": "32",
        "gitVersion": f"v1.32.0+podwire.{__version__}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": platform.python_implementation().lower(),
        "platform": f"linux/{platform.machine()}",
    }


def core_versions(registry: Registry, address: str) -> dict[str, Any]:
    """The document at /api; `address` is HOST:PORT as the client wrote it."""
    return {
        "kind": "APIVersions",
        "versions": registry.groups().get("", []),
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group_list(registry: Registry) -> dict[str, Any]:
    """The document at /apis."""
    groups = [_group(registry, name) for name in registry.groups() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(registry: Registry, name: str) -> dict[str, Any] | None:
    """The document at /apis/GROUP, None when there is no such group."""
    if not name or name not in registry.groups():
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(registry, name)}


def _group(registry: Registry, name: str) -> dict[str, Any]:
    versions = [
        {"groupVersion": f"{name}/{version}", "version": version}
        for version in registry.groups()[name]
    ]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def resource_list(registry: Registry, group: str, version: str) -> dict[str, Any] | None:
    """The document at /api/VERSION or /apis/GROUP/VERSION, None when it isn't served."""
    kinds = registry.of_version(group, version)
    if not kinds:
        return None
    resources: list[dict[str, Any]] = []
    for kind in kinds:
        resources.append(_resource(kind))
        resources += [_subresource(kind, name) for name in sorted(kind.subresources)]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": kinds[0].api_version,
        "resources": resources,
    }


def _resource(kind: ResourceKind) -> dict[str, Any]:
    resource: dict[str, Any] = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(_VERBS),
    }
    if kind.short_names:
        resource["shortNames"] = list(kind.short_names)
    if kind.categories:
        resource["categories"] = list(kind.categories)
    return resource


def _subresource(kind: ResourceKind, name: str) -> dict[str, Any]:
    resource = {
        "name": f"{kind.plural}/{name}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.subresources[name]),
    }
    if name in _SUBRESOURCE_KINDS:
        resource["group"], resource["version"], resource["kind"] = _SUBRESOURCE_KINDS[name]
    return resource
