"""What is desired and what differs, as the JSON document that `podwire plan` shows."""

from __future__ import annotations

from typing import Any

from podwire.kernel.reconcile import Reconciler
from podwire.model.describe import describe, kind_of


def plan_document(reconciler: Reconciler, node: str) -> dict[str, Any]:
    """In the reconciler's thread: reads the kernel, and changes nothing."""
    desired = [
        {
            "cause": cause,
            "kind": kind_of(entry),
            "entry": describe(entry),
            "object": entry.why.object,
            "reason": entry.why.reason,
        }
        for cause, entries in reconciler.desired.items()
        for entry in entries
    ]
    changes = [
        {
            "kind": change.kind,
            "action": change.action,
            "line": change.line,
            "object": change.why.object if change.why is not None else "",
            "reason": change.why.reason if change.why is not None else "nobody wants it any more",
        }
        for change in reconciler.plan()
    ]
    return {"node": node, "desired": desired, "changes": changes}
