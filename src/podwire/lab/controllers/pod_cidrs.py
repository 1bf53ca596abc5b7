"""Each node gets a block of the cluster's pod addresses: `spec.podCIDR`, `spec.podCIDRs`.

Blocks never overlap: also those that a node brought along itself count as taken. A node whose name
ends in a number gets the block of that number where it is free, so `node2` has 10.244.2.0/24
however the nodes' registrations race; others get the next one after the last that was handed out.
With no block left a node gets an Event and the condition NetworkUnavailable, and is served when one
becomes free.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from podwire.errors import InputError
from podwire.lab.api.binding import put_condition
from podwire.lab.api.hub import Event
from podwire.lab.api.kinds.meta import condition
from podwire.lab.api.kinds.node import NODE
from podwire.lab.api.objects import Objects
from podwire.lab.api.registry import Object
from podwire.lab.controllers.events import record

_COMPONENT = "pod-cidr-controller"
_EXHAUSTED = "CIDRNotAvailable"
_LARGEST_POOL_BITS = 16

_TRAILING_NUMBER = re.compile(r"[0-9]{1,6}$")

Network = IPv4Network | IPv6Network


class Pool:
    """The blocks of one network, numbered from 0; counts how many nodes hold each."""

    def __init__(self, network: Network, mask: int) -> None:
        bits = mask - network.prefixlen
        if not 0 <= bits <= _LARGEST_POOL_BITS or mask > network.max_prefixlen:
            raise InputError(
                f"cannot cut {network} into blocks of /{mask}",
                field="cluster-cidr",
                remedy=f"choose one 0 to {_LARGEST_POOL_BITS} bits longer than the network's",
            )
        self.network = network
        self._mask = mask
        self._size = 1 << bits
        self._shift = network.max_prefixlen - mask
        self._held: Counter[int] = Counter()
        self._next = 0

    def clear(self) -> None:
        """Forget who holds what."""
        self._held.clear()

    def take(self, wanted: Network) -> bool:
        """Count a block (of any size) as held; whether no one else holds part of it."""
        blocks = self._blocks(wanted)
        self._held.update(blocks)
        return all(self._held[block] == 1 for block in blocks)

    def release(self, held: Network) -> None:
        """Undo `take`."""
        self._held.subtract(self._blocks(held))
        self._held = +self._held

    def free(self, preferred: int | None) -> Network | None:
        """A block that nobody holds, the one of number `preferred` if possible; None: none left."""
        if len(self._held) >= self._size:
            return None
        if preferred is not None and preferred < self._size and not self._held[preferred]:
            return self._block(preferred)
        for step in range(self._size):
            block = (self._next + step) % self._size
            if not self._held[block]:
                self._next = block + 1
                return self._block(block)
        return None

    def _block(self, number: int) -> Network:
        start = int(self.network.network_address) + (number << self._shift)
        return type(self.network)((start, self._mask))

    def _blocks(self, network: Network) -> range:
        if network.version != self.network.version:
            return range(0)
        base = int(self.network.network_address)
        first = (int(network.network_address) - base) >> self._shift
        last = (int(network.broadcast_address) - base) >> self._shift
        return range(max(first, 0), min(last, self._size - 1) + 1)


def _number(name: str) -> int | None:
    """The number that a node's name ends in: 12 of `node12`."""
    digits = _TRAILING_NUMBER.search(name)
    return int(digits.group()) if digits is not None else None


class PodCidrs:
    """Keeps `spec.podCIDRs` of all nodes set."""

    kinds = (NODE.resource,)

    def __init__(self, objects: Objects, pools: Sequence[Pool]) -> None:
        self._objects = objects
        self._pools = list(pools)
        self._held: dict[str, list[Network]] = {}
        self._waiting: dict[str, None] = {}

    def sync(self) -> None:
        self._held, self._waiting = {}, {}
        for pool in self._pools:
            pool.clear()
        for node in self._objects.list(NODE):
            self._note(node)
        self._serve()

    def handle(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.type == "DELETED":
                self._forget(event.key.name)
            else:
                self._note(event.object)
        self._serve()

    def due(self) -> float | None:
        return None

    def tick(self) -> None:
        return None

    def _note(self, node: Object) -> None:
        name = node["metadata"]["name"]
        spec = node.get("spec") or {}
        cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        networks = [ip_network(cidr) for cidr in cidrs]
        if networks == self._held.get(name):
            return
        if not networks:
            if name not in self._held:
                self._waiting[name] = None
            return
        self._forget(name)
        self._held[name] = networks
        for network in networks:
            alone = [pool.take(network) for pool in self._pools]
            if not all(alone):
                message = f"podCIDR {network} overlaps that of another node"
                record(self._objects, node, "Warning", "PodCIDROverlap", message, _COMPONENT)

    def _forget(self, name: str) -> None:
        self._waiting.pop(name, None)
        for network in self._held.pop(name, []):
            for pool in self._pools:
                pool.release(network)

    def _serve(self) -> None:
        """Give blocks to the nodes that wait, first come first served."""
        with self._objects.transaction():
            for name in list(self._waiting):
                node = self._objects.find(NODE, "", name)
                if node is None or (node.get("spec") or {}).get("podCIDR"):
                    # Changed since; its event is on the way.
                    continue
                blocks = [pool.free(_number(name)) for pool in self._pools]
                if None in blocks:
                    self._refuse(node)
                else:
                    self._assign(name, [block for block in blocks if block])

    def _assign(self, name: str, blocks: list[Network]) -> None:
        cidrs = [str(block) for block in blocks]

        def change(node: Object) -> None:
            node["spec"] = {**(node.get("spec") or {}), "podCIDR": cidrs[0], "podCIDRs": cidrs}

        del self._waiting[name]
        self._held[name] = blocks
        for pool, block in zip(self._pools, blocks, strict=True):
            pool.take(block)
        self._objects.modify(NODE, "", name, change)

    def _refuse(self, node: Object) -> None:
        if condition(node, "NetworkUnavailable").get("reason") == _EXHAUSTED:
            return
        networks = ", ".join(str(pool.network) for pool in self._pools)
        message = f"no free pod CIDR in {networks}: all blocks are assigned to other nodes"

        def change(node: Object) -> None:
            conditions = node.setdefault("status", {}).setdefault("conditions", [])
            put_condition(conditions, "NetworkUnavailable", "True", _EXHAUSTED, message)

        name = node["metadata"]["name"]
        self._objects.modify(NODE, "", name, change, subresource="status", trusted=True)
        record(self._objects, node, "Warning", _EXHAUSTED, message, _COMPONENT)
