"""`podwire get`: objects as tables, JSON, YAML or names; once, or with every change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from podwire.cli import options
from podwire.cli.columns import View, event_order, view
from podwire.cli.context import target_options, with_client
from podwire.cli.jsonpath import Template
from podwire.cli.kinds import Selection, parse
from podwire.cli.printing import Table, print_json, print_yaml
from podwire.cluster.kube import KubeClient, Object, WatchEvent, reflect
from podwire.errors import PodwireError

_FORMATS = ("wide", "json", "yaml", "name")
_JSONPATH = "jsonpath="


def _check_output(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is None or value in _FORMATS:
        return value
    if value.startswith(_JSONPATH):
        Template(value.removeprefix(_JSONPATH))
        return value
    raise click.BadParameter(f"{value!r} is not one of {', '.join(_FORMATS)}, jsonpath=TEMPLATE")


@dataclass(frozen=True, slots=True)
class _Request:
    """What to get and how to show it."""

    namespace: str | None
    all_namespaces: bool
    labels: str | None
    fields: str | None
    output: str | None
    headers: bool

    @property
    def is_table(self) -> bool:
        return self.output in (None, "wide")

    def view(self, selection: Selection, several_kinds: bool) -> View:
        return view(
            selection.resource,
            wide=self.output == "wide",
            namespaces=self.all_namespaces,
            kinds=several_kinds,
        )


@click.command(
    short_help="List objects, or show some by name.",
    epilog="""
    \b
    Examples:
      podwire get pods -o wide
      podwire get pods,nodes
      podwire get pod/a node/node1
      podwire get pods -A -l app=web -w
      podwire get pod a -o jsonpath='{.status.podIP}'
    """,
)
@click.argument("what", nargs=-1, required=True, metavar="KIND[,KIND…] [NAME…] | KIND/NAME…")
@options.namespace_option
@options.all_namespaces_option
@options.selector_option
@options.field_selector_option
@click.option(
    "-o",
    "--output",
    metavar="FORMAT",
    callback=_check_output,
    help="wide, json, yaml, name or jsonpath=TEMPLATE.",
)
@click.option("-w", "--watch", is_flag=True, help="Go on printing changes until interrupted.")
@click.option("--no-headers", is_flag=True, help="Leave out the table's first line.")
@target_options
def get(
    what: tuple[str, ...],
    namespace: str | None,
    all_namespaces: bool,
    selector: str | None,
    field_selector: str | None,
    output: str | None,
    watch: bool,
    no_headers: bool,
) -> None:
    """List the objects of a KIND, or show those with the given NAMEs.

    KINDs are plural, singular or short: pods, pod, po.
    """
    request = _Request(
        namespace, all_namespaces, selector, field_selector, output, headers=not no_headers
    )

    async def work(client: KubeClient) -> None:
        selections = await parse(client, what)
        if watch:
            await _watch(client, selections, request)
        else:
            await _print_once(client, selections, request)

    with_client(work)


async def _print_once(
    client: KubeClient, selections: Sequence[Selection], request: _Request
) -> None:
    failures: list[PodwireError] = []
    found = [
        (selection, await _fetch(client, selection, request, failures)) for selection in selections
    ]
    objects = [obj for _, group in found for obj in group]
    if request.is_table:
        _print_tables(client, found, request)
    elif objects or not failures:
        by_name = len(objects) == 1 and bool(selections[0].names)
        _print_objects(found, request.output or "", single=by_name)
    if failures:
        raise PodwireError("\n".join(failure.message for failure in failures))


async def _fetch(
    client: KubeClient, selection: Selection, request: _Request, failures: list[PodwireError]
) -> Sequence[Object]:
    resource = selection.resource
    if not selection.names:
        listed = await client.list(resource, **_scope(client, selection, request))
        return _in_order(listed.items)
    if request.all_namespaces and resource.namespaced:
        raise click.UsageError("names cannot be looked up across all namespaces")
    objects = []
    for name in selection.names:
        try:
            objects.append(
                await client.get(resource, name, request.namespace or client.config.namespace)
            )
        except PodwireError as error:
            failures.append(error)
    return objects


def _scope(client: KubeClient, selection: Selection, request: _Request) -> dict[str, Any]:
    """Arguments of `list` and `reflect` for what was selected."""
    fields = request.fields
    if selection.names:
        by_name = f"metadata.name={selection.names[0]}"
        fields = f"{fields},{by_name}" if fields else by_name
    return {
        "namespace": None
        if request.all_namespaces
        else request.namespace or client.config.namespace,
        "label_selector": request.labels,
        "field_selector": fields,
    }


def _in_order(objects: Sequence[Object]) -> Sequence[Object]:
    """Events by time, since a list of what happened reads downwards; others as they come."""
    if objects and objects[0].get("kind") == "Event":
        return sorted(objects, key=event_order)
    return objects


def _print_tables(
    client: KubeClient, found: Sequence[tuple[Selection, Sequence[Object]]], request: _Request
) -> None:
    several = len(found) > 1
    printed = False
    for selection, objects in found:
        if not objects:
            continue
        if printed:
            print()
        columns = request.view(selection, several)
        Table(columns.headers, show_headers=request.headers).print(columns.rows(objects))
        printed = True
    if not printed and not any(selection.names for selection, _ in found):
        print(
            _nothing_found(client, [selection for selection, _ in found], request), file=sys.stderr
        )


def _nothing_found(client: KubeClient, selections: Sequence[Selection], request: _Request) -> str:
    if request.all_namespaces or not any(s.resource.namespaced for s in selections):
        return "No resources found"
    return f"No resources found in {request.namespace or client.config.namespace} namespace."


def _print_objects(
    found: Sequence[tuple[Selection, Sequence[Object]]], output: str, *, single: bool
) -> None:
    objects = [_without_managed_fields(obj) for _, group in found for obj in group]
    if output == "name":
        for selection, group in found:
            for obj in group:
                print(f"{selection.resource.qualified_name}/{obj['metadata']['name']}")
        return
    whole: Object = (
        objects[0]
        if single
        else {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": objects}
    )
    _print_one(whole, output)


def _print_one(obj: Object, output: str) -> None:
    if output == "json":
        print_json(obj)
    elif output == "yaml":
        print_yaml(obj)
    else:
        print(Template(output.removeprefix(_JSONPATH)).render(obj), flush=True)


def _without_managed_fields(obj: Object) -> Object:
    """Who set which field is bookkeeping that buries the object; kubectl hides it as well."""
    metadata = obj.get("metadata", {})
    if "managedFields" not in metadata:
        return obj
    shown = {key: value for key, value in metadata.items() if key != "managedFields"}
    return {**obj, "metadata": shown}


async def _watch(client: KubeClient, selections: Sequence[Selection], request: _Request) -> None:
    if len(selections) > 1 or len(selections[0].names) > 1:
        raise click.UsageError("--watch takes one kind, and one name or none")
    selection = selections[0]
    scope = _scope(client, selection, request)
    listed = await client.list(selection.resource, **scope)
    show = _shower(selection, request)
    show(_in_order(listed.items))
    versions = {_uid(obj): _version(obj) for obj in listed.items}

    def on_sync(objects: Sequence[Object]) -> None:
        changed = [obj for obj in objects if versions.get(_uid(obj)) != _version(obj)]
        versions.update((_uid(obj), _version(obj)) for obj in objects)
        show(changed)

    def on_event(event: WatchEvent[Object]) -> None:
        versions[_uid(event.object)] = _version(event.object)
        show([event.object])

    await reflect(
        client,
        selection.resource,
        on_sync=on_sync,
        on_event=on_event,
        resource_version=listed.resource_version,
        **scope,
    )


def _shower(selection: Selection, request: _Request) -> Callable[[Sequence[Object]], None]:
    """A function that prints objects, in one growing table or one document each."""
    if request.is_table:
        columns = request.view(selection, several_kinds=False)
        table = Table(columns.headers, show_headers=request.headers)
        return lambda objects: table.print(columns.rows(objects)) if objects else None

    def show(objects: Sequence[Object]) -> None:
        for obj in objects:
            if request.output == "yaml":
                print("---")
            _print_objects([(selection, [obj])], request.output or "", single=True)

    return show


def _uid(obj: Object) -> str:
    return str(obj["metadata"].get("uid"))


def _version(obj: Object) -> str:
    return str(obj["metadata"].get("resourceVersion"))
