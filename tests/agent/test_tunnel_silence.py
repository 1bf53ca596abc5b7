"""A tunnel's process that is stuck: who asks what it has counted is not kept."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import pytest

from podwire.agent import tunnel as agents_tunnel
from podwire.agent.tunnel import Tunnel
from podwire.model.tunnel import (
    Configure,
    Done,
    GetStats,
    Ready,
    RemovePeer,
    Request,
    Stats,
    TunnelConfig,
)
from podwire.tunnel.control import Frames, pack

T = TypeVar("T")

STATS = Stats(drops={"not_a_peer": 7}, encryption={}, peers=())
PATIENCE_S = 30.0


class Process:
    """Answers all that it is asked; while it is `stuck`, not what it has counted."""

    def __init__(self) -> None:
        self.stuck = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames: Frames[Request] = Frames(Request)
        while data := await reader.read(65536):
            for request in frames.feed(data):
                match request:
                    case Configure():
                        writer.write(pack(Ready(features=(), pid=1)))
                    case RemovePeer():
                        writer.write(pack(Done()))
                    case GetStats():
                        if self.stuck.is_set():
                            await self.goes_on.wait()
                        writer.write(pack(STATS))
        writer.close()


def at_once(asking: Coroutine[object, object, T]) -> T:
    """What it returns without waiting for anything."""
    with pytest.raises(StopIteration) as returned:
        asking.send(None)
    found: T = returned.value.value
    return found


async def until_answered(tunnel: Tunnel) -> Stats:
    async with asyncio.timeout(PATIENCE_S):
        while (stats := await tunnel.stats()) is None:
            await asyncio.sleep(0.001)
    return stats


async def test_a_silent_tunnel_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, path = Process(), tmp_path / "sock"
    tunnel = Tunnel(path, lambda: None)
    async with await asyncio.start_unix_server(process.serve, path):
        running = asyncio.ensure_future(tunnel.run())
        tunnel.want(TunnelConfig(dev="flannel0", local=("192.0.2.1",), subnets=()), {})
        assert await until_answered(tunnel) == STATS
        process.stuck.set()
        monkeypatch.setattr(agents_tunnel, "_STATS_S", 0.01)
        assert await tunnel.stats() is None
        assert at_once(tunnel.stats()) is None
        process.stuck.clear()
        process.goes_on.set()
        monkeypatch.setattr(agents_tunnel, "_STATS_S", PATIENCE_S)
        assert await until_answered(tunnel) == STATS
        running.cancel()
        await asyncio.wait({running})
