"""The agent's HTTP face: health and metrics for the cluster, the plan for whoever is root here.

`/healthz`, `/readyz` and `/metrics` are on a TCP address, as probes and Prometheus expect. The Unix
socket, which only the owner of the process may open, has those and `/plan`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from podwire.agent import metrics
from podwire.agent.config import AgentConfig, parse_listen
from podwire.errors import InputError

if TYPE_CHECKING:
    from podwire.agent.daemon import Agent


@contextlib.asynccontextmanager
async def serve(config: AgentConfig, agent: Agent) -> AsyncIterator[None]:
    """Listen until the block ends. Raises InputError where the address can't be listened on."""
    public = _app(agent)
    private = _app(agent)
    private.router.add_get("/plan", _plan(agent))
    config.api_socket.parent.mkdir(parents=True, exist_ok=True)
    config.api_socket.unlink(missing_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        private_runner = await _start(stack, private)
        await web.UnixSite(private_runner, str(config.api_socket)).start()
        config.api_socket.chmod(0o600)
        if config.health_address:
            host, port = parse_listen(config.health_address)
            try:
                await web.TCPSite(await _start(stack, public), host, port).start()
            except OSError as error:
                raise InputError(
                    f"cannot listen on {config.health_address}: {error.strerror}",
                    field="--health-address",
                    remedy="choose another address, or '' for none",
                ) from error
        yield


async def _start(stack: contextlib.AsyncExitStack, app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


def _app(agent: Agent) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if agent.not_ready is None:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"{agent.not_ready}\n")

    async def prometheus(_: web.Request) -> web.Response:
        metrics.DROPPED.set(await agent.drops.read())
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", prometheus)
    return app


def _plan(agent: Agent) -> Any:
    async def plan(_: web.Request) -> web.Response:
        body = msgspec.json.encode(await agent.plan_document())
        return web.Response(body=body, content_type="application/json")

    return plan
