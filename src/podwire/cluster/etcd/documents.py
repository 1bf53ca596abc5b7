"""Documents as keys: PREFIX/addresses/KIND/NAME, the revision is the key's.

What lives here: `Documents` (podwire.model.documents) over an `EtcdClient`. What does not: what is
in the documents (`ipam`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

from podwire.cluster.etcd.client import EtcdClient, Listing
from podwire.cluster.etcd.layout import Layout
from podwire.cluster.etcd.messages import Change, Json, KeyValue, delete, end_of, is_at, put
from podwire.cluster.etcd.mirror import mirror
from podwire.model.documents import Document, DocumentConflictError, DocumentKind


class EtcdDocuments:
    """The documents below one prefix."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._layout = Layout(client.config.prefix)

    async def list(self, kind: DocumentKind) -> Mapping[str, Document]:
        prefix = self._prefix(kind)
        return self._by_name(kind, (await self._client.range(prefix, end_of(prefix))).kvs)

    async def get(self, kind: DocumentKind, name: str) -> Document | None:
        kv = await self._client.get(self._key(kind, name))
        return self._document(kind, kv) if kv is not None else None

    async def create(self, kind: DocumentKind, name: str, value: bytes) -> Document:
        operation = put(self._key(kind, name), value)
        revision = await self._change(Document(kind, name, b"", "0"), operation)
        return Document(kind, name, value, revision)

    async def replace(self, document: Document, value: bytes) -> Document:
        operation = put(self._key(document.kind, document.name), value)
        revision = await self._change(document, operation)
        return Document(document.kind, document.name, value, revision)

    async def delete(self, document: Document) -> None:
        await self._change(document, delete(self._key(document.kind, document.name)))

    async def watch(
        self, kind: DocumentKind, tell: Callable[[Mapping[str, Document]], None]
    ) -> NoReturn:
        known: dict[str, Document] = {}
        prefix = self._prefix(kind)

        def synced(listing: Listing) -> None:
            known.clear()
            known.update(self._by_name(kind, listing.kvs))
            tell(dict(known))

        def changed(changes: Sequence[Change]) -> None:
            for change in changes:
                document = self._document(kind, change.kv)
                if change.is_delete:
                    known.pop(document.name, None)
                else:
                    known[document.name] = document
            tell(dict(known))

        await mirror(self._client, prefix, end_of(prefix), on_sync=synced, on_change=changed)

    async def _change(self, document: Document, operation: Json) -> str:
        """Do that if `document` (of revision 0 if it is not there) is the newest version."""
        key = self._key(document.kind, document.name)
        done = await self._client.txn([is_at(key, int(document.revision))], [operation])
        if not done.succeeded:
            raise DocumentConflictError(f"{document.name} was changed by somebody else")
        return str(done.header.revision)

    def _prefix(self, kind: DocumentKind) -> bytes:
        return self._layout.documents + f"{kind}/".encode()

    def _key(self, kind: DocumentKind, name: str) -> bytes:
        return self._prefix(kind) + name.encode()

    def _by_name(self, kind: DocumentKind, kvs: Iterable[KeyValue]) -> dict[str, Document]:
        found = (self._document(kind, kv) for kv in kvs)
        return {one.name: one for one in found}

    def _document(self, kind: DocumentKind, kv: KeyValue) -> Document:
        name = kv.key.removeprefix(self._prefix(kind)).decode(errors="backslashreplace")
        return Document(kind, name, kv.value, str(kv.mod_revision))
