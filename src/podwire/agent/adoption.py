"""A new configuration of this node, taken over: told, planned, applied, with the pods it has.

What lives here: the order. What does not: when there is a new one (`renewal`, `control`), and each
of the steps.
"""

from __future__ import annotations

import logging

from podwire.agent.allocation import differ_in_further_subnets
from podwire.agent.memory import FabricMemory
from podwire.agent.mending import Mender
from podwire.agent.planner import Planner
from podwire.agent.pods import Pods
from podwire.agent.telling import warn_of_strays
from podwire.agent.worker import KernelWorker
from podwire.kernel import sysctl
from podwire.log import fields
from podwire.model.cluster import NetworkConfig
from podwire.plan.change import interruptions

log = logging.getLogger(__name__)


class Adoption:
    """`network` is what this node is planned with; None until the first one is taken over."""

    def __init__(
        self,
        memory: FabricMemory,
        worker: KernelWorker,
        pods: Pods,
        mender: Mender,
        planner: Planner,
    ) -> None:
        self._memory = memory
        self._worker = worker
        self._pods = pods
        self._mender = mender
        self._planner = planner
        self.network: NetworkConfig | None = None

    async def adopt(self, network: NetworkConfig) -> None:
        """Use a new configuration: everything is planned and compared."""
        self._tell(network)
        if self.network is None or not differ_in_further_subnets(self.network, network):
            self._pods.wait_for("the node's network is being made")
        for key in self._memory.given_up(network.fabric):
            await self._worker.call(sysctl.reset, key)
        for protocol in self._memory.begin(network):
            await self._worker.call(self._worker.reconciler.own_protocol, protocol)
        attachments = self._pods.use(network)
        warn_of_strays(network, attachments)
        self.network = network
        moving = self._pods.to_rewire
        staying = [one for one in attachments if one not in moving]
        await self._mender.replace(self._planner.whole(network, staying))
        if moving:
            await self._pods.rewire()
        if not self._mender.held:
            self._memory.done(network)

    def _tell(self, network: NetworkConfig) -> None:
        """What it is, and what becomes of pods where it is another fabric than the last one."""
        log.info(
            "lease",
            extra=fields(
                node=network.node,
                fabric=network.fabric.profile,
                subnets=",".join(map(str, network.lease.subnets)),
                underlay=network.underlay.dev,
                address=",".join(map(str, network.underlay.ips)),
                mtu=network.mtu,
            ),
        )
        last = self._memory.last
        if last is None or last.fabric == network.fabric:
            return
        log.warning(
            "another fabric", extra=fields(was=last.fabric.profile, now=network.fabric.profile)
        )
        other = set(last.network) != set(map(str, network.network))
        for sentence in interruptions(last.fabric, network.fabric, other_network=other):
            log.warning("another fabric", extra=fields(means=sentence))
