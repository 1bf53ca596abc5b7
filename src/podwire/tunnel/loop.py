"""The tunnel's one thread: moving packets, and answering its controller in between.

What lives here: `Tunnel`, which is configured, changed and asked by requests, and the loop. What
does not: how packets are moved (`outbound`, `inbound`) and waited for (`waiting`), and where
requests come from (`endpoint`).

Both directions take turns, each up to a bound, while they have anything.
"""

from __future__ import annotations

import logging
import math
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path as FilePath

from podwire.errors import InputError, PodwireError
from podwire.log import fields
from podwire.model.tunnel import (
    DROPS,
    Answer,
    Configure,
    Done,
    Failed,
    GetStats,
    PeerStats,
    Ready,
    RemovePeer,
    Request,
    SetPeer,
    Stats,
    Stop,
    TunnelConfig,
    TunnelPeer,
)
from podwire.tunnel.endpoint import Endpoint
from podwire.tunnel.inbound import Inbound
from podwire.tunnel.outbound import Outbound
from podwire.tunnel.path import Path
from podwire.tunnel.plugs import Plugs
from podwire.tunnel.readers import Events, Readers
from podwire.tunnel.secure import SecurePeers
from podwire.tunnel.table import Peer, Table, parse_networks
from podwire.tunnel.waiting import Waiting

log = logging.getLogger(__name__)

#: As long as no more than that come without a break, each is moved at once and by itself.
_CALM = 3
#: Without a configuration, and with nobody connected, it ends after so long: whoever started it has
#: died, and nobody else may look for it.
_FORLORN_S = 60.0
#: X25519's (RFC 7748).
_KEY_BYTES = 32


