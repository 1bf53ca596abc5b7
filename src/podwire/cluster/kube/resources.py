"""Kinds of the Kubernetes API and the URL paths of their objects.

What lives here: `Resource` (a kind and where it is served), the ones Podwire itself uses, and
path building. Kinds that only the server knows come from discovery (`discovery.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from podwire.errors import InputError


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind and where it is served. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    short_names: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        """As objects write it: `v1`, `coordination.k8s.io/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        """The lower-case kind, as in `pod/a`; with the group where it is not the core one."""
        return self.kind.lower()

    @property
    def qualified_name(self) -> str:
        """How kubectl prefixes object names: `pod`, `lease.coordination.k8s.io`."""
        return f"{self.singular}.{self.group}" if self.group else self.singular

    def names(self) -> tuple[str, ...]:
        """Every lower-case word that a person may type for this kind."""
        words = (self.plural, self.singular, *self.short_names)
        return words + tuple(f"{word}.{self.group}" for word in words[:2] if self.group)

    def path(
        self, namespace: str | None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """URL path of the collection, of one object in it, or of an object's subresource.

        A namespaced kind with `namespace` None is the collection across all namespaces.
        Raises `InputError` for a name that could leave its place in the path.
        """
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", _segment(namespace, "metadata.namespace")]
        parts.append(self.plural)
        if name is not None:
            if self.namespaced and namespace is None:
                raise InputError(f'{self.kind} "{name}" needs one', field="metadata.namespace")
            parts.append(_segment(name, "metadata.name"))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


def _segment(value: str, field: str) -> str:
    """`value` as one segment of a path. Source: `IsValidPathSegmentName` of apimachinery."""
    if value in ("", ".", "..") or "/" in value or "%" in value:
        raise InputError(f"{value!r} cannot be the name of an object", field=field)
    return quote(value, safe=":")


NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False, ("ns",))
NODES = Resource("", "v1", "nodes", "Node", False, ("no",))
PODS = Resource("", "v1", "pods", "Pod", True, ("po",))
CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap", True, ("cm",))
EVENTS = Resource("", "v1", "events", "Event", True, ("ev",))
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", True)
IP_POOLS = Resource("podwire.io", "v1alpha1", "ippools", "IPPool", False)
IPAM_BLOCKS = Resource("podwire.io", "v1alpha1", "ipamblocks", "IPAMBlock", False)
IPAM_RANGES = Resource("podwire.io", "v1alpha1", "ipamranges", "IPAMRange", False)

BUILT_IN = (PODS, NODES, NAMESPACES, CONFIGMAPS, EVENTS, LEASES)
"""Kinds known without asking the server."""


def find_by_word(word: str, resources: Iterable[Resource] = BUILT_IN) -> Resource | None:
    """The kind that a person means by `word` (`po`, `pods`, `Pod`), or None."""
    wanted = word.lower()
    return next((resource for resource in resources if wanted in resource.names()), None)


def find_by_kind(
    api_version: str, kind: str, resources: Iterable[Resource] = BUILT_IN
) -> Resource | None:
    """The kind that an object's `apiVersion` and `kind` name, or None."""
    return next(
        (
            resource
            for resource in resources
            if resource.kind == kind and resource.api_version == api_version
        ),
        None,
    )
