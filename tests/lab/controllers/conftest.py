"""Objects and a hub over a store in memory, and a controller running against them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from podwire.lab.api.hub import Hub
from podwire.lab.api.objects import Objects
from podwire.lab.api.registry import Object, ResourceKind
from podwire.lab.api.store import Store
from podwire.lab.controllers import ensure_namespaces
from podwire.lab.controllers.loop import Controller, run


class Cluster:
    """Objects, and waiting for what controllers make of them."""

    def __init__(self) -> None:
        self.store = Store(":memory:")
        self.hub = Hub(self.store)
        self.objects = Objects(self.store)
        ensure_namespaces(self.objects)

    @asynccontextmanager
    async def running(self, *controllers: Controller) -> AsyncIterator[None]:
        """Run controllers for the length of a block."""
        tasks = [asyncio.create_task(run(controller, self.hub)) for controller in controllers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until `condition` holds, looking after each change; returns what it returned."""
        kinds = (
            "pods",
            "nodes",
            "namespaces",
            "events",
            "configmaps",
            "leases.coordination.k8s.io",
        )
        async with asyncio.timeout(60):
            while not (value := condition()):
                await self.hub.wait(kinds)
        return value

    async def settled(self) -> None:
        """Wait until the controllers have nothing more to do."""
        before = -1
        while before != self.hub.revision:
            before = self.hub.revision
            for _ in range(20):
                await asyncio.sleep(0)

    def names(self, kind: ResourceKind, namespace: str | None = None) -> list[str]:
        return [obj["metadata"]["name"] for obj in self.objects.list(kind, namespace)]

    def create(self, kind: ResourceKind, obj: Object, namespace: str = "") -> Object:
        return self.objects.create(kind, namespace, obj)

    def patch(self, kind: ResourceKind, name: str, namespace: str = "", **parts: Any) -> Object:
        """Merge `parts` one level deep; a status through its subresource."""

        def change(obj: Object) -> None:
            for part, values in parts.items():
                obj[part] = {**obj.get(part, {}), **values}

        subresource = "status" if "status" in parts else ""
        return self.objects.modify(kind, namespace, name, change, subresource=subresource)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def ready(status: str = "True") -> dict[str, Any]:
    """A node's status with that Ready condition."""
    return {"conditions": [{"type": "Ready", "status": status}]}


def node(name: str, status: str = "True", labels: Any = None, **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec,
        "status": ready(status),
    }


def pod(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "command": ["true"]}], **spec},
    }
