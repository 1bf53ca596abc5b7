"""A block of addresses and a pool of blocks: values, and the documents that they are kept as.

    {"cidr": "172.31.4.0/26", "node": "node1", "sequence": 1, "used": 1, "allocations": [
      {"ip": "172.31.4.1", "node": "node1", "pod": "default/web", "container": "…", "ifname": "…"}
    ]}

A block is a node's (`node`), or nobody's: then only addresses that others have borrowed of it keep
it. Which node has an address stands with the address. `sequence` orders a node's blocks: the first
one gives the node's tunnel its address. Whatever comes from a store is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import msgspec

from podwire.decoding import decode
from podwire.errors import InputError
from podwire.model.documents import Document
from podwire.model.state import IPAddress, IPNetwork

#: Of each block: the block's network address is the tunnel's, never a pod's.
RESERVED = 1

#: Prefix length of blocks where a pool says none, by IP version.
DEFAULT_BLOCK_LEN = {4: 26, 6: 122}
_MAX_BLOCK_BITS = 12


class Holder(msgspec.Struct, frozen=True, gc=False):
    """Who has an address: an interface of a container on a node; `pod` is namespace/name."""

    node: str
    pod: str = ""
    container: str = ""
    ifname: str = ""

    def __str__(self) -> str:
        return f"{f'pod {self.pod}' if self.pod else f'container {self.container}'} on {self.node}"


class Block(msgspec.Struct, frozen=True, gc=False):
    """One block; `held` is by the address's offset in it."""

    cidr: IPNetwork
    node: str
    sequence: int = 0
    held: Mapping[int, Holder] = msgspec.field(default_factory=dict)

    def address(self, offset: int) -> IPAddress:
        return self.cidr.network_address + offset

    def offset(self, ip: IPAddress) -> int:
        return int(ip) - int(self.cidr.network_address)


class Pool(msgspec.Struct, frozen=True):
    """A part of the pod network that blocks are claimed of; none are of one that is disabled.

    `node_selector` says for which nodes (`podwire.ipam.selector`); it has not been checked.
    """

    name: str
    cidr: IPNetwork
    block_len: int
    disabled: bool = False
    node_selector: str = ""

    @property
    def blocks(self) -> int:
        """How many blocks there are in it."""
        return 1 << (self.block_len - self.cidr.prefixlen)

    def has(self, block: IPNetwork) -> bool:
        """Whether a block is inside of it."""
        return block.version == self.cidr.version and block.network_address in self.cidr

    def block(self, index: int) -> IPNetwork:
        """The block of that number."""
        base = int(self.cidr.network_address) + (index << self._bits)
        return type(self.cidr)((base, self.block_len))

    def index(self, ip: IPAddress) -> int:
        """The number of the block that an address of this pool is in."""
        return (int(ip) - int(self.cidr.network_address)) >> self._bits

    @property
    def _bits(self) -> int:
        return self.cidr.max_prefixlen - self.block_len


class _Allocation(msgspec.Struct, gc=False, omit_defaults=True):
    ip: str
    node: str
    pod: str = ""
    container: str = ""
    ifname: str = ""


class _BlockSpec(msgspec.Struct, gc=False):
    cidr: str
    node: str = ""
    sequence: int = 0
    used: int = 0
    allocations: list[_Allocation] = []


class _PoolSpec(msgspec.Struct, rename="camel", omit_defaults=True):
    cidr: str
    block_size: int | None = None
    disabled: bool = False
    node_selector: str = ""


def document_name(network: IPNetwork | IPAddress) -> str:
    """The name of the document for a block or a range: `172-31-4-0-26`, `fd00-10-32--0`."""
    name = str(network).translate(_DASHES)
    return name + "0" if name.endswith("-") else name


_DASHES = str.maketrans(".:/", "---")


def encode_block(block: Block) -> bytes:
    """The block as a document's value."""
    allocations = [
        _Allocation(str(block.address(offset)), one.node, one.pod, one.container, one.ifname)
        for offset, one in sorted(block.held.items())
    ]
    return msgspec.json.encode(
        _BlockSpec(str(block.cidr), block.node, block.sequence, len(allocations), allocations)
    )


def decode_block(document: Document) -> Block:
    """The block that a document keeps. Raises InputError."""
    field = f"ipamblocks/{document.name}"
    spec = decode(
        document.value,
        _BlockSpec,
        field=field,
        expected='a block such as {"cidr": "172.31.4.0/26", "node": "node1"}',
        remedy="correct the object, or delete it if no pod has an address of that block",
    )
    try:
        cidr = ip_network(spec.cidr)
        if cidr.max_prefixlen - cidr.prefixlen > _MAX_BLOCK_BITS:
            raise ValueError(f"{cidr} is too large for a block")
        held = {}
        for one in spec.allocations:
            ip = ip_address(one.ip)
            if ip not in cidr:
                raise ValueError(f"{ip} is outside of {cidr}")
            offset = int(ip) - int(cidr.network_address)
            held[offset] = Holder(one.node, one.pod, one.container, one.ifname)
    except ValueError as error:
        raise InputError(str(error), field=field) from error
    if document.name != document_name(cidr):
        raise InputError(
            f"is the block {cidr}, whose name is {document_name(cidr)}",
            field=field,
            remedy="delete the object: no agent has made it",
        )
    return Block(cidr, spec.node, spec.sequence, held)


def encode_pool(pool: Pool) -> bytes:
    """The pool as a document's value."""
    return msgspec.json.encode(
        _PoolSpec(str(pool.cidr), pool.block_len, pool.disabled, pool.node_selector)
    )


def decode_pool(document: Document) -> Pool:
    """The pool that a document describes. Raises InputError."""
    field = f"ippools/{document.name}"
    spec = decode(
        document.value,
        _PoolSpec,
        field=field,
        expected='a pool such as {"cidr": "172.31.0.0/16", "blockSize": 26}',
        remedy="correct the pool",
    )
    try:
        cidr = ip_network(spec.cidr)
    except ValueError as error:
        raise InputError(str(error), field=field) from error
    length = spec.block_size if spec.block_size is not None else DEFAULT_BLOCK_LEN[cidr.version]
    bits = cidr.max_prefixlen - length
    if not 2 <= bits <= _MAX_BLOCK_BITS or length < cidr.prefixlen:
        raise InputError(
            f"/{length} is no size for a block of {cidr}",
            field=f"{field}.spec.blockSize",
            remedy=f"choose {max(cidr.prefixlen, cidr.max_prefixlen - _MAX_BLOCK_BITS)} to"
            f" {cidr.max_prefixlen - 2}",
        )
    return Pool(document.name, cidr, length, spec.disabled, spec.node_selector)
