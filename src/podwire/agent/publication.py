"""This node's lease, told: to peers, then to the runtime, then to the scheduler.

What lives here: the order, what is left out where it is known already, and trying again. What does
not: when the lease changes, and what the agent says of itself (`daemon`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from podwire.agent.pods import Pods
from podwire.agent.rounds import Rounds
from podwire.cluster.kube import NODES, KubeClient
from podwire.cluster.nodes import NodeObject, differs, lease_annotations, network_available
from podwire.errors import PodwireError
from podwire.log import fields
from podwire.model.cluster import NetworkConfig

log = logging.getLogger(__name__)

#: Seconds after which what could not be published is tried again, doubling.
_AGAIN_S, _AGAIN_MAX_S = 1.0, 30.0
#: So often is a lease published in the window of `Rounds`; more is a fight over the Node object.
_ROUNDS = 5


class Publication:
    """Publishes a lease. `try_again` is called when it is time to, after `put_off`."""

    def __init__(self, pods: Pods, try_again: Callable[[], None]) -> None:
        self._pods = pods
        self._try_again = try_again
        self._rounds = Rounds(_ROUNDS)
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

    async def publish(
        self, client: KubeClient, own: NodeObject, network: NetworkConfig, *, again: bool
    ) -> None:
        """Tell what is not known yet; with `again`, the runtime and the scheduler in any case.

        Raises ApiError, ApiUnavailableError, and PodwireError where somebody else keeps changing
        the lease.
        """
        name = network.node
        wanted = differs(own, lease_annotations(network.lease))
        if wanted:
            if self._rounds.too_many():
                raise PodwireError(
                    f"somebody else keeps changing the lease of node {name}",
                    remedy="is an agent or a flanneld of that node's name running elsewhere?",
                )
            await client.merge_patch(NODES, name, {"metadata": {"annotations": wanted}})
            log.info("lease published", extra=fields(node=name))
        # Also when ready, where annotations were missing: the object may be a new one.
        if wanted or again:
            await self._pods.announce()
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            condition = {"status": {"conditions": [network_available(now)]}}
            await client.strategic_patch(NODES, name, condition, subresource="status")
        self._again_s = _AGAIN_S
