"""Acquiring a subnet: read what is leased, choose, and write it where nobody else was faster.

What lives here: one node's claim, from reading to a key that is its own. What does not: which
subnet is chosen (`choice`), and keeping it (`leases`).

A node knows its own lease by its address, as flanneld does, so a restart changes nothing; and by
its name where the subnet is the one that it used last, so that it keeps that when it comes back
with another address. Otherwise the key is created in a transaction in which no key of that subnet
may exist. That does not see two keys that overlap without being of one IPv4 subnet (the IPv6 parts
of two, or lengths from two configurations): so it is looked at again afterwards, and of two that
overlap the older key holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable, Sequence

import msgspec

from podwire.cluster.etcd import values
from podwire.cluster.etcd.choice import Taken, choose
from podwire.cluster.etcd.client import EtcdClient, end
from podwire.cluster.etcd.layout import Layout
from podwire.cluster.etcd.messages import Json, KeyValue, delete, end_of, is_absent, is_at, put
from podwire.cluster.etcd.network import FlannelConfig
from podwire.errors import InputError, PodwireError
from podwire.log import fields
from podwire.model.cluster import Lease
from podwire.model.state import IPNetwork

log = logging.getLogger(__name__)

_ATTEMPTS = 50
_PAUSE_S = 0.02
"""Longest pause between the first two attempts; it grows, so that a crowd spreads."""


class Claim(msgspec.Struct, frozen=True):
    """A key that is this node's own. `etcd_lease` is 0 for a reservation, which never expires."""

    key: bytes
    lease: Lease
    value: bytes
    etcd_lease: int
    revision: int


class Claimant(msgspec.Struct, frozen=True):
    """Who claims: a node of that name, of that store, and for how many seconds."""

    client: EtcdClient
    layout: Layout
    node: str
    ttl_s: int


class _Held(msgspec.Struct, frozen=True):
    """A key of a subnet. `lease` is None where the value can't be read: taken all the same."""

    kv: KeyValue
    subnets: tuple[IPNetwork, ...]
    node: str
    lease: Lease | None


async def claim_subnet(
    claimant: Claimant,
    config: FlannelConfig,
    wanted: Lease,
    previous: Sequence[IPNetwork],
    *,
    by_name: bool,
) -> Claim:
    """The node's own lease, or a new one; with `by_name`, also one under another address.

    Raises PodwireError where there is no subnet left, and StoreError.
    """
    for attempt in range(_ATTEMPTS):
        held = await _read(claimant)
        own = _find_own(held, claimant.node if by_name else None, wanted, previous, config)
        if own is not None and config.allows(own.subnets):
            lease = msgspec.structs.replace(wanted, subnets=own.subnets)
            claim = await take_up(claimant, own.kv, lease)
        else:
            others = [subnet for one in held if one is not own for subnet in one.subnets]
            kept = (*own.subnets, *previous) if own is not None else previous
            rng = random.SystemRandom()
            subnets = choose(config, others, kept, rng, spread=attempt + 1)
            lease = msgspec.structs.replace(wanted, subnets=subnets)
            claim = await _create(claimant, config, own, lease)
        if claim is not None:
            return claim
        await asyncio.sleep(random.random() * _PAUSE_S * (attempt + 1))
    raise PodwireError(
        f"no subnet could be leased: other nodes were faster, {_ATTEMPTS} times",
        remedy="is somebody else writing below the store's prefix all the time?",
    )


async def take_up(
    claimant: Claimant,
    kv: KeyValue,
    lease: Lease,
    *,
    with_subnets: bool = False,
) -> Claim | None:
    """Have `lease` at a key of ours, which was read as `kv` (of revision 0 if it is not there).

    A reservation stays one. None where the key has changed since. Raises StoreError.
    """
    client = claimant.client
    value = values.encode(lease, claimant.node, with_subnets=with_subnets)
    is_reserved = bool(kv.mod_revision) and not kv.lease
    if kv.value == value and (is_reserved or await client.keep_alive(kv.lease) >= claimant.ttl_s):
        # Nothing is written, so no peer has anything to do.
        return Claim(kv.key, lease, value, kv.lease, kv.mod_revision)
    etcd_lease = 0 if is_reserved else await client.grant(claimant.ttl_s)
    done = await client.txn([is_at(kv.key, kv.mod_revision)], [put(kv.key, value, etcd_lease)])
    if not done.succeeded:
        await end(client, etcd_lease)
        return None
    log.info("lease written", extra=fields(subnets=",".join(map(str, lease.subnets))))
    return Claim(kv.key, lease, value, etcd_lease, done.header.revision)


