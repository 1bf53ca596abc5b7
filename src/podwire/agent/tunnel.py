"""The UDP tunnel: wanted or not, told its peers, had anew when it is gone.

What lives here: what it is told, and what is known of it. What does not: its process
(`tunnel_process`), the data path (`podwire.tunnel`), and its device, which is made with everything
else of the kernel.

    want ─▶ connect ─┬─ nobody listens ─▶ start ─▶ connect
                     └─▶ configure, all peers ─▶ each change ─▶ … gone, or silent ─▶ and again

It goes on when the agent ends. Only teardown, and a fabric without it, end it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from podwire.agent import metrics
from podwire.agent.tunnel_ends import place
from podwire.agent.tunnel_process import TunnelProcess, TunnelSilentError, listen_to
from podwire.errors import PodwireError
from podwire.log import fields
from podwire.model.tunnel import Ready, Stats, TunnelConfig, TunnelPeer
from podwire.trace.status import TunnelStatus
from podwire.tunnel.client import TunnelAwayError, TunnelClient

log = logging.getLogger(__name__)

#: Seconds between tries to have a tunnel that forwards, doubling; the first one is at once.
_AGAIN_S, _AGAIN_MAX_S = 0.1, 10.0
#: One that has forwarded for so long was a good one.
_GOOD_S = 10.0
#: One that is asked what it has counted answers between two batches of packets.
_STATS_S = 1.0


class Tunnel:
    """The process at `path`. `on_change` is called when `problem` is another: it begins to forward,
    or does not any more."""

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self._process = TunnelProcess(path)
        self._on_change = on_change
        self._config: TunnelConfig | None = None
        self._peers: dict[str, TunnelPeer] = {}
        #: What it has not been told yet: peers by name, or everything.
        self._changed: set[str] = set()
        self._all_changed = False
        self._news = asyncio.Event()
        self._client: TunnelClient | None = None
        #: The question what it has counted, when it did not answer in time.
        self._unanswered: asyncio.Future[Stats] | None = None
        self._problem: str | None = None
        self._is_starting = False
        #: None until one has forwarded; then how often another one had to be started.
        self._restarts: int | None = None
        #: Why the last one was lost: a word, and a sentence.
        self._lost = ("", "")
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
    def is_starting(self) -> bool:
        """Whether what is wanted has neither been reached nor failed yet."""
        return self._is_starting

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
            self._problem, self._is_starting = None, False
        elif self._config is None or place(config) != place(self._config):
            self._problem, self._is_starting = "the UDP tunnel is not configured yet", True
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
        """What passed and what was dropped; None where no tunnel answers.

        One that has been silent for too long is not waited for again before it has answered: who
        asks several times, as a trace does, waits once.
        """
        if self._client is None or self._unanswered is not None:
            return None
        asked = asyncio.ensure_future(self._client.stats())
        asked.add_done_callback(self._note_answer)
        if not (await asyncio.wait({asked}, timeout=_STATS_S))[0]:
            self._unanswered = asked
            return None
        try:
            return asked.result()
        except PodwireError:
            return None

    def _note_answer(self, asked: asyncio.Future[Stats]) -> None:
        if self._unanswered is asked:
            self._unanswered = None
        if not asked.cancelled():
            asked.exception()  # Nobody else may be there to hear of it.

    async def run(self) -> NoReturn:
        """See to it for ever that it is as wanted. It goes on when this ends."""
        pause_s = 0.0
        # Until it is known what is wanted, one that runs is left alone.
        await self._news.wait()
        while True:
            await asyncio.sleep(pause_s)
            if self._config is None:
                await self._process.end(lambda: self._config is None)
                self._restarts = None
                await self._wait_for_news()
                pause_s = 0.0
                continue
            began = time.monotonic()
            try:
                await self._serve()
            except PodwireError as error:
                log.error("tunnel", extra=fields(error=error))
                silent = isinstance(error, TunnelSilentError)
                self._lost = ("silent" if silent else "ended", str(error))
                self._note(f"the UDP tunnel does not forward: {error}")
            self._process.reap()
            good = time.monotonic() - began > _GOOD_S
            pause_s = 0.0 if good else min(max(pause_s * 2, _AGAIN_S), _AGAIN_MAX_S)

    async def _serve(self) -> None:
        """Have it forward, and tell it what changes, until it is gone or not wanted."""
        client = await self._process.connect(self._note_start)
        talking = asyncio.ensure_future(self._talk(client))
        listening = asyncio.ensure_future(listen_to(client))
        try:
            await asyncio.wait({talking, listening}, return_when=asyncio.FIRST_COMPLETED)
            if client.is_closed:
                await asyncio.wait({listening})  # Which knows why.
            if listening.done():
                listening.result()
                raise TunnelAwayError("its process is gone")
            talking.result()
        finally:
            self._client = self._status = None
            if self._unanswered is not None:
                self._unanswered.cancel()
            for task in (talking, listening):
                task.cancel()
            await asyncio.gather(talking, listening, return_exceptions=True)
            await client.close()

    async def _talk(self, client: TunnelClient) -> None:
        """Tell it all, and then what changes, as long as it is wanted."""
        self._all_changed = True
        self._news.set()
        while self._config is not None:
            await self._news.wait()
            await self._tell(client)

    def _note_start(self) -> None:
        if self._restarts is not None:
            self._restarts += 1
            metrics.TUNNEL_RESTARTS.labels(self._lost[0]).inc()

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
                    lost=self._lost[1] if self._restarts else "",
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
        ready = await client.configure(config, tuple(self._peers.values()))
        for name, problem in ready.refused.items():
            log.error("tunnel peer refused", extra=fields(node=name, error=problem))
        return ready

    def _note(self, problem: str | None) -> None:
        """Why nothing is forwarded, None where it is, from now on."""
        before, self._problem, self._is_starting = self._problem, problem, False
        if problem != before:
            self._on_change()

    async def _wait_for_news(self) -> None:
        self._news.clear()
        await self._news.wait()


async def _set_peer(client: TunnelClient, peer: TunnelPeer) -> None:
    """One that is refused (two nodes with one key) is told, and is no matter to the others."""
    try:
        await client.set_peer(peer)
    except TunnelAwayError:
        raise
    except PodwireError as error:
        log.error("tunnel peer refused", extra=fields(node=peer.name, error=error))
