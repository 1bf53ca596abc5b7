"""Documents as cluster-scoped custom resources of the group podwire.io: the value is the `spec`.

What lives here: `Documents` (podwire.model.documents) over a `KubeClient`. What does not: what is
in the specs (`ipam`). An object's resourceVersion is the revision; the definitions of the kinds are
in deploy/podwire.yaml, and a lab's API has them built in.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from podwire.cluster.kube.client import KubeClient
from podwire.cluster.kube.objects import WatchEvent
from podwire.cluster.kube.reflect import reflect
from podwire.cluster.kube.resources import IP_POOLS, IPAM_BLOCKS, IPAM_RANGES, Resource
from podwire.errors import (
    AlreadyExistsError,
    ApiError,
    ApiUnavailableError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    PodwireError,
    StoreUnavailableError,
)
from podwire.model.documents import Document, DocumentConflictError, DocumentKind

_RESOURCES: Mapping[DocumentKind, Resource] = {
    "ippools": IP_POOLS,
    "ipamblocks": IPAM_BLOCKS,
    "ipamranges": IPAM_RANGES,
}

#: Seconds that a call may take. A pod waits for it, and its runtime asks again.
_PATIENCE_S = 8.0
#: A list of thousands of blocks takes longer.
_LIST_PATIENCE_S = 30.0


class _Metadata(msgspec.Struct, gc=False):
    name: str
    resourceVersion: str  # noqa: N815  the API's own spelling


class _Object(msgspec.Struct, gc=False):
    metadata: _Metadata
    spec: msgspec.Raw = msgspec.Raw(b"{}")


class KubeDocuments:
    """The documents of one cluster."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def list(self, kind: DocumentKind) -> Mapping[str, Document]:
        async with _translated(kind, patience_s=_LIST_PATIENCE_S):
            listed = await self._client.list(_RESOURCES[kind], type=_Object)
        return _by_name(kind, listed.items)

    async def get(self, kind: DocumentKind, name: str) -> Document | None:
        try:
            async with _translated(kind):
                found = await self._client.get(_RESOURCES[kind], name, type=_Object)
        except NotFoundError:
            return None
        return _document(kind, found)

    async def create(self, kind: DocumentKind, name: str, value: bytes) -> Document:
        async with _translated(kind, writes=True):
            made = await self._client.create(_RESOURCES[kind], _body(kind, name, value))
        return Document(kind, name, value, made["metadata"]["resourceVersion"])

    async def replace(self, document: Document, value: bytes) -> Document:
        body = _body(document.kind, document.name, value, document.revision)
        try:
            async with _translated(document.kind, writes=True):
                made = await self._client.update(_RESOURCES[document.kind], body)
        except NotFoundError as error:
            raise DocumentConflictError(f"{document.name} is gone") from error
        revision = made["metadata"]["resourceVersion"]
        return Document(document.kind, document.name, value, revision)

    async def delete(self, document: Document) -> None:
        resource = _RESOURCES[document.kind]
        try:
            async with _translated(document.kind, writes=True):
                await self._client.delete(
                    resource, document.name, resource_version=document.revision
                )
        except NotFoundError as error:
            raise DocumentConflictError(f"{document.name} is gone") from error

    async def watch(
        self, kind: DocumentKind, tell: Callable[[Mapping[str, Document]], None]
    ) -> NoReturn:
        known: dict[str, Document] = {}

        def synced(items: Sequence[_Object]) -> None:
            known.clear()
            known.update(_by_name(kind, items))
            tell(dict(known))

        def changed(event: WatchEvent[_Object]) -> None:
            document = _document(kind, event.object)
            if event.type == "DELETED":
                known.pop(document.name, None)
            else:
                known[document.name] = document
            tell(dict(known))

        await reflect(
            self._client, _RESOURCES[kind], on_sync=synced, on_event=changed, type=_Object
        )


def _by_name(kind: DocumentKind, items: Sequence[_Object]) -> dict[str, Document]:
    return {one.metadata.name: _document(kind, one) for one in items}


def _document(kind: DocumentKind, found: _Object) -> Document:
    return Document(kind, found.metadata.name, bytes(found.spec), found.metadata.resourceVersion)


def _body(
    kind: DocumentKind, name: str, value: bytes, revision: str | None = None
) -> dict[str, Any]:
    resource = _RESOURCES[kind]
    metadata = {"name": name}
    if revision is not None:
        metadata["resourceVersion"] = revision
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": metadata,
        "spec": msgspec.Raw(value),
    }


@contextlib.asynccontextmanager
async def _translated(
    kind: DocumentKind, *, writes: bool = False, patience_s: float = _PATIENCE_S
) -> AsyncIterator[None]:
    """The API's errors as those of documents; a NotFoundError of one object stays as it is."""
    try:
        async with asyncio.timeout(patience_s):
            yield
    except (ConflictError, AlreadyExistsError) as error:
        raise DocumentConflictError(error.message) from error
    except TimeoutError as error:
        raise StoreUnavailableError(
            f"the Kubernetes API did not answer within {patience_s:.0f} s",
            may_have_happened=writes,
        ) from error
    except ApiUnavailableError as error:
        raise StoreUnavailableError(
            error.message, remedy=error.remedy, may_have_happened=writes
        ) from error
    except ForbiddenError as error:
        raise PodwireError(
            error.message, remedy="give the agent the ClusterRole of deploy/podwire.yaml"
        ) from error
    except NotFoundError as error:
        if error.details.get("name"):
            raise
        raise PodwireError(
            f"the cluster has no {kind}.podwire.io: {error.message}",
            remedy="create the CustomResourceDefinitions of deploy/podwire.yaml",
        ) from error
    except ApiError as error:
        if error.status != 429 and error.status < 500:
            raise
        raise StoreUnavailableError(
            error.message, remedy=error.remedy, may_have_happened=writes
        ) from error
