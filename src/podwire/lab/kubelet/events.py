"""Event objects: what happened to a pod or node, for `describe` and `get events`.

What lives here: counting repetitions, and sending without anybody waiting. An event that cannot
be sent is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any, Literal

from podwire.cluster.kube import EVENTS, KubeClient
from podwire.errors import PodwireError
from podwire.lab.kubelet.records import now
from podwire.lab.kubelet.spec import Container, Pod

_MAX_WAITING = 1000
_log = logging.getLogger(__name__)

Reference = dict[str, str]


def reference(pod: Pod, container: Container | None = None) -> Reference:
    """An ObjectReference to a pod, or to one of its containers."""
    metadata = pod.metadata
    found = {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
    }
    if container is not None:
        found["fieldPath"] = f"spec.containers{{{container.name}}}"
    return found


class EventRecorder:
    """Sends events in the order in which they happened, one at a time."""

    def __init__(self, client: KubeClient, node: str) -> None:
        self._client = client
        self._node = node
        self._queue: asyncio.Queue[tuple[Reference, str, str, str]] = asyncio.Queue(_MAX_WAITING)
        self._sent: dict[tuple[str, str, str], tuple[str, str, int]] = {}

    def record(
        self, about: Reference, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """`about` is an ObjectReference."""
        if not self._queue.full():
            self._queue.put_nowait((about, kind, reason, message))

    async def send(self) -> None:
        """Send what is recorded, for ever."""
        while True:
            about, kind, reason, message = await self._queue.get()
            try:
                await self._send(about, kind, reason, message)
            except PodwireError as error:
                _log.info("event %s dropped: %s", reason, error.message)

    async def _send(self, about: Reference, kind: str, reason: str, message: str) -> None:
        key = (about.get("uid", about["name"]), reason, message)
        namespace, name, count = self._sent.pop(key, ("", "", 0))
        if name:
            patch = {"count": count + 1, "lastTimestamp": now()}
            await self._client.merge_patch(EVENTS, name, patch, namespace)
        else:
            namespace = about.get("namespace", "default")
            name = f"{about['name']}.{secrets.token_hex(8)}"
            event = self._event(about, kind, reason, message, name, namespace)
            await self._client.create(EVENTS, event, namespace)
        self._sent[key] = (namespace, name, count + 1)
        if len(self._sent) > _MAX_WAITING:
            del self._sent[next(iter(self._sent))]

    def _event(
        self, about: Reference, kind: str, reason: str, message: str, name: str, namespace: str
    ) -> dict[str, Any]:
        time = now()
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about,
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": "kubelet", "host": self._node},
            "reportingComponent": "kubelet",
            "reportingInstance": self._node,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
