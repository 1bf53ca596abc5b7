"""The words that sum up pods and nodes."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from podwire.cli.columns import view
from podwire.cluster.kube import EVENTS, NODES, PODS, Resource
from podwire.cluster.kube.resources import IP_POOLS, IPAM_BLOCKS, IPAM_RANGES


def cell(resource: Resource, obj: dict[str, Any], header: str) -> str:
    shown = view(resource, wide=True, namespaces=True)
    return shown.rows([obj])[0][shown.headers.index(header)]


def pod(
    *states: dict[str, Any],
    phase: str = "Running",
    init: tuple[dict[str, Any], ...] = (),
    conditions: tuple[dict[str, str], ...] = (),
    reason: str = "",
) -> dict[str, Any]:
    def one(state: dict[str, Any]) -> dict[str, Any]:
        return {"ready": "running" in state, "restartCount": 0, "state": state}

    return {
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {
            "containers": [{"name": str(i)} for i, _ in enumerate(states)],
            "initContainers": [{"name": str(i)} for i, _ in enumerate(init)],
        },
        "status": {
            "phase": phase,
            "containerStatuses": [one(state) for state in states],
            "initContainerStatuses": [one(state) for state in init],
            "conditions": list(conditions),
            "reason": reason,
        },
    }


RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
WAITING = {"waiting": {"reason": "ContainerCreating"}}
DONE = {"terminated": {"exitCode": 0, "reason": "Completed"}}
FAILED = {"terminated": {"exitCode": 3}}
READY = {"type": "Ready", "status": "True"}


@pytest.mark.parametrize(
    ("obj", "status", "ready"),
    [
        (pod(phase="Pending"), "Pending", "0/0"),
        (pod(WAITING, phase="Pending"), "ContainerCreating", "0/1"),
        (pod(RUNNING), "Running", "1/1"),
        (pod(RUNNING, {"waiting": {"reason": "CrashLoopBackOff"}}), "CrashLoopBackOff", "1/2"),
        (pod(DONE, phase="Succeeded"), "Completed", "0/1"),
        (pod(FAILED, phase="Failed"), "ExitCode:3", "0/1"),
        (pod({"terminated": {"exitCode": 137, "signal": 9}}), "Signal:9", "0/1"),
        (pod(DONE, RUNNING, conditions=(READY,)), "Running", "1/2"),
        (pod(DONE, RUNNING), "NotReady", "1/2"),
        (pod(WAITING, init=(RUNNING, WAITING), phase="Pending"), "Init:0/2", "0/1"),
        (pod(WAITING, init=(DONE, WAITING), phase="Pending"), "Init:ContainerCreating", "0/1"),
        (pod(WAITING, init=(FAILED,), phase="Pending"), "Init:ExitCode:3", "0/1"),
        (pod(RUNNING, init=(DONE,)), "Running", "1/1"),
        (pod(phase="Failed", reason="Evicted"), "Evicted", "0/0"),
        ({"metadata": {"name": "a"}}, "Unknown", "0/0"),
    ],
)
def test_pods(obj: dict[str, Any], status: str, ready: str) -> None:
    assert cell(PODS, obj, "STATUS") == status
    assert cell(PODS, obj, "READY") == ready


def test_a_pod_being_deleted_is_terminating() -> None:
    obj = pod(RUNNING)
    obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert cell(PODS, obj, "STATUS") == "Terminating"


def test_restarts_tell_when_the_last_was() -> None:
    obj = pod(RUNNING)
    assert cell(PODS, obj, "RESTARTS") == "0"
    ended = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)
    obj["status"]["containerStatuses"][0] |= {
        "restartCount": 2,
        "lastState": {"terminated": {"finishedAt": ended.isoformat()}},
    }
    assert cell(PODS, obj, "RESTARTS") in ("2 (5m ago)", "2 (5m1s ago)")


def test_nodes() -> None:
    node: dict[str, Any] = {
        "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"podCIDR": "10.244.1.0/24", "unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "172.18.0.11"}],
        },
    }
    assert cell(NODES, node, "STATUS") == "Ready,SchedulingDisabled"
    assert cell(NODES, node, "ROLES") == "control-plane"
    assert cell(NODES, node, "INTERNAL-IP") == "172.18.0.11"
    assert cell(NODES, node, "POD-CIDR") == "10.244.1.0/24"
    assert cell(NODES, {"metadata": {"name": "n"}}, "STATUS") == "Unknown"
    assert cell(NODES, {"metadata": {"name": "n"}}, "POD-CIDR") == "<none>"


def test_events() -> None:
    event = {
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "a"},
        "message": "two\nlines",
    }
    assert cell(EVENTS, event, "OBJECT") == "pod/a"
    assert cell(EVENTS, event, "MESSAGE") == "two lines"


def test_blocks_and_ranges() -> None:
    allocations = [{"ip": "10.0.0.1", "node": "n1"}, {"ip": "10.0.0.2", "node": "n2"}]
    block = {"spec": {"cidr": "10.0.0.0/26", "node": "n1", "used": 2, "allocations": allocations}}
    shown = {"CIDR": "10.0.0.0/26", "NODE": "n1", "USED": "2", "BORROWED": "1"}
    assert {header: cell(IPAM_BLOCKS, block, header) for header in shown} == shown
    assert cell(IPAM_BLOCKS, {"spec": {"cidr": "10.0.0.0/26"}}, "NODE") == "<none>"
    assert cell(IP_POOLS, {"spec": {"cidr": "10.0.0.0/16"}}, "DISABLED") == "false"
    assert cell(IPAM_RANGES, {"spec": {"askedBy": ["n2", "n3"]}}, "ASKED-BY") == "n2,n3"


def test_kinds_without_columns_of_their_own() -> None:
    services = Resource("", "v1", "services", "Service", True)
    assert view(services, namespaces=True).headers == ["NAMESPACE", "NAME", "AGE"]
    assert view(NODES, namespaces=True).headers[0] == "NAME"
