"""Keeping up with a collection through everything that can happen to a connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from podwire.cluster.kube import CONFIGMAPS, KubeClient, WatchEvent, reflect
from podwire.cluster.kube.reflect import MAX_DELAY_S, Backoff
from podwire.errors import PodwireError

from .api_process import ApiProcess, Wire

EXPIRED = b'{"kind":"Status","status":"Failure","code":410,"reason":"Expired"}'


def config_map(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}


class Mirror:
    """A collection as `reflect` tells it, and what it told."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.syncs = 0
        self.told: list[str] = []
        self._changed = asyncio.Event()

    def on_sync(self, items: Sequence[dict[str, Any]]) -> None:
        self.names = {item["metadata"]["name"] for item in items}
        self.syncs += 1
        self._changed.set()

    def on_event(self, event: WatchEvent[dict[str, Any]]) -> None:
        name = event.object["metadata"]["name"]
        (self.names.discard if event.type == "DELETED" else self.names.add)(name)
        self._changed.set()

    def on_connected(self) -> None:
        self.told.append("up")
        self._changed.set()

    def on_disconnected(self, error: PodwireError) -> None:
        self.told.append("down")
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def mirrored(client: KubeClient) -> AsyncIterator[Mirror]:
    mirror = Mirror()
    task = asyncio.create_task(
        reflect(
            client,
            CONFIGMAPS,
            namespace="default",
            on_sync=mirror.on_sync,
            on_event=mirror.on_event,
            on_connected=mirror.on_connected,
            on_disconnected=mirror.on_disconnected,
        )
    )
    try:
        yield mirror
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def direct(api: ApiProcess) -> AsyncIterator[KubeClient]:
    """A client past the wire, to change things with. What is there in the end goes."""
    async with KubeClient(api.config) as client:
        yield client
        for left in (await client.list(CONFIGMAPS, "default")).items:
            await client.delete(CONFIGMAPS, left["metadata"]["name"], "default")


@pytest.fixture
async def wired(wire: Wire) -> AsyncIterator[KubeClient]:
    """A client through the wire."""
    async with KubeClient(wire.config) as client:
        yield client


async def test_it_lists_then_follows(wired: KubeClient, direct: KubeClient) -> None:
    await direct.create(CONFIGMAPS, config_map("a"), "default")
    async with mirrored(wired) as mirror:
        await mirror.until(lambda: mirror.names == {"a"} and mirror.told == ["up"])
        await direct.create(CONFIGMAPS, config_map("b"), "default")
        await mirror.until(lambda: mirror.names == {"a", "b"})
        await direct.delete(CONFIGMAPS, "a", "default")
        await mirror.until(lambda: mirror.names == {"b"})
        assert mirror.syncs == 1


async def test_a_cut_connection_is_resumed_without_a_list(
    wire: Wire, wired: KubeClient, direct: KubeClient
) -> None:
    async with mirrored(wired) as mirror:
        await mirror.until(lambda: mirror.told == ["up"])
        wire.cut()
        await direct.create(CONFIGMAPS, config_map("b"), "default")
        await mirror.until(lambda: "b" in mirror.names)
        assert mirror.syncs == 1


async def test_a_restarted_server_is_resumed(
    api: ApiProcess, wired: KubeClient, direct: KubeClient
) -> None:
    async with mirrored(wired) as mirror:
        await mirror.until(lambda: mirror.told == ["up"])
        try:
            await asyncio.to_thread(api.stop)
            await mirror.until(lambda: mirror.told == ["up", "down"])
        finally:
            await asyncio.to_thread(api.start)
        await direct.create(CONFIGMAPS, config_map("b"), "default")
        await mirror.until(lambda: "b" in mirror.names and mirror.told == ["up", "down", "up"])


async def test_a_version_that_is_gone_means_a_new_list(
    wire: Wire, wired: KubeClient, direct: KubeClient
) -> None:
    await direct.create(CONFIGMAPS, config_map("a"), "default")
    async with mirrored(wired) as mirror:
        await mirror.until(lambda: mirror.told == ["up"])
        wire.answer("410 Gone", EXPIRED)
        wire.cut()
        await direct.delete(CONFIGMAPS, "a", "default")
        await mirror.until(lambda: mirror.syncs == 2)
        await mirror.until(lambda: mirror.names == set())


async def test_an_error_event_means_a_new_list(
    wire: Wire, wired: KubeClient, direct: KubeClient
) -> None:
    async with mirrored(wired) as mirror:
        await mirror.until(lambda: mirror.told == ["up"])
        wire.answer("200 OK", b'{"type":"ERROR","object":' + EXPIRED + b"}\n")
        wire.cut()
        await mirror.until(lambda: mirror.syncs == 2)
        await direct.create(CONFIGMAPS, config_map("b"), "default")
        await mirror.until(lambda: "b" in mirror.names)


async def test_a_watch_that_ends_at_once_again_and_again_is_no_busy_loop(
    wire: Wire, wired: KubeClient, direct: KubeClient
) -> None:
    async with mirrored(wired) as mirror:
        await mirror.until(lambda: mirror.told == ["up"])
        for _ in range(3):
            wire.answer("200 OK", b"")
        before_s = asyncio.get_running_loop().time()
        wire.cut()
        await direct.create(CONFIGMAPS, config_map("b"), "default")
        await mirror.until(lambda: "b" in mirror.names)
        assert asyncio.get_running_loop().time() - before_s >= 0.3


async def test_a_refused_list_is_tried_again(
    wire: Wire, wired: KubeClient, direct: KubeClient
) -> None:
    await direct.create(CONFIGMAPS, config_map("a"), "default")
    forbidden = b'{"kind":"Status","status":"Failure","code":403,"reason":"Forbidden"}'
    wire.answer("403 Forbidden", forbidden)
    wire.answer("502 Bad Gateway", b"<html>")
    async with mirrored(wired) as mirror:
        await mirror.until(lambda: mirror.names == {"a"})
        assert mirror.told[0] == "down"


async def test_what_a_callback_raises_ends_it(wired: KubeClient) -> None:
    def fail(items: Sequence[dict[str, Any]]) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        async with asyncio.timeout(60):
            await reflect(wired, CONFIGMAPS, on_sync=fail, on_event=lambda event: None)


def test_the_first_try_is_immediate_and_the_rest_back_off() -> None:
    backoff = Backoff()
    delays = [backoff.next_s() for _ in range(40)]
    assert delays[0] == 0
    assert 0.1 <= delays[1] <= 0.2
    assert 0.2 <= delays[2] <= 0.4
    assert all(MAX_DELAY_S / 2 <= delay <= MAX_DELAY_S for delay in delays[10:])
    backoff.reset()
    assert backoff.next_s() == 0
