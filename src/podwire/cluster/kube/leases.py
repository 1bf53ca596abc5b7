"""Leases in the Kubernetes API: a node's podCIDRs, and the annotations that Flannel puts on Nodes.

What lives here: the store as `cluster.source` sees it. What does not: how a Node object is read
(`cluster.nodes`), and the connection (`client`, `reflect`).

    Nodes ──reflect──▶ Synced, Changed          every node, this one too
                    └▶ OwnChanged               this node's object, in what a lease depends on

The cluster's controller manager gives each node its subnets, so `acquire` only reads them; to
publish is to patch annotations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NoReturn

import msgspec

from podwire.cluster.kube.client import KubeClient
from podwire.cluster.kube.config import ClientConfig
from podwire.cluster.kube.documents import KubeDocuments
from podwire.cluster.kube.objects import WatchEvent
from podwire.cluster.kube.reflect import reflect
from podwire.cluster.kube.resources import NODES
from podwire.cluster.nodes import (
    LEASE_KEYS,
    PUBLIC_IP_OVERWRITE,
    PUBLIC_IPV6_OVERWRITE,
    NodeObject,
    differs,
    lease_annotations,
    network_available,
    node_from_object,
    public_ip_overwrites,
)
from podwire.cluster.source import (
    Changed,
    Connected,
    Disconnected,
    Event,
    Own,
    OwnChanged,
    StoredNetwork,
    Synced,
)
from podwire.errors import InputError, NotFoundError, PodwireError
from podwire.log import fields
from podwire.model.cluster import Lease, Node
from podwire.model.documents import Documents
from podwire.model.state import IPNetwork
from podwire.rounds import Rounds

log = logging.getLogger(__name__)

#: So often is one lease published in the window of `Rounds`; more is a fight over the Node object.
_ROUNDS = 5


class KubeLeases:
    """A `LeaseSource`: the cluster's Nodes, as the agent of the node `name` sees them.

    With `only_pod_cidrs` a lease is of the node's podCIDRs, whatever its annotations say: those a
    node writes itself, and podCIDRs only the cluster, so that none can take another's.
    """

    def __init__(self, config: ClientConfig, name: str, *, only_pod_cidrs: bool = False) -> None:
        self.client = KubeClient(config)
        self._name = name
        self._only_pod_cidrs = only_pod_cidrs
        self._nodes: dict[str, Node] = {}
        self._own: NodeObject | None = None
        self._rounds = Rounds(_ROUNDS)
        self._published: Lease | None = None
        self._tell: Callable[[Event], None] = lambda event: None

    @property
    def title(self) -> str:
        return "the Kubernetes API"

    @property
    def network(self) -> StoredNetwork | None:
        return None

    @property
    def own(self) -> Own | None:
        node = self._nodes.get(self._name)
        if self._own is None or node is None:
            return None
        try:
            overwrites = public_ip_overwrites(self._own)
        except InputError:
            overwrites = ()  # `acquire` tells
        return Own(node, overwrites, self._own.metadata.labels or {})

    async def __aenter__(self) -> KubeLeases:
        self.client.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.client.__aexit__(*exc_info)

    async def run(self, tell: Callable[[Event], None]) -> NoReturn:
        self._tell = tell
        await reflect(
            self.client,
            NODES,
            on_sync=self._on_sync,
            on_event=self._on_event,
            on_connected=lambda: tell(Connected()),
            on_disconnected=lambda error: tell(Disconnected(error)),
            type=NodeObject,
        )

    async def acquire(self, wanted: Lease, previous: Sequence[IPNetwork] = ()) -> Lease:
        obj = self._require_own()
        public_ip_overwrites(obj)
        node, problems = node_from_object(obj)
        unread = [problem for problem in problems if problem.startswith("spec.")]
        if unread:
            raise InputError("; ".join(unread), field="spec.podCIDR")
        if not node.pod_cidrs:
            raise PodwireError(
                f"node {node.name} has no spec.podCIDR yet: the cluster's controller manager has to"
                " allocate node CIDRs (--allocate-node-cidrs)"
            )
        if len({subnet.version for subnet in node.pod_cidrs}) != len(node.pod_cidrs):
            cidrs = ", ".join(map(str, node.pod_cidrs))
            raise InputError(f"{cidrs} are two of one family", field="spec.podCIDRs")
        return msgspec.structs.replace(wanted, subnets=node.pod_cidrs)

    async def publish(self, lease: Lease) -> bool:
        wanted = self._unpublished(lease)
        if not wanted:
            return False
        if lease != self._published:
            # This node itself has another one, as with each block that it claims.
            self._published, self._rounds = lease, Rounds(_ROUNDS)
        if self._rounds.too_many():
            raise PodwireError(
                f"somebody else keeps changing the lease of node {self._name}",
                remedy="is an agent or a flanneld of that node's name running elsewhere?",
            )
        await self.client.merge_patch(NODES, self._name, {"metadata": {"annotations": wanted}})
        log.info("lease published", extra=fields(node=self._name))
        return True

    def unpublished(self, lease: Lease) -> list[str]:
        """The annotations of this node that peers do not see as `lease` has them."""
        return list(self._unpublished(lease)) if self._own is not None else []

    @property
    def documents(self) -> Documents:
        return KubeDocuments(self.client)

    async def is_gone(self, name: str) -> bool:
        try:
            await self.client.get(NODES, name)
        except NotFoundError:
            return True
        return False

    async def set_available(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"status": {"conditions": [network_available(now)]}}
        await self.client.strategic_patch(NODES, self._name, condition, subresource="status")

    def _require_own(self) -> NodeObject:
        if self._own is None:
            raise PodwireError(f"node {self._name} does not exist in the cluster")
        return self._own

    def _unpublished(self, lease: Lease) -> dict[str, str | None]:
        obj = self._require_own()
        node, _ = node_from_object(obj)
        return differs(obj, lease_annotations(lease, node.pod_cidrs))

    # --- what is watched --------------------------------------------------------------------

    def _on_sync(self, items: Sequence[NodeObject]) -> None:
        found: dict[str, Node] = {}
        own = None
        for obj in items:
            name = obj.metadata.name
            found[name] = self._read(obj)
            if name == self._name:
                own = obj
        self._nodes, self._own = found, own
        self._tell(Synced(dict(found)))
        self._tell(OwnChanged())

    def _on_event(self, event: WatchEvent[NodeObject]) -> None:
        name = event.object.metadata.name
        gone = event.type == "DELETED"
        before, own_before = self._nodes.get(name), self._own
        node = None if gone else self._read(event.object)
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        if name == self._name:
            self._own = None if gone else event.object
        if node != before:
            self._tell(Changed(name, node))
        if name == self._name and (node != before or _notes(self._own) != _notes(own_before)):
            self._tell(OwnChanged())

    def _read(self, obj: NodeObject) -> Node:
        """A node; what is wrong with it is told when it changes, not with every heartbeat."""
        node, problems = node_from_object(obj)
        if self._only_pod_cidrs and node.lease is not None:
            lease = msgspec.structs.replace(node.lease, subnets=node.pod_cidrs)
            node = msgspec.structs.replace(node, lease=lease)
        if problems and node != self._nodes.get(node.name):
            for problem in problems:
                log.warning("node is not understood", extra=fields(node=node.name, problem=problem))
        return node


_OWN_KEYS = (*LEASE_KEYS, PUBLIC_IP_OVERWRITE, PUBLIC_IPV6_OVERWRITE)


def _notes(obj: NodeObject | None) -> list[object]:
    """What a lease depends on of the annotations of this node, and its labels, which pools do."""
    if obj is None:
        return []
    return [*(obj.annotation(key) for key in _OWN_KEYS), obj.metadata.labels or {}]
