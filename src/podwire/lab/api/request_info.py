"""What a path means: group, version, namespace, resource, name, subresource.

Source: k8s.io/apiserver/pkg/endpoints/request/requestinfo.go.
"""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """What a resource path addresses. `namespace` None: not in the path; "" never occurs."""

    group: str
    version: str
    namespace: str | None
    plural: str
    name: str
    subresource: str


def parse_target(parts: list[str]) -> Target | None:
    """The target of a path's segments, beginning with `api` or `apis`; None if it has none."""
    if not all(parts):
        return None
    if parts[0] == "api":
        group, version, rest = "", parts[1] if len(parts) > 1 else "", parts[2:]
    elif parts[0] == "apis" and len(parts) > 2:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = None
    # namespaces/NAME, namespaces/NAME/status and /finalize are the Namespace itself.
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    if not 1 <= len(rest) <= 3:
        return None
    plural, name, subresource = [*rest, "", ""][:3]
    return Target(group, version, namespace, plural, name, subresource)
