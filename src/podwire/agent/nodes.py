"""The cluster's nodes as the agent has seen them, and which of them have to be planned anew.

Fed by the store's events, asked by the daemon. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping

from podwire.model.cluster import Node
from podwire.plan.claims import Claims


class Nodes:
    """Every node by name, this one too."""

    def __init__(self, own_name: str) -> None:
        self._own_name = own_name
        self._changed: set[str] = set()
        self.by_name: dict[str, Node] = {}
        #: What peers claim; this node's own is not among it.
        self.claims = Claims()

    def sync(self, nodes: Mapping[str, Node]) -> None:
        """These are all there are."""
        for name in self.by_name.keys() - nodes.keys():
            self.put(name, None)
        for name, node in nodes.items():
            self.put(name, node)

    def put(self, name: str, node: Node | None) -> None:
        """A node is new or another now, or gone."""
        before = self.by_name.get(name)
        if node == before:
            return
        if node is None:
            del self.by_name[name]
        else:
            self.by_name[name] = node
        if name != self._own_name:
            self._changed |= {name} | self.claims.replace(before, node)

    def note(self, *names: str) -> None:
        """Something else that peers' entries depend on is another now."""
        self._changed |= set(names) & self.by_name.keys()

    def take_changed(self) -> set[str]:
        """The peers to plan anew since this was asked last."""
        changed, self._changed = self._changed, set()
        return changed

    @property
    def leased_peers(self) -> int:
        """How many other nodes have a lease."""
        leased = (node for node in self.by_name.values() if node.lease is not None)
        return sum(node.name != self._own_name for node in leased)
