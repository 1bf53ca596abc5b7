"""The kernel's features: what the network is made of, and what tracing it takes.

Without the first nothing works here; without the second, a trace says less.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from podwire.agent.doctor.subject import Findings, Subject
from podwire.kernel import features
from podwire.model.fabric import DEFAULT
from podwire.trace.wire import Checked

_find = Findings("kernel")


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    fabric = subject.network.fabric if subject.network is not None else DEFAULT
    needed = await asyncio.to_thread(features.network_features, fabric)
    for feature in needed:
        if feature.missing:
            yield _find.fail(
                f"this kernel has no {feature.name}: {feature.missing}",
                "load the module, boot a kernel that has it, or choose another fabric",
            )
    traced = await asyncio.to_thread(features.trace_features)
    for feature in traced:
        if feature.missing:
            yield _find.warn(
                f"no {feature.name}: {feature.missing}", f"`podwire trace` {feature.without}"
            )
    if not any(feature.missing for feature in (*needed, *traced)):
        yield _find.ok(f"Linux {os.uname().release} has all that the network and tracing use")
