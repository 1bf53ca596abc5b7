"""The UDP tunnel's process: started, taken over where one runs, told its peers, started anew.

What lives here: the process and what it is told. What does not: the data path (`podwire.tunnel`),
and its device, which is made with everything else of the kernel.

    want ─▶ connect ─┬─ nobody answers ─▶ start ─▶ connect
                     └─▶ configure, all peers ─▶ each change ─▶ … hung up ─▶ reap, and again

It is a session of its own and outlives the agent: packets flow on while an agent is started anew,
which takes it over. Only teardown, and a fabric without it, end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from podwire.errors import PodwireError
from podwire.log import fields
from podwire.model.cluster import NetworkConfig, Node
from podwire.model.tunnel import Ready, Stats, TunnelConfig, TunnelPeer
from podwire.plan import carrier
from podwire.plan.claims import Claims
from podwire.plan.node import objections
from podwire.plan.transport import transport_of
from podwire.trace.status import TunnelStatus
from podwire.tunnel.client import TunnelAwayError, TunnelClient, command
from podwire.tunnel.endpoint import clear

log = logging.getLogger(__name__)

#: Seconds between tries to have a tunnel that forwards, doubling; the first one is at once.
_AGAIN_S, _AGAIN_MAX_S = 0.1, 10.0
#: One that has forwarded for so long was a good one.
_GOOD_S = 10.0
#: A process that has been started has to listen within this time.
_STARTING_S = 30.0
_LOOK_AGAIN_S = 0.02
_STATS_S = 2.0


def tunnel_config(network: NetworkConfig, private_key: bytes | None) -> TunnelConfig | None:
    """This end of the tunnel; None where the fabric has none."""
    fabric = network.fabric
    if not fabric.uses_udp:
        return None
    return TunnelConfig(
        dev=fabric.udp_dev,
        local=tuple(str(ip) for ip in network.underlay.ips),
        subnets=tuple(map(str, network.lease.subnets)),
        port=fabric.udp_port,
        private_key=private_key if fabric.encrypt else None,
        require_encryption=fabric.encrypt,
    )


def tunnel_peer(network: NetworkConfig, peer: Node, claims: Claims) -> TunnelPeer | None:
    """The other end, a node to whose lease there are no objections; None where it has no tunnel."""
    lease = peer.lease
    if lease is None or not network.fabric.uses_udp:
        return None
    if lease.backend != transport_of(network.fabric).BACKEND or objections(network, peer, claims):
        return None
    endpoint = carrier.carrier(network, lease, network.underlay.ip.version)
    if endpoint is None:
        return None
    return TunnelPeer(
        name=peer.name,
        subnets=tuple(map(str, lease.subnets)),
        address=str(endpoint.ip),
        port=network.fabric.udp_port,
        public_key=lease.public_key if network.fabric.encrypt else None,
    )


class Tunnel:
    """The process at `path`. `on_change` is called when `problem` is another: it begins to forward,
    or does not any more."""

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._config: TunnelConfig | None = None
        self._peers: dict[str, TunnelPeer] = {}
        #: What it has not been told yet: peers by name, or everything.
        self._changed: set[str] = set()
        self._all_changed = False
        self._news = asyncio.Event()
        self._client: TunnelClient | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._problem: str | None = None
        #: None until one has forwarded; then how often another one had to be started.
        self._restarts: int | None = None
        self._status: TunnelStatus | None = None

    @property
    def status(self) -> TunnelStatus | None:
        """The process that forwards; None where none does."""
        return self._status

    @property
    def problem(self) -> str | None:
        """Why nothing is forwarded although it should be; None while all is well."""
        return self._problem

    @property
    def config(self) -> TunnelConfig | None:
        """This end; None where no tunnel is wanted."""
        return self._config

    @property
    def peers(self) -> Mapping[str, TunnelPeer]:
        """The other ends, by node."""
        return self._peers

    def want(self, config: TunnelConfig | None, peers: Mapping[str, TunnelPeer]) -> None:
        """Be this end from now on, with these peers; None for no tunnel at all."""
        if config is None:
            self._problem = None
        elif self._config is None or _place(config) != _place(self._config):
            self._problem = "the UDP tunnel is not configured yet"
        self._config, self._peers = config, dict(peers)
        self._all_changed = True
        self._news.set()

    def put(self, name: str, peer: TunnelPeer | None) -> None:
        """A peer is new or another now, or gone."""
        if self._peers.get(name) == peer:
            return
        if peer is None:
            del self._peers[name]
        else:
            self._peers[name] = peer
        self._changed.add(name)
        self._news.set()

    async def stats(self) -> Stats | None:
        """What passed and what was dropped; None where no tunnel answers."""
        if self._client is None:
            return None
        try:
            async with asyncio.timeout(_STATS_S):
                return await self._client.stats()
        except (PodwireError, TimeoutError):
            return None

    async def run(self) -> NoReturn:
        """See to it for ever that it is as wanted. It goes on when this ends."""
        pause_s = 0.0
        # Until it is known what is wanted, one that runs is left alone.
        await self._news.wait()
        while True:
            await asyncio.sleep(pause_s)
            if self._config is None:
                await self._clear()
                self._restarts = None
                await self._wait_for_news()
                pause_s = 0.0
                continue
            began = time.monotonic()
            try:
                await self._serve()
            except PodwireError as error:
                log.error("tunnel", extra=fields(error=error))
                self._note(f"the UDP tunnel does not forward: {error}")
            self._reap()
            good = time.monotonic() - began > _GOOD_S
            pause_s = 0.0 if good else min(max(pause_s * 2, _AGAIN_S), _AGAIN_MAX_S)

    async def _clear(self) -> None:
        """Have none, and nothing of one; also of one that is just being started, or was killed."""
        while self._config is None:
            await stop_tunnel(self._path)
            self._reap()
            if clear(self._path):
                return
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _serve(self) -> None:
        """Have it forward, and tell it what changes, until it is gone or not wanted."""
        client = await self._connect()
        try:
            closed = asyncio.ensure_future(client.wait_closed())
            self._all_changed = True
            self._news.set()
            while self._config is not None:
                news = asyncio.ensure_future(self._news.wait())
                await asyncio.wait({closed, news}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                if closed.done():
                    raise TunnelAwayError("its process is gone")
                await self._tell(client)
        finally:
            self._client = self._status = None
            closed.cancel()
            await client.close()

    async def _tell(self, client: TunnelClient) -> None:
        self._news.clear()
        config, all_changed, changed = self._config, self._all_changed, self._changed
        self._all_changed, self._changed = False, set()
        if config is None:
            return
        if all_changed:
            ready = await self._configure(client, config)
            if self._client is None:
                self._restarts = self._restarts or 0
                self._status = TunnelStatus(
                    pid=ready.pid,
                    since=time.time(),
                    restarts=self._restarts,
                    features=ready.features,
                )
            self._client = client
            log.info(
                "tunnel forwards",
                extra=fields(pid=ready.pid, peers=len(self._peers), uses=",".join(ready.features)),
            )
            self._note(None)
            return
        for name in changed:
            peer = self._peers.get(name)
            await (_set_peer(client, peer) if peer is not None else client.remove_peer(name))

    async def _configure(self, client: TunnelClient, config: TunnelConfig) -> Ready:
        peers = tuple(self._peers.values())
        try:
            return await client.configure(config, peers)
        except TunnelAwayError:
            raise
        except PodwireError:
            # If it is one of the peers: which one?
            ready = await client.configure(config)
            for peer in peers:
                await _set_peer(client, peer)
            return ready

    async def _connect(self) -> TunnelClient:
        """A connection to the one that runs, or one that is started."""
        with contextlib.suppress(TunnelAwayError):
            return await TunnelClient.connect(self._path)
        self._reap()
        process = self._process = _start(self._path)
        if self._restarts is not None:
            self._restarts += 1
        deadline = time.monotonic() + _STARTING_S
        while True:
            with contextlib.suppress(TunnelAwayError):
                return await TunnelClient.connect(self._path)
            if process.poll() is not None:
                raise TunnelAwayError(f"it ended with exit code {process.returncode}")
            if time.monotonic() > deadline:
                raise TunnelAwayError(f"it did not come up in {_STARTING_S:g} s")
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _note(self, problem: str | None) -> None:
        """Why nothing is forwarded, None where it is, from now on."""
        before, self._problem = self._problem, problem
        if problem != before:
            self._on_change()

    async def _wait_for_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _reap(self) -> None:
        """No zombie is left of one that has ended."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None


def _place(config: TunnelConfig) -> TunnelConfig:
    """All but what it may be told while packets flow on."""
    return msgspec.structs.replace(config, subnets=())


def _start(path: Path) -> subprocess.Popen[bytes]:
    # Not asyncio's: those end with the loop, and this one is to go on.
    return subprocess.Popen(command(path), stdin=subprocess.DEVNULL, start_new_session=True)


async def _set_peer(client: TunnelClient, peer: TunnelPeer) -> None:
    """One that is refused (two nodes with one key) is told, and is no matter to the others."""
    try:
        await client.set_peer(peer)
    except TunnelAwayError:
        raise
    except PodwireError as error:
        log.error("tunnel peer refused", extra=fields(node=peer.name, error=error))


async def stop_tunnel(path: Path) -> bool:
    """End the tunnel that listens at `path`; False where there is none."""
    try:
        client = await TunnelClient.connect(path)
    except TunnelAwayError:
        return False
    try:
        await client.stop()
        await client.wait_closed()
    except TunnelAwayError:
        pass
    finally:
        await client.close()
    return True
