"""`podwire wait`: until objects have a condition, a value or are gone, for scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import click

from podwire.cli import options
from podwire.cli.context import target_options, with_client
from podwire.cli.jsonpath import Path, text_of
from podwire.cli.kinds import Selection, parse
from podwire.cli.until import until
from podwire.cluster.kube import KubeClient, Object
from podwire.errors import NotFoundError, PodwireError

Condition = Callable[[Object | None], bool]


class ConditionType(click.ParamType[tuple[str, Condition]]):
    """What `--for` takes; gives (the text itself, the test of an object)."""

    name = "condition"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Condition]:
        text = str(value)
        kind, _, rest = text.partition("=")
        if text in ("delete", "create"):
            return text, (lambda obj: obj is None) if text == "delete" else _exists
        if kind == "condition" and rest:
            return text, _has_condition(rest)
        if kind == "jsonpath" and rest:
            return text, _has_value(rest)
        return self.fail(
            f"{text!r} is none of condition=NAME[=VALUE], jsonpath=PATH[=VALUE], create, delete",
            param,
            ctx,
        )


@click.command(
    short_help="Wait until objects meet a condition.",
    epilog="""
    \b
    Examples:
      podwire wait pod a b --for=condition=Ready
      podwire wait pods --all --for=condition=Ready --timeout 10s
      podwire wait pod/a --for=delete
      podwire wait pod/a --for=jsonpath='{.status.podIP}'
      podwire wait pod/a --for=jsonpath='{.status.phase}'=Succeeded
    """,
)
@click.argument("what", nargs=-1, required=True, metavar="KIND NAME… | KIND/NAME…")
@click.option(
    "--for",
    "condition",
    type=ConditionType(),
    required=True,
    metavar="CONDITION",
    help="condition=NAME[=VALUE], jsonpath=PATH[=VALUE], create or delete.",
)
@click.option(
    "--timeout",
    type=options.DURATION,
    default="30s",
    show_default=True,
    help="Give up after this long (0: look once).",
)
@click.option("--all", "everything", is_flag=True, help="All objects of the KIND.")
@options.selector_option
@options.namespace_option
@target_options
def wait(
    what: tuple[str, ...],
    condition: tuple[str, Condition],
    timeout: float,
    everything: bool,
    selector: str | None,
    namespace: str | None,
) -> None:
    """Wait until every object named is as `--for` says.

    Fails when the time is over, or when an object does not exist (unless waiting for it to).
    """
    text, test = condition

    async def work(client: KubeClient) -> None:
        space = namespace or client.config.namespace
        selections = await parse(client, what)
        if everything or selector:
            selections = [await _select(client, s, space, selector) for s in selections]
        elif not all(selection.names for selection in selections):
            raise click.UsageError("give names, --all or --selector")
        results = await asyncio.gather(
            *(_wait(client, s, space, text, test, timeout) for s in selections)
        )
        late = [name for names in results for name in names]
        if late:
            raise PodwireError(f"timed out waiting for {text} on {', '.join(late)}")

    with_client(work)


async def _select(
    client: KubeClient, selection: Selection, namespace: str, labels: str | None
) -> Selection:
    if selection.names:
        raise click.UsageError("names exclude --all and --selector")
    listed = await client.list(selection.resource, namespace, label_selector=labels)
    if not listed.items:
        raise PodwireError(f"no matching {selection.resource.plural} found")
    return Selection(selection.resource, tuple(obj["metadata"]["name"] for obj in listed.items))


async def _wait(
    client: KubeClient,
    selection: Selection,
    namespace: str,
    text: str,
    test: Condition,
    timeout_s: float,
) -> list[str]:
    """Wait for one kind's objects; gives those that did not get there."""
    resource = selection.resource
    may_be_missing = text in ("delete", "create")

    def check(name: str, obj: Object | None) -> bool:
        if obj is None and not may_be_missing:
            message = f'{resource.plural} "{name}" not found'
            raise NotFoundError(404, "NotFound", message)
        return test(obj)

    def on_met(name: str) -> None:
        print(f"{resource.qualified_name}/{name} condition met", flush=True)

    late = await until(
        client, resource, namespace, selection.names, check, on_met=on_met, timeout_s=timeout_s
    )
    return [f"{resource.qualified_name}/{name}" for name in late]


def _exists(obj: Object | None) -> bool:
    return obj is not None


def _has_condition(text: str) -> Condition:
    name, _, value = text.partition("=")
    wanted = (value or "True").lower()

    def test(obj: Object | None) -> bool:
        conditions = ((obj or {}).get("status") or {}).get("conditions") or ()
        return any(
            str(c.get("type", "")).lower() == name.lower()
            and str(c.get("status", "")).lower() == wanted
            for c in conditions
        )

    return test


def _has_value(text: str) -> Condition:
    """`{.path}=value`, or `{.path}` for any value there."""
    expression, equals, value = text.rpartition("}=") if "}=" in text else (text, "", "")
    path = Path(expression.strip().removeprefix("{").removesuffix("}"))

    def test(obj: Object | None) -> bool:
        found = [text_of(found) for found in path.find(obj)]
        return value.strip("'\"") in found if equals else any(found)

    return test
