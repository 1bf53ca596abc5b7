"""Binding a pod to a node: the one change of a pod's spec that a scheduler makes."""

from __future__ import annotations

from typing import Any

from podwire.lab.api import status
from podwire.lab.api.kinds.meta import now
from podwire.lab.api.kinds.pod import POD
from podwire.lab.api.names import dns_subdomain
from podwire.lab.api.objects import Objects
from podwire.lab.api.registry import Object


def bind(objects: Objects, namespace: str, name: str, binding: Object) -> Object:
    """Bind a pod as a v1 `Binding` says; raises `ConflictError` when it is bound already."""
    target: Any = binding.get("target")
    node = target.get("name") if isinstance(target, dict) else None
    if not isinstance(node, str) or dns_subdomain(node):
        raise status.bad_request("a Binding needs target.name, the name of a node")

    def change(pod: Object) -> None:
        bound = pod["spec"].get("nodeName")
        if bound:
            why = f"pod {name} is already assigned to node {bound}"
            raise status.conflict(POD, name, why)
        if "deletionTimestamp" in pod["metadata"]:
            raise status.conflict(POD, name, f"pod {name} is being deleted, cannot be assigned")
        pod["spec"]["nodeName"] = node

    with objects.transaction():
        objects.modify(POD, namespace, name, change, trusted=True)
        return set_condition(objects, namespace, name, "PodScheduled", "True")


def set_condition(
    objects: Objects,
    namespace: str,
    name: str,
    type_: str,
    value: str,
    reason: str = "",
    message: str = "",
) -> Object:
    """Set a condition of a pod; its transition time moves when its status does."""

    def change(pod: Object) -> None:
        conditions = pod.setdefault("status", {}).setdefault("conditions", [])
        put_condition(conditions, type_, value, reason, message)

    return objects.modify(POD, namespace, name, change, subresource="status", trusted=True)


def put_condition(
    conditions: list[dict[str, Any]], type_: str, value: str, reason: str = "", message: str = ""
) -> None:
    """Set a condition in a list of them, in place."""
    entry: dict[str, Any] = {"type": type_, "status": value, "lastTransitionTime": now()}
    if reason:
        entry["reason"] = reason
    if message:
        entry["message"] = message
    for index, old in enumerate(conditions):
        if old.get("type") == type_:
            if old.get("status") == value:
                entry["lastTransitionTime"] = old.get("lastTransitionTime", now())
            conditions[index] = {**old, **entry}
            return
    conditions.append(entry)
