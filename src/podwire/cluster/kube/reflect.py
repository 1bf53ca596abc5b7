"""Keeping up with a collection for ever: list once, then watch, and again after any trouble.

The server may end a watch at any time, be away for hours, or have forgotten the version that we
saw last. `reflect` turns all of that into two calls: *this is all there is* and *this changed*.

    list ──on_sync──▶ watch from its version ──on_event──▶ … ended ──▶ watch from the last seen
      ▲                                                        │
      └──────────── the version is gone (410) ◀────────────────┘

It first tries again at once, since most breaks are a server that restarts or rotates its watches,
then after 0.2 s and doubling up to 10 s, each jittered so that a thousand agents do not return in
step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, overload

from podwire.cluster.kube.client import KubeClient
from podwire.cluster.kube.objects import Object, WatchEvent
from podwire.cluster.kube.resources import Resource
from podwire.errors import ApiError, ApiUnavailableError, InputError, PodwireError

T = TypeVar("T")

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 10.0
_STABLE_S = 1.0
"""A watch that lived this long was a good one, even if nothing happened."""
RELIST_CODES = (400, 410, 504)
"""Refusals of the version itself: malformed, compacted, or from a server with another past."""

_log = logging.getLogger(__name__)


class Backoff:
    """Seconds to wait before each next try; `reset()` after a success."""

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next_s(self) -> float:
        """0 the first time, then 0.2 s and doubling up to 10 s, each between half and whole."""
        self._failures += 1
        if self._failures == 1:
            return 0.0
        ceiling_s: float = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures - 2, 16))
        return ceiling_s * (0.5 + random.random() / 2)


@overload
async def reflect(
    client: KubeClient,
    resource: Resource,
    *,
    on_sync: Callable[[Sequence[Object]], None],
    on_event: Callable[[WatchEvent[Object]], None],
    namespace: str | None = None,
    label_selector: str | None = None,
    field_selector: str | None = None,
    resource_version: str | None = None,
    on_connected: Callable[[], None] | None = None,
    on_disconnected: Callable[[PodwireError], None] | None = None,
) -> NoReturn: ...
@overload
async def reflect(
    client: KubeClient,
    resource: Resource,
    *,
    on_sync: Callable[[Sequence[T]], None],
    on_event: Callable[[WatchEvent[T]], None],
    type: type[T],
    namespace: str | None = None,
    label_selector: str | None = None,
    field_selector: str | None = None,
    resource_version: str | None = None,
    on_connected: Callable[[], None] | None = None,
    on_disconnected: Callable[[PodwireError], None] | None = None,
) -> NoReturn: ...
async def reflect(
    client: KubeClient,
    resource: Resource,
    *,
    on_sync: Callable[[Sequence[Any]], None],
    on_event: Callable[[WatchEvent[Any]], None],
    type: Any = dict,
    namespace: str | None = None,
    label_selector: str | None = None,
    field_selector: str | None = None,
    resource_version: str | None = None,
    on_connected: Callable[[], None] | None = None,
    on_disconnected: Callable[[PodwireError], None] | None = None,
) -> NoReturn:
    """Call `on_sync` with all objects and `on_event` with each change after, for ever.

    `on_sync` is called again whenever the server has forgotten the last version seen; what is
    not in it any more is gone. With `resource_version`, start from there without a first
    `on_sync`. `on_connected` is called when a watch is up, `on_disconnected` with the reason
    when the server is lost (once, until it is back). The callbacks are plain functions, called
    in order; what they raise ends the reflection. An object that does not fit `type` is logged
    and left out.
    """
    clock = asyncio.get_running_loop().time
    connection = _Connection(resource, clock, on_connected, on_disconnected)
    scope: dict[str, Any] = {
        "label_selector": label_selector,
        "field_selector": field_selector,
        "refused": _log_refused,
        "type": type,
    }
    backoff = Backoff()
    version = resource_version
    while True:
        try:
            if version is None:
                listed = await client.list(resource, namespace, **scope)
                on_sync(listed.items)
                version = listed.resource_version
                del listed  # The caller keeps what it needs of thousands of objects.
            events = client.watch(
                resource, namespace, resource_version=version, on_open=connection.up, **scope
            )
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, WatchEvent):
                        on_event(event)
                    version = event.resource_version
                    backoff.reset()
        except ApiError as error:
            if error.status in RELIST_CODES:
                version = None
            connection.down(error)
        except ApiUnavailableError as error:
            connection.down(error)
        if connection.lasted_s() >= _STABLE_S:
            backoff.reset()
        await asyncio.sleep(backoff.next_s())


class _Connection:
    """Tells of going up and down once each, however often a try fails; times each watch."""

    def __init__(
        self,
        resource: Resource,
        clock: Callable[[], float],
        on_connected: Callable[[], None] | None,
        on_disconnected: Callable[[PodwireError], None] | None,
    ) -> None:
        self._resource = resource
        self._clock = clock
        self._opened_s: float | None = None
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._is_up: bool | None = None

    def up(self) -> None:
        self._opened_s = self._clock()
        if self._is_up is not True:
            self._is_up = True
            if self._on_connected is not None:
                self._on_connected()

    def lasted_s(self) -> float:
        """How long the watch lived that just ended; 0 when none came about."""
        opened_s, self._opened_s = self._opened_s, None
        return 0.0 if opened_s is None else self._clock() - opened_s

    def down(self, error: PodwireError) -> None:
        if self._is_up is not False:
            self._is_up = False
            _log.info("watch of %s interrupted: %s", self._resource.plural, error.message)
            if self._on_disconnected is not None:
                self._on_disconnected(error)


def _log_refused(error: InputError) -> None:
    _log.warning("object left out: %s", error.message)