async def end_others(claimant: Claimant, claim: Claim) -> None:
    """End what the node's last agent held at a key of the other kind: it had another IPAM.

    Reservations stay. Raises StoreError.
    """
    layout, client, found = claimant.layout, claimant.client, []
    if claim.key.startswith(layout.nodes):
        found = [one for one in await _read(claimant) if one.node == claimant.node]
    elif (kv := await client.get(layout.node(claimant.node))) is not None:
        with contextlib.suppress(InputError):
            stored = values.decode(kv.value, None)
            found = [_Held(kv, (), stored.node, stored.lease)]
    for one in found:
        if one.lease is not None and one.lease.public_ip == claim.lease.public_ip:
            await end(client, one.kv.lease)


async def _leased(
    claimant: Claimant, *, keys_only: bool = False
) -> list[tuple[KeyValue, tuple[IPNetwork, ...]]]:
    """The keys of subnets, with what they are of."""
    prefix, found = claimant.layout.subnets, []
    listing = await claimant.client.range(prefix, end_of(prefix), keys_only=keys_only)
    for kv in listing.kvs:
        with contextlib.suppress(InputError, UnicodeDecodeError):
            found.append((kv, values.parse_subnets(kv.key.removeprefix(prefix).decode())))
    return found


async def _read(claimant: Claimant) -> list[_Held]:
    found = []
    for kv, subnets in await _leased(claimant):
        try:
            stored = values.decode(kv.value, subnets)
        except InputError:
            found.append(_Held(kv, subnets, "", None))
        else:
            found.append(_Held(kv, subnets, stored.node, stored.lease))
    return found


def _find_own(
    held: Iterable[_Held],
    name: str | None,
    wanted: Lease,
    previous: Sequence[IPNetwork],
    config: FlannelConfig,
) -> _Held | None:
    """The lease of our address, the best of several; else the one used last, under our name."""

    def rank(one: _Held) -> tuple[bool, bool]:
        return not config.allows(one.subnets), not set(one.subnets) & set(previous)

    ours = [one for one in held if one.lease and one.lease.public_ip == wanted.public_ip]
    if not ours and name is not None:
        ours = [one for one in held if one.node == name and set(one.subnets) & set(previous)]
    return min(ours, key=rank, default=None)


async def _create(
    claimant: Claimant,
    config: FlannelConfig,
    own: _Held | None,
    lease: Lease,
) -> Claim | None:
    """Lease subnets that are free, in place of `own`; None where somebody else was faster."""
    client, subnets = claimant.client, lease.subnets
    value = values.encode(lease, claimant.node)
    key = claimant.layout.subnet(values.format_subnets(subnets))
    etcd_lease = await client.grant(claimant.ttl_s)
    compare, changes = [_nobody_has(claimant.layout, subnets, own)], [put(key, value, etcd_lease)]
    if own is not None:
        compare.append(is_at(own.kv.key, own.kv.mod_revision))
        changes.insert(0, delete(own.kv.key))
    done = await client.txn(compare, changes)
    if not done.succeeded:
        await end(client, etcd_lease)
        return None
    claim = Claim(key, lease, value, etcd_lease, done.header.revision)
    if await _is_late(claimant, config, claim):
        await end(client, etcd_lease)
        return None
    log.info("lease acquired", extra=fields(subnets=",".join(map(str, subnets))))
    return claim


def _nobody_has(layout: Layout, subnets: Sequence[IPNetwork], own: _Held | None) -> Json:
    """The comparison that holds where no key of that IPv4 subnet exists, whatever its IPv6 part."""
    key = layout.subnet(values.format_subnets(subnets))
    four = [one for one in subnets if one.version == 4]
    if not four or (own is not None and four[0] in own.subnets):
        return is_absent(key)
    beginning = layout.subnet(values.format_subnets(four))
    return is_absent(beginning, end_of(beginning))


async def _is_late(claimant: Claimant, config: FlannelConfig, claim: Claim) -> bool:
    """Whether an older key overlaps with what was just created."""
    ours = Taken(claim.lease.subnets)
    return any(
        kv.key != claim.key
        and kv.create_revision <= claim.revision
        and any(config.counts(one) and ours.overlaps(one) for one in theirs)
        for kv, theirs in await _leased(claimant, keys_only=True)
    )
