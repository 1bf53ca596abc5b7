"""etcd as a `LeaseSource`: the nodes below a prefix, and this node's own lease, kept.

    mirror ─┬─ PREFIX/config ─────────▶ NetworkChanged
            ├─ other nodes' keys ─────▶ Synced, Changed        (directory)
            └─ this node's own key ───▶ OwnChanged: gone, taken, or written by somebody else
    acquire ── claim ──▶ own key ──▶ kept alive an hour before it would expire

What lives here: what each key's change means. A lease is kept alive without being written
(flanneld writes it anew), so renewing is no event for anybody. A reservation (a key without an etcd
lease) stays one.

A subnet that somebody else took is not taken back: the other one uses it by now, and two machines
cloned from one disk would go on for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NoReturn, Self

import msgspec

from podwire.cluster.etcd.claim import Claim, Claimant, claim_subnet, end_others, take_up
from podwire.cluster.etcd.client import EtcdClient, Listing, end
from podwire.cluster.etcd.directory import Directory, Entry, read_entry
from podwire.cluster.etcd.documents import EtcdDocuments
from podwire.cluster.etcd.layout import Layout
from podwire.cluster.etcd.messages import Change, KeyValue
from podwire.cluster.etcd.mirror import mirror
from podwire.cluster.etcd.network import FlannelConfig, parse_config
from podwire.cluster.etcd.renewal import Renewal
from podwire.cluster.etcd.url import EtcdConfig
from podwire.cluster.source import (
    Changed,
    Connected,
    Disconnected,
    Event,
    NetworkChanged,
    Own,
    OwnChanged,
    StoredNetwork,
    Synced,
)
from podwire.errors import InputError, PodwireError, StoreError, StoreUnavailableError
from podwire.log import fields
from podwire.model.cluster import Lease, Node
from podwire.model.state import IPNetwork

log = logging.getLogger(__name__)

TTL_S = 24 * 3600
"""How long a lease lives that nobody renews (flanneld's subnetTTL)."""
#: So long until it is told to try again what failed for a reason that takes time.
_AGAIN_S = 10.0


class _News(msgspec.Struct, frozen=True):
    """Keys as they were at a revision, None for those that are gone; `is_all`: others are too."""

    revision: int
    kvs: dict[bytes, KeyValue | None]
    is_all: bool


class EtcdLeases:
    """One node's view of a store; see `podwire.cluster.source.LeaseSource`."""

    def __init__(self, config: EtcdConfig, node: str, *, ttl_s: int = TTL_S) -> None:
        self.client = EtcdClient(config)
        self._layout = Layout(config.prefix)
        self._claimant = Claimant(self.client, self._layout, node, ttl_s)
        self._renewal = Renewal(self.client, ttl_s, self._on_expired)
        self._directory = Directory(node)
        #: What is wrong with it where it can't be used; None before it was looked for.
        self._config: FlannelConfig | PodwireError | None = None
        self._claim: Claim | None = None
        self._lock = asyncio.Lock()
        self._unjudged: list[_News] = []
        self._was_taken = False
        self._tell: Callable[[Event], None] = lambda event: None

    @property
    def title(self) -> str:
        return self.client.config.title

    @property
    def own(self) -> Own:
        name = self._claimant.node
        return Own(self._directory.nodes.get(name) or Node(name))

    @property
    def network(self) -> StoredNetwork | None:
        return self._config.stored if isinstance(self._config, FlannelConfig) else None

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.client.__aexit__(*exc_info)

    async def run(self, tell: Callable[[Event], None]) -> NoReturn:
        self._tell = tell
        first, last = self._layout.watched
        async with asyncio.TaskGroup() as group:
            group.create_task(
                mirror(
                    self.client,
                    first,
                    last,
                    on_sync=self._on_sync,
                    on_change=self._on_change,
                    on_connected=lambda: tell(Connected()),
                    on_disconnected=lambda error: tell(Disconnected(error)),
                )
            )
            group.create_task(self._renewal.run())
        raise AssertionError("neither of them ends")

    # --- what this node has ---------------------------------------------------------------

    async def acquire(self, wanted: Lease, previous: Sequence[IPNetwork] = ()) -> Lease:
        async with self._changing():
            config = self._config
            if not isinstance(config, FlannelConfig):
                config = await self._read_config()
            held = self._claim
            if held is not None and config.allows(held.lease.subnets):
                previous = (*held.lease.subnets, *previous)
                if held.lease == msgspec.structs.replace(wanted, subnets=held.lease.subnets):
                    return held.lease
            try:
                claim = await claim_subnet(
                    self._claimant, config, wanted, previous, by_name=not self._was_taken
                )
            except PodwireError as error:
                if not isinstance(error, StoreUnavailableError):
                    # A subnet that is given back, or a right that is granted, nobody tells us of.
                    self._tell_later(OwnChanged())
                raise
            await self._hold(claim)
            return claim.lease

    async def publish(self, lease: Lease) -> bool:
        async with self._changing():
            held = self._claim
            if held is not None and held.lease == lease:
                return False
            key = self._layout.node(self._claimant.node)
            if held is not None and set(held.lease.subnets) == set(lease.subnets):
                key = held.key
            kv = await self.client.get(key) or KeyValue(key=key)
            in_value = key.startswith(self._layout.nodes)
            claim = await take_up(self._claimant, kv, lease, with_subnets=in_value)
            if claim is None:
                raise PodwireError(
                    f"somebody else keeps changing the lease of node {self._claimant.node}",
                    remedy="is an agent of that node's name running elsewhere?",
                )
            await self._hold(claim)
            return claim.revision != kv.mod_revision

    @property
    def documents(self) -> EtcdDocuments:
        return EtcdDocuments(self.client)

    async def is_gone(self, name: str) -> bool:
        # Who shares documents is at its own key: its subnets are no lease of Flannel's.
        return await self.client.get(self._layout.node(name)) is None

    async def set_available(self) -> None:
        """Nobody schedules by what is in etcd."""

    async def _read_config(self) -> FlannelConfig:
        """What the watch has not told yet, or told wrongly."""
        kv = await self.client.get(self._layout.config)
        if kv is None:
            raise self._missing_config()
        return parse_config(kv.value, self._layout.config.decode())

    def _missing_config(self) -> PodwireError:
        key = self._layout.config.decode()
        return PodwireError(
            f"the store has no network configuration at {key}",
            remedy=f"""etcdctl put {key} '{{"Network": "10.5.0.0/16", """
            """"Backend": {"Type": "vxlan"}}'""",
        )

    async def _hold(self, claim: Claim) -> None:
        """Have that lease from now on, and no other."""
        before, self._claim = self._claim, claim
        self._renewal.keep(claim.etcd_lease)
        self._announce(self._directory.own_is_at(claim.key))
        if before is None:
            with contextlib.suppress(StoreError):
                await end_others(self._claimant, claim)
        elif before.key != claim.key:
            await end(self.client, before.etcd_lease)

    def _tell_later(self, event: Event) -> None:
        asyncio.get_running_loop().call_later(_AGAIN_S, self._tell, event)

    def _lose(self, reason: str, *, later: bool = False) -> None:
        self._claim = None
        self._renewal.keep(0)
        log.warning("lease lost", extra=fields(reason=reason))
        if later:
            self._tell_later(OwnChanged(reason))
        else:
            self._tell(OwnChanged(reason))

    def _on_expired(self) -> None:
        if self._claim is not None:
            self._lose(f"the lease of {_names(self._claim)} has expired")

    # --- what the store tells -------------------------------------------------------------

    def _on_sync(self, listing: Listing) -> None:
        found = {kv.key: kv for kv in listing.kvs}
        self._take_config(found.get(self._layout.config))
        self._directory.sync(entry for kv in listing.kvs if (entry := self._read(kv)) is not None)
        self._tell(Synced(dict(self._directory.nodes)))
        self._look_at_own(_News(listing.revision, dict(found), is_all=True))

    def _on_change(self, changes: Sequence[Change]) -> None:
        for change in changes:
            kv = change.kv
            if kv.key == self._layout.config:
                self._take_config(None if change.is_delete else kv)
                continue
            entry = None if change.is_delete else self._read(kv)
            self._announce(
                self._directory.remove(kv.key) if entry is None else self._directory.put(entry)
            )
            news = {kv.key: None if change.is_delete else kv}
            self._look_at_own(_News(kv.mod_revision, news, is_all=False))

    def _announce(self, changed: dict[str, Node | None]) -> None:
        for name, node in changed.items():
            self._tell(Changed(name, node))

    def _read(self, kv: KeyValue) -> Entry | None:
        try:
            return read_entry(self._layout, kv)
        except InputError as error:
            log.warning("lease is not understood", extra=fields(problem=error.message))
            return None

    def _take_config(self, kv: KeyValue | None) -> None:
        before = self._config
        if kv is None:
            self._config = self._missing_config()
        else:
            try:
                self._config = parse_config(kv.value, kv.key.decode())
            except InputError as error:
                self._config = error
        if before is not None and _is_same(before, self._config):
            return
        if isinstance(self._config, PodwireError):
            log.error("no network configuration", extra=fields(error=self._config))
        self._tell(NetworkChanged(self.network))
        if before is not None:
            self._tell(OwnChanged())

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """While our own key is being written, what is told of it waits: of which lease it is, old
        or new, can't be known before."""
        try:
            async with self._lock:
                yield
        finally:
            unjudged, self._unjudged = self._unjudged, []
            for news in unjudged:
                self._look_at_own(news)

    def _look_at_own(self, news: _News) -> None:
        claim = self._claim
        if self._lock.locked():
            self._unjudged.append(news)
        elif claim is None:
            if news.is_all:
                self._tell(OwnChanged())
        elif news.is_all and news.revision >= claim.revision:
            self._judge(claim, news.kvs.get(claim.key))
        elif claim.key in news.kvs and news.revision > claim.revision:
            self._judge(claim, news.kvs[claim.key])

    def _judge(self, claim: Claim, kv: KeyValue | None) -> None:
        """Our own key is another now, or gone."""
        if kv is None:
            self._lose(f"the lease of {_names(claim)} is gone: it has expired or was deleted")
            return
        if kv.value == claim.value:
            # Renewed by writing, or turned into a reservation: how long it lives is asked.
            self._claim = msgspec.structs.replace(
                claim, etcd_lease=kv.lease, revision=kv.mod_revision
            )
            self._renewal.keep(kv.lease, is_new=False)
            return
        entry = self._read(kv)
        if entry is not None and entry.lease.public_ip != claim.lease.public_ip:
            self._was_taken = True
            if claim.key.startswith(self._layout.nodes):
                # A name is all that such a node has: at once, both would take it back for ever.
                where = entry.lease.public_ip
                self._lose(f"there is another node {entry.name}, at {where}", later=True)
            else:
                self._lose(f"the lease of {_names(claim)} was taken by node {entry.name}")
            return
        self._lose(f"the lease of {_names(claim)} was written by somebody else")


def _is_same(before: FlannelConfig | PodwireError, now: FlannelConfig | PodwireError) -> bool:
    if isinstance(before, PodwireError) and isinstance(now, PodwireError):
        return str(before) == str(now)
    return before == now


def _names(claim: Claim) -> str:
    return ",".join(map(str, claim.lease.subnets)) or claim.key.decode()
