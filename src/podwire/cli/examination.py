"""Examining nodes: every agent is asked at once, and one that can't be is a finding.

What lives here: the asking, what is known of a node whose agent does not answer, and the agents'
clocks against each other. What does not: the checks themselves, which are the agents'.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from statistics import median_low
from typing import TYPE_CHECKING, Any

import msgspec

from podwire.agent.doctor import clock
from podwire.agent.doctor.names import CHECKS
from podwire.agent.doctor.subject import Findings
from podwire.cli.agents import Agents
from podwire.cli.context import target
from podwire.cluster.kube import NODES
from podwire.cluster.nodes import MANAGED
from podwire.errors import AgentAwayError, InputError, NotFoundError, PodwireError
from podwire.kernel.boot import boot_id
from podwire.trace.connection import Connection
from podwire.trace.wire import Check, Checked

if TYPE_CHECKING:
    from podwire.lab.registry import LabInfo

#: Agents that are asked at once; on a cluster each is a stream through the API server.
_AT_ONCE = 32
#: An agent bounds each of its checks; longer than all of them together take, it hangs.
_EXAMINATION_S = 90.0
#: The API is asked only for what else is known of a node.
_API_S = 3.0
#: How the node is called that was not named.
HERE = "this host"

_agent = Findings("agent")
_clock = Findings("clock")


class Reading(msgspec.Struct, frozen=True):
    """A clock, read over a connection: it is `least_s` to `most_s` ahead of ours. `boot` names
    the machine."""

    boot: str
    least_s: float
    most_s: float


class NodeReport(msgspec.Struct, frozen=True):
    """What was found on a node, in the order of the checks."""

    node: str
    findings: tuple[Checked, ...]
    reading: Reading | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong that was not mended. Warnings do not count."""
        return not any(map(_is_wrong, self.findings))


async def examine(
    them: Agents,
    nodes: Sequence[str | None],
    checks: tuple[str, ...],
    *,
    fix: bool,
    waiting: set[str],
) -> list[NodeReport]:
    """Examine `nodes` (None: this host), each of which is taken out of `waiting` when it is done.

    Raises PodwireError where none may be asked, InputError for a node that there is not.
    """
    limit = asyncio.Semaphore(_AT_ONCE)
    refusals: list[PodwireError] = []

    async def one(node: str | None) -> NodeReport:
        async with limit:
            try:
                return await _examine_one(them, node, Check(id=0, checks=checks, fix=fix))
            except InputError:
                raise
            except PodwireError as error:
                refusals.append(error)
                return NodeReport(node or HERE, (_agent.fail(error.message, error.remedy or ""),))
            finally:
                waiting.discard(node or HERE)

    reports = explained(await asyncio.gather(*map(one, nodes)))
    if len(refusals) == len(nodes):
        raise refusals[0]
    if checks and "clock" not in checks:
        return reports
    apart = clocks_apart({report.node: report.reading for report in reports if report.reading})
    return [
        msgspec.structs.replace(report, findings=(*report.findings, *apart.get(report.node, ())))
        for report in reports
    ]


async def _examine_one(them: Agents, node: str | None, request: Check) -> NodeReport:
    before = time.time()
    try:
        connection = await them.dial(node)
    except AgentAwayError as error:
        return NodeReport(node or HERE, (await _away(them, node, error),))
    welcome, after = connection.welcome, time.time()
    theirs = welcome.time_ns / 1e9
    reading = Reading(welcome.clock, theirs - after, theirs - before)
    broken: tuple[Checked, ...] = ()
    try:
        async with asyncio.timeout(_EXAMINATION_S):
            await connection.call(request)
    except TimeoutError:
        text = f"the examination has not ended within {_EXAMINATION_S:g} s"
        broken = (_agent.fail(text, "is the agent stopped or stuck?"),)
    except PodwireError as error:
        text = f"the examination ended early: {error.message}"
        broken = (_agent.fail(text, error.remedy or ""),)
    finally:
        # On a large cluster, streams that have nothing to say any more are a burden to the API.
        await connection.close()
    return NodeReport(welcome.node, (*_told(connection), *broken), reading)


