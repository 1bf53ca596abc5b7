"""Resources over HTTP: from a request to an operation on objects, and its answer.

What lives here: the verbs of resource paths. What they mean is in `objects`, streams are in
`watching`, pods' log and exec in `node_proxy`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from podwire.decoding import from_json
from podwire.lab.api import negotiation, status, table, watching
from podwire.lab.api.binding import bind
from podwire.lab.api.hub import Hub
from podwire.lab.api.lifecycle import Preconditions
from podwire.lab.api.negotiation import Form, accepted_form, read_object, read_value, to_yaml
from podwire.lab.api.node_proxy import NodeProxy
from podwire.lab.api.objects import Objects, Page
from podwire.lab.api.patching import PatchError, json_patch, merge_patch
from podwire.lab.api.registry import Object, Registry, ResourceKind
from podwire.lab.api.request_info import Target, parse_target
from podwire.lab.api.selectors import Selection, parse_fields, parse_labels
from podwire.lab.api.strategic import strategic_merge

_PATCHES: dict[str, Callable[[Any, Any, ResourceKind], Any]] = {
    "application/merge-patch+json": lambda old, patch, kind: merge_patch(old, patch),
    "application/strategic-merge-patch+json": (
        lambda old, patch, kind: strategic_merge(old, patch, kind.schema)
    ),
    "application/json-patch+json": lambda old, patch, kind: json_patch(old, patch),
}


class Rest:
    """Answers requests to resource paths."""

    def __init__(self, registry: Registry, objects: Objects, hub: Hub, proxy: NodeProxy) -> None:
        self._registry = registry
        self._objects = objects
        self._hub = hub
        self._proxy = proxy

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request below /api or /apis; raises `ApiError`."""
        target = parse_target(request.path.strip("/").split("/"))
        kind = target and self._registry.find(target.group, target.version, target.plural)
        if not target or not kind or not _is_served(kind, target):
            raise status.no_such_path()
        if target.subresource in ("log", "exec", "binding"):
            return await self._pod_subresource(request, kind, target)
        form = accepted_form(request.headers.get("Accept", ""))
        match request.method, bool(target.name):
            case "GET", True:
                body = self._objects.get_body(kind, target.namespace or "", target.name)
                return self._answer_body(request, kind, form, body)
            case "GET", False:
                if _flag(request, "watch"):
                    return await self._watch(request, kind, target, form)
                return self._list(request, kind, target, form)
            case "POST", False:
                return await self._create(request, kind, target, form)
            case "PUT", True:
                return await self._update(request, kind, target, form)
            case "PATCH", True:
                return await self._patch(request, kind, target, form)
            case "DELETE", True if not target.subresource:
                return await self._delete(request, kind, target, form)
            case "DELETE", False:
                return await self._delete_collection(request, kind, target, form)
        raise _method_not_allowed()

    # --- reading ---

    def _list(
        self, request: web.BaseRequest, kind: ResourceKind, target: Target, form: Form
    ) -> web.Response:
        selection = self._selection(request, kind)
        limit = _number(request, "limit") or 0
        at, after = None, ("", "")
        if token := request.query.get("continue"):
            at, after = _read_continue(token)
        elif request.query.get("resourceVersionMatch") == "Exact":
            at = _number(request, "resourceVersion")
        elif (wanted := _number(request, "resourceVersion") or 0) > self._objects.revision:
            raise status.future_revision(wanted, self._objects.revision)
        page = self._objects.page(
            kind, target.namespace, selection, limit=max(limit, 0), at=at, after=after
        )
        metadata = _list_metadata(page)
        if form == Form():
            head = msgspec.json.encode(
                {"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": metadata}
            )
            return _json(head[:-1] + b',"items":[' + b",".join(page.bodies) + b"]}")
        items = [msgspec.json.decode(body) for body in page.bodies]
        if form.transform == "Table":
            answer = table.table(kind, items, metadata, _include(request))
        elif form.transform:
            answer = table.partial_list(items, metadata)
        else:
            answer = {"kind": kind.list_kind, "apiVersion": kind.api_version}
            answer |= {"metadata": metadata, "items": items}
        return _answer(form, answer)

    async def _watch(
        self, request: web.BaseRequest, kind: ResourceKind, target: Target, form: Form
    ) -> web.StreamResponse:
        revision = _number(request, "resourceVersion") or None
        transform = _transform(kind, form, _include(request))
        watch = watching.Watch(
            kind=kind,
            namespace=target.namespace,
            selection=self._selection(request, kind),
            revision=revision,
            timeout_s=_number(request, "timeoutSeconds"),
            bookmarks=_flag(request, "allowWatchBookmarks"),
            initial=_flag(request, "sendInitialEvents"),
            form=f"{form.transform} {_include(request)}" if transform else "",
            transform=transform,
        )
        return await watching.stream(request, watch, self._objects, self._hub)

    def _selection(self, request: web.BaseRequest, kind: ResourceKind) -> Selection:
        return Selection(
            parse_labels(request.query.get("labelSelector", "")),
            parse_fields(request.query.get("fieldSelector", ""), kind.selectable_fields),
        )

    # --- writing ---

    async def _create(
        self, request: web.BaseRequest, kind: ResourceKind, target: Target, form: Form
    ) -> web.Response:
        if kind.namespaced and target.namespace is None:
            raise _method_not_allowed()
        obj = await read_object(request)
        created = self._objects.create(kind, target.namespace or "", obj, dry_run=_dry_run(request))
        return self._answer_object(request, kind, form, created, 201)

    async def _update(
        self, request: web.BaseRequest, kind: ResourceKind, target: Target, form: Form
    ) -> web.Response:
        obj = await read_object(request)
        updated = self._objects.update(
            kind,
            target.namespace or "",
            target.name,
            obj,
            subresource=target.subresource,
            dry_run=_dry_run(request),
        )
        return self._answer_object(request, kind, form, updated)

    async def _patch(
        self, request: web.BaseRequest, kind: ResourceKind, target: Target, form: Form
    ) -> web.Response:
        patch = await read_value(request, tuple(_PATCHES))
        apply = _PATCHES[request.content_type]

        def change(old: Object) -> Object:
            try:
                new = apply(old, patch, kind)
            except PatchError as error:
                raise status.bad_request(f"the patch cannot be applied: {error}") from None
            if not isinstance(new, dict):
                raise status.bad_request("the patch does not make an object")
            return new

        patched = self._objects.modify(
            kind,
            target.namespace or "",
            target.name,
            change,
            subresource=target.subresource,
            dry_run=_dry_run(request),
        )
        return self._answer_object(request, kind, form, patched)

    async def _delete(
        self, request: web.BaseRequest, kind: ResourceKind, target: Target, form: Form
    ) -> web.Response:
        options = await _delete_options(request)
        obj, gone = self._objects.delete(
            kind,
            target.namespace or "",
            target.name,
            grace_s=_grace(request, options),
            preconditions=_preconditions(options),
            dry_run=_dry_run(request, options),
        )
        if gone and kind.plural != "pods":
            done = status.success(kind, target.name, obj["metadata"]["uid"])
            return _answer(Form("", form.yaml), done)
        return self._answer_object(request, kind, form, obj)

    async def _delete_collection(
        self, request: web.BaseRequest, kind: ResourceKind, target: Target, form: Form
    ) -> web.Response:
        if kind.namespaced and target.namespace is None:
            raise _method_not_allowed()
        options = await _delete_options(request)
        selection = self._selection(request, kind)
        deleted = []
        with self._objects.transaction():
            for obj in self._objects.list(kind, target.namespace, selection):
                name = obj["metadata"]["name"]
                if kind.check_delete(obj):
                    continue
                deleted.append(
                    self._objects.delete(
                        kind,
                        target.namespace or "",
                        name,
                        grace_s=_grace(request, options),
                        dry_run=_dry_run(request, options),
                    )[0]
                )
        answer = {
            "kind": kind.list_kind,
            "apiVersion": kind.api_version,
            "metadata": {"resourceVersion": str(self._objects.revision)},
            "items": deleted,
        }
        return _answer(Form("", form.yaml), answer)

    async def _pod_subresource(
        self, request: web.BaseRequest, kind: ResourceKind, target: Target
    ) -> web.StreamResponse:
        namespace = target.namespace or ""
        if target.subresource == "binding":
            if request.method != "POST":
                raise _method_not_allowed()
            binding = await read_object(request)
            bind(self._objects, namespace, target.name, binding)
            return _answer(Form(), {**_SUCCESS, "code": 201}, 201)
        pod = self._objects.get(kind, namespace, target.name)
        if target.subresource == "log":
            if request.method != "GET":
                raise _method_not_allowed()
            return await self._proxy.log(request, pod)
        return await self._proxy.exec(request, pod)

    # --- answering ---

    def _answer_object(
        self, request: web.BaseRequest, kind: ResourceKind, form: Form, obj: Object, code: int = 200
    ) -> web.Response:
        transform = _transform(kind, form, _include(request))
        return _answer(form, transform(obj) if transform else obj, code)

    def _answer_body(
        self, request: web.BaseRequest, kind: ResourceKind, form: Form, body: bytes
    ) -> web.Response:
        if form == Form():
            return _json(body)
        return self._answer_object(request, kind, form, msgspec.json.decode(body))


