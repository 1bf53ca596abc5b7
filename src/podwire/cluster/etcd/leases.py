"""etcd as a `LeaseSource`: the nodes below a prefix, and this node's own lease, kept.

    mirror ─┬─ PREFIX/config ─────────▶ NetworkChanged
            ├─ other nodes' keys ─────▶ Synced, Changed        (directory)
            └─ this node's own key ───▶ OwnChanged: gone, taken, or written by somebody else
    acquire ── claim ──▶ own key ──▶ kept alive an hour before it would expire

What lives here: what each key's change means, and the time. A lease is kept alive without being
written (flanneld writes it anew), so renewing is no event for anybody. A reservation (a key without
an etcd lease) stays one.

A subnet that somebody else took is not taken back: the other one uses it by now, and two machines
cloned from one disk would go on for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn, Self

import msgspec

from podwire.cluster.etcd.claim import Claim, Claimant, claim_subnet, is_valid, take_up
from podwire.cluster.etcd.client import EtcdClient, Listing, end
from podwire.cluster.etcd.directory import Directory, Entry, read_entry
from podwire.cluster.etcd.documents import EtcdDocuments
from podwire.cluster.etcd.layout import Layout
from podwire.cluster.etcd.messages import Change, KeyValue
from podwire.cluster.etcd.mirror import mirror
from podwire.cluster.etcd.network import FlannelConfig, parse_config
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
RENEW_MARGIN_S = 3600.0
"""So long before it would expire it is renewed (flanneld's --subnet-lease-renew-margin)."""
_RENEW_AGAIN_S = 60.0
#: So long until it is told to try again what failed for a reason that takes time.
_AGAIN_S = 10.0


class EtcdLeases:
    """One node's view of a store; see `podwire.cluster.source.LeaseSource`."""

    def __init__(self, config: EtcdConfig, node: str, *, ttl_s: int = TTL_S) -> None:
        self.client = EtcdClient(config)
        self._layout = Layout(config.prefix)
        self._claimant = Claimant(self._layout, node, ttl_s)
        self._margin_s = min(RENEW_MARGIN_S, ttl_s / 2)
        self._directory = Directory(node)
        #: What is wrong with it where it can't be used; None before it was looked for.
        self._config: FlannelConfig | PodwireError | None = None
        self._claim: Claim | None = None
        self._acquiring = asyncio.Lock()
        self._was_taken = False
        self._renew_at = 0.0
        self._renewal = asyncio.Event()
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

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.client.__aexit__(kind, error, traceback)

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
            group.create_task(self._keep())
        raise AssertionError("neither of them ends")

    # --- what this node has ---------------------------------------------------------------

    async def acquire(self, wanted: Lease, previous: Sequence[IPNetwork] = ()) -> Lease:
        async with self._acquiring:
            config = self._config
            if not isinstance(config, FlannelConfig):
                config = await self._read_config()
            held = self._claim
            if held is not None and is_valid(config, held.lease.subnets):
                previous = (*held.lease.subnets, *previous)
                if held.lease == msgspec.structs.replace(wanted, subnets=held.lease.subnets):
                    return held.lease
            try:
                claim = await claim_subnet(
                    self.client,
                    self._claimant,
                    config,
                    wanted,
                    previous,
                    by_name=not self._was_taken,
                )
            except PodwireError as error:
                if not isinstance(error, StoreUnavailableError):
                    # A subnet that is given back, or a right that is granted, nobody tells us of.
                    self._tell_later(OwnChanged())
                raise
            await self._hold(claim)
            return claim.lease

    async def publish(self, lease: Lease) -> bool:
        async with self._acquiring:
            held = self._claim
            if held is not None and held.lease == lease:
                return False
            key = self._layout.node(self._claimant.node)
            if held is not None and set(held.lease.subnets) == set(lease.subnets):
                key = held.key
            kv = await self.client.get(key) or KeyValue(key=key)
            in_value = key.startswith(self._layout.nodes)
            claim = await take_up(self.client, self._claimant, kv, lease, with_subnets=in_value)
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
        self._renew_in(self._claimant.ttl_s - self._margin_s)
        self._announce(self._directory.own_is_at(claim.key))
        if before is not None and before.key != claim.key:
            await end(self.client, before.etcd_lease)

    def _tell_later(self, event: Event) -> None:
        asyncio.get_running_loop().call_later(_AGAIN_S, self._tell, event)

    def _lose(self, reason: str) -> None:
        self._claim = None
        log.warning("lease lost", extra=fields(reason=reason))
        self._tell(OwnChanged(reason))

    # --- time -----------------------------------------------------------------------------

    def _renew_in(self, seconds: float) -> None:
        self._renew_at = asyncio.get_running_loop().time() + seconds
        self._renewal.set()

    async def _keep(self) -> NoReturn:
        """Keep our lease alive, whichever it is."""
        clock = asyncio.get_running_loop().time
        while True:
            self._renewal.clear()
            claim = self._claim
            if claim is None or not claim.etcd_lease:
                await self._renewal.wait()
            elif (left_s := self._renew_at - clock()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._renewal.wait()
            else:
                await self._renew(claim)

    async def _renew(self, claim: Claim) -> None:
        try:
            ttl_s = await self.client.keep_alive(claim.etcd_lease)
        except StoreError as error:
            log.warning("lease not renewed", extra=fields(error=error))
            self._renew_in(min(_RENEW_AGAIN_S, self._margin_s / 2))
            return
        if claim != self._claim:
            return
        if ttl_s:
            self._renew_in(ttl_s - min(self._margin_s, ttl_s / 2))
        else:
            self._lose(f"the lease of {_names(claim)} has expired")

    # --- what the store tells -------------------------------------------------------------

    def _on_sync(self, listing: Listing) -> None:
        found = {kv.key: kv for kv in listing.kvs}
        self._take_config(found.get(self._layout.config))
        self._directory.sync(entry for kv in listing.kvs if (entry := self._read(kv)) is not None)
        self._tell(Synced(dict(self._directory.nodes)))
        claim = self._claim
        if claim is None:
            self._tell(OwnChanged())
        elif listing.revision >= claim.revision:
            self._judge(claim, found.get(claim.key))

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
            claim = self._claim
            if claim is not None and kv.key == claim.key and kv.mod_revision > claim.revision:
                self._judge(claim, None if change.is_delete else kv)

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
            self._renew_in(0)
            return
        entry = self._read(kv)
        if entry is not None and entry.lease.public_ip != claim.lease.public_ip:
            self._was_taken = True
            reason = f"the lease of {_names(claim)} was taken by node {entry.name}"
            if claim.key.startswith(self._layout.nodes):
                reason = f"node {entry.name} is also at {entry.lease.public_ip}"
                self._tell_later(OwnChanged(reason))
                self._claim = None
                log.error("lease lost", extra=fields(reason=reason))
                return
            self._lose(reason)
            return
        self._lose(f"the lease of {_names(claim)} was written by somebody else")


def _is_same(before: FlannelConfig | PodwireError, now: FlannelConfig | PodwireError) -> bool:
    if isinstance(before, PodwireError) and isinstance(now, PodwireError):
        return str(before) == str(now)
    return before == now


def _names(claim: Claim) -> str:
    return ",".join(map(str, claim.lease.subnets)) or claim.key.decode()