def _told(connection: Connection) -> tuple[Checked, ...]:
    """What the agent has found, check by check in their order."""
    found = []
    while not connection.events.empty():
        if isinstance(event := connection.events.get_nowait(), Checked):
            found.append(event)
    order = list(CHECKS)
    return tuple(
        sorted(found, key=lambda one: order.index(one.check) if one.check in order else 99)
    )


def explained(reports: Sequence[NodeReport]) -> list[NodeReport]:
    """Findings about a peer that is itself not as it should be say so: that may be the reason."""
    wrong = {
        report.node
        for report in reports
        if any(one.check == "desired" and _is_wrong(one) for one in report.findings)
    }
    found = []
    for report in reports:
        findings = tuple(
            msgspec.structs.replace(one, remedy=f"first mend {one.peer}, see `desired` there")
            if one.peer in wrong and _is_wrong(one) and report.node not in wrong
            else one
            for one in report.findings
        )
        found.append(msgspec.structs.replace(report, findings=findings))
    return found


def _is_wrong(one: Checked) -> bool:
    return one.level == "fail" and not one.fixed


# --- an agent that does not answer ------------------------------------------------------------


async def _away(them: Agents, node: str | None, error: AgentAwayError) -> Checked:
    """What is known of its node from elsewhere: its object, and the lab's supervisor."""
    facts = [error.message]
    if node is not None:
        if (lab := target().lab_info()) is not None:
            facts += await asyncio.to_thread(_process, lab, node)
        try:
            async with asyncio.timeout(_API_S):
                facts += _object_says(await them.client.get(NODES, node))
        except NotFoundError:
            facts.append(f"there is no node {node} in the cluster")
        except TimeoutError:
            facts.append("nor does the API answer")
        except PodwireError as unknown:
            facts.append(f"nor can the API be asked: {unknown.message}")
    return _agent.fail("; ".join(facts), error.remedy or "")


def _process(lab: LabInfo, node: str) -> list[str]:
    """What a lab's supervisor says of the agent's process."""
    from podwire.lab.control import Control

    try:
        with Control(lab) as control:
            process = control.request("status").process(f"{node}/agent")
    except (PodwireError, OSError) as error:
        return [error.message if isinstance(error, PodwireError) else str(error)]
    if process is None:
        return ["the lab's supervisor has not started it"]
    said = f" ({process.message})" if process.message else ""
    times = f", restarted {process.restarts} times" if process.restarts else ""
    return [f"to the lab's supervisor its process is {process.state}{said}{times}"]


def _object_says(node: dict[str, Any]) -> list[str]:
    """Readiness, and whether an agent has ever been there."""
    facts = []
    conditions = (node.get("status") or {}).get("conditions") or []
    ready: dict[str, Any] = next((one for one in conditions if one["type"] == "Ready"), {})
    if ready.get("status") != "True":
        reason = ready.get("message") or ready.get("reason") or "it has never said so"
        facts.append(f"the node is not Ready: {reason}")
    annotations = (node.get("metadata") or {}).get("annotations") or {}
    if annotations.get(MANAGED) != "true":
        facts.append("it has never published a lease: no agent has been ready there yet")
    return facts


# --- clocks -----------------------------------------------------------------------------------


def clocks_apart(readings: dict[str, Reading]) -> dict[str, tuple[Checked, ...]]:
    """By node, the clocks that are not where most are; nodes of one machine share a clock.

    A single one is compared with this machine's own.
    """
    with suppress(OSError):
        own = Reading(boot_id(), 0.0, 0.0)
        if len({reading.boot for reading in readings.values()}) == 1:
            readings = {**readings, "this machine": own}
    if not readings:
        return {}
    middle = {node: (one.least_s + one.most_s) / 2 for node, one in readings.items()}
    usual_s = median_low(middle.values())
    usual = next(node for node, at in middle.items() if at == usual_s)
    found: dict[str, tuple[Checked, ...]] = {}
    for node, one in readings.items():
        reference = readings[usual]
        least, most = one.least_s - reference.most_s, one.most_s - reference.least_s
        if one.boot == reference.boot or least <= 0 <= most:
            continue
        checked = clock.judge(_clock, min(least, most, key=abs), f"the clock of {usual}")
        if checked.level != "ok":
            found[node] = (checked,)
    return found