_SUCCESS = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


def _is_served(kind: ResourceKind, target: Target) -> bool:
    if target.subresource and target.subresource not in kind.subresources:
        return False
    if target.namespace is not None:
        return kind.namespaced
    return not (kind.namespaced and target.name)


def _method_not_allowed() -> Exception:
    return status.method_not_allowed(
        "the server does not allow this method on the requested resource"
    )


def _json(body: bytes, code: int = 200) -> web.Response:
    return web.Response(body=body, status=code, content_type=negotiation.JSON)


def _answer(form: Form, value: Any, code: int = 200) -> web.Response:
    if form.yaml:
        return web.Response(body=to_yaml(value), status=code, content_type=negotiation.YAML)
    return _json(msgspec.json.encode(value), code)


def _transform(
    kind: ResourceKind, form: Form, include: str
) -> Callable[[Object], dict[str, Any]] | None:
    """What makes the form of one object, None when it is the object itself."""
    if form.transform == "Table":
        return lambda obj: table.table(
            kind, [obj], {"resourceVersion": obj["metadata"]["resourceVersion"]}, include
        )
    return table.partial if form.transform else None


def _include(request: web.BaseRequest) -> str:
    return request.query.get("includeObject", "Metadata")


def _list_metadata(page: Page) -> dict[str, Any]:
    metadata: dict[str, Any] = {"resourceVersion": str(page.revision)}
    if page.next_after:
        token = msgspec.json.encode([page.revision, *page.next_after])
        metadata["continue"] = base64.urlsafe_b64encode(token).decode()
        if page.remaining is not None:
            metadata["remainingItemCount"] = page.remaining
    return metadata


