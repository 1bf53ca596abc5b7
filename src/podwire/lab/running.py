"""The pods that run in a lab's pod network: which there are, and waiting until they do so again.

What lives here: what a change of the network has to know of pods, asked of the lab's API. What
does not: the change (`rollout`), and making pods anew, which kubelets do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from ipaddress import ip_address
from typing import Any, NamedTuple

from podwire.cluster.kube import PODS, KubeClient, WatchEvent
from podwire.lab.asking import ask
from podwire.lab.places import Json, is_ready
from podwire.lab.readiness import NotReadyError
from podwire.lab.registry import LabInfo
from podwire.model.state import IPNetwork


class Running(NamedTuple):
    """A pod, by NAMESPACE/NAME. `runs` are the ids of its containers' present runs."""

    name: str
    node: str
    ready: bool
    runs: frozenset[str]


def pods(lab: LabInfo) -> list[Running]:
    """Those that a node has and that are not to end, without those of the host network.

    Raises ApiError.
    """

    async def living(client: KubeClient) -> list[Running]:
        return [
            Running(_key(pod), pod["spec"]["nodeName"], is_ready(pod), _runs(pod))
            for pod in (await client.list(PODS)).items
            if _lives(pod)
        ]

    return ask(lab, living)


def wait_until_back(
    lab: LabInfo,
    before: Collection[Running],
    network: Collection[IPNetwork],
    *,
    timeout_s: float,
    tell: Callable[[Collection[str]], None],
) -> None:
    """Wait until these pods, or what is not deleted of them, have been made anew: are ready, with
    other runs of their containers than `before` and addresses of `network`.

    `tell` is told whom is waited for. Raises NotReadyError.
    """
    awaited = {pod.name: pod.runs for pod in before}

    def look(pod: Json, *, deleted: bool = False) -> None:
        name = _key(pod)
        if name in awaited and (deleted or not _lives(pod) or is_new(pod, awaited[name])):
            del awaited[name]
            tell(awaited)

    def is_new(pod: Json, runs: frozenset[str]) -> bool:
        return is_ready(pod) and runs.isdisjoint(_runs(pod)) and _is_in(pod, network)

    async def wait(client: KubeClient) -> None:
        listed = await client.list(PODS)
        for name in awaited.keys() - set(map(_key, listed.items)):
            del awaited[name]
        for pod in listed.items:
            look(pod)
        if not awaited:
            return
        events = client.watch(PODS, resource_version=listed.resource_version)
        async with aclosing(events) as events:
            async for event in events:
                if isinstance(event, WatchEvent):
                    look(event.object, deleted=event.type == "DELETED")
                if not awaited:
                    return

    async def wait_long_enough(client: KubeClient) -> None:
        async with asyncio.timeout(timeout_s):
            await wait(client)

    try:
        ask(lab, wait_long_enough)
    except TimeoutError:
        raise NotReadyError(
            f"not ready in the new network after {timeout_s:g} s: {', '.join(sorted(awaited))}",
            remedy=f"`podwire --lab {lab.name} describe pod` tells what each waits for",
        ) from None


def _key(pod: Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _runs(pod: Json) -> frozenset[str]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return frozenset(one["containerID"] for one in statuses if one.get("containerID"))


def _lives(pod: Json) -> bool:
    spec, status = pod["spec"], pod.get("status") or {}
    return bool(
        spec.get("nodeName")
        and not spec.get("hostNetwork")
        and status.get("phase") not in ("Succeeded", "Failed")
        and "deletionTimestamp" not in pod["metadata"]
    )


def _is_in(pod: Mapping[str, Any], network: Collection[IPNetwork]) -> bool:
    ips = [ip_address(one["ip"]) for one in (pod.get("status") or {}).get("podIPs") or ()]
    return bool(ips) and all(any(ip in one for one in network) for ip in ips)
