"""Ranges of one big network that nodes share: whose is what, what to claim, what to give away.

What lives here: decisions and documents, as functions of immutable values. What does not: requests
and their order (`podwire.ipam.range_allocator`).

    slot ├──────────────────────────────┤├──────────────────────────────┤
         ▲ node1        ▲ node2          ▲ (nobody)      ▲ node3

How it works. The network is cut into slots of one size. A document says where a node's range begins
("token"); it ends at the next token, or with its slot. So a range is split by writing one document,
which nobody but its owner does; and a slot that no range begins with is claimed by writing one,
which succeeds for one node only. Nothing has to span two documents, and no node is in the middle.
Inside of its ranges a node asks nobody.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from ipaddress import ip_address, ip_network, summarize_address_range

import msgspec

from podwire.decoding import decode
from podwire.errors import InputError
from podwire.ipam.block import document_name
from podwire.model.documents import Document
from podwire.model.state import IPAddress, IPNetwork

#: A network has so many slots, where they have at least 16 addresses then.
_SLOT_BITS, _MIN_SLOT_BITS = 8, 4

#: What is given away is at least this much, and begins at a multiple of it.
_GRAIN = 4


class Token(msgspec.Struct, frozen=True, gc=False):
    """Where a range of `node` begins.

    `instance` is of the agent that uses it: one that has been started since it was written, or was
    given it, writes its own there first. `sequence` orders a node's ranges: the first one has the
    node's own address. `asked_by` are nodes that want a part of it. `giver` is the instance of the
    agent that cut it out of its own range, if one did.
    """

    network: IPNetwork
    first: IPAddress
    node: str
    instance: str = ""
    sequence: int = 0
    asked_by: tuple[str, ...] = ()
    giver: str = ""

    @property
    def name(self) -> str:
        """Of its document."""
        return document_name(self.first)


class Range(msgspec.Struct, frozen=True, gc=False):
    """The addresses from `first` up to `end`, exclusive, as numbers."""

    first: int
    end: int
    token: Token

    @property
    def size(self) -> int:
        return self.end - self.first

    def has(self, ip: IPAddress) -> bool:
        return ip.version == self.token.network.version and self.first <= int(ip) < self.end

    @property
    def cidrs(self) -> list[IPNetwork]:
        """The fewest networks that are exactly it."""
        kind = type(self.token.first)
        ends = kind(self.first), kind(self.end - 1)
        return list(summarize_address_range(*ends))


class _RangeSpec(msgspec.Struct, rename="camel", omit_defaults=True):
    network: str
    first: str
    node: str
    instance: str = ""
    sequence: int = 0
    asked_by: list[str] = []
    giver: str = ""


def encode_token(token: Token) -> bytes:
    """The token as a document's value."""
    return msgspec.json.encode(
        _RangeSpec(
            network=str(token.network),
            first=str(token.first),
            node=token.node,
            instance=token.instance,
            sequence=token.sequence,
            asked_by=list(token.asked_by),
            giver=token.giver,
        )
    )


def decode_token(document: Document) -> Token:
    """The token that a document keeps. Raises InputError."""
    field = f"ipamranges/{document.name}"
    spec = decode(
        document.value,
        _RangeSpec,
        field=field,
        expected='{"network": "10.32.0.0/12", "first": "10.32.0.0", "node": "node1", …}',
        remedy="correct the object, or delete it if no pod has an address of that range",
    )
    try:
        network, first = ip_network(spec.network), ip_address(spec.first)
        if first not in network:
            raise ValueError(f"{first} is outside of {network}")
        if not spec.node:
            raise ValueError("node is empty")
    except ValueError as error:
        raise InputError(str(error), field=field) from error
    if document.name != document_name(first):
        raise InputError(
            f"is the range that begins with {first}, whose name is {document_name(first)}",
            field=field,
            remedy="delete the object: no agent has made it",
        )
    return Token(
        *(network, first, spec.node, spec.instance, spec.sequence),
        asked_by=tuple(spec.asked_by),
        giver=spec.giver,
    )


def slot_size(network: IPNetwork) -> int:
    """How many addresses a slot has."""
    host_bits = network.max_prefixlen - network.prefixlen
    slot_bits = min(_SLOT_BITS, max(0, host_bits - _MIN_SLOT_BITS))
    return 1 << (host_bits - slot_bits)


