"""What `exec` and `logs` share: which pod and which of its containers a person means."""

from __future__ import annotations

import sys

import click

from podwire.cluster.kube import PODS, KubeClient
from podwire.cluster.kube.resources import find_by_word
from podwire.errors import PodwireError

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


def pod_name(word: str) -> str:
    """`a` or `pod/a` → `a`. Raises `click.UsageError` for another kind."""
    kind, slash, name = word.rpartition("/")
    if slash and find_by_word(kind) is not PODS:
        raise click.UsageError(f"{word!r}: expected a pod")
    return name


async def choose_container(
    client: KubeClient, pod: str, namespace: str, container: str | None
) -> str:
    """The container named, or the pod's default: its annotation's, else its first.

    Raises `NotFoundError` without the pod, `PodwireError` without the container.
    """
    found = await client.get(PODS, pod, namespace)
    spec = found.get("spec", {})
    names = [
        str(entry["name"])
        for field in ("containers", "initContainers", "ephemeralContainers")
        for entry in spec.get(field) or ()
    ]
    if container is not None:
        if container not in names:
            raise PodwireError(
                f'pod "{pod}" has no container "{container}"',
                remedy=f"it has: {', '.join(names)}",
            )
        return container
    annotated = (found["metadata"].get("annotations") or {}).get(_DEFAULT_CONTAINER)
    if annotated in names:
        return str(annotated)
    if len(names) > 1:
        print(f'container "{names[0]}" of {", ".join(names)}; choose with -c', file=sys.stderr)
    return names[0]
