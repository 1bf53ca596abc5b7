"""An examination: the checks that were asked for, side by side, each bounded in time.

A check that fails of itself, or takes too long, is a finding, and never the end of the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from podwire.agent.doctor import (
    clock,
    desired,
    forwarding,
    guards,
    health,
    kernel,
    leftovers,
    mtu,
    offload,
    overlap,
    tunnel,
)
from podwire.agent.doctor.measure import measured_once
from podwire.agent.doctor.names import CHECKS
from podwire.agent.doctor.subject import Examination, Findings, Subject, reachable_peers
from podwire.errors import InputError, PodwireError
from podwire.log import fields
from podwire.trace.wire import Check, Checked

if TYPE_CHECKING:
    from podwire.agent.daemon import Agent

log = logging.getLogger(__name__)

#: A node with thousands of peers, or of rules, takes seconds; a check that hangs is found.
_LIMIT_S = 30.0

_EXAMINATIONS: Mapping[str, Examination] = {
    "agent": health.examine,
    "desired": desired.examine,
    "kernel": kernel.examine,
    "forwarding": forwarding.examine,
    "tunnel": tunnel.examine,
    "mtu": mtu.examine,
    "offload": offload.examine,
    "guards": guards.examine,
    "overlap": overlap.examine,
    "clock": clock.examine,
    "leftovers": leftovers.examine,
}


async def check(agent: Agent, request: Check, emit: Callable[[Checked], None]) -> None:
    """Make the request's checks; `emit` is given each finding as it is made.

    Raises InputError for a check that there is not.
    """
    for name in request.checks:
        if name not in _EXAMINATIONS:
            raise InputError(f"there is no check {name}", field="check", remedy=f"{list(CHECKS)}")
    peers = reachable_peers(agent, request.peers)
    async with measured_once(agent, peers) as measure:
        subject = Subject(agent=agent, peers=peers, fix=request.fix, measure=measure)
        names = [name for name in CHECKS if name in (request.checks or CHECKS)]
        if "desired" in names:
            # Before the others, which are to see what it has mended.
            names.remove("desired")
            await _examine("desired", subject, emit)
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(_examine(name, subject, emit))


async def _examine(name: str, subject: Subject, emit: Callable[[Checked], None]) -> None:
    find, told = Findings(name), False
    try:
        async with asyncio.timeout(_LIMIT_S):
            findings: AsyncIterator[Checked] = _EXAMINATIONS[name](subject)
            async for one in findings:
                told = True
                emit(one)
        if not told:
            # Where there is no network yet; silence would be taken for health.
            emit(find.fail(f"there is nothing to examine yet: {subject.agent.not_ready}"))
    except TimeoutError:
        emit(find.fail(f"the check took longer than {_LIMIT_S:g} s and was given up"))
    except PodwireError as error:
        emit(find.fail(f"the check could not be made: {error.message}", error.remedy or ""))
    except Exception as error:
        log.exception("check failed", extra=fields(check=name))
        emit(
            find.fail(
                f"the check itself failed: {type(error).__name__}: {error}",
                "this is a bug of podwire; the agent's log has more",
            )
        )
