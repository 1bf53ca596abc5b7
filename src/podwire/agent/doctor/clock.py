"""The clock, against the API server's: certificates, tokens and leases are valid by it.

The command compares the agents' clocks with each other. An HTTP `Date` has whole seconds, so what
is less than two off here counts as right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from podwire.agent.doctor.subject import Findings, Subject
from podwire.errors import UnsupportedError
from podwire.trace.wire import Checked

_find = Findings("clock")

WARN_S = 1.0
_PATIENCE_S = 3.0
#: Kubernetes dates certificates back by so much for the sake of clocks that are slow.
FAIL_S = 300.0


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    try:
        client = subject.agent.client
    except UnsupportedError:
        # Leases of etcd last by etcd's own clock.
        yield _find.ok("nothing is valid by it: this node has no Kubernetes API")
        return
    if not subject.agent.connected:
        yield _find.warn("the API server can't be asked for its time")
        return
    before = time.time()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            theirs = await client.server_time()
    except TimeoutError:
        yield _find.fail(f"the API server has not answered within {_PATIENCE_S:g} s")
        return
    after = time.time()
    if theirs is None:
        yield _find.warn("the API server does not say what time it has")
        return
    # It answered between the two, and has cut off what was over the full second.
    early, late = before - (theirs + 1), after - theirs
    offset = 0.0 if early <= 0 <= late else min(early, late, key=abs)
    yield judge(_find, offset, "the API server's clock")


def judge(find: Findings, offset_s: float, whose: str) -> Checked:
    """What a clock means that is so much, or more, ahead of another (behind, if negative)."""
    if abs(offset_s) <= WARN_S:
        return find.ok(f"within {WARN_S:g} s of {whose}")
    direction = "ahead of" if offset_s > 0 else "behind"
    text = f"at least {abs(offset_s):.0f} s {direction} {whose}"
    remedy = "have the clock set by NTP: timedatectl set-ntp true"
    if abs(offset_s) > FAIL_S:
        return find.fail(f"{text}: certificates and tokens are not valid yet, or no more", remedy)
    return find.warn(text, remedy)
