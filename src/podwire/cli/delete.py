"""`podwire delete`: by name, label or manifest, and by default until they are really gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import click

from podwire.cli import options
from podwire.cli.apply import place
from podwire.cli.context import target_options, with_client
from podwire.cli.kinds import parse
from podwire.cli.manifests import filename_option, load
from podwire.cli.until import until
from podwire.cluster.kube import KubeClient, Object, Resource
from podwire.errors import NotFoundError, PodwireError


@dataclass(frozen=True, slots=True)
class _Doomed:
    """An object to delete."""

    resource: Resource
    namespace: str | None
    name: str


@click.command(
    short_help="Delete objects by name, label or manifest.",
    epilog="""
    \b
    Examples:
      podwire delete pod a b
      podwire delete -f examples/two-pods.yaml
      podwire delete pods -l app=web --no-wait
      podwire delete pods --all --grace-period 0
    """,
)
@click.argument("what", nargs=-1, metavar="[KIND NAME… | KIND/NAME…]")
@filename_option(required=False)
@options.namespace_option
@options.selector_option
@click.option("--all", "everything", is_flag=True, help="All objects of the KIND.")
@click.option(
    "--grace-period",
    type=click.IntRange(min=0),
    metavar="SECONDS",
    help="Time a pod gets to stop by itself (default: the pod's own).",
)
@click.option("--wait/--no-wait", "gone", default=True, help="Wait until they are gone.")
@click.option(
    "--timeout", type=options.DURATION, help="Longest time to wait (default: without end)."
)
@click.option("--ignore-not-found", is_flag=True, help="What does not exist is no failure.")
@target_options
def delete(
    what: tuple[str, ...],
    filenames: tuple[str, ...],
    namespace: str | None,
    selector: str | None,
    everything: bool,
    grace_period: int | None,
    gone: bool,
    timeout: float | None,
    ignore_not_found: bool,
) -> None:
    """Delete objects, and wait until they are gone."""
    if bool(what) == bool(filenames):
        raise click.UsageError("give either KIND and NAMEs or -f")
    manifests = load(filenames) if filenames else []

    async def work(client: KubeClient) -> None:
        if filenames:
            placed = await place(client, manifests, namespace)
            doomed = [_Doomed(p.resource, p.namespace, p.manifest.name) for p in placed]
        else:
            space = namespace or client.config.namespace
            doomed = await _select(client, what, space, selector, everything)
            if not doomed:
                print("No resources found")
        uids, failures = await _delete(client, doomed, grace_period, ignore_not_found)
        if gone:
            failures += await _until_gone(client, uids, timeout)
        if failures:
            raise PodwireError("\n".join(failures))

    with_client(work)


async def _select(
    client: KubeClient,
    what: Sequence[str],
    namespace: str,
    labels: str | None,
    everything: bool,
) -> list[_Doomed]:
    doomed = []
    for selection in await parse(client, what):
        resource = selection.resource
        space = namespace if resource.namespaced else None
        names: Sequence[str] = selection.names
        if names and (labels or everything):
            raise click.UsageError("names exclude --all and --selector")
        if not names:
            if not labels and not everything:
                raise click.UsageError("give names, --all or --selector")
            listed = await client.list(resource, space, label_selector=labels)
            names = [obj["metadata"]["name"] for obj in listed.items]
        doomed += [_Doomed(resource, space, name) for name in names]
    return doomed


async def _delete(
    client: KubeClient, doomed: Sequence[_Doomed], grace_s: int | None, ignore_not_found: bool
) -> tuple[dict[_Doomed, str], list[str]]:
    """Ask for all deletions; gives the uid of each object that goes, and what failed."""
    uids: dict[_Doomed, str] = {}
    failures = []
    for each in doomed:
        try:
            answer = await client.delete(each.resource, each.name, each.namespace, grace_s)
        except NotFoundError as error:
            if not ignore_not_found:
                failures.append(error.message)
        except PodwireError as error:
            failures.append(error.message)
        else:
            uids[each] = _uid(answer)
            print(f'{each.resource.qualified_name} "{each.name}" deleted', flush=True)
    return uids, failures


async def _until_gone(
    client: KubeClient, uids: dict[_Doomed, str], timeout_s: float | None
) -> list[str]:
    """Wait for each object to go; gives those that did not in time.

    One that is there again under another uid is a new one: the old one is gone.
    """
    groups: dict[tuple[Resource, str | None], dict[str, str]] = {}
    for each, uid in uids.items():
        groups.setdefault((each.resource, each.namespace), {})[each.name] = uid

    async def wait(key: tuple[Resource, str | None], group: dict[str, str]) -> list[str]:
        resource, namespace = key

        def is_gone(name: str, obj: Object | None) -> bool:
            return obj is None or (bool(group[name]) and _uid(obj) != group[name])

        late = await until(
            client,
            resource,
            namespace,
            group,
            is_gone,
            on_met=lambda name: None,
            timeout_s=timeout_s,
        )
        return [f"timed out waiting for {resource.qualified_name}/{name} to go" for name in late]

    results = await asyncio.gather(*(wait(key, group) for key, group in groups.items()))
    return [failure for failures in results for failure in failures]


def _uid(answer: Object) -> str:
    """The uid in the answer to a deletion: of the object, or in the details of a Status."""
    if answer.get("kind") == "Status":
        return str((answer.get("details") or {}).get("uid", ""))
    return str(answer.get("metadata", {}).get("uid", ""))
