"""The nodes of the network, by name, from the keys that they are at. Pure.

A node of Podwire says its name; one of Flannel's is called by its PublicIP. Names are given by
whoever writes them, so two keys may have one: this node's own comes first, then the older key, and
every other one has its key's last part added (`node1@10.5.34.0-24`). A change costs what has that
name, not what all have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec

from podwire.cluster.etcd import values
from podwire.cluster.etcd.layout import Layout
from podwire.cluster.etcd.messages import KeyValue
from podwire.errors import InputError
from podwire.model.cluster import Lease, Node


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A lease as it stands at a key. `name` is what the node is called, unless another one is."""

    key: bytes
    name: str
    lease: Lease
    created: int


def read_entry(layout: Layout, kv: KeyValue) -> Entry | None:
    """The lease at a key; None for a key that is none's. Raises InputError for a wrong one."""
    try:
        if kv.key.startswith(layout.subnets):
            subnets = values.parse_subnets(_tail(kv.key, layout.subnets))
            stored = values.decode(kv.value, subnets)
            name = stored.node or str(stored.lease.public_ip)
        elif kv.key.startswith(layout.nodes):
            stored = values.decode(kv.value, None)
            name = _tail(kv.key, layout.nodes)
            if stored.node != name:
                raise InputError(f"{stored.node!r} is not {name!r}", field="PodwireNode")
        else:
            return None
    except InputError as error:
        where = kv.key.decode(errors="backslashreplace")
        raise InputError(error.message, field=where) from None
    return Entry(kv.key, name, stored.lease, kv.create_revision)


class Directory:
    """Every node by name."""

    def __init__(self, own_name: str) -> None:
        self._own_name = own_name
        self._own_key: bytes | None = None
        self._entries: dict[bytes, Entry] = {}
        #: By the name that is wished for: who wishes, and what they are called.
        self._wishes: dict[str, set[bytes]] = {}
        self._named: dict[str, dict[str, Node]] = {}
        self._nodes: dict[str, Node] = {}

    @property
    def nodes(self) -> Mapping[str, Node]:
        return MappingProxyType(self._nodes)

    def sync(self, entries: Iterable[Entry]) -> None:
        """These are all there are."""
        self._entries, self._wishes, self._named, self._nodes = {}, {}, {}, {}
        names = {self._add(entry) for entry in entries}
        self._rename(names)

    def put(self, entry: Entry) -> dict[str, Node | None]:
        """A lease is new or another now. What changed, by name; None for nodes that are gone."""
        return self._rename({*self._drop(entry.key), self._add(entry)})

    def remove(self, key: bytes) -> dict[str, Node | None]:
        """A lease is gone. What changed, as in `put`."""
        return self._rename(self._drop(key))

    def own_is_at(self, key: bytes | None) -> dict[str, Node | None]:
        """This node's own lease is at `key` now. What changed, as in `put`."""
        concerned = [self._entries[one] for one in {self._own_key, key} if one in self._entries]
        names = {name for entry in concerned for name in self._drop(entry.key)}
        self._own_key = key
        names |= {self._add(entry) for entry in concerned}
        return self._rename(names)

    def _add(self, entry: Entry) -> str:
        self._entries[entry.key] = entry
        name = self._wish_of(entry)
        self._wishes.setdefault(name, set()).add(entry.key)
        return name

    def _drop(self, key: bytes) -> set[str]:
        entry = self._entries.pop(key, None)
        if entry is None:
            return set()
        name = self._wish_of(entry)
        self._wishes[name].discard(key)
        return {name}

    def _wish_of(self, entry: Entry) -> str:
        return self._own_name if entry.key == self._own_key else entry.name

    def _rename(self, wishes: Iterable[str]) -> dict[str, Node | None]:
        """Name anew all who wish for these names."""
        changed: dict[str, Node | None] = {}
        for wish in wishes:
            before, after = self._named.pop(wish, {}), self._nodes_of(wish)
            if after:
                self._named[wish] = after
            else:
                self._wishes.pop(wish, None)
            changed |= {name: None for name in before if name not in after}
            changed |= {name: node for name, node in after.items() if before.get(name) != node}
        for name, node in changed.items():
            if node is None:
                self._nodes.pop(name, None)
            else:
                self._nodes[name] = node
        return changed

    def _nodes_of(self, wish: str) -> dict[str, Node]:
        entries = [self._entries[key] for key in self._wishes.get(wish, ())]
        entries.sort(key=lambda one: (one.key != self._own_key, one.created, one.key))
        found: dict[str, Node] = {}
        for entry in entries:
            last = entry.key.rpartition(b"/")[2].decode(errors="backslashreplace")
            name = f"{wish}@{last}" if found else wish
            found[name] = Node(
                name=name,
                pod_cidrs=entry.lease.subnets,
                lease=entry.lease,
                # In the order of age, which is all that it is compared for.
                created=f"{entry.created:020}",
            )
        return found


def _tail(key: bytes, prefix: bytes) -> str:
    return key.removeprefix(prefix).decode(errors="backslashreplace")
