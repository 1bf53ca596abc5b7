"""This node's lease, told: to peers, then to the runtime, then to the scheduler.

What lives here: the order, what is left out where it is known already, and trying again. What does
not: when the lease changes, and what the agent says of itself (`readiness`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from podwire.agent.pods import Pods
from podwire.cluster.source import LeaseSource
from podwire.model.cluster import NetworkConfig

#: Seconds after which what could not be published is tried again, doubling.
_AGAIN_S, _AGAIN_MAX_S = 1.0, 30.0


class Publication:
    """Publishes a lease. `try_again` is called when it is time to, after `put_off`."""

    def __init__(self, source: LeaseSource, pods: Pods, try_again: Callable[[], None]) -> None:
        self._source = source
        self._pods = pods
        self._try_again = try_again
        self._again_s = _AGAIN_S
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_put_off(self) -> bool:
        return self._timer is not None

    def put_off(self) -> None:
        """It did not succeed: try again later, each time after twice as long."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._again_s, self._try_again)
        self._again_s = min(self._again_s * 2, _AGAIN_MAX_S)

    def begin(self) -> None:
        """It is tried now, whoever wanted it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def publish(self, network: NetworkConfig, *, again: bool) -> None:
        """Tell what is not known yet; with `again`, the runtime and the scheduler in any case.

        Raises what the store does, and PodwireError where the CNI plugin can't be installed.
        """
        told = await self._source.publish(network.lease)
        # Also when ready, where something was missing: the store's object may be a new one.
        if told or again:
            await self._pods.announce()
            await self._source.set_available()
        self._again_s = _AGAIN_S
