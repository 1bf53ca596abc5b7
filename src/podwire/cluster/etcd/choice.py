"""Which subnet a node takes: Flannel's rules, as pure functions.

One of the first hundred that are free, at random: two nodes that look at the same time rarely want
the same one, and the network fills from its beginning.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import islice

from podwire.cluster.etcd.network import FlannelConfig, SubnetRange
from podwire.errors import PodwireError
from podwire.model.state import IPNetwork

_CANDIDATES = 100


class Taken:
    """What is leased, of both families; asks in the time of a binary search."""

    def __init__(self, subnets: Iterable[IPNetwork]) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._ends: dict[int, list[int]] = {4: [], 6: []}
        order = sorted(
            (one.version, int(one.network_address), int(one.broadcast_address)) for one in subnets
        )
        for version, start, end in order:
            ends = self._ends[version]
            # Networks that overlap are one inside of the other: the one that ends later stays.
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
                continue
            self._starts[version].append(start)
            ends.append(end)

    def end_of_overlap(self, version: int, start: int, end: int) -> int | None:
        """The last address of what is leased between `start` and `end`; None where it is free."""
        index = bisect_right(self._starts[version], end) - 1
        if index < 0 or self._ends[version][index] < start:
            return None
        return self._ends[version][index]

    def overlaps(self, subnet: IPNetwork) -> bool:
        start, end = int(subnet.network_address), int(subnet.broadcast_address)
        return self.end_of_overlap(subnet.version, start, end) is not None


def free_subnets(wanted: SubnetRange, taken: Taken) -> Iterable[IPNetwork]:
    """Every subnet that may be leased and is not, in order."""
    network = wanted.network
    size = 1 << (network.max_prefixlen - wanted.subnet_len)
    start = int(wanted.first)
    while start <= int(wanted.last):
        end = taken.end_of_overlap(network.version, start, start + size - 1)
        if end is None:
            yield type(network)((start, wanted.subnet_len))
            start += size
        else:
            start = (end // size + 1) * size


def choose(
    config: FlannelConfig,
    leased: Iterable[IPNetwork],
    previous: Sequence[IPNetwork],
    rng: random.Random,
    *,
    spread: int = 1,
) -> tuple[IPNetwork, ...]:
    """One subnet of each range: of `previous` where it is allowed and free, else any.

    Who was too slow chooses of `spread` times as many, so that a crowd does not meet again. Raises
    PodwireError where there is none.
    """
    taken = Taken(filter(config.counts, leased))
    found: list[IPNetwork] = []
    for wanted in config.ranges:
        kept = next(
            (one for one in previous if wanted.allows(one) and not taken.overlaps(one)), None
        )
        if kept is not None:
            found.append(kept)
            continue
        candidates = list(islice(free_subnets(wanted, taken), _CANDIDATES * spread))
        if not candidates:
            raise PodwireError(
                f"all subnets of {wanted.network} from {wanted.first} to {wanted.last} are leased",
                remedy="delete leases of nodes that are no more, or enlarge the network",
            )
        found.append(rng.choice(candidates))
    return tuple(found)
