"""Telling the API how a pod is: only what changed, and again until it has been heard.

What lives here: sending. What a status says is `status`'s.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from podwire.cluster.kube import PODS
from podwire.errors import ApiUnavailableError, ConflictError, NotFoundError, PodwireError
from podwire.lab.kubelet import status
from podwire.lab.kubelet.node import Node
from podwire.lab.kubelet.records import PodRecord
from podwire.lab.kubelet.spec import Pod

_RETRY_S = 0.5

_log = logging.getLogger(__name__)


class PodStatus:
    """The status of one pod, as it should be in the API."""

    def __init__(self, node: Node, uid: str) -> None:
        self._node = node
        self._uid = uid
        self._wanted: tuple[Pod, dict[str, Any]] | None = None
        self._sent: dict[str, Any] | None = None
        self._conditions: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    def seen(self, obj: dict[str, Any]) -> None:
        """The object as the API has it now."""
        self._conditions = (obj.get("status") or {}).get("conditions") or []

    def publish(self, pod: Pod, record: PodRecord) -> None:
        """Have this said."""
        if not self._conditions:
            self.seen(record.pod)
        wanted = status.build(pod, record, self._conditions, self._node.ips)
        self._conditions = wanted["conditions"]
        if self._wanted is None or wanted != self._wanted[1]:
            self._wanted = (pod, wanted)
            self._changed.set()

    async def report(self) -> None:
        """Send what changes, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._wanted is None or self._wanted[1] == self._sent:
                continue
            pod, wanted = self._wanted
            try:
                await self._send(pod, wanted)
                self._sent = wanted
            except (NotFoundError, ConflictError):
                continue  # deleted, or deleted and made anew: the watch tells
            except PodwireError as error:
                _log.info("%s: status not sent: %s", pod.key, error.message)
                await asyncio.sleep(_RETRY_S)
                self._changed.set()

    async def send_last(self, pod: Pod, record: PodRecord) -> None:
        """Say how the pod ended, and let its object go; tries until the API has heard it."""
        metadata = pod.metadata
        wanted = status.build(pod, record, self._conditions, self._node.ips)
        while True:
            try:
                await self._send(pod, wanted)
                await self._node.client.delete(
                    PODS, metadata.name, metadata.namespace, 0, uid=self._uid
                )
                return
            except (NotFoundError, ConflictError):
                return
            except ApiUnavailableError:
                await asyncio.sleep(_RETRY_S)
            except PodwireError as error:
                _log.warning("%s: not deleted: %s", pod.key, error.message)
                await asyncio.sleep(4 * _RETRY_S)

    async def _send(self, pod: Pod, wanted: dict[str, Any]) -> None:
        metadata = pod.metadata
        patch = {"metadata": {"uid": self._uid}, "status": wanted}
        await self._node.client.merge_patch(
            PODS, metadata.name, patch, metadata.namespace, subresource="status"
        )