class Tunnel:
    """One end of the tunnel. Forwards from the first `Configure` on."""

    def __init__(self, socket_path: FilePath, *, offloads: bool = True) -> None:
        """Raises PodwireError where another tunnel has this path."""
        self._epoll = select.epoll()
        self._readers = Readers(self._epoll, self._move)
        self._waiting = Waiting(self._readers.poll)
        self._endpoint = Endpoint(socket_path, self._epoll, self.handle)
        self._plugs = Plugs(self._readers, offloads=offloads)
        self._config: TunnelConfig | None = None
        self._table = Table()
        self._drops = dict.fromkeys(DROPS, 0)
        self._path: Path | None = None
        self._inbounds: list[Inbound] = []
        self._running = True
        self._forlorn_at = time.monotonic() + _FORLORN_S
        # A signal's handler alone does not end a wait (PEP 475).
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._woken, select.EPOLLIN)

    def close(self) -> None:
        """Give up everything; the device stays."""
        self._endpoint.close()
        self._plugs.close()
        self._epoll.close()
        os.close(self._woken)

    def stop(self) -> None:
        """Make `run` return; also from a signal's handler."""
        self._running = False
        os.eventfd_write(self._woken, 1)

    # Moving packets.

    def run(self) -> None:
        """Forward, until `stop` or a request to. Raises PodwireError where the device is gone."""
        poll, wait, move = self._readers.poll, self._waiting.wait, self._move
        # How often in a row something was ready when it was looked; whether it was many packets.
        streak, many = 0, False
        while self._running:
            ready = poll(0)
            if ready:
                streak += 1
            else:
                ready = wait(self._timeout, calm=not many)
                streak, many = 0, False
                if not ready and self._is_forlorn():
                    self.stop()
            many |= move(ready, streak > _CALM)
            path = self._path
            if path is not None and path.secure is not None:
                if time.monotonic() >= path.secure.deadline:
                    path.secure.poll()
                path.flush_outbox()

    def _move(self, ready: Events, drain: bool) -> bool:
        """See to descriptors that are ready, as pumps do."""
        pumps, many = self._readers.pumps, False
        for fd, events in ready:
            pump = pumps.get(fd)
            if pump is None:
                self._endpoint.ready(fd)
                continue
            many |= pump(drain)
            if events & select.EPOLLERR:
                self._plugs.check(fd)
        return many

    def _is_forlorn(self) -> bool:
        """Whether nobody has told it what to do, nor seems about to."""
        if self._path is not None or self._endpoint.is_controlled:
            return False
        return time.monotonic() >= self._forlorn_at

    def _timeout(self) -> float:
        """Milliseconds until it has something to do even if nothing is ready; -1 for never."""
        if self._path is None:
            left_s = max(0.0, self._forlorn_at - time.monotonic())
            return -1.0 if self._endpoint.is_controlled else left_s * 1000
        secure = self._path.secure
        if secure is None or secure.deadline == math.inf:
            return -1.0
        return max(0.0, secure.deadline - time.monotonic()) * 1000

    # Requests.

    def handle(self, request: Request) -> Answer:
        """Carry out a request. What is wrong with it is the answer."""
        try:
            match request:
                case Configure(config=config, peers=peers):
                    return self._configure(config, peers)
                case SetPeer(peer=peer):
                    self._set_peer(self._configured(), peer)
                case RemovePeer(name=name):
                    self._remove_peer(self._configured(), name)
                case GetStats():
                    return self._stats(self._configured())
                case Stop():
                    self.stop()
        except PodwireError as error:
            log.warning("request refused", extra=fields(error=error))
            return Failed(error.message, error.remedy)
        return Done()

    def _configured(self) -> Path:
        if self._path is None:
            raise PodwireError("the tunnel has no configuration yet", remedy="send Configure first")
        return self._path

    def _configure(self, config: TunnelConfig, values: Sequence[TunnelPeer]) -> Answer:
        if self._path is None or config != self._config:
            subnets = parse_networks(config.subnets, "subnets")
            secure = self._secure_of(config)
            self._plugs.change(config)
            self._table.set_own(subnets)
            assert self._plugs.tun is not None  # noqa: S101  just changed
            self._path = Path(
                self._plugs.tun,
                self._plugs.underlays.values(),
                self._plugs.icmp,
                self._table,
                secure,
                self._drops,
                require_encryption=config.require_encryption,
            )
            outbound = Outbound(self._path)
            self._readers.set(self._path.tun.fd, outbound.pump, often=True)
            self._inbounds = [
                Inbound(self._path, one, self._readers, outbound.pump_one)
                for one in self._path.underlays.values()
            ]
            self._config = config
            log.info("configured", extra=fields(dev=config.dev, port=config.port))
        refused = self._set_peers(self._path, values)
        return Ready(self._plugs.features(), os.getpid(), refused)

    def _secure_of(self, config: TunnelConfig) -> SecurePeers | None:
        """The encryption of a configuration; the present one, with its sessions, for a key that
        stays."""
        key = config.private_key
        if key is None:
            if config.require_encryption:
                raise InputError(
                    "is needed to require encryption",
                    field="private_key",
                    remedy="give the tunnel a key, or do not require encryption",
                )
            return None
        if self._path is not None and self._config is not None and key == self._config.private_key:
            return self._path.secure
        if len(key) != _KEY_BYTES:
            raise InputError(f"{len(key)} bytes instead of {_KEY_BYTES}", field="private_key")
        return SecurePeers(key)

    def _set_peers(self, path: Path, values: Sequence[TunnelPeer]) -> dict[str, str]:
        """These are all peers; what is wrong with those that are none, by name."""
        peers: list[Peer] = []
        refused: dict[str, str] = {}
        for value in values:
            try:
                peer = Peer(value)
                _agree(path, peer)
                peers.append(peer)
            except InputError as error:
                refused[value.name] = str(error)
        if path.secure is not None:
            for name in self._table.peers.keys() - {peer.name for peer in peers}:
                path.secure.remove_peer(name)
        self._table.replace(peers)
        self._look_again()
        return refused

    def _set_peer(self, path: Path, value: TunnelPeer) -> None:
        peer = Peer(value)
        _agree(path, peer)
        self._table.set_peer(peer)
        self._look_again()

    def _remove_peer(self, path: Path, name: str) -> None:
        if path.secure is not None:
            path.secure.remove_peer(name)
        self._table.remove_peer(name)
        self._look_again()

    def _look_again(self) -> None:
        for inbound in self._inbounds:
            inbound.look_again()

    def _stats(self, path: Path) -> Stats:
        now = time.monotonic()
        secure = path.secure
        peers = tuple(
            PeerStats(
                name=peer.name,
                sent_packets=peer.sent_packets,
                sent_bytes=peer.sent_bytes,
                received_packets=peer.received_packets,
                received_bytes=peer.received_bytes,
                heard_s=None if peer.heard is None else now - peer.heard,
                handshake_s=None if secure is None else secure.session_age(peer.name),
                path_mtu=path.inner_mtu(peer) if peer.sent_packets else None,
            )
            for peer in self._table.peers.values()
        )
        encryption = {} if secure is None else dict(secure.counters)
        return Stats(drops=dict(self._drops), encryption=encryption, peers=peers)


def _agree(path: Path, peer: Peer) -> None:
    """Whether a peer is spoken to encrypted is as both ends' keys say. Raises InputError."""
    key = peer.value.public_key
    if path.secure is None:
        return
    if key is None:
        path.secure.remove_peer(peer.name)
        return
    if len(key) != _KEY_BYTES:
        raise InputError(
            f"{len(key)} bytes instead of {_KEY_BYTES}", field=f"public key of {peer.name}"
        )
    path.secure.set_peer(peer.name, key)
    peer.encrypted = True
