"""The pools that blocks are claimed of, as this node knows them.

What lives here: which pools there are, and which ones a pod's addresses come from. What does not:
blocks, and the language of node selectors (`selector`). A pool that can't be used (wrong, outside
of the pod network, overlapping another one) is left out and logged once. Where a family has no pool
at all, the whole pod network becomes one, with the name that Calico's has.

A pool with a node selector is for pods on these nodes. As with Calico that is about what a pod gets
unasked: one that names a pool, or asks for an address of it, gets that on every node.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence

from podwire.errors import InputError
from podwire.ipam.allocator import Wish
from podwire.ipam.block import DEFAULT_BLOCK_LEN, Pool, decode_pool, encode_pool
from podwire.ipam.node_subnet import ExhaustedError, RequestedAddressError
from podwire.ipam.selector import is_all, parse_selector
from podwire.log import fields
from podwire.model.documents import Document, DocumentConflictError, Documents
from podwire.model.state import IPAddress, IPNetwork, within

log = logging.getLogger(__name__)


def default_name(version: int) -> str:
    """The name of the pool that is the whole network of a family."""
    return f"default-ipv{version}-ippool"


class Pools:
    """The cluster's pools."""

    def __init__(
        self,
        documents: Documents,
        networks: Sequence[IPNetwork],
        block_len: Mapping[int, int] = DEFAULT_BLOCK_LEN,
    ) -> None:
        """`networks` are the pod network, one a family; `block_len` is for pools made of them."""
        self._documents = documents
        self._networks = tuple(networks)
        self._block_len = block_len
        self._pools: tuple[Pool, ...] = ()
        self._withheld: tuple[Pool, ...] = ()
        self._refused: dict[str, str] = {}
        #: This node's; None where nodes have none. Set before pools are loaded.
        self.labels: Mapping[str, str] | None = None

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that a pod gets an address of."""
        return tuple(network.version for network in self._networks)

    async def load(self) -> None:
        """Read the pools, and make what is missing. Raises as the documents do."""
        found = await self._documents.list("ippools")
        self.use(found)
        taken = {pool.cidr.version for pool in (*self._pools, *self._withheld)}
        missing = [network for network in self._networks if network.version not in taken]
        for network in missing:
            name = default_name(network.version)
            length = max(self._block_len[network.version], network.prefixlen)
            value = encode_pool(Pool(name, network, length))
            with contextlib.suppress(DocumentConflictError):  # Another node was faster.
                await self._documents.create("ippools", name, value)
        if missing:
            self.use(await self._documents.list("ippools"))

    def use(self, documents: Mapping[str, Document]) -> None:
        """These are all pools from now on."""
        good: list[Pool] = []
        withheld: list[Pool] = []
        refused: dict[str, str] = {}
        for name, document in sorted(documents.items()):
            try:
                pool = decode_pool(document)
            except InputError as error:
                refused[name] = str(error)
                continue
            if problem := self._problem(pool, good):
                refused[name] = problem
            elif problem := self._selector_problem(pool):
                refused[name] = problem
                withheld.append(pool)
            else:
                good.append(pool)
        for name in refused.keys() - self._refused:
            log.error("pool is not used", extra=fields(pool=name, reason=refused[name]))
        self._refused = refused
        self._pools, self._withheld = tuple(good), tuple(withheld)

    def of(self, version: int, wish: Wish) -> tuple[Pool, ...]:
        """The pools that an address of a pod is to come from.

        Those that the pod names, where one of them is of that family, else all that are enabled and
        for this node. Raises RequestedAddressError for a name that no usable pool has, and
        ExhaustedError where there is no pool.
        """
        named = []
        for name in wish.pools:
            pool = next((one for one in self._pools if name in (one.name, str(one.cidr))), None)
            if pool is None or pool.disabled:
                usable = ", ".join(one.name for one in self._pools if not one.disabled) or "none"
                problem = "is disabled" if pool is not None else "does not exist"
                raise RequestedAddressError(
                    f"{wish.pools_field}: pool {name} {problem}; the pools are {usable}",
                    remedy="name one of them, or enable it (spec.disabled of the IPPool)",
                )
            named.append(pool)
        chosen = [pool for pool in named if pool.cidr.version == version]
        if not chosen:
            enabled = [
                pool for pool in self._pools if pool.cidr.version == version and not pool.disabled
            ]
            chosen = [pool for pool in enabled if self._is_for_us(pool)]
            if enabled and not chosen:
                names = ", ".join(f"{one.name} ({one.node_selector})" for one in enabled)
                raise ExhaustedError(
                    f"no IPv{version} pool is for this node: {names}",
                    remedy="label the node, name a pool in the pod's annotation, or make an IPPool",
                )
        if not chosen:
            unused = "; ".join(f"{name}: {why}" for name, why in self._refused.items())
            raise ExhaustedError(
                f"there is no IPv{version} pool to take an address from"
                + (f"; not used: {unused}" if unused else ""),
                remedy="make an IPPool, or enable one",
            )
        return tuple(chosen)

    def with_address(self, ip: IPAddress) -> Pool | None:
        """The pool that an address is in."""
        return next((pool for pool in self._pools if ip in pool.cidr), None)

    def requested(self, ip: IPAddress, wish: Wish) -> Pool:
        """The pool of an address that a pod asks for. Raises RequestedAddressError."""
        pool = self.with_address(ip)
        if pool is None or pool.disabled:
            cidrs = ", ".join(str(one.cidr) for one in self._pools if not one.disabled) or "none"
            raise wish.refused(
                f"{ip} is in no pool that is enabled; expected an address of {cidrs}",
                remedy="ask for one of these, or make an IPPool for it",
            )
        if wish.pools and not {pool.name, str(pool.cidr)} & set(wish.pools):
            raise wish.refused(
                f"{ip} is of pool {pool.name}, which {wish.pools_field} does not name",
                remedy="name it there too, or remove one of the two",
            )
        return pool

    def _is_for_us(self, pool: Pool) -> bool:
        return self.labels is None or parse_selector(pool.node_selector)(self.labels)

    def _selector_problem(self, pool: Pool) -> str | None:
        try:
            parse_selector(pool.node_selector)
        except ValueError as error:
            return f"spec.nodeSelector: {error}"
        if self.labels is None and not is_all(pool.node_selector):
            return (
                f"spec.nodeSelector: {pool.node_selector!r} can't be told to hold or not: in this"
                " store nodes have no labels; remove it, or use --store kube"
            )
        return None

    def _problem(self, pool: Pool, others: Sequence[Pool]) -> str | None:
        if not any(within(pool.cidr, network) for network in self._networks):
            networks = ", ".join(map(str, self._networks))
            return f"{pool.cidr} is outside of the pod network {networks}"
        for other in others:
            if pool.cidr.overlaps(other.cidr):
                return f"{pool.cidr} overlaps pool {other.name}, {other.cidr}"
        return None
