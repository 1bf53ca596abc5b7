"""Who hands out a pod's addresses: one face for every IPAM, and what a pod may ask of it.

What lives here: the `Allocator` protocol, `Wish`, and the IPAM that needs nobody else,
`NodeSubnet`. What does not: the others (`block_allocator`, `range_allocator`), the database
(`store`), and what an address looks like from inside a pod (`podwire.plan.wiring`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn, Protocol, TypeAlias

import msgspec

from podwire.ipam.node_subnet import RequestedAddressError
from podwire.ipam.record import Key, PodIdentity, Record
from podwire.ipam.store import Store
from podwire.model.cluster import Attachment
from podwire.model.state import IPAddress, IPNetwork

#: Makes the attachment that has these addresses.
Make: TypeAlias = Callable[[tuple[IPAddress, ...]], Attachment]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod asks for: addresses, or pools (by name or CIDR) to take them from.

    The fields are where it asks, for whom it is refused.
    """

    ips: tuple[IPAddress, ...] = ()
    pools: tuple[str, ...] = ()
    ips_field: str = ""
    pools_field: str = "pools"

    def refused(self, problem: str, *, remedy: str | None = None) -> RequestedAddressError:
        """The error for an address that can't be had."""
        field = f"{self.ips_field}: " if self.ips_field else ""
        return RequestedAddressError(f"{field}{problem}", remedy=remedy)


class Allocator(Protocol):
    """Hands out addresses, and takes them back."""

    async def reserve(
        self, key: Key, make: Make, wish: Wish, *, network: str, pod: PodIdentity
    ) -> Record:
        """One address of each family, written to the database as a `pending` attachment.

        Raises ExhaustedError and RequestedAddressError, StoreUnavailableError where others have to
        be asked and can't be, or another PodwireError; then nothing is held.
        """
        ...

    def released(self, record: Record) -> None:
        """The database has given this attachment's addresses back."""
        ...


class SharedAllocator(Allocator, Protocol):
    """An allocator that shares documents with all nodes.

    `start` it, again where that fails, then have it `run` for as long as it hands out. Its
    constructors take `changed`, which is called whenever `subnets` is another than before: the
    lease is to be published and planned anew, which no pod waits for; and `is_gone`, which asks the
    store of the nodes itself whether a node of that name exists no longer.
    """

    @property
    def subnets(self) -> tuple[IPNetwork, ...]:
        """What this node leases now."""
        ...

    async def start(self) -> None:
        """Bring the documents in line with the database, and see that there are subnets.

        Raises StoreUnavailableError, or another PodwireError.
        """
        ...

    async def run(self) -> NoReturn:
        """What has to be done beside, for ever; it copes with a store that is away."""
        ...

    async def stop(self) -> None:
        """Let writes end that are under way. What is not written is written at the next start."""
        ...

    def labels_are(self, labels: Mapping[str, str] | None) -> None:
        """This node's labels, None where the store has none: before `start`, and again whenever
        they are others."""
        ...

    def told(self, subnets: Collection[IPNetwork]) -> None:
        """Others are told from now on that these are this node's: what it has given back, and is
        not among them, may be somebody else's."""
        ...

    def nodes_are(self, names: Collection[str]) -> None:
        """These are all nodes of the cluster. What others have left behind is reclaimed in time."""
        ...

    def doubt(self) -> None:
        """This node was not in the cluster for a while: others may have reclaimed what it has."""
        ...


class NodeSubnet:
    """The IPAM `node-subnet`: a node's subnets are its own, so the database is all there is."""

    def __init__(self, store: Store, subnets: Sequence[IPNetwork]) -> None:
        self._store = store
        self._subnets = subnets

    async def reserve(
        self, key: Key, make: Make, wish: Wish, *, network: str, pod: PodIdentity
    ) -> Record:
        refuse_pools(wish, "node-subnet")
        try:
            return self._store.reserve(
                key, make, subnets=self._subnets, requested=wish.ips, network=network, pod=pod
            )
        except RequestedAddressError as error:
            raise wish.refused(error.message, remedy=error.remedy) from error

    def released(self, record: Record) -> None:
        """Nobody else has to know."""


def refuse_pools(wish: Wish, ipam: str) -> None:
    """Raise RequestedAddressError where pools are asked for, which only `blocks` has."""
    if wish.pools:
        raise RequestedAddressError(
            f"{wish.pools_field}: this network's IPAM is {ipam}, which has no pools",
            remedy="remove the annotation, or use a network with the IPAM blocks",
        )


def one_a_family(wish: Wish) -> dict[int, IPAddress]:
    """The addresses asked for, by IP version. Raises RequestedAddressError for two of one."""
    found: dict[int, IPAddress] = {}
    for ip in wish.ips:
        if found.setdefault(ip.version, ip) != ip:
            raise wish.refused(
                f"both {found[ip.version]} and {ip} were requested, and an interface gets one"
                " address of each family"
            )
    return found
