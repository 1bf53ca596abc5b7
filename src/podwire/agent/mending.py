"""The kernel, kept as it is wanted: compared as a whole, or a cause at a time; or held as it is.

What lives here: when the whole is compared, what is told of it, and what the kernel refused. What
does not: what is wanted (`podwire.plan`), and who says that something is amiss (`notices`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from podwire.agent import metrics
from podwire.agent.telling import account, log_failures
from podwire.agent.worker import KernelWorker
from podwire.kernel.reconcile import Report
from podwire.log import fields
from podwire.model.state import Desired, Entry
from podwire.rounds import Rounds

log = logging.getLogger(__name__)

#: Two full reconciles are at least this far apart, so that a burst of notifications costs one.
_SETTLE_S = 0.02
#: Seconds after which the kernel is asked again for what it refused, where it did not notify before
#: that what was in the way is gone: another's device, or an underlay that had no IPv6 for a while.
_REFUSED_AGAIN_S = 5.0
#: From so many causes on, comparing the whole costs less than applying each by itself.
_MANY_CAUSES = 500
#: Somebody who keeps undoing what we do is answered at this pace, after so many rounds.
_FIGHT_ROUNDS, _FIGHT_PACE_S = 20, 1.0


class Mender:
    """Applies what is wanted to the kernel.

    `wake` is called when there is something to do, `attach_again(names)` for pods' links that are
    gone, `note_refused(reason)` after each comparison: the first device that the kernel refused,
    None where there is none.
    """

    def __init__(
        self,
        worker: KernelWorker,
        *,
        wake: Callable[[], None],
        attach_again: Callable[[list[str]], Awaitable[None]],
        note_refused: Callable[[str | None], None],
    ) -> None:
        self._worker = worker
        self._wake = wake
        self._attach_again = attach_again
        self._note_refused = note_refused
        self._is_amiss = False
        self._refused_timer: asyncio.TimerHandle | None = None
        self._failures: frozenset[str] = frozenset()
        self._repairs = Rounds(_FIGHT_ROUNDS)
        self._held = False

    @property
    def held(self) -> bool:
        """Whether the kernel is left as it is, whatever becomes of it."""
        return self._held

    def hold(self, on: bool) -> None:
        """Stop mending, or start again with all that differs by then."""
        self._held = on
        metrics.HELD.set(on)
        if on:
            log.warning("held: the kernel is left as it is")
            return
        log.info("resumed")
        self.note_amiss()

    def note_amiss(self) -> None:
        """Somebody changed what we want otherwise: all is compared when `mend_amiss` is called."""
        self._is_amiss = True
        self._wake()

    async def mend_amiss(self) -> None:
        """Compare all if something is amiss, and nothing is held."""
        if not self._is_amiss or self._held:
            return
        await asyncio.sleep(_FIGHT_PACE_S if self._repairs.too_many() else _SETTLE_S)
        self._is_amiss = False
        await self.reconcile("amiss")

    async def replace(self, desired: Desired) -> None:
        """Want exactly this from now on, and apply it."""
        await self._worker.call(self._worker.reconciler.replace, desired)
        await self.reconcile("start")

    async def reconcile(self, reason: str) -> None:
        """Compare all and apply what differs, but while it is held."""
        if not self._held:
            await self.mend(reason)

    async def mend(self, reason: str) -> Report:
        """Apply all that differs now, also while held; what was done."""
        verbose = log.isEnabledFor(logging.DEBUG)
        report = await self._worker.call(self._worker.reconciler.reconcile, record=verbose)
        account("full", report)
        log_failures(report.failures, known=self._failures)
        self._failures = frozenset(report.failures)
        for change in report.lines:
            log.debug("changed", extra=fields(line=change.line, why=change.why))
        if report.changes or reason == "start":
            log.info(
                "reconciled",
                extra=fields(
                    reason=reason, changes=report.changes, ms=round(report.seconds * 1000, 1)
                ),
            )
        if self._refused_timer is not None:
            self._refused_timer.cancel()
            self._refused_timer = None
        if report.failures:
            self._ask_again()
        self._note_refused(report.refused[0] if report.refused else None)
        if report.missing:
            await self._attach_again([link.name for link in report.missing])
        return report

    async def update(self, plans: dict[str, tuple[Entry, ...]]) -> None:
        """Want these entries from now on, by cause, and apply just what that changes."""
        if len(plans) > _MANY_CAUSES:
            await self._worker.call(self._want, plans)
            await self.reconcile("peers")
            return
        whole = False
        # First what goes: whatever takes its place finds it free.
        for cause in sorted(plans, key=lambda cause: bool(plans[cause])):
            if self._held:
                await self._worker.call(self._worker.reconciler.want, cause, plans[cause])
                continue
            update = self._worker.reconciler.update
            report = await self._worker.call(update, cause, plans[cause])
            if report is None:
                whole = True
                continue
            account("peer", report)
            log_failures(report.failures)
            if report.failures:
                self._failures |= frozenset(report.failures)
                self._ask_again()
            if report.changes:
                log.info("updated", extra=fields(cause=cause, changes=report.changes))
        if whole:
            await self.reconcile("peers")

    def _want(self, plans: dict[str, tuple[Entry, ...]]) -> None:
        """In the worker's thread."""
        for cause, entries in plans.items():
            self._worker.reconciler.want(cause, entries)

    def _ask_again(self) -> None:
        """Compare all in some seconds, whether or not more is refused until then."""
        if self._refused_timer is None:
            loop = asyncio.get_running_loop()
            self._refused_timer = loop.call_later(_REFUSED_AGAIN_S, self.note_amiss)
