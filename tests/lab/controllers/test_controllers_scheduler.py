"""Which node a pod gets, and what it's told when there is none."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from podwire.lab.api.kinds import EVENT, NODE, POD
from podwire.lab.api.kinds.meta import condition
from podwire.lab.controllers.scheduler import Scheduler
from tests.lab.controllers.conftest import Cluster, node, pod, ready


def placed(cluster: Cluster) -> dict[str, str | None]:
    return {p["metadata"]["name"]: p["spec"].get("nodeName") for p in cluster.objects.list(POD)}


def scheduled(cluster: Cluster, name: str) -> dict[str, Any]:
    return condition(cluster.objects.get(POD, "default", name), "PodScheduled")


async def test_pods_spread_over_the_least_loaded_nodes(cluster: Cluster) -> None:
    for name in ("n1", "n2", "n3"):
        cluster.create(NODE, node(name))
    cluster.create(POD, pod("pinned-1", nodeName="n1"), "default")
    cluster.create(POD, pod("pinned-2", nodeName="n1"), "default")
    async with cluster.running(Scheduler(cluster.objects)):
        for index in range(7):
            cluster.create(POD, pod(f"p{index}"), "default")
        await cluster.until(lambda: all(placed(cluster).values()))
        await cluster.settled()
    assert Counter(placed(cluster).values()) == {"n1": 3, "n2": 3, "n3": 3}
    assert scheduled(cluster, "p0")["status"] == "True"
    messages = [event["message"] for event in cluster.objects.list(EVENT)]
    assert f"Successfully assigned default/p0 to {placed(cluster)['p0']}" in messages


async def test_pod_with_a_node_name_is_left_alone(cluster: Cluster) -> None:
    cluster.create(NODE, node("n1"))
    cluster.create(POD, pod("a", nodeName="elsewhere"), "default")
    async with cluster.running(Scheduler(cluster.objects)):
        await cluster.settled()
    assert placed(cluster) == {"a": "elsewhere"}


@pytest.mark.parametrize(
    ("bad_node", "spec", "why"),
    [
        (node("n", status="False"), {}, "were not ready"),
        (node("n", status="Unknown"), {}, "were not ready"),
        (node("n", unschedulable=True), {}, "were unschedulable"),
        (
            node("n", taints=[{"key": "gpu", "value": "x", "effect": "NoSchedule"}]),
            {"tolerations": [{"key": "gpu", "value": "y"}]},
            "had untolerated taint {gpu: x}",
        ),
        (node("n"), {"nodeSelector": {"disk": "ssd"}}, "didn't match Pod's node affinity/selector"),
    ],
)
async def test_unfit_nodes_are_passed_over_and_the_pod_told_why(
    cluster: Cluster, bad_node: Any, spec: dict[str, Any], why: str
) -> None:
    cluster.create(NODE, bad_node)
    async with cluster.running(Scheduler(cluster.objects)):
        cluster.create(POD, pod("a", **spec), "default")
        event = (await cluster.until(lambda: cluster.objects.list(EVENT)))[0]
        await cluster.settled()
        assert placed(cluster) == {"a": None}
        assert (event["reason"], event["type"]) == ("FailedScheduling", "Warning")
        assert event["message"] == f"0/1 nodes are available: 1 node(s) {why}."
        assert scheduled(cluster, "a")["reason"] == "Unschedulable"
        # Another node comes that is fit.
        cluster.create(NODE, node("good", labels={"disk": "ssd"}))
        await cluster.until(lambda: placed(cluster)["a"] == "good")
        assert scheduled(cluster, "a")["status"] == "True"


async def test_pods_wait_for_the_first_node(cluster: Cluster) -> None:
    async with cluster.running(Scheduler(cluster.objects)):
        cluster.create(POD, pod("a"), "default")
        await cluster.until(lambda: scheduled(cluster, "a"))
        assert scheduled(cluster, "a")["message"] == "0/0 nodes are available."
        cluster.create(NODE, node("n1", status="False"))
        await cluster.settled()
        assert placed(cluster) == {"a": None}
        cluster.patch(NODE, "n1", status=ready())
        await cluster.until(lambda: placed(cluster)["a"])


@pytest.mark.parametrize(
    "toleration",
    [
        {"operator": "Exists"},
        {"key": "gpu", "operator": "Exists"},
        {"key": "gpu", "value": "x"},
        {"key": "gpu", "value": "x", "operator": "Equal", "effect": "NoSchedule"},
    ],
)
async def test_tolerated_taints(cluster: Cluster, toleration: dict[str, Any]) -> None:
    taint = {"key": "gpu", "value": "x", "effect": "NoSchedule"}
    cluster.create(NODE, node("n1", taints=[taint]))
    async with cluster.running(Scheduler(cluster.objects)):
        cluster.create(POD, pod("a", tolerations=[toleration]), "default")
        await cluster.until(lambda: placed(cluster)["a"])


async def test_full_node_takes_the_next_pod_when_one_ends(cluster: Cluster) -> None:
    full = node("n1")
    full["status"]["allocatable"] = {"pods": "1"}
    cluster.create(NODE, full)
    async with cluster.running(Scheduler(cluster.objects)):
        cluster.create(POD, pod("a"), "default")
        await cluster.until(lambda: placed(cluster)["a"])
        cluster.create(POD, pod("b"), "default")
        await cluster.until(lambda: scheduled(cluster, "b"))
        assert "had too many pods" in scheduled(cluster, "b")["message"]
        cluster.patch(POD, "a", "default", status={"phase": "Succeeded"})
        await cluster.until(lambda: placed(cluster)["b"])


async def test_failure_is_told_once(cluster: Cluster) -> None:
    async with cluster.running(Scheduler(cluster.objects)):
        cluster.create(POD, pod("a"), "default")
        await cluster.until(lambda: scheduled(cluster, "a"))
        for index in range(5):
            cluster.create(POD, pod(f"other{index}"), "default")
            await cluster.settled()
    events = cluster.objects.list(EVENT)
    assert [e["count"] for e in events if e["involvedObject"]["name"] == "a"] == [1]


async def test_pods_of_other_schedulers_are_left_alone(cluster: Cluster) -> None:
    cluster.create(NODE, node("n1"))
    async with cluster.running(Scheduler(cluster.objects)):
        cluster.create(POD, pod("a", schedulerName="mine"), "default")
        cluster.create(POD, pod("b", schedulingGates=[{"name": "x"}]), "default")
        await cluster.settled()
    assert placed(cluster) == {"a": None, "b": None}
