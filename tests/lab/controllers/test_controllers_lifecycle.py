"""Silent nodes, removed nodes, deleted namespaces, old events, and controllers that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from podwire.errors import ForbiddenError
from podwire.lab.api.hub import Event
from podwire.lab.api.kinds import CONFIG_MAP, EVENT, LEASE, NAMESPACE, NODE, POD
from podwire.lab.api.kinds.meta import condition
from podwire.lab.controllers import events, loop
from podwire.lab.controllers.events import EventExpiry, record
from podwire.lab.controllers.namespaces import NamespaceDeletion
from podwire.lab.controllers.node_lifecycle import LEASE_NAMESPACE, NodeHealth, NodeRemoval
from tests.lab.controllers.conftest import Cluster, node, pod, ready


def lease(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {"holderIdentity": name, "renewTime": "2020-01-01T00:00:00.000000Z"},
    }


def ready_status(cluster: Cluster, name: str = "n1") -> str:
    return str(condition(cluster.objects.get(NODE, "", name), "Ready")["status"])


async def test_silent_node_becomes_unknown_and_may_come_back(cluster: Cluster) -> None:
    cluster.create(NODE, node("n1"))
    cluster.create(NODE, node("no-lease"))
    cluster.create(LEASE, lease("n1"), LEASE_NAMESPACE)
    async with cluster.running(NodeHealth(cluster.objects, lease_s=0.05)):
        await cluster.until(lambda: ready_status(cluster) == "Unknown")
        await cluster.until(lambda: cluster.names(EVENT))
        assert ready_status(cluster, "no-lease") == "True"
        cluster.patch(NODE, "n1", status=ready())
        cluster.patch(LEASE, "n1", LEASE_NAMESPACE, spec={"renewTime": "2020-01-01T00:00:09Z"})
        await cluster.until(lambda: ready_status(cluster) == "Unknown")


async def test_renewing_node_stays_ready(cluster: Cluster) -> None:
    cluster.create(NODE, node("n1"))
    cluster.create(LEASE, lease("n1"), LEASE_NAMESPACE)
    health = NodeHealth(cluster.objects, lease_s=30)
    async with cluster.running(health):
        await cluster.settled()
        before = health.due()
        renewed = {"renewTime": "2020-01-01T00:00:10Z"}
        cluster.patch(LEASE, "n1", LEASE_NAMESPACE, spec=renewed)
        await cluster.settled()
        after = health.due()
    assert before is not None
    assert after is not None
    assert after > before
    assert ready_status(cluster) == "True"


async def test_pods_and_lease_go_with_their_node(cluster: Cluster) -> None:
    cluster.create(NODE, node("n1"))
    cluster.create(NODE, node("n2"))
    cluster.create(LEASE, lease("n1"), LEASE_NAMESPACE)
    cluster.create(POD, pod("before", nodeName="n1"), "default")
    async with cluster.running(NodeRemoval(cluster.objects, orphan_s=30)):
        cluster.create(POD, pod("after", nodeName="n1"), "kube-system")
        cluster.create(POD, pod("stays", nodeName="n2"), "default")
        cluster.create(POD, pod("unbound"), "default")
        await cluster.settled()
        cluster.objects.delete(NODE, "", "n1")
        await cluster.until(lambda: cluster.names(POD) == ["stays", "unbound"])
        await cluster.until(lambda: not cluster.names(LEASE))


async def test_pod_of_a_node_that_never_comes_goes_in_time(cluster: Cluster) -> None:
    cluster.create(POD, pod("orphan", nodeName="ghost"), "default")
    cluster.create(POD, pod("early", nodeName="soon"), "default")
    removal = NodeRemoval(cluster.objects, orphan_s=0.1)
    async with cluster.running(removal):
        cluster.create(NODE, node("soon"))
        await cluster.until(lambda: cluster.names(POD) == ["early"])
        await cluster.settled()
        assert removal.due() is None


async def test_namespace_waits_for_its_pods(cluster: Cluster) -> None:
    team = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    cluster.create(NAMESPACE, team)
    for name in ("bound", "unbound"):
        spec = {"nodeName": "n1"} if name == "bound" else {}
        cluster.create(POD, pod(name, **spec), "team")
    data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    cluster.create(CONFIG_MAP, data, "team")
    cluster.create(CONFIG_MAP, data, "default")
    async with cluster.running(NamespaceDeletion(cluster.objects)):
        cluster.objects.delete(NAMESPACE, "", "team")
        await cluster.until(lambda: cluster.names(POD, "team") == ["bound"])
        await cluster.settled()
        assert cluster.objects.get(NAMESPACE, "", "team")["status"]["phase"] == "Terminating"
        cluster.objects.delete(POD, "team", "bound", grace_s=0)
        await cluster.until(lambda: "team" not in cluster.names(NAMESPACE))
    assert cluster.names(CONFIG_MAP) == ["a"]


async def test_namespace_deleted_while_nobody_looked_goes_too(cluster: Cluster) -> None:
    team = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    cluster.create(NAMESPACE, team)
    cluster.objects.delete(NAMESPACE, "", "team")
    async with cluster.running(NamespaceDeletion(cluster.objects)):
        await cluster.until(lambda: "team" not in cluster.names(NAMESPACE))


def test_builtin_namespaces_cannot_be_deleted(cluster: Cluster) -> None:
    with pytest.raises(ForbiddenError):
        cluster.objects.delete(NAMESPACE, "", "default")


def test_the_same_event_again_is_counted(cluster: Cluster) -> None:
    about = cluster.create(NODE, node("n1"))
    for message in ("x", "x", "y"):
        record(cluster.objects, about, "Normal", "Tested", message, "test")
    counts = {event["message"]: event["count"] for event in cluster.objects.list(EVENT, "default")}
    assert counts == {"x": 2, "y": 1}


async def test_old_events_are_forgotten(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    about = cluster.create(NODE, node("n1"))
    record(cluster.objects, about, "Normal", "Old", "x", "test")
    old = {"lastTimestamp": "2020-01-01T00:00:00Z"}
    name = cluster.names(EVENT)[0]
    cluster.objects.modify(EVENT, "default", name, lambda event: event.update(old))
    record(cluster.objects, about, "Normal", "New", "x", "test")
    monkeypatch.setattr(events, "_SWEEP_S", 30.0)
    async with cluster.running(EventExpiry(cluster.objects)):
        await cluster.settled()
    assert [event["reason"] for event in cluster.objects.list(EVENT)] == ["New"]


class Clumsy:
    """Fails at its first change."""

    kinds = ("nodes",)

    def __init__(self) -> None:
        self.synced = 0
        self.seen: list[str] = []

    def sync(self) -> None:
        self.synced += 1

    def handle(self, events: Sequence[Event]) -> None:
        self.seen += [event.key.name for event in events]
        if len(self.seen) == 1:
            raise RuntimeError("clumsy")

    def due(self) -> float | None:
        return None

    def tick(self) -> None:
        return None


async def test_controller_that_fails_starts_over(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "_RESTART_S", 0.0)
    clumsy = Clumsy()
    async with cluster.running(clumsy):
        await cluster.settled()
        cluster.create(NODE, node("a"))
        async with asyncio.timeout(60):
            while clumsy.synced < 2:
                await asyncio.sleep(0)
        cluster.create(NODE, node("b"))
        async with asyncio.timeout(60):
            while "b" not in clumsy.seen:
                await asyncio.sleep(0)
    assert "starting over controller=Clumsy" in caplog.text
