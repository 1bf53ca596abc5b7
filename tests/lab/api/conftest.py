"""An API server in this process, on a Unix socket, and a client that speaks bare HTTP to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from podwire.lab.api.server import ApiServer, ServerSettings


@dataclass
class Answer:
    """What the server said: the HTTP code and the decoded body."""

    code: int
    body: Any

    def causes(self) -> dict[str, str]:
        """The reasons of an Invalid answer, by field."""
        assert self.code == 422, self.body
        assert self.body["reason"] == "Invalid"
        return {cause["field"]: cause["reason"] for cause in self.body["details"]["causes"]}


class Api:
    """A client of `server`: a method a verb, paths below /api/v1 unless they begin with `/`."""

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def call(
        self,
        verb: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
        **query: Any,
    ) -> Answer:
        """Send a request; `kind` is the media type of the body."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        async with self.session.request(
            verb,
            self.url(path),
            data=data,
            params={name: str(value) for name, value in query.items()},
            headers={"Content-Type": kind} if data is not None else {},
        ) as answer:
            raw = await answer.read()
            is_json = answer.content_type == "application/json"
            return Answer(answer.status, json.loads(raw) if is_json else raw)

    async def get(self, path: str, **query: Any) -> Answer:
        return await self.call("GET", path, **query)

    async def post(self, path: str, body: Any, **query: Any) -> Answer:
        return await self.call("POST", path, body, **query)

    async def put(self, path: str, body: Any, **query: Any) -> Answer:
        return await self.call("PUT", path, body, **query)

    async def patch(self, path: str, body: Any, form: str = "merge-patch", **query: Any) -> Answer:
        return await self.call("PATCH", path, body, kind=f"application/{form}+json", **query)

    async def delete(self, path: str, body: Any = None, **query: Any) -> Answer:
        return await self.call("DELETE", path, body, **query)

    @asynccontextmanager
    async def watch(self, path: str, **query: Any) -> AsyncIterator[AsyncIterator[Any]]:
        """The events of a watch, decoded."""
        params = {"watch": "true"} | {name: str(value) for name, value in query.items()}
        async with self.session.get(self.url(path), params=params) as answer:
            assert answer.status == 200, await answer.text()

            async def events() -> AsyncIterator[Any]:
                async for line in answer.content:
                    yield json.loads(line)

            yield events()

    @staticmethod
    def url(path: str) -> str:
        """The URL of a path."""
        return f"http://api{path}" if path.startswith("/") else f"http://api/api/v1/{path}"


StartServer = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> StartServer:
    """Starts a server with the given settings: `async with start(history=10) as api`."""

    @asynccontextmanager
    async def starting(**settings: Any) -> AsyncIterator[Api]:
        socket = tmp_path / "api.sock"
        base: dict[str, Any] = {
            "database": tmp_path / "api.db",
            "token": "t" * 32,
            "unix_socket": socket,
        }
        server = ApiServer(ServerSettings(**(base | {"controllers": None} | settings)))
        await server.start()
        connector = aiohttp.UnixConnector(str(socket), limit=0)
        try:
            async with aiohttp.ClientSession(connector=connector) as session:
                yield Api(server, session)
        finally:
            await server.stop()

    return starting


@pytest.fixture
async def api(start: StartServer) -> AsyncIterator[Api]:
    """A server without controllers."""
    async with start() as running:
        yield running


def pod(name: str = "a", **spec: Any) -> dict[str, Any]:
    """A Pod's manifest."""
    container = {"name": "main", "command": ["sleep", "infinity"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], **spec},
    }


def node(name: str = "node1", **metadata: Any) -> dict[str, Any]:
    """A Node's manifest, Ready."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, **metadata},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }


def config_map(name: str = "a", **data: str) -> dict[str, Any]:
    """A ConfigMap's manifest."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
