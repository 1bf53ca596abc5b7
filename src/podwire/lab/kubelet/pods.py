"""Which pods should be on this node, and a worker for each.

What lives here: following the API's Pods that are bound to the node, and at start those on
record; that a worker that fails has a successor. What does not: what a worker does.
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
from podwire.lab.kubelet.events import Reference, reference
from podwire.lab.kubelet.node import Node
from podwire.lab.kubelet.records import RecordStore
from podwire.lab.kubelet.worker import PodWorker, new_record
from podwire.lab.sandbox import destroy_unknown

#: Between a worker that failed and its successor; how long one has to do well to count as new.
_BACKOFF_S, _MAX_BACKOFF_S, _WELL_S = 0.5, 10.0, 60.0

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
            self._warn(_reference(obj), "FailedValidation", str(error))
            _log.warning("pod %s: %s", obj["metadata"]["name"], error)

    def _begin(self, worker: PodWorker) -> None:
        uid = worker.record.uid
        self._workers[uid] = worker
        task = asyncio.create_task(self._keep(uid), name=worker.pod.key)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, uid: str) -> None:
        """Have a worker for the pod until it has left the node.

        One that fails is followed by another, which goes on from the record, as after a kubelet's
        own end. It hears what happens to the Pod from the first moment, and begins in a while.
        """
        loop, back_off_s = asyncio.get_running_loop(), _BACKOFF_S
        while True:
            worker, began = self._workers[uid], loop.time()
            try:
                await worker.run()
            except Exception as error:
                if loop.time() - began > _WELL_S:
                    back_off_s = _BACKOFF_S
                self._workers[uid] = worker.successor()
                why = f"error syncing pod, next try in {back_off_s:g} s: {_cause(error)}"
                self._warn(reference(worker.pod), "FailedSync", why)
                _log.exception("%s: %s", worker.pod.key, why)
            else:
                del self._workers[uid]
                return
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, _MAX_BACKOFF_S)

    def _warn(self, about: Reference, reason: str, message: str) -> None:
        self._node.events.record(about, "Warning", reason, message)

    def _wake_all(self) -> None:
        for worker in self._workers.values():
            worker.wake()


def _reference(obj: Json) -> Reference:
    """To a Pod that does not fit."""
    metadata = obj["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
    }


def _cause(error: BaseException) -> str:
    """What a task of a group has failed of."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


def attachments(records: RecordStore) -> Iterator[Attachment]:
    """The attachments on record: what GC must leave alone. Each is somebody's to DEL."""
    for record in records.load():
        if record.sandbox is not None and record.sandbox.netns:
            yield Attachment(record.sandbox.id, record.sandbox.netns, IFNAME)


def end_unknown_sandboxes(records: RecordStore) -> None:
    """End the sandboxes that a kubelet had made but not yet written down when it was killed."""
    known = [record.sandbox for record in records.load() if record.sandbox is not None]
    destroy_unknown(known)
