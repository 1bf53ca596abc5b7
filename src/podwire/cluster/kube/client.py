"""The verbs of the Kubernetes API: get, list, watch, create, update, patch, delete, logs, exec.

What lives here: requests in terms of resources and objects. What does not: connections and
errors (`transport.py`), decoding (`objects.py`), keeping up with a collection (`reflect.py`).

Lists are read a page at a time and each page is decoded straight into the wanted type and
dropped, so the memory a list takes is that of its result.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, overload

from podwire.cluster.kube.config import ClientConfig
from podwire.cluster.kube.exec import PROTOCOLS, ExecSession
from podwire.cluster.kube.lines import LineSplitter
from podwire.cluster.kube.objects import (
    Bookmark,
    Object,
    ObjectList,
    Refused,
    WatchEvent,
    decode,
    decode_event,
    decode_page,
)
from podwire.cluster.kube.resources import PODS, Resource
from podwire.cluster.kube.transport import Transport
from podwire.errors import GoneError, InputError

T = TypeVar("T")

PAGE_SIZE = 500
"""Objects a list page; what client-go uses."""
_MAX_LIST_RESTARTS = 3
_WATCH_MIN_S = 300.0
"""Shortest time after which we let the server end a watch, jittered up to twice that so that
many clients do not come back at once; as client-go does."""
_WATCH_GRACE_S = 30.0
"""How much longer than agreed a watch may be silent before we take the server for dead."""
_MERGE_PATCH = "application/merge-patch+json"
_STRATEGIC_PATCH = "application/strategic-merge-patch+json"


class KubeClient:
    """A client of one API server. Open it with `async with`; every method raises `ApiError` (as
    its typed subclasses) or `ApiUnavailableError`.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._transport = Transport(config)

    async def __aenter__(self) -> KubeClient:
        return self.open()

    def open(self) -> KubeClient:
        """What `async with` begins with, for whoever sees to `__aexit__` otherwise."""
        self._transport.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._transport.__aexit__(*exc_info)

    async def raw(self, path: str) -> bytes:
        """The answer to GET `path`, for what is no object (`/version`, discovery)."""
        return await self._transport.call("GET", path)

    async def server_time(self) -> float | None:
        """The server's clock: seconds since the epoch, whole ones; None where it tells none."""
        async with self._transport.stream("GET", "/version") as response:
            await response.read()
            date = response.headers.get("Date", "")
        try:
            return parsedate_to_datetime(date).timestamp()
        except ValueError:
            return None

    @overload
    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object: ...
    @overload
    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *, type: type[T]
    ) -> T: ...
    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *, type: Any = dict
    ) -> Any:
        """One object, as `type`. Raises `NotFoundError`."""
        return decode(await self.raw(resource.path(namespace, name)), type)

    @overload
    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int = PAGE_SIZE,
        refused: Refused | None = None,
    ) -> ObjectList[Object]: ...
    @overload
    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int = PAGE_SIZE,
        refused: Refused | None = None,
        type: type[T],
    ) -> ObjectList[T]: ...
    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int = PAGE_SIZE,
        refused: Refused | None = None,
        type: Any = dict,
    ) -> Any:
        """All objects of a namespace (None: of all), read in pages of `limit`.

        An object that does not fit `type` raises `InputError`, or goes to `refused` and is left
        out. A list that takes so long that the server forgets its version starts again.
        """
        selection = _selectors(label_selector, field_selector)
        for _ in range(_MAX_LIST_RESTARTS):
            try:
                return await self._list_once(resource, namespace, selection, limit, type, refused)
            except GoneError as error:
                expired = error
        raise expired

    async def _list_once(
        self,
        resource: Resource,
        namespace: str | None,
        selection: Mapping[str, str],
        limit: int,
        kind: type[T],
        refused: Refused | None,
    ) -> ObjectList[T]:
        path = resource.path(namespace)
        query = {**selection, "limit": str(limit)}
        result: ObjectList[T] | None = None
        while True:
            body = await self._transport.call("GET", path, query=query)
            page = decode_page(body, kind, refused)
            if result is None:
                result = ObjectList([], page.metadata.resource_version)
            result.items.extend(page.items or ())
            if not page.metadata.continue_:
                return result
            query["continue"] = page.metadata.continue_

    @overload
    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        refused: Refused | None = None,
        on_open: Callable[[], None] | None = None,
    ) -> AsyncGenerator[WatchEvent[Object] | Bookmark, None]: ...
    @overload
    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        refused: Refused | None = None,
        on_open: Callable[[], None] | None = None,
        type: type[T],
    ) -> AsyncGenerator[WatchEvent[T] | Bookmark, None]: ...
    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        refused: Refused | None = None,
        on_open: Callable[[], None] | None = None,
        type: Any = dict,
    ) -> AsyncGenerator[Any, None]:
        """Changes after `resource_version`, until the server ends the watch (within 10 minutes).

        `on_open` is called once the server has accepted it. Raises `GoneError` when it no longer
        knows that version: list again. Close the iterator (`contextlib.aclosing`) when leaving
        it early.
        """
        timeout_s = _WATCH_MIN_S * (1 + random.random())
        query = {
            **_selectors(label_selector, field_selector),
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(int(timeout_s)),
        }
        lines = LineSplitter()
        async with self._transport.stream(
            "GET", resource.path(namespace), query=query, silence_s=timeout_s + _WATCH_GRACE_S
        ) as response:
            if on_open is not None:
                on_open()
            async for chunk in response.content.iter_any():
                for line in lines.feed(chunk):
                    event = decode_event(line, type, refused)
                    if event is not None:
                        yield event

    async def create(
        self, resource: Resource, obj: Mapping[str, Any], namespace: str | None = None
    ) -> Object:
        """Create `obj` (in its own namespace when None) and return it as stored.

        Raises `AlreadyExistsError`, `InvalidError`.
        """
        path = resource.path(namespace or _namespace_of(obj))
        return decode(await self._transport.call("POST", path, body=obj), dict)

    async def update(
        self, resource: Resource, obj: Mapping[str, Any], subresource: str | None = None
    ) -> Object:
        """Replace an object, or its `subresource` (`status`).

        With `metadata.resourceVersion` set, raises `ConflictError` when it changed since.
        """
        name = obj.get("metadata", {}).get("name")
        if not name:
            raise InputError("needed to update an object", field="metadata.name")
        path = resource.path(_namespace_of(obj), name, subresource)
        return decode(await self._transport.call("PUT", path, body=obj), dict)

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> Object:
        """Apply a JSON merge patch (RFC 7386): null removes a field, lists are replaced."""
        path = resource.path(namespace, name, subresource)
        return await self._patch(path, patch, _MERGE_PATCH)

    async def strategic_patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> Object:
        """Apply a strategic merge patch: known lists are merged by key (conditions by `type`)."""
        path = resource.path(namespace, name, subresource)
        return await self._patch(path, patch, _STRATEGIC_PATCH)

    async def _patch(self, path: str, patch: Mapping[str, Any], content_type: str) -> Object:
        body = await self._transport.call("PATCH", path, body=patch, content_type=content_type)
        return decode(body, dict)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        grace_period_s: int | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> Object:
        """Ask for an object to be deleted; with `uid`, only that very one; with
        `resource_version`, only as it was then (else raises `ConflictError`).

        Returns the object as it is now, or a Status when it is gone already. A pod goes when its
        kubelet has stopped it: `grace_period_s` None is the pod's own, 0 is without waiting.
        """
        options: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
        }
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        wanted = {"uid": uid, "resourceVersion": resource_version}
        if preconditions := {key: value for key, value in wanted.items() if value is not None}:
            options["preconditions"] = preconditions
        path = resource.path(namespace, name)
        return decode(await self._transport.call("DELETE", path, body=options), dict)

    async def pod_logs(
        self,
        name: str,
        namespace: str,
        *,
        follow: bool = False,
        container: str | None = None,
        tail_lines: int | None = None,
        timestamps: bool = False,
    ) -> AsyncIterator[bytes]:
        """What a container wrote, as it comes; with `follow`, until the container ends."""
        query = {}
        if follow:
            query["follow"] = "true"
        if container is not None:
            query["container"] = container
        if tail_lines is not None:
            query["tailLines"] = str(tail_lines)
        if timestamps:
            query["timestamps"] = "true"
        async with self._transport.stream(
            "GET", PODS.path(namespace, name, "log"), query=query, silence_s=None
        ) as response:
            async for chunk in response.content.iter_any():
                yield chunk

    async def pod_exec(
        self,
        name: str,
        namespace: str,
        command: Sequence[str],
        *,
        container: str | None = None,
        stdin: bool = False,
        tty: bool = False,
    ) -> ExecSession:
        """Start `command` in a pod's container; use the session with `async with`.

        With `tty` there is no separate standard error: a terminal has one output.
        """
        query = [("command", word) for word in command]
        query += [("stdout", "true"), ("stderr", "false" if tty else "true")]
        query += [("stdin", "true" if stdin else "false"), ("tty", "true" if tty else "false")]
        if container is not None:
            query.append(("container", container))
        path = PODS.path(namespace, name, "exec")
        return ExecSession(await self._transport.websocket(path, query=query, protocols=PROTOCOLS))


def _selectors(label_selector: str | None, field_selector: str | None) -> dict[str, str]:
    pairs = (("labelSelector", label_selector), ("fieldSelector", field_selector))
    return {key: value for key, value in pairs if value}


def _namespace_of(obj: Mapping[str, Any]) -> str | None:
    namespace: str | None = obj.get("metadata", {}).get("namespace")
    return namespace
