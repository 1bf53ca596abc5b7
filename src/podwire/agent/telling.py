"""What the agent tells of its work: log lines for people, counts for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from podwire.agent import metrics
from podwire.kernel.reconcile import Report
from podwire.log import fields
from podwire.model.cluster import Attachment, NetworkConfig, Node
from podwire.plan.claims import Claims
from podwire.plan.node import objections, unreached

log = logging.getLogger(__name__)


class ObjectionLog:
    """Tells of leases that are not used, or not for all pods, and why, each once: not again when
    the node changes in some other way, but when it is objected to anew."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, str]] = {}

    def tell(
        self,
        network: NetworkConfig,
        nodes: Mapping[str, Node | None],
        claims: Claims,
        limit: int | None = None,
    ) -> None:
        """`nodes` by name, None for those that are gone; beyond `limit` only how many more."""
        new: dict[str, str] = {}
        for name, node in nodes.items():
            found: dict[str, str] = {}
            if node is not None and name != network.node:
                found = dict.fromkeys(objections(network, node, claims), "lease not believed")
                found |= dict.fromkeys(unreached(network, node, claims), "pods not reached")
            told = self._told.pop(name, {})
            if found:
                self._told[name] = found
            new |= {reason: what for reason, what in found.items() if reason not in told}
        for reason, what in islice(new.items(), limit):
            log.warning(what, extra=fields(reason=reason))
        if limit is not None and len(new) > limit:
            log.warning("more leases not believed", extra=fields(count=len(new) - limit))


def account(scope: str, report: Report) -> None:
    """Count a reconciliation; `scope` is `full` or `peer`."""
    metrics.RECONCILE_SECONDS.labels(scope).observe(report.seconds)
    metrics.KERNEL_CHANGES.inc(report.changes)
    metrics.KERNEL_FAILURES.inc(len(report.failures))


def log_failures(failures: Sequence[str], *, known: Collection[str] = frozenset()) -> None:
    """What the kernel refused, less what was told before."""
    for failure in failures:
        if failure not in known:
            log.error("refused by the kernel", extra=fields(error=failure))


def strays(network: NetworkConfig, attachments: Sequence[Attachment]) -> list[str]:
    """The pods with addresses outside of the lease: peers send what is for these to another node,
    or nowhere."""
    return [
        one.pod or one.container_id
        for one in attachments
        if not any(ip.ip in subnet for ip in one.ips for subnet in network.lease.subnets)
    ]


def warn_of_strays(network: NetworkConfig, attachments: Sequence[Attachment]) -> None:
    """Pods keep their addresses, whatever becomes of the lease."""
    if found := strays(network, attachments):
        log.warning(
            "pods have addresses outside of the lease: delete them, so that they get new ones",
            extra=fields(pods=",".join(found)),
        )
