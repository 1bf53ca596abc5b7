"""What the kernel holds against what it should: each difference with the line that mends it.

The agent mends by itself within milliseconds of a change, so what is found here has a reason to be
left: the agent is held, the kernel refuses, or somebody undoes it again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from podwire.agent.doctor.subject import Findings, Subject
from podwire.kernel.reconcile import Change
from podwire.model.state import NFT_TABLE, Why
from podwire.trace.wire import Checked

_find = Findings("desired")
#: What the agent is just mending is no finding.
_MENDING_S = 0.5

_NOUNS = {"neigh": "neighbour", "fdb": "FDB entry", "nft": "nft table"}
_STATES = {"add": "is missing", "change": "is not as it should be", "delete": "should not be there"}


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    agent = subject.agent
    if agent.network is None:
        yield _find.fail(f"nothing is desired yet: {agent.not_ready}")
        return
    plan = agent.worker.reconciler.plan
    changes = await agent.worker.call(plan)
    if changes and not agent.held:
        await asyncio.sleep(_MENDING_S)
        still = await agent.worker.call(plan)
        changes = [one for one in changes if one in still]
    if not changes:
        entries = sum(map(len, agent.worker.reconciler.desired.values()))
        yield _find.ok(f"the kernel holds all {entries} entries that it should")
        return
    left, because = changes, _why_left(subject)
    if subject.fix:
        report = await agent.mend("doctor")
        left = await agent.worker.call(plan)
        because = "; ".join(report.failures) or "somebody undoes it at once"
    for change in changes:
        yield _finding(change, fixed=change not in left, remedy=because)


def _why_left(subject: Subject) -> str:
    """Why the agent has not mended it, and what to do."""
    if subject.agent.held:
        return (
            f"the agent is held: `podwire agent resume --node {subject.node}` has it mend this,"
            " `podwire doctor --fix` too"
        )
    if subject.agent.not_ready is not None:
        return f"the agent is not ready: {subject.agent.not_ready}"
    return (
        "the agent has tried: the kernel refuses it (`refused by the kernel` in the agent's log),"
        " or somebody undoes it"
    )


def _finding(change: Change, *, fixed: bool, remedy: str) -> Checked:
    if change.line.startswith("# "):
        # Not for typing: somebody else's link in the way, or a pod's that is attached anew.
        text, _, itself = change.line.removeprefix("# ").partition("; ")
        return _find.fail(text, "" if fixed else itself or remedy, why=change.why, fixed=fixed)
    noun, name = _NOUNS.get(change.kind, change.kind), _name(change)
    return _find.fail(
        f"{noun} {name} {_STATES[change.action]}",
        "" if fixed else remedy,
        *change.line.splitlines(),
        why=change.why or Why("", "nobody wants it any more"),
        fixed=fixed,
    )


def _name(change: Change) -> str:
    """What the line is about: `10.244.2.0/24` of `ip route add 10.244.2.0/24 …`."""
    words = change.line.split()
    if change.kind == "sysctl":
        return words[2].partition("=")[0]
    if change.kind == "nft":
        return NFT_TABLE
    return words[3]
