"""Small documents that all nodes share and change by compare-and-swap: the face of their store.

What lives here: the `Documents` protocol, the values that cross it, and the error of a lost race.
What does not: any store (`cluster.kube.documents`: custom resources; `cluster.etcd.documents`:
keys), nor what is in the documents (`ipam`).

A document is JSON bytes under a kind and a name, with the revision that its last writer made. Who
writes says which revision it has read, and is refused where somebody else was faster: it reads
again and decides anew. Nothing spans two documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NoReturn, Protocol, TypeAlias

import msgspec

from podwire.errors import PodwireError

#: The kinds of documents there are; in Kubernetes the plurals of custom resources.
DocumentKind: TypeAlias = Literal["ippools", "ipamblocks", "ipamranges"]


class DocumentConflictError(PodwireError):
    """The document was changed, created or deleted by somebody else meanwhile: read it again."""


class Document(msgspec.Struct, frozen=True, gc=False):
    """A document as it was read or written.

    `name` is a DNS subdomain (RFC 1123). `value` is a JSON object. `revision` means something to
    its store only: two are the same or not.
    """

    kind: DocumentKind
    name: str
    value: bytes
    revision: str


class Documents(Protocol):
    """A store of documents.

    All but `watch` fail within seconds while the store is away, with StoreUnavailableError: where
    its `may_have_happened` is true, a write may have been done nevertheless. What the store does
    not allow or can't do is another PodwireError.
    """

    async def list(self, kind: DocumentKind) -> Mapping[str, Document]:
        """All documents of a kind by name, as they were at one moment."""
        ...

    async def get(self, kind: DocumentKind, name: str) -> Document | None:
        """The newest version of one document, None where there is none."""
        ...

    async def create(self, kind: DocumentKind, name: str, value: bytes) -> Document:
        """Write a document that is not there yet. Raises DocumentConflictError where it is."""
        ...

    async def replace(self, document: Document, value: bytes) -> Document:
        """Write `value` in place of `document`.

        Raises DocumentConflictError where that is not the newest version, or gone.
        """
        ...

    async def delete(self, document: Document) -> None:
        """Delete that very version. Raises DocumentConflictError where it is not the newest.

        Deleting what is gone already is that, too.
        """
        ...

    async def watch(
        self, kind: DocumentKind, tell: Callable[[Mapping[str, Document]], None]
    ) -> NoReturn:
        """Tell all documents of a kind, at first and after every change, for ever.

        Changes that come together may be told as one. Tries again by itself while the store is
        away. For kinds that are small: pools and ranges. `tell` must not wait, and what it raises
        ends the watch; the mapping is its own.
        """
        ...
