"""Logs and exec, passed on to a kubelet on its Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.lab.api.conftest import Api, StartServer, pod

PODS = "namespaces/default/pods"
V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"


class Kubelet:
    """The kubelet's side of the contract: remembers requests, echoes what is sent to stdin."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, list[tuple[str, str]]]] = []
        self.exec_ended = asyncio.Event()
        self.more = asyncio.Event()

    async def logs(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, list(request.query.items())))
        if request.match_info["container"] == "init":
            status = {"kind": "Status", "reason": "BadRequest", "message": "init has not started"}
            return web.json_response(status, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one\n")
        if request.query.get("follow") == "true":
            await self.more.wait()
            await response.write(b"two\n")
        return response

    async def exec(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, list(request.query.items())))
        connection = web.WebSocketResponse(protocols=(V5, V4))
        await connection.prepare(request)
        async for message in connection:
            if message.data == b"\x00exit":
                await connection.send_bytes(b'\x03{"status":"Success"}')
                break
            await connection.send_bytes(b"\x01" + message.data[1:])
        await connection.close()
        self.exec_ended.set()
        return connection


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[Kubelet]:
    kubelet = Kubelet()
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", kubelet.logs)
    app.router.add_get("/exec/{namespace}/{pod}/{container}", kubelet.exec)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    directory = tmp_path / "nodes" / "node1"
    directory.mkdir(parents=True)
    await web.UnixSite(runner, str(directory / "kubelet.sock")).start()
    yield kubelet
    await runner.cleanup()


@pytest.fixture
async def api(start: StartServer, tmp_path: Path, kubelet: Kubelet) -> AsyncIterator[Api]:
    async with start(node_sockets=tmp_path / "nodes") as running:
        two = [{"name": name, "command": ["true"]} for name in ("main", "side")]
        init = [{"name": "init", "command": ["true"]}]
        await running.post(PODS, pod("a", nodeName="node1", initContainers=init))
        await running.post(PODS, pod("two", nodeName="node1", containers=two))
        await running.post(PODS, pod("away", nodeName="node2"))
        await running.post(PODS, pod("unbound"))
        yield running


async def test_logs(api: Api, kubelet: Kubelet) -> None:
    assert (await api.get(f"{PODS}/a/log", tailLines=3, pretty="x")).body == b"one\n"
    assert kubelet.requests == [("/containerLogs/default/a/main", [("tailLines", "3")])]


async def test_followed_logs_come_as_they_are_written(api: Api, kubelet: Kubelet) -> None:
    url = api.url(f"{PODS}/two/log?follow=true&container=side")
    async with api.session.get(url) as answer:
        assert await answer.content.readline() == b"one\n"
        kubelet.more.set()
        assert await answer.content.read() == b"two\n"


@pytest.mark.parametrize(
    ("path", "code", "says"),
    [
        ("two/log", 400, "choose one of: [main side]"),
        ("a/log?container=nope", 400, "container nope is not valid for pod a"),
        ("a/log?container=init", 400, "init has not started"),
        ("unbound/log", 400, "pod unbound does not have a host assigned"),
        ("away/log", 503, "kubelet of node node2 cannot be reached"),
        ("missing/log", 404, 'pods "missing" not found'),
        ("a/exec?command=x", 400, "Upgrade request required"),
    ],
)
async def test_refusals(api: Api, path: str, code: int, says: str) -> None:
    answer = await api.get(f"{PODS}/{path}")
    assert answer.code == code
    assert answer.body["kind"] == "Status"
    assert says in answer.body["message"]


def connect(api: Api, path: str, *protocols: str) -> Any:
    return api.session.ws_connect(api.url(f"{PODS}/{path}"), protocols=protocols)


@pytest.mark.parametrize("protocol", [V5, V4])
async def test_exec_passes_frames_both_ways(api: Api, kubelet: Kubelet, protocol: str) -> None:
    query = "command=sh&command=-c&command=a%20b&stdin=1&tty=1&container=main"
    async with connect(api, f"a/exec?{query}", "v1.channel.k8s.io", protocol) as session:
        assert session.protocol == protocol
        big = b"\x00" + bytes(range(256)) * 4000
        await session.send_bytes(big)
        assert await session.receive_bytes() == b"\x01" + big[1:]
        await session.send_bytes(b"\x00exit")
        assert await session.receive_bytes() == b'\x03{"status":"Success"}'
        assert (await session.receive()).type is aiohttp.WSMsgType.CLOSE
    path, sent = kubelet.requests[0]
    assert path == "/exec/default/a/main"
    assert [value for name, value in sent if name == "command"] == ["sh", "-c", "a b"]
    assert ("tty", "1") in sent


async def test_exec_ends_with_its_client(api: Api, kubelet: Kubelet) -> None:
    async with connect(api, "a/exec?command=x", V5) as session:
        await session.send_bytes(b"\x00x")
        await session.receive_bytes()
    async with asyncio.timeout(60):
        await kubelet.exec_ended.wait()


@pytest.mark.parametrize(
    ("path", "protocol", "code"),
    [
        ("a/exec?command=x", "v1.channel.k8s.io", 400),
        ("a/exec", V5, 400),
        ("away/exec?command=x", V5, 503),
        ("unbound/exec?command=x", V5, 400),
    ],
)
async def test_exec_refusals(api: Api, path: str, protocol: str, code: int) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(api, path, protocol)
    assert refused.value.status == code
