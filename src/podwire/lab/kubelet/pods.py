"""Which pods should be on this node, and a worker for each.

What lives here: following the API's Pods that are bound to the node, and at start those on
record. What does not: what a worker does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from podwire.cluster.kube import PODS, WatchEvent, reflect
from podwire.errors import InputError
from podwire.lab.cni_network import Attachment
from podwire.lab.kubelet.attachment import IFNAME
from podwire.lab.kubelet.node import Node
from podwire.lab.kubelet.records import RecordStore
from podwire.lab.kubelet.worker import PodWorker, new_record
from podwire.lab.sandbox import destroy_unknown

_log = logging.getLogger(__name__)

Json = dict[str, Any]


class Pods:
    """The pods of this node, by uid."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._workers: dict[str, PodWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        node.network.on_change(self._wake_all)

    async def follow(self) -> None:
        """Adopt what runs, then keep up with the API, for ever."""
        for record in list(self._node.records.load()):
            self._begin(PodWorker(self._node, record))
        try:
            await reflect(
                self._node.client,
                PODS,
                on_sync=self._sync,
                on_event=self._event,
                field_selector=f"spec.nodeName={self._node.name}",
            )
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def find(self, namespace: str, name: str) -> PodWorker | None:
        """The worker of a pod; of two with one name, that of the one that is not leaving."""
        found = [
            worker
            for worker in self._workers.values()
            if (worker.pod.metadata.namespace, worker.pod.metadata.name) == (namespace, name)
        ]
        return min(found, key=lambda worker: worker.leaving, default=None)

    def _sync(self, items: Sequence[Json]) -> None:
        present = {item["metadata"]["uid"] for item in items}
        for uid, worker in self._workers.items():
            if uid not in present:
                worker.remove()
        for item in items:
            self._put(item)

    def _event(self, event: WatchEvent[Json]) -> None:
        if event.type == "DELETED":
            worker = self._workers.get(event.object["metadata"]["uid"])
            if worker is not None:
                worker.remove()
        else:
            self._put(event.object)

    def _put(self, obj: Json) -> None:
        uid = obj["metadata"]["uid"]
        try:
            if uid in self._workers:
                self._workers[uid].update(obj)
            elif (obj.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                self._begin(PodWorker(self._node, new_record(obj)))
            elif obj["metadata"].get("deletionTimestamp"):
                # It ended in an earlier life of the node, of which nothing is left here.
                self._begin(PodWorker(self._node, new_record(obj)))
        except InputError as error:
            metadata = obj["metadata"]
            about = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": uid,
            }
            self._node.events.record(about, "Warning", "FailedValidation", str(error))
            _log.warning("pod %s: %s", metadata["name"], error)

    def _begin(self, worker: PodWorker) -> None:
        uid = worker.record.uid
        self._workers[uid] = worker
        task = asyncio.create_task(worker.run(), name=worker.pod.key)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(uid, done))

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        del self._workers[uid]
        if not task.cancelled() and task.exception() is not None:
            _log.error("worker of %s failed", task.get_name(), exc_info=task.exception())

    def _wake_all(self) -> None:
        for worker in self._workers.values():
            worker.wake()


def attachments(records: RecordStore) -> Iterator[Attachment]:
    """The attachments on record: what GC must leave alone. Each is somebody's to DEL."""
    for record in records.load():
        if record.sandbox is not None and record.sandbox.netns:
            yield Attachment(record.sandbox.id, record.sandbox.netns, IFNAME)


def end_unknown_sandboxes(records: RecordStore) -> None:
    """End the sandboxes that a kubelet had made but not yet written down when it was killed."""
    known = [record.sandbox for record in records.load() if record.sandbox is not None]
    destroy_unknown(known)
