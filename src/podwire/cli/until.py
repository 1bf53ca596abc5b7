"""Waiting for objects to become as wanted, on the API's own notifications.

Used by `wait` and by `delete`, which waits until what it deleted is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence

from podwire.cluster.kube import KubeClient, Object, Resource, WatchEvent, reflect

Check = Callable[[str, Object | None], bool]
"""Whether the object of that name is as wanted; None when there is none."""


async def until(
    client: KubeClient,
    resource: Resource,
    namespace: str | None,
    names: Iterable[str],
    check: Check,
    *,
    on_met: Callable[[str], None],
    timeout_s: float | None,
) -> Sequence[str]:
    """Watch the objects `names` until `check` is true of each; returns those it is not true of.

    `on_met` is called once for each name as it comes true. A name is not looked at again after
    that. `timeout_s` None waits for ever. Raises what the first look at the objects raises.
    """
    pending = dict.fromkeys(names)
    done = asyncio.Event()

    def look(name: str, obj: Object | None) -> None:
        if name in pending and check(name, obj):
            del pending[name]
            on_met(name)
            if not pending:
                done.set()

    def on_sync(objects: Sequence[Object]) -> None:
        by_name = {obj["metadata"]["name"]: obj for obj in objects}
        for name in list(pending):
            look(name, by_name.get(name))

    def on_event(event: WatchEvent[Object]) -> None:
        look(event.object["metadata"]["name"], None if event.type == "DELETED" else event.object)

    # One object is cheaper to watch on its own than among all of its namespace.
    fields = f"metadata.name={next(iter(pending))}" if len(pending) == 1 else None
    listed = await client.list(resource, namespace, field_selector=fields)
    on_sync(listed.items)
    if not pending:
        return ()
    watching = asyncio.ensure_future(
        reflect(
            client,
            resource,
            namespace=namespace,
            field_selector=fields,
            resource_version=listed.resource_version,
            on_sync=on_sync,
            on_event=on_event,
        )
    )
    waiting = asyncio.ensure_future(done.wait())
    try:
        await asyncio.wait(
            (watching, waiting), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if watching.done():
            watching.result()
    finally:
        for task in (watching, waiting):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return tuple(pending)
