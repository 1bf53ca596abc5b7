"""Pods of the Kubernetes API, as far as the network is concerned: watched, so that nobody waits.

This node's own pods are watched for their annotations, which ADD asks for; one that has not been
seen yet is fetched. In a fabric of one segment all pods of the cluster are watched, because every
node answers for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address

import msgspec

from podwire.cluster.kube import PODS, KubeClient, WatchEvent, reflect
from podwire.errors import NotFoundError
from podwire.ipam.record import PodIdentity
from podwire.log import fields
from podwire.model.cluster import PodPlace
from podwire.model.state import IPAddress

log = logging.getLogger(__name__)

_ENDED = ("Succeeded", "Failed")


class _Metadata(msgspec.Struct, gc=False):
    name: str
    namespace: str = ""
    uid: str = ""
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct, gc=False):
    nodeName: str = ""  # noqa: N815  the API's own spelling
    hostNetwork: bool = False  # noqa: N815


class _IP(msgspec.Struct, gc=False):
    ip: str = ""


class _Status(msgspec.Struct, gc=False):
    phase: str = ""
    podIP: str = ""  # noqa: N815
    podIPs: list[_IP] | None = None  # noqa: N815


class PodObject(msgspec.Struct, gc=False):
    """A v1 Pod, as far as the network is concerned."""

    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)

    @property
    def name(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"


def place_of(obj: PodObject) -> PodPlace | None:
    """Where a pod is; None for one that has no address of the pod network (any more)."""
    texts = [one.ip for one in obj.status.podIPs or ()] or [obj.status.podIP]
    ips: list[IPAddress] = []
    for text in filter(None, texts):
        try:
            ips.append(ip_address(text))
        except ValueError:
            log.warning("pod is not understood", extra=fields(pod=obj.name, ip=text))
    has_none = obj.spec.hostNetwork or obj.status.phase in _ENDED
    if has_none or not ips or not obj.spec.nodeName:
        return None
    return PodPlace(obj.name, obj.spec.nodeName, tuple(ips))


class PodWatch:
    """`everywhere`: all pods of the cluster. `on_change` is called when `take_changed` has some."""

    def __init__(
        self,
        client: KubeClient,
        node: str,
        *,
        everywhere: bool,
        on_change: Callable[[], None],
    ) -> None:
        self._client = client
        self._node = node
        self._everywhere = everywhere
        self._on_change = on_change
        self._own: dict[str, PodObject] = {}
        self._changed: set[str] = set()
        self._by_node: dict[str, set[str]] = {}
        #: All pods of the cluster, where these are watched.
        self.places: dict[str, PodPlace] = {}

    async def run(self) -> None:
        """Watch for ever."""
        scope = None if self._everywhere else f"spec.nodeName={self._node}"
        await reflect(
            self._client,
            PODS,
            on_sync=self._on_sync,
            on_event=self._on_event,
            type=PodObject,
            field_selector=scope,
        )

    async def annotations(self, pod: PodIdentity) -> Mapping[str, str]:
        """Those of a pod of this node; none for a container that is no pod.

        Raises what the API does where it has to be asked.
        """
        if not pod.namespace or not pod.name:
            return {}
        known = self._own.get(f"{pod.namespace}/{pod.name}")
        if known is None or (pod.uid and known.metadata.uid != pod.uid):
            try:
                found = await self._client.get(PODS, pod.name, pod.namespace)
            except NotFoundError:
                return {}
            known = msgspec.convert(found, PodObject)
        return known.metadata.annotations or {}

    def take_changed(self) -> set[str]:
        """The pods to plan anew since this was asked last."""
        changed, self._changed = self._changed, set()
        return changed

    def pods_on(self, node: str) -> frozenset[str]:
        """The names of a node's pods, where these are watched."""
        return frozenset(self._by_node.get(node, ()))

    def _on_sync(self, items: Sequence[PodObject]) -> None:
        found = {obj.name: obj for obj in items}
        for name in (self._own.keys() | self.places.keys()) - found.keys():
            self._put(name, None)
        for name, obj in found.items():
            self._put(name, obj)

    def _on_event(self, event: WatchEvent[PodObject]) -> None:
        gone = event.type == "DELETED"
        self._put(event.object.name, None if gone else event.object)

    def _put(self, name: str, obj: PodObject | None) -> None:
        if obj is not None and obj.spec.nodeName == self._node:
            self._own[name] = obj
        else:
            self._own.pop(name, None)
        if not self._everywhere:
            return
        before, place = self.places.get(name), place_of(obj) if obj is not None else None
        if place == before:
            return
        if before is not None:
            del self.places[name]
            self._by_node[before.node].discard(name)
        if place is not None:
            self.places[name] = place
            self._by_node.setdefault(place.node, set()).add(name)
        self._changed.add(name)
        self._on_change()