def ranges(tokens: Iterable[Token], network: IPNetwork) -> list[Range]:
    """The ranges of a network, in order."""
    found = sorted((one for one in tokens if one.network == network), key=lambda one: one.first)
    size, base = slot_size(network), int(network.network_address)
    made = []
    for index, token in enumerate(found):
        first = int(token.first)
        end = first - (first - base) % size + size
        if index + 1 < len(found):
            end = min(end, int(found[index + 1].first))
        made.append(Range(first, end, token))
    return made


def choose_slot(network: IPNetwork, tokens: Iterable[Token], node: str) -> IPAddress | None:
    """The first address of a slot that no range begins with; None where there is none.

    Each node looks from a place of its own on, so that nodes that start together do not fight.
    """
    size, base = slot_size(network), int(network.network_address)
    count = network.num_addresses // size
    taken = {
        (int(token.first) - base) // size
        for token in tokens
        if token.network == network and (int(token.first) - base) % size == 0
    }
    digest = hashlib.sha256(f"{node} {network}".encode()).digest()
    start = int.from_bytes(digest[:8], "big") % count
    for step in range(min(count, len(taken) + 1)):
        index = (start + step) % count
        if index not in taken:
            return network.network_address + index * size
    return None


def is_slot(token: Token) -> bool:
    """Whether a slot begins with it."""
    base = int(token.network.network_address)
    return (int(token.first) - base) % slot_size(token.network) == 0


def is_valid(token: Token, tokens: Iterable[Token]) -> bool:
    """Whether a token that was just given still comes from who has the range it was cut out of.

    An agent may die while it gives a part away, and that write arrive when the next agent uses the
    range already, the part along with it. Then what is in front of the token is that agent's.
    """
    if token.instance or not token.giver:
        return True
    before = [
        one for one in tokens if one.network == token.network and int(one.first) < int(token.first)
    ]
    if is_slot(token) or not before:
        return False
    nearest = max(before, key=lambda one: int(one.first))
    return token.giver in (nearest.instance, nearest.giver)


def in_order(own: Iterable[Range]) -> list[Range]:
    """A node's ranges, the one that it has had for longest in front."""
    return sorted(own, key=lambda one: (one.token.sequence, one.first))


def usable(found: Range) -> tuple[int, int]:
    """A range less the network's own address and its broadcast address."""
    network = found.token.network
    first = max(found.first, int(network.network_address) + 1)
    end = found.end
    if network.version == 4:
        end = min(end, int(network.broadcast_address))
    return first, end


def cut(own: Sequence[Range], held: Collection[int]) -> tuple[Range, int, int] | None:
    """What of its ranges a node gives away: the range, and from where to where; None for nothing.

    It is the upper half of the longest free stretch. `held` is in use.
    """
    best: tuple[int, Range, int, int] | None = None
    numbers = sorted(held)
    for one in own:
        first, end = usable(one)
        begin = first
        inside = numbers[bisect_right(numbers, first - 1) : bisect_right(numbers, end - 1)]
        for number in (*inside, end):
            if best is None or number - begin > best[0]:
                best = number - begin, one, begin, number
            begin = number + 1
    if best is None:
        return None
    length, one, begin, end = best
    grain = _GRAIN
    while grain * 8 <= length:
        grain *= 2
    middle = (begin + length // 2 + grain // 2) // grain * grain
    # A stretch that reaches the end of its range takes what is not usable along with it.
    end = one.end if end == usable(one)[1] else end
    return (one, middle, end) if middle + _GRAIN <= end else None


def lenders(found: Iterable[Range], node: str) -> list[Token]:
    """Whom to ask for a part, those with most in front: the token of each one's largest range."""
    sizes: dict[str, int] = {}
    largest: dict[str, Range] = {}
    for one in found:
        owner = one.token.node
        if owner == node:
            continue
        sizes[owner] = sizes.get(owner, 0) + one.size
        if owner not in largest or one.size > largest[owner].size:
            largest[owner] = one
    # Among equals, each node has an order of its own.
    order = sorted(
        sizes,
        key=lambda owner: (-sizes[owner], hashlib.sha256(f"{node} {owner}".encode()).digest()),
    )
    return [largest[owner].token for owner in order]
