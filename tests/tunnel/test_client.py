"""The agent's side of the tunnel: whose answer is whose."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from podwire.model.tunnel import Done, RemovePeer, Request, Stats
from podwire.tunnel.client import TunnelAwayError, TunnelClient
from podwire.tunnel.control import Frames, pack

STATS = Stats(drops={"not_a_peer": 7}, encryption={}, peers=())


async def test_an_answer_that_nobody_waits_for_any_more_is_not_the_next_ones(
    tmp_path: Path,
) -> None:
    """A tunnel with much to do answers late, and then everything at once."""

    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames: Frames[Request] = Frames(Request)
        asked: list[Request] = []
        while data := await reader.read(65536):
            asked += frames.feed(data)
            if any(isinstance(one, RemovePeer) for one in asked):
                answers = [Done() if isinstance(one, RemovePeer) else STATS for one in asked]
                writer.write(b"".join(map(pack, answers)))
                asked.clear()
        writer.close()

    server = await asyncio.start_unix_server(busy, tmp_path / "sock")
    async with server:
        client = await TunnelClient.connect(tmp_path / "sock")
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await client.stats()
        await client.remove_peer("node2")
        later = asyncio.ensure_future(client.stats())
        await client.close()
        with pytest.raises(TunnelAwayError):
            await later


async def test_answers_that_nobody_asked_for_end_the_connection(tmp_path: Path) -> None:
    async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(pack(Done()))
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(talkative, tmp_path / "sock")
    async with server:
        client = await TunnelClient.connect(tmp_path / "sock")
        await client.wait_closed()
        with pytest.raises(TunnelAwayError):
            await client.stats()
        await client.close()
