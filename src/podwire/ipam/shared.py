"""Which allocator a fabric has, where it shares documents with other nodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from podwire.ipam.allocator import SharedAllocator
from podwire.ipam.block_allocator import BlockAllocator
from podwire.ipam.range_allocator import RangeAllocator
from podwire.ipam.store import Store
from podwire.model.documents import Documents
from podwire.model.fabric import Fabric
from podwire.model.state import IPNetwork


def shared_allocator(
    fabric: Fabric,
    documents: Documents,
    store: Store,
    *,
    node: str,
    networks: Sequence[IPNetwork],
    is_gone: Callable[[str], Awaitable[bool]],
    changed: Callable[[], None],
) -> SharedAllocator | None:
    """The allocator of one node; None for `node-subnet`. See `SharedAllocator`.

    `networks` are the pod network, one a family.
    """
    if fabric.ipam == "blocks":
        return BlockAllocator(
            documents,
            store,
            node=node,
            networks=networks,
            block_len={4: fabric.block_len, 6: fabric.block_len6},
            is_gone=is_gone,
            changed=changed,
        )
    if fabric.ipam == "cluster-range":
        return RangeAllocator(
            documents, store, node=node, networks=networks, is_gone=is_gone, changed=changed
        )
    return None
