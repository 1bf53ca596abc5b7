"""The Node object: registered, kept alive by its Lease, Ready when the network is.

What lives here: what a kubelet says about its node. Conditions of others (`NetworkUnavailable`)
are left alone: patches are strategic, which merge conditions by their type.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from podwire.cluster.kube import LEASES, NAMESPACES, NODES
from podwire.errors import AlreadyExistsError, NotFoundError, PodwireError
from podwire.kernel.boot import boot_id
from podwire.lab.kubelet.node import Node
from podwire.lab.kubelet.records import now

KUBELET_VERSION = "v1.33.0-podwire"
MAX_PODS = 110
_LEASE_NAMESPACE = "kube-node-lease"
#: The Lease is renewed so often within the time that the node may be silent.
_RENEWALS = 4
_FIRST_RETRY_S = 0.05
_MAX_RETRY_S = 1.0

_log = logging.getLogger(__name__)

Json = dict[str, Any]


class NodeStatus:
    """Keeps the Node object and its Lease as they should be."""

    def __init__(self, node: Node, grace_s: float, on_report: Callable[[str | None], None]) -> None:
        """`grace_s` is how long the node may be silent before it counts as lost.

        `on_report` is told, once the API knows it, why the node is not ready; None: it is.
        """
        self._node = node
        self._grace_s = grace_s
        self._on_report = on_report
        self._since: dict[str, tuple[str, str]] = {}
        self._changed = asyncio.Event()
        node.network.on_change(self._changed.set)

    async def keep(self) -> None:
        """Register, then report every change and renew the Lease, for ever."""
        retry_s = _FIRST_RETRY_S
        registered = False
        while True:
            self._changed.clear()
            try:
                if not registered:
                    await self._register()
                    registered = True
                await self._report()
                await self._renew()
                retry_s = _FIRST_RETRY_S
                pause_s = self._grace_s / _RENEWALS
            except NotFoundError:
                registered = False  # somebody deleted the Node
                pause_s = retry_s
            except PodwireError as error:
                _log.info("node status not sent: %s", error.message)
                pause_s = retry_s
                retry_s = min(_MAX_RETRY_S, 2 * retry_s)
            try:
                await asyncio.wait_for(self._changed.wait(), pause_s)
            except TimeoutError:
                continue

    async def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self._node.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _architecture(),
        }
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self._node.name, "labels": labels},
            "spec": {},
        }
        try:
            await self._node.client.create(NODES, node)
        except AlreadyExistsError:
            await self._node.client.merge_patch(
                NODES, self._node.name, {"metadata": {"labels": labels}}
            )

    async def _report(self) -> None:
        problem = self._node.network.problem
        self._node.addresses.look()
        await self._node.client.strategic_patch(
            NODES, self._node.name, {"status": self._status(problem)}, subresource="status"
        )
        self._on_report(problem)

    def _status(self, problem: str | None) -> Json:
        resources = {
            "cpu": str(os.cpu_count() or 1),
            "memory": f"{_memory_kib()}Ki",
            "pods": str(MAX_PODS),
        }
        return {
            "addresses": [
                # The list is merged by type, which two families share.
                {"$patch": "replace"},
                *({"type": "InternalIP", "address": ip} for ip in self._node.ips),
                {"type": "Hostname", "address": self._node.name},
            ],
            "capacity": resources,
            "allocatable": resources,
            "nodeInfo": _node_info(),
            "conditions": self._conditions(problem),
        }

    def _conditions(self, problem: str | None) -> list[Json]:
        """Source of words: pkg/kubelet/nodestatus/setters.go."""
        conditions = [
            self._condition(kind, "False", f"KubeletHas{reason}", f"kubelet has {message}")
            for kind, reason, message in (
                ("MemoryPressure", "SufficientMemory", "sufficient memory available"),
                ("DiskPressure", "NoDiskPressure", "no disk pressure"),
                ("PIDPressure", "SufficientPID", "sufficient PID available"),
            )
        ]
        if problem is None:
            message = "kubelet is posting ready status"
            return [*conditions, self._condition("Ready", "True", "KubeletReady", message)]
        message = (
            "container runtime network not ready: NetworkReady=false "
            f"reason:NetworkPluginNotReady message:{problem}"
        )
        return [*conditions, self._condition("Ready", "False", "KubeletNotReady", message)]

    def _condition(self, kind: str, status: str, reason: str, message: str) -> Json:
        time = now()
        known, since = self._since.get(kind, ("", time))
        self._since[kind] = (status, since if known == status else time)
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": time,
            "lastTransitionTime": self._since[kind][1],
        }

    async def _renew(self) -> None:
        client, name = self._node.client, self._node.name
        spec: Json = {
            "holderIdentity": name,
            "leaseDurationSeconds": math.ceil(self._grace_s),
            "renewTime": _micro_time(),
        }
        try:
            await client.merge_patch(LEASES, name, {"spec": spec}, _LEASE_NAMESPACE)
            return
        except NotFoundError:
            pass
        owner = (await client.get(NODES, name))["metadata"]
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": name,
                "namespace": _LEASE_NAMESPACE,
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": name, "uid": owner["uid"]}
                ],
            },
            "spec": spec,
        }
        try:
            await client.create(LEASES, lease, _LEASE_NAMESPACE)
        except NotFoundError:
            namespace = {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": _LEASE_NAMESPACE},
            }
            await client.create(NAMESPACES, namespace)
            await client.create(LEASES, lease, _LEASE_NAMESPACE)


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _memory_kib() -> int:
    first = Path("/proc/meminfo").read_text().partition("\n")[0]  # MemTotal:  24684084 kB
    return int(first.split()[1])


def _node_info() -> Json:
    boot = boot_id()
    return {
        "machineID": boot.replace("-", ""),
        "systemUUID": boot,
        "bootID": boot,
        "kernelVersion": platform.release(),
        "osImage": _os_name(),
        "containerRuntimeVersion": "podwire://0.1",
        "kubeletVersion": KUBELET_VERSION,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": _architecture(),
    }


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
