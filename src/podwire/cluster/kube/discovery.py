"""Which kinds a server has, by asking it.

Only the preferred version of each group is looked at, as kubectl does for a bare kind. A group
that does not answer (an aggregated API that is down) is left out rather than failing the rest.
"""

from __future__ import annotations

import asyncio

import msgspec

from podwire.cluster.kube.client import KubeClient
from podwire.cluster.kube.objects import decode
from podwire.cluster.kube.resources import Resource
from podwire.errors import ApiError


class _ApiResource(msgspec.Struct, rename="camel"):
    name: str
    kind: str
    namespaced: bool
    short_names: list[str] | None = None


class _ResourceList(msgspec.Struct):
    resources: list[_ApiResource] | None = None


class _Version(msgspec.Struct, rename="camel"):
    group_version: str


class _Group(msgspec.Struct, rename="camel"):
    preferred_version: _Version


class _GroupList(msgspec.Struct):
    groups: list[_Group] | None = None


async def discover(client: KubeClient) -> list[Resource]:
    """Every kind that `client`'s server serves, the core group's first."""
    groups = decode(await client.raw("/apis"), _GroupList).groups or []
    versions = ["v1", *(group.preferred_version.group_version for group in groups)]
    lists = await asyncio.gather(*(_resources(client, version) for version in versions))
    return [resource for resources in lists for resource in resources]


async def _resources(client: KubeClient, group_version: str) -> list[Resource]:
    group, _, version = group_version.rpartition("/")
    try:
        body = await client.raw(f"/apis/{group_version}" if group else f"/api/{version}")
    except ApiError:
        return []
    return [
        Resource(
            group,
            version,
            resource.name,
            resource.kind,
            resource.namespaced,
            tuple(resource.short_names or ()),
        )
        for resource in decode(body, _ResourceList).resources or ()
        if "/" not in resource.name  # a subresource
    ]
