"""`podwire describe`: an object for reading, with the events about it.

Pods and nodes have a layout of their own; any other kind is shown field by field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from podwire.cli import options
from podwire.cli.columns import event_order, event_source, field, last_seen, node_roles, node_status
from podwire.cli.context import target_options, with_client
from podwire.cli.kinds import Selection, parse
from podwire.cli.merge import LAST_APPLIED
from podwire.cli.podstatus import status_word
from podwire.cli.printing import NONE, Object, age, to_yaml
from podwire.cluster.kube import EVENTS, KubeClient

_LABEL_WIDTH = 18


@click.command(
    short_help="Show an object in full, with its events.",
    epilog="""
    \b
    Examples:
      podwire describe pod a
      podwire describe node/node1
      podwire describe pods -l app=web
    """,
)
@click.argument("what", nargs=-1, required=True, metavar="KIND [NAME…] | KIND/NAME…")
@options.selector_option
@options.namespace_option
@target_options
def describe(what: tuple[str, ...], selector: str | None, namespace: str | None) -> None:
    """Show objects in full, each with the events about it."""

    async def work(client: KubeClient) -> None:
        space = namespace or client.config.namespace
        first = True
        for selection in await parse(client, what):
            for obj in await _fetch(client, selection, space, selector):
                if not first:
                    print("\n")
                first = False
                print("\n".join(lines(obj, await _events(client, obj))), flush=True)

    with_client(work)


async def _fetch(
    client: KubeClient, selection: Selection, namespace: str, labels: str | None
) -> Sequence[Object]:
    resource = selection.resource
    if selection.names:
        return [await client.get(resource, name, namespace) for name in selection.names]
    return (await client.list(resource, namespace, label_selector=labels)).items


async def _events(client: KubeClient, obj: Object) -> Sequence[Object]:
    """Events about this very object, the oldest first; those of cluster-wide ones anywhere."""
    metadata = obj["metadata"]
    fields = f"involvedObject.name={metadata['name']},involvedObject.kind={obj['kind']}"
    listed = await client.list(EVENTS, metadata.get("namespace"), field_selector=fields)
    own = {metadata.get("uid"), metadata["name"], "", None}
    about = [event for event in listed.items if field(event, "involvedObject.uid") in own]
    return sorted(about, key=event_order)


def lines(obj: Object, events: Sequence[Object]) -> list[str]:
    """The whole description."""
    body = _BODIES.get(str(obj.get("kind")), _any_body)
    return [*_head(obj), *body(obj), *_event_lines(events)]


def _head(obj: Object) -> list[str]:
    metadata = obj["metadata"]
    result = [_line("Name", metadata["name"])]
    if metadata.get("namespace"):
        result.append(_line("Namespace", metadata["namespace"]))
    result += _pairs("Labels", metadata.get("labels"), "=")
    annotations = dict(metadata.get("annotations") or {})
    annotations.pop(LAST_APPLIED, None)
    result += _pairs("Annotations", annotations, ": ")
    created = metadata.get("creationTimestamp")
    result.append(_line("Created", f"{created} ({age(created)} ago)"))
    if metadata.get("deletionTimestamp"):
        result.append(_line("Terminating since", metadata["deletionTimestamp"]))
    return result


def _pod_body(pod: Object) -> Iterable[str]:
    node, host_ip = field(pod, "spec.nodeName"), field(pod, "status.hostIP")
    ips = [entry.get("ip") for entry in field(pod, "status.podIPs") or ()]
    yield _line("Node", f"{node}/{host_ip}" if node and host_ip else node)
    yield _line("Status", status_word(pod))
    if message := field(pod, "status.message"):
        yield _line("Message", message)
    yield _line("IP", ", ".join(filter(None, ips)) or field(pod, "status.podIP"))
    for title, spec_field, status_field in (
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
    ):
        containers = field(pod, f"spec.{spec_field}") or ()
        statuses = {s.get("name"): s for s in field(pod, f"status.{status_field}") or ()}
        if containers:
            yield f"{title}:"
        for container in containers:
            yield from _container(container, statuses.get(container.get("name"), {}))
    yield from _conditions(pod, ("Type", "Status", "Reason", "Message"))


def _container(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Iterable[str]:
    yield f"  {spec.get('name')}:"
    for label, value in (
        ("Image", spec.get("image")),
        ("Command", " ".join(spec.get("command") or ())),
        ("Args", " ".join(spec.get("args") or ())),
        ("Ports", ", ".join(_port(port) for port in spec.get("ports") or ())),
        ("State", _state(status.get("state"))),
        ("Last State", _state(status.get("lastState"))),
        ("Ready", status.get("ready")),
        ("Restart Count", status.get("restartCount")),
        (
            "Environment",
            ", ".join(f"{e['name']}={e.get('value', '…')}" for e in spec.get("env") or ()),
        ),
    ):
        if value not in (None, ""):
            yield _line(label, value, indent=4)


def _port(port: Mapping[str, Any]) -> str:
    return f"{port.get('containerPort')}/{port.get('protocol', 'TCP')}"


def _state(state: Mapping[str, Any] | None) -> str:
    """`Running (since …)`, `Waiting (reason: message)`, `Terminated (exit code 1, …)`."""
    for name, detail in (state or {}).items():
        if detail is None:
            continue
        notes = []
        if name == "terminated":
            notes.append(f"exit code {detail.get('exitCode', 0)}")
        if detail.get("reason"):
            notes.append(": ".join(filter(None, (detail["reason"], detail.get("message")))))
        if name == "running":
            notes.append(f"since {detail.get('startedAt')}")
        elif detail.get("finishedAt"):
            notes.append(f"at {detail['finishedAt']}")
        return f"{name.capitalize()} ({', '.join(notes)})" if notes else name.capitalize()
    return ""


def _node_body(node: Object) -> Iterable[str]:
    yield _line("Roles", node_roles(node))
    yield _line("Status", node_status(node))
    cidrs = field(node, "spec.podCIDRs") or [field(node, "spec.podCIDR")]
    yield _line("PodCIDRs", ", ".join(filter(None, cidrs)))
    taints = field(node, "spec.taints") or ()
    yield _line(
        "Taints",
        ", ".join(f"{t.get('key')}={t.get('value', '')}:{t.get('effect')}" for t in taints),
    )
    addresses = field(node, "status.addresses") or ()
    yield "Addresses:"
    for address in addresses:
        yield _line(str(address.get("type")), address.get("address"), indent=2)
    yield from _conditions(node, ("Type", "Status", "Reason", "Message"))
    yield from _section("System Info", field(node, "status.nodeInfo"))


def _any_body(obj: Object) -> Iterable[str]:
    for name, value in obj.items():
        if name not in ("apiVersion", "kind", "metadata"):
            yield from _section(name[:1].upper() + name[1:], value)


_BODIES: dict[str, Callable[[Object], Iterable[str]]] = {"Pod": _pod_body, "Node": _node_body}


def _section(title: str, value: Any) -> Iterable[str]:
    if value in (None, "", [], {}):
        return
    if not isinstance(value, dict | list):
        yield _line(title, value)
        return
    yield f"{title}:"
    yield from (f"  {line}" for line in to_yaml(value).splitlines())


def _conditions(obj: Object, titles: Sequence[str]) -> Iterable[str]:
    conditions = field(obj, "status.conditions") or ()
    if not conditions:
        return
    yield "Conditions:"
    rows = [
        [str(condition.get(title.lower()) or "") for title in titles] for condition in conditions
    ]
    yield from _indented_table(titles, rows)


def _event_lines(events: Sequence[Object]) -> Iterable[str]:
    if not events:
        yield _line("Events", NONE)
        return
    yield "Events:"
    rows = [
        [
            str(event.get("type") or ""),
            str(event.get("reason") or ""),
            age(last_seen(event))
            + (f" (x{count})" if (count := event.get("count") or 1) > 1 else ""),
            event_source(event),
            " ".join(str(event.get("message") or "").split()),
        ]
        for event in events
    ]
    yield from _indented_table(("Type", "Reason", "Age", "From", "Message"), rows)


def _indented_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    grid = [titles, *rows]
    widths = [max(len(row[column]) for row in grid) for column in range(len(titles))]
    for row in grid:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield ("  " + "  ".join(cells)).rstrip()


def _pairs(label: str, values: Mapping[str, str] | None, between: str) -> list[str]:
    """One line a pair, the label on the first only."""
    if not values:
        return [_line(label, NONE)]
    pairs = [f"{key}{between}{value}" for key, value in sorted(values.items())]
    return [_line(label if index == 0 else "", pair) for index, pair in enumerate(pairs)]


def _line(label: str, value: object, indent: int = 0) -> str:
    text = str(value) if value not in (None, "") else NONE
    head = f"{label}:" if label else ""
    return (" " * indent + head.ljust(_LABEL_WIDTH) + " " + text).rstrip()
