"""The loop that every controller runs in.

What lives here: following changes, waking at the time a controller asked for, and starting over
after a failure. Callbacks are synchronous; each batch of changes is one call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic
from typing import Protocol

from podwire.lab.api.hub import Event, Hub
from podwire.lab.api.store import Compacted

log = logging.getLogger("podwire.lab.controllers")

_RESTART_S = 1.0


class Controller(Protocol):
    """What the loop needs of a controller."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The resources whose changes it wants."""

    def sync(self) -> None:
        """Forget everything, look at all objects and do what they call for."""

    def handle(self, events: Sequence[Event]) -> None:
        """Do what these changes, in order, call for."""

    def due(self) -> float | None:
        """When (`time.monotonic`) to call `tick`, None for never."""

    def tick(self) -> None:
        """Do what is due."""


async def run(controller: Controller, hub: Hub) -> None:
    """Run a controller until the hub closes."""
    name = type(controller).__name__
    while not hub.closed:
        try:
            await _run_once(controller, hub)
        except Compacted:
            log.info("fell behind, looking at everything again controller=%s", name)
        except Exception:
            log.exception("failed, starting over controller=%s", name)
            await asyncio.sleep(_RESTART_S)


async def _run_once(controller: Controller, hub: Hub) -> None:
    cursor = hub.revision
    controller.sync()
    while not hub.closed:
        events, cursor = hub.after(controller.kinds, cursor)
        if events:
            controller.handle(events)
            # Others get their turn between batches, however fast changes come.
            await asyncio.sleep(0)
            continue
        due = controller.due()
        if due is not None and due <= monotonic():
            controller.tick()
        elif cursor == hub.revision:
            wait_s = None if due is None else due - monotonic()
            cursor = await hub.wait(controller.kinds, wait_s)
