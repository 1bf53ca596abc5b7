"""Keeping up with a range of keys for ever: read it once, then watch, and again after any trouble.

    range ──on_sync──▶ watch from its revision ──on_change──▶ … ended ──▶ watch from the last seen
      ▲                                                         │
      └── the revision is compacted, or of another cluster ◀────┘

What `podwire.cluster.kube.reflect` is to Kubernetes; it tries again at the same pace.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import NoReturn

from podwire.cluster.etcd.client import EtcdClient, Listing
from podwire.cluster.etcd.messages import Change
from podwire.cluster.kube.reflect import Backoff
from podwire.errors import StoreCompactedError, StoreError

_STABLE_S = 1.0
"""A watch that lived this long was a good one, even if nothing happened."""


async def mirror(
    client: EtcdClient,
    key: bytes,
    range_end: bytes,
    *,
    on_sync: Callable[[Listing], None],
    on_change: Callable[[Sequence[Change]], None],
    on_connected: Callable[[], None] | None = None,
    on_disconnected: Callable[[StoreError], None] | None = None,
) -> NoReturn:
    """Call `on_sync` with all keys and `on_change` with changes after, in order, for ever.

    `on_sync` is called again whenever changes may have been missed; what is not in it any more is
    gone. `on_connected` is called when a watch is up, `on_disconnected` with the reason when the
    store is lost (once, until it is back). What the callbacks raise ends it.
    """
    clock = asyncio.get_running_loop().time
    listing: Listing | None = None
    revision = 0
    backoff = Backoff()
    is_up: bool | None = None
    opened_s: float | None = None

    def opened() -> None:
        nonlocal is_up, opened_s
        opened_s = clock()
        if is_up is not True:
            is_up = True
            if on_connected is not None:
                on_connected()

    while True:
        try:
            if listing is None:
                found = await client.range(key, range_end)
                on_sync(found)
                # What was read is the caller's to keep, not ours.
                listing, revision = Listing((), found.revision, found.cluster_id), found.revision
                del found
            batches = client.watch(key, range_end, after=listing, revision=revision, on_open=opened)
            async with contextlib.aclosing(batches):
                async for batch in batches:
                    on_change(batch.changes)
                    revision = batch.revision
                    backoff.reset()
        except StoreCompactedError:
            listing = None
        except StoreError as error:
            if is_up is not False:
                is_up = False
                if on_disconnected is not None:
                    on_disconnected(error)
        if opened_s is not None and clock() - opened_s >= _STABLE_S:
            backoff.reset()
        opened_s = None
        await asyncio.sleep(backoff.next_s())
