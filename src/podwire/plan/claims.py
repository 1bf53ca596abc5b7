"""Who holds what two nodes claim: a subnet, or a VTEP's MAC (machines cloned with their disks).

What lives here: the rule, and an index that tells quickly whom a change concerns. What does not:
claims on what is this node's own, which `podwire.plan.node.objections` refuses by itself.

The older Node object holds; of two of one age, the one that comes first by name. A node that claims
anything that another one holds is left out as a whole, since half of its entries would take its
pods' traffic to the other node. Subnets outside of the cluster network are nobody's to hold: one
that contains that network would have everybody left out who comes later. Apart from that the rule
looks at nothing but the two nodes: not at who was seen first, nor at whether the holder is left out
for something else. So the plan is a function of the nodes, in whatever order they came and changed.
Pure: values in, values out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from podwire.model.cluster import Node
from podwire.model.state import IPNetwork, format_mac, within

#: A subnet, or a VTEP's VNI and MAC.
Claim: TypeAlias = IPNetwork | tuple[int, bytes]
Rank: TypeAlias = tuple[str, str]


class Claims:
    """What a set of nodes claims. A change costs what that node claims, not what all do."""

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self._claimants: dict[Claim, tuple[Rank, ...]] = {}
        #: Where the subnets of each IP version and length begin, in order; single addresses are
        #: left out.
        self._starts: dict[tuple[int, int], list[int]] = {}
        for node in nodes:
            self.replace(None, node)

    def replace(self, before: Node | None, after: Node | None) -> set[str]:
        """A node changed (None: it was not there, or is not any more).

        Returns the names of the other nodes whose standing may be another now.
        """
        concerned: set[str] = set()
        for node, is_there in ((before, False), (after, True)):
            if node is None:
                continue
            rank = _rank(node)
            for claim in _claims(node):
                held = self._claimants.get(claim, ())
                others = [one for one in held if one != rank]
                concerned.update(name for _, name in others)
                remaining = sorted([*others, rank]) if is_there else others
                self._note(claim, bool(remaining) - bool(held))
                if remaining:
                    self._claimants[claim] = tuple(remaining)
                else:
                    del self._claimants[claim]
                for other in self._overlapping(claim):
                    concerned.update(name for _, name in self._claimants[other])
        return concerned - {one.name for one in (before, after) if one is not None}

    def disputes(self, node: Node, network: Sequence[IPNetwork]) -> list[str]:
        """What `node` claims and another one holds of the cluster's `network`: one sentence
        each."""
        rank = _rank(node)
        found = []
        for claim in _claims(node):
            holder = self._claimants.get(claim, (rank,))[0]
            if holder < rank:
                what = (
                    f"has VTEP MAC {format_mac(claim[1])}"
                    if isinstance(claim, tuple)
                    else (f"leases {claim}")
                )
                found.append(f"node {node.name} {what}, as the older node {holder[1]} does")
            holders = [
                f"{other} of the older node {holder[1]}"
                for other in self._overlapping(claim)
                if (holder := self._claimants[other][0]) < rank
                and any(within(other, one) for one in network)
            ]
            if holders:
                more = f", and {len(holders) - 1} more" if len(holders) > 1 else ""
                found.append(f"node {node.name} leases {claim}, which overlaps {holders[0]}{more}")
        return found

    def _note(self, claim: Claim, more: int) -> None:
        """A claim has come (1), or gone (-1)."""
        if not more or isinstance(claim, tuple) or claim.prefixlen == claim.max_prefixlen:
            return
        kind, start = (claim.version, claim.prefixlen), int(claim.network_address)
        starts = self._starts.setdefault(kind, [])
        if more > 0:
            insort(starts, start)
        else:
            del starts[bisect_left(starts, start)]
            if not starts:
                del self._starts[kind]

    def _overlapping(self, claim: Claim) -> Iterator[IPNetwork]:
        """The subnets that are not the same as `claim`, and have a part of it or are one."""
        if isinstance(claim, tuple) or claim.prefixlen == claim.max_prefixlen:
            return
        first, last = int(claim.network_address), int(claim.broadcast_address)
        for (version, length), starts in self._starts.items():
            if version != claim.version or length == claim.prefixlen:
                continue
            if length < claim.prefixlen:
                wider = claim.supernet(new_prefix=length)
                if wider in self._claimants:
                    yield wider
                continue
            for start in starts[bisect_left(starts, first) : bisect_right(starts, last)]:
                yield type(claim)((start, length))


def _rank(node: Node) -> Rank:
    return node.created, node.name


def _claims(node: Node) -> tuple[Claim, ...]:
    lease = node.lease
    if lease is None:
        return ()
    macs = [one.vtep_mac for one in lease.endpoints if one.vtep_mac is not None]
    return (*lease.subnets, *((lease.vni, mac) for mac in macs))
