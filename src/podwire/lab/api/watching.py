"""The watch stream: changes as newline-delimited JSON, one `WatchEvent` a line.

What lives here: which changes a watch shows and as what, bookmarks, and how a stream begins and
ends. Waiting for changes is `hub`'s.

With a selector an object can come into view and go out of it: the first change that selects it is
its ADDED, the first that doesn't its DELETED, whatever the change was to the object itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import msgspec
from aiohttp import web

from podwire.errors import ApiError
from podwire.lab.api import status
from podwire.lab.api.hub import Event, Hub
from podwire.lab.api.objects import Objects
from podwire.lab.api.registry import Object, ResourceKind
from podwire.lab.api.selectors import Selection
from podwire.lab.api.store import Compacted

BOOKMARK_S = 60.0
"""How often a quiet watch that allows bookmarks gets one."""

_INITIAL_END = "k8s.io/initial-events-end"
_DEFAULT_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What a client watches, and how.

    `initial`: begin with what there is and say, by a bookmark, when that was all (client-go's
    WatchList). `form` names the wire form in caches; `transform` makes it of an object, None: the
    object as it is.
    """

    kind: ResourceKind
    namespace: str | None
    selection: Selection
    revision: int | None
    timeout_s: float | None
    bookmarks: bool
    initial: bool
    form: str
    transform: Callable[[Object], dict[str, Any]] | None


async def stream(
    request: web.BaseRequest, watch: Watch, objects: Objects, hub: Hub
) -> web.StreamResponse:
    """Answer a watch request until it times out, the client goes or the server stops."""
    start = []
    if watch.revision is None or watch.initial:
        # No revision: begin with what there is, as synthetic ADDED events.
        page = objects.page(watch.kind, watch.namespace, watch.selection)
        start = [_line(watch, "ADDED", body, msgspec.json.decode) for body in page.bodies]
        cursor = page.revision
        if watch.initial and watch.bookmarks:
            start.append(_bookmark_line(watch, cursor, {_INITIAL_END: "true"}))
    else:
        cursor = watch.revision
        if not hub.knows(cursor):
            raise status.expired(cursor, objects.oldest_revision)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    try:
        if start:
            await response.write(b"".join(start))
        await _pump(response, watch, hub, cursor)
        await response.write_eof()
    except ConnectionError:
        pass
    return response


async def _pump(response: web.StreamResponse, watch: Watch, hub: Hub, cursor: int) -> None:
    kinds = (watch.kind.resource,)
    # Spread out, so that watches begun together do not all come back together.
    timeout_s = watch.timeout_s or _DEFAULT_TIMEOUT_S * (1 + random.random())
    deadline = monotonic() + timeout_s
    next_bookmark = monotonic() + BOOKMARK_S
    while not hub.closed:
        try:
            events, cursor = hub.after(kinds, cursor)
        except Compacted:
            await response.write(_error_line(status.expired(cursor, hub.revision)))
            return
        lines = [line for event in events if (line := _event_line(watch, event))]
        if lines:
            await response.write(b"".join(lines))
        left = deadline - monotonic()
        if left <= 0:
            break
        if watch.bookmarks and monotonic() >= next_bookmark:
            await response.write(_bookmark_line(watch, cursor))
            next_bookmark = monotonic() + BOOKMARK_S
        if cursor == hub.revision:
            wake_s = min(left, next_bookmark - monotonic() if watch.bookmarks else left)
            cursor = await hub.wait(kinds, max(0.0, wake_s))
    if watch.bookmarks:
        await response.write(_bookmark_line(watch, cursor))


def _event_line(watch: Watch, event: Event) -> bytes | None:
    """The line that this watch sees of a change, None if nothing."""
    if watch.namespace is not None and event.key.namespace != watch.namespace:
        return None
    if not watch.selection:
        return _shared_line(watch, event, event.type)
    is_in = event.type != "DELETED" and watch.selection.matches(event.object)
    was_in = event.previous is not None and watch.selection.matches(event.previous)
    if is_in:
        return _shared_line(watch, event, "MODIFIED" if was_in else "ADDED")
    return _shared_line(watch, event, "DELETED") if was_in else None


def _shared_line(watch: Watch, event: Event, type_: str) -> bytes:
    return event.encoded(
        f"{watch.form} {type_}",
        lambda: _line(watch, type_, event.change.body, lambda body: event.object),
    )


def _line(watch: Watch, type_: str, body: bytes, decode: Callable[[bytes], Any]) -> bytes:
    if watch.transform:
        body = msgspec.json.encode(watch.transform(decode(body)))
    return b'{"type":"%b","object":%b}\n' % (type_.encode(), body)


def _bookmark_line(watch: Watch, revision: int, annotations: dict[str, str] | None = None) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(revision)}
    if annotations:
        metadata["annotations"] = annotations
    obj: Object = {
        "kind": watch.kind.kind,
        "apiVersion": watch.kind.api_version,
        "metadata": metadata,
    }
    return msgspec.json.encode({"type": "BOOKMARK", "object": obj}) + b"\n"


def _error_line(error: ApiError) -> bytes:
    return msgspec.json.encode({"type": "ERROR", "object": status.to_json(error)}) + b"\n"