def _read_continue(token: str) -> tuple[int, tuple[str, str]]:
    try:
        raw = base64.urlsafe_b64decode(token)
        revision, namespace, name = from_json(raw, tuple[int, str, str])
    except ValueError:
        raise status.bad_request("continue key is not valid: list again from the start") from None
    return revision, (namespace, name)


def _flag(request: web.BaseRequest, name: str) -> bool:
    return request.query.get(name, "").lower() in ("true", "1")


def _number(request: web.BaseRequest, name: str) -> int | None:
    value = request.query.get(name)
    if not value:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise status.bad_request(f'invalid {name} "{value}": expected a whole number')
    return int(value)


def _dry_run(request: web.BaseRequest, options: Object | None = None) -> bool:
    asked = request.query.getall("dryRun", []) + list((options or {}).get("dryRun") or [])
    if any(value != "All" for value in asked):
        raise status.bad_request(f'invalid dryRun {asked}: supported values: "All"')
    return bool(asked)


async def _delete_options(request: web.BaseRequest) -> Object:
    if not request.body_exists:
        return {}
    options = await read_value(request, (negotiation.JSON, negotiation.YAML))
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise status.bad_request("the body of the request must be a DeleteOptions object")
    return options


def _grace(request: web.BaseRequest, options: Object) -> int | None:
    seconds = options.get("gracePeriodSeconds")
    if seconds is None:
        return _number(request, "gracePeriodSeconds")
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise status.bad_request("gracePeriodSeconds must be an integer")
    return seconds


def _preconditions(options: Object) -> Preconditions:
    given = options.get("preconditions")
    if not isinstance(given, dict):
        return Preconditions()
    return Preconditions(given.get("uid"), given.get("resourceVersion"))
