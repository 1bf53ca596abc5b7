"""Decoding what an API server sends: list pages and watch events, straight into a wanted type.

What lives here: bytes in, objects out; no I/O. A type is a `msgspec.Struct` with just the fields
that the caller needs, so that 10,000 nodes cost no more than those fields, or `dict` for the
whole object. An object that does not fit its type is refused with the path of the field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

import msgspec

from podwire.cluster.kube.status import Status, error_from_status
from podwire.decoding import from_json
from podwire.errors import ApiUnavailableError, InputError

T = TypeVar("T")
Object: TypeAlias = dict[str, Any]
EventType: TypeAlias = Literal["ADDED", "MODIFIED", "DELETED"]
Refused: TypeAlias = Callable[[InputError], None]
"""Told of an object that does not fit its type, which is then left out."""


@dataclass(frozen=True, slots=True)
class ObjectList(Generic[T]):
    """A whole collection as it was at `resource_version`, from where a watch can go on."""

    items: list[T]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent(Generic[T]):
    """One object came, changed or went; for DELETED `object` is its last state."""

    type: EventType
    object: T
    resource_version: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Nothing changed up to `resource_version`; a watch resumed from there misses nothing."""

    resource_version: str
    type: Literal["BOOKMARK"] = "BOOKMARK"


class ListMeta(msgspec.Struct, rename="camel"):
    """Of a page: what the list was read at, and the token of the next page ("" on the last)."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class Page(msgspec.Struct, Generic[T], rename="camel"):
    """One page of a list."""

    api_version: str = ""
    kind: str = ""
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)
    items: list[T] | None = None


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Identity(msgspec.Struct):
    """What every object has, to name one that fits nothing else."""

    kind: str = ""
    metadata: _Meta = msgspec.field(default_factory=_Meta)


class _RawEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


def decode(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    """One object as `kind`. Raises `InputError` naming the object and the field."""
    try:
        return from_json(body, kind)
    except msgspec.ValidationError as error:
        raise _misfit(body, error) from None
    except msgspec.DecodeError as error:
        raise ApiUnavailableError(f"the Kubernetes API sent no valid JSON: {error}") from None


def decode_page(body: bytes, kind: type[T], refused: Refused | None = None) -> Page[T]:
    """One page of a list of `kind`.

    `refused` is told of each object that does not fit, which is left out; without it the first
    such object raises `InputError`.
    """
    try:
        page = from_json(body, Page[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError:
        page = _decode_item_by_item(body, kind, refused)
    except msgspec.DecodeError as error:
        raise ApiUnavailableError(f"the Kubernetes API sent no valid JSON: {error}") from None
    if not page.kind.endswith("List"):
        # A proxy's answer, say. Taken for an empty list it would be the end of every object.
        raise ApiUnavailableError(f"the Kubernetes API sent no list but {page.kind or 'no kind'!r}")
    if kind is dict:
        _name_items(cast("Page[Object]", page))
    return page


def decode_event(
    line: bytes, kind: type[T], refused: Refused | None = None
) -> WatchEvent[T] | Bookmark | None:
    """One line of a watch; None for an object that does not fit and went to `refused`.

    Raises the error that an ERROR event carries (`GoneError` when the version is compacted).
    """
    try:
        raw = from_json(line, _RawEvent)
        if raw.type == "ERROR":
            raise error_from_status(from_json(raw.object, Status))
        version = from_json(raw.object, _Identity).metadata.resource_version
    except msgspec.DecodeError as error:
        raise ApiUnavailableError(f"the Kubernetes API sent a garbled event: {error}") from None
    if raw.type == "BOOKMARK":
        return Bookmark(version)
    if raw.type not in ("ADDED", "MODIFIED", "DELETED"):
        raise ApiUnavailableError(f"the Kubernetes API sent an unknown event {raw.type!r}")
    try:
        return WatchEvent(cast(EventType, raw.type), decode(raw.object, kind), version)
    except InputError as error:
        if refused is None:
            raise
        refused(error)
        return None


def _decode_item_by_item(body: bytes, kind: type[T], refused: Refused | None) -> Page[T]:
    try:
        page = from_json(body, Page[msgspec.Raw])
    except msgspec.ValidationError as error:
        raise ApiUnavailableError(f"the Kubernetes API sent no list: {error}") from None
    items: list[T] = []
    for item in page.items or ():
        try:
            items.append(decode(item, kind))
        except InputError as error:
            if refused is None:
                raise
            refused(error)
    return Page(page.api_version, page.kind, page.metadata, items)


def _name_items(page: Page[Object]) -> None:
    """Items of a list come without the `apiVersion` and `kind` that the list gives them all."""
    kind = page.kind.removesuffix("List")
    if kind:
        page.items = [
            {"apiVersion": page.api_version, "kind": kind, **item} for item in page.items or ()
        ]


def _misfit(body: bytes | msgspec.Raw, error: msgspec.ValidationError) -> InputError:
    try:
        identity = from_json(body, _Identity)
    except msgspec.DecodeError:
        identity = _Identity()
    meta = identity.metadata
    name = f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
    message, _, field = str(error).partition(" - at `$")
    subject = " ".join(part for part in (identity.kind, name) if part) or "object"
    return InputError(
        f"{message[:1].lower()}{message[1:]} (in {subject})",
        field=field.rstrip("`").lstrip(".") or "object",
    )
