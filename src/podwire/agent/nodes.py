"""The cluster's nodes as the agent has seen them, and which of them have to be planned anew.

Fed by the watch, asked by the daemon. What a node published wrongly is logged when it changes, not
with every heartbeat. No I/O.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from podwire.cluster.kube import WatchEvent
from podwire.cluster.nodes import NodeObject, node_from_object
from podwire.log import fields
from podwire.model.cluster import Node
from podwire.plan.claims import Claims

log = logging.getLogger(__name__)


class Nodes:
    """Every node by name. `own` is this node's object as it came, None where there is none."""

    def __init__(self, own_name: str) -> None:
        self._own_name = own_name
        self._changed: set[str] = set()
        self.own: NodeObject | None = None
        self.by_name: dict[str, Node] = {}
        #: What peers claim; this node's own is not among it.
        self.claims = Claims()

    def sync(self, items: Sequence[NodeObject]) -> None:
        """This is all there is."""
        self.own = None
        for name in self.by_name.keys() - {obj.metadata.name for obj in items}:
            self._put(name, None)
        for obj in items:
            self._put(obj.metadata.name, obj)

    def event(self, event: WatchEvent[NodeObject]) -> bool:
        """This changed. False where nothing has that the network depends on: a heartbeat."""
        name = event.object.metadata.name
        return self._put(name, None if event.type == "DELETED" else event.object)

    def take_changed(self) -> set[str]:
        """The peers to plan anew since this was asked last."""
        changed, self._changed = self._changed, set()
        return changed

    @property
    def leased_peers(self) -> int:
        """How many other nodes have a lease."""
        leased = (node for node in self.by_name.values() if node.lease is not None)
        return sum(node.name != self._own_name for node in leased)

    def _put(self, name: str, obj: NodeObject | None) -> bool:
        before = self.by_name.get(name)
        node, problems = node_from_object(obj) if obj is not None else (None, [])
        if name == self._own_name:
            # Its annotations matter too, which are not all in a Node.
            self.own = obj
        elif node == before:
            return False
        if node != before:
            for problem in problems:
                log.warning("node is not understood", extra=fields(node=name, problem=problem))
        if node is None:
            self.by_name.pop(name, None)
        else:
            self.by_name[name] = node
        if name != self._own_name:
            self._changed |= {name} | self.claims.replace(before, node)
        return True
