"""Whether this node is ready: pods can be wired, and reach their peers.

What lives here: the reason why not, and all who are told of it. What does not: how it is found.
"""

from __future__ import annotations

import logging

from podwire.agent import metrics
from podwire.agent.pods import Pods
from podwire.log import fields

log = logging.getLogger(__name__)


class Readiness:
    """`reason` is why pods can't be wired yet; None when they can. /readyz, the metrics, the log
    and the runtime have it from here."""

    def __init__(self, pods: Pods, reason: str) -> None:
        self._pods = pods
        self.reason: str | None = reason
        self.say(reason)

    def say(self, reason: str | None) -> None:
        """So it is from now on."""
        if reason is not None and reason != self.reason:
            log.warning("not ready", extra=fields(reason=reason))
        self.reason = reason
        metrics.READY.set(reason is None)
        if reason is not None:
            self._pods.say_not_ready(reason)
