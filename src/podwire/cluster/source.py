"""Where a node learns of its peers and gets its own lease: one face for every store.

What lives here: the `LeaseSource` protocol and the values that cross it. What does not: any store
(`cluster.etcd.leases`; Kubernetes' Node objects), and what is done with what is learned (`agent`).

    store ──▶ LeaseSource ──Event──▶ agent          what changed, in order
                   ▲                   │
                   └── acquire, publish┘            what this node has

A source turns whatever happens to its connection into events, tries again by itself for ever, and
never lets what one node published wrongly be more than that node's own trouble: it is logged and
left out. Whoever listens keeps no connection and knows no store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Protocol, Self, TypeAlias

import msgspec

from podwire.errors import PodwireError
from podwire.model.cluster import Lease, Node
from podwire.model.documents import Documents
from podwire.model.state import IPAddress, IPNetwork


class BackendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How packets travel between nodes, in Flannel's words; None is the backend's own default.

    `type` is as Flannel spells it (`vxlan`, `host-gw`, `udp`, …). `mtu` is the pods'.
    """

    type: str
    vni: int | None = None
    port: int | None = None
    direct_routing: bool = False
    learning: bool = False
    gbp: bool = False
    mtu: int | None = None


class StoredNetwork(msgspec.Struct, frozen=True):
    """The network's configuration, where the store has one: it holds for every node alike."""

    networks: tuple[IPNetwork, ...]
    backend: BackendOptions


class Own(msgspec.Struct, frozen=True):
    """What the store has of this node before it asks for anything.

    `node.internal_ips` are where to look for the underlay, none for wherever the default route is.
    `node.lease` is what it published last, perhaps before it was started: its MACs are known to
    peers and kept. `public_ips` are addresses that an administrator set for peers to use in place
    of the underlay's own, at most one a family. `labels` are None where nodes have none.
    """

    node: Node
    public_ips: tuple[IPAddress, ...] = ()
    labels: Mapping[str, str] | None = None


class Synced(msgspec.Struct, frozen=True):
    """These are all nodes there are, this one too where it is known; others are gone."""

    nodes: Mapping[str, Node]


class Changed(msgspec.Struct, frozen=True):
    """A node is new or another now, or gone (`node` is None). Never a heartbeat."""

    name: str
    node: Node | None


class OwnChanged(msgspec.Struct, frozen=True):
    """`own`, or what `acquire` would answer, may be another now: call it again.

    `reason` is a sentence for the log, such as that the lease has expired; empty for what is usual.
    """

    reason: str = ""


class NetworkChanged(msgspec.Struct, frozen=True):
    """`network` is another now. Comes before the first Synced, where the store has one."""

    network: StoredNetwork | None


class Connected(msgspec.Struct, frozen=True):
    """The store is being watched; after every Disconnected at most one."""


class Disconnected(msgspec.Struct, frozen=True):
    """The store is lost, once for each time it is. What was learned stays."""

    error: PodwireError


Event: TypeAlias = Synced | Changed | OwnChanged | NetworkChanged | Connected | Disconnected


class LeaseSource(Protocol):
    """A store as one node's agent sees it. Use it with `async with`, and `run` it in a task.

    `acquire` and `publish` wait for the store, and raise what keeps them from it: as long as a
    store is away they fail within seconds rather than wait for it to come back.
    """

    @property
    def title(self) -> str:
        """What a person calls it (`the Kubernetes API`); no secrets in it."""
        ...

    @property
    def own(self) -> Own | None:
        """What is known of this node; None where the store would have to know it and does not."""
        ...

    @property
    def network(self) -> StoredNetwork | None:
        """The network's configuration; None where this store has none, or not yet."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None:
        """Close connections. What this node published stays until it expires."""
        ...

    async def run(self, tell: Callable[[Event], None]) -> NoReturn:
        """Watch, and renew this node's lease in time; each event is told in order, for ever.

        What `tell` raises ends it. It must not wait.
        """
        ...

    async def acquire(self, wanted: Lease, previous: Sequence[IPNetwork] = ()) -> Lease:
        """`wanted` with the subnets that this node has, or gets now.

        `wanted.subnets` is empty: the store says what they are. `previous` are those used last (of
        subnet.env), wanted again where they are free and still valid. Asking again with the same
        costs nothing as long as the lease stands. In a store where acquiring is writing (etcd) the
        lease is published with it.

        Raises PodwireError with a sentence for people where there are none (yet): OwnChanged tells
        when to ask again; InputError for what somebody configured wrongly; what the connection
        raises where the store is away.
        """
        ...

    async def publish(self, lease: Lease) -> bool:
        """Let peers know `lease`: subnets of it that `acquire` did not give are told too.

        True where anything had to be told. Raises as `acquire`, and PodwireError where somebody
        else keeps changing it.
        """
        ...

    @property
    def documents(self) -> Documents:
        """What nodes share besides leases."""
        ...

    async def is_gone(self, name: str) -> bool:
        """Whether the store, asked now, has no node of that name. Raises as `publish`."""
        ...

    async def set_available(self) -> None:
        """Let a scheduler know, where there is one, that pods can be wired on this node."""
        ...
