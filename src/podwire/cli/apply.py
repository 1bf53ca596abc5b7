"""`podwire apply`: make objects as manifests say, as `kubectl apply` does.

Client-side apply, on the annotation that kubectl uses too, so either may be used on an object.
Nothing is sent before every manifest has been read and checked; after that, one object's failure
does not keep the others from being applied.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from podwire.cli import options
from podwire.cli.context import target_options, with_client
from podwire.cli.kinds import Kinds
from podwire.cli.manifests import Manifest, ManifestError, filename_option, load
from podwire.cli.merge import LAST_APPLIED, merge_patch, three_way, without_nulls
from podwire.cluster.kube import KubeClient, Object, Resource
from podwire.decoding import from_json
from podwire.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PodwireError,
)

_SERVER_METADATA = (
    "creationTimestamp",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
)
_MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Placed:
    """A manifest whose kind the server has, and the namespace it goes to."""

    manifest: Manifest
    resource: Resource
    namespace: str | None

    @property
    def title(self) -> str:
        return f"{self.resource.qualified_name}/{self.manifest.name}"


@click.command(
    short_help="Create or update objects from manifests.",
    epilog="""
    \b
    Examples:
      podwire apply -f examples/two-pods.yaml
      podwire apply -f manifests/ -n demo
      kubectl create configmap a --dry-run=client -o yaml | podwire apply -f -
    """,
)
@filename_option(required=True)
@options.namespace_option
@target_options
def apply(filenames: tuple[str, ...], namespace: str | None) -> None:
    """Create the objects in manifests (YAML or JSON), or change them to what the manifests say.

    Fields that were applied before and are no longer in the manifest are removed; fields that
    others set are left alone.
    """
    manifests = load(filenames)

    async def work(client: KubeClient) -> None:
        failures = []
        for placed in await place(client, manifests, namespace):
            try:
                outcome = await _apply(client, placed)
            except PodwireError as error:
                failures.append(_explain(placed, error))
            else:
                print(f"{placed.title} {outcome}", flush=True)
        if failures:
            raise PodwireError("\n".join(failures))

    with_client(work)


async def place(
    client: KubeClient, manifests: Sequence[Manifest], namespace: str | None
) -> list[Placed]:
    """Find each manifest's kind and namespace. Raises `ManifestError` with every problem."""
    kinds = Kinds(client)
    placed, problems = [], []
    for manifest in manifests:
        api_version, kind = manifest.object["apiVersion"], manifest.object["kind"]
        resource = await kinds.by_kind(api_version, kind)
        if resource is None:
            problems.append(manifest.wrong("kind", f"the server has no {kind} in {api_version}"))
        elif resource.namespaced and namespace and manifest.namespace not in (None, namespace):
            problems.append(
                manifest.wrong(
                    "metadata.namespace", f'"{manifest.namespace}" is not -n {namespace}'
                )
            )
        else:
            own = manifest.namespace or namespace or client.config.namespace
            placed.append(Placed(manifest, resource, own if resource.namespaced else None))
    if problems:
        raise ManifestError(problems)
    return placed


async def _apply(client: KubeClient, placed: Placed) -> str:
    """Apply one object; gives what happened to it.

    Somebody else may create, change or delete it between our look at it and our request; then
    look again.
    """
    resource, name = placed.resource, placed.manifest.name
    modified = _to_apply(placed)
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        try:
            try:
                current = await client.get(resource, name, placed.namespace)
            except NotFoundError:
                await client.create(resource, modified, placed.namespace)
                return "created"
            patch = merge_patch(
                current, three_way(_last_applied(current, placed), modified, current)
            )
            if not patch:
                return "unchanged"
            patch.setdefault("metadata", {})["resourceVersion"] = current["metadata"][
                "resourceVersion"
            ]
            await client.merge_patch(resource, name, patch, placed.namespace)
            return "configured"
        except (AlreadyExistsError, ConflictError):
            if attempt == _MAX_ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


def _to_apply(placed: Placed) -> Object:
    """The manifest as it is sent: without what only the server sets, with itself as annotation."""
    manifest = without_nulls(placed.manifest.object)
    manifest.pop("status", None)
    metadata = {
        key: value for key, value in manifest["metadata"].items() if key not in _SERVER_METADATA
    }
    if placed.namespace is not None:
        metadata["namespace"] = placed.namespace
    else:
        metadata.pop("namespace", None)
    annotations = dict(metadata.get("annotations", {}))
    annotations.pop(LAST_APPLIED, None)
    applied = {**manifest, "metadata": {**metadata, "annotations": annotations}}
    text = msgspec.json.encode(applied, order="sorted").decode() + "\n"
    return {
        **manifest,
        "metadata": {**metadata, "annotations": {**annotations, LAST_APPLIED: text}},
    }


def _last_applied(current: Object, placed: Placed) -> Mapping[str, Any]:
    annotation = current["metadata"].get("annotations", {}).get(LAST_APPLIED)
    if annotation is None:
        print(
            f"warning: {placed.title} was not made by apply; "
            "what its manifest used to say and no longer does cannot be removed",
            file=sys.stderr,
        )
        return {}
    try:
        return from_json(annotation, dict[str, Any])
    except msgspec.DecodeError:
        raise PodwireError(
            f"{placed.title}: its annotation {LAST_APPLIED} is not the JSON of a manifest",
            remedy="remove the annotation and apply again",
        ) from None


def _explain(placed: Placed, error: PodwireError) -> str:
    """A server's refusal as lines of file, document and field."""
    causes = error.details.get("causes") if isinstance(error, ApiError) else None
    if isinstance(error, InvalidError) and causes:
        return "\n".join(
            placed.manifest.wrong(cause.get("field") or placed.title, cause.get("message", ""))
            for cause in causes
        )
    return placed.manifest.wrong(placed.title, error.message)
