"""The server: parts put together, sockets, and the way of a request through them.

What lives here: wiring, the outermost request handling (who may come in, which part answers, how
errors are told), and starting and stopping. One process serves one lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from podwire.errors import ApiError, LabError
from podwire.files import listen_unix
from podwire.lab.api import discovery, negotiation, openapi, status
from podwire.lab.api.auth import Gate
from podwire.lab.api.cuts import Cuts
from podwire.lab.api.hub import Hub
from podwire.lab.api.kinds import KINDS
from podwire.lab.api.node_proxy import NodeProxy
from podwire.lab.api.objects import Objects
from podwire.lab.api.registry import Registry
from podwire.lab.api.rest import Rest
from podwire.lab.api.store import HISTORY, Store
from podwire.lab.api.tls import server_context
from podwire.lab.controllers import (
    ControllerSettings,
    ensure_namespaces,
    make_controllers,
    run_controllers,
)

log = logging.getLogger("podwire.lab.api")

_STOP_S = 2.0
_BACKLOG = 1024
_ROOTS = ("/api", "/apis", "/openapi/v3", "/version")
_HEALTH = ("healthz", "livez", "readyz")


@dataclass(frozen=True)
class ServerSettings:
    """Where to listen and what to keep.

    port: TCP port on 127.0.0.1, 0 for any free one, None for no TCP. tls_dir: where the port's
    certificate is, None for plain HTTP. node_sockets: the directory with each node's kubelet
    socket. cut_file: see `Cuts`. history: revisions to keep for watches.
    """

    database: Path
    token: str
    unix_socket: Path | None = None
    port: int | None = None
    tls_dir: Path | None = None
    node_sockets: Path | None = None
    cut_file: Path | None = None
    history: int = HISTORY
    controllers: ControllerSettings | None = field(default_factory=ControllerSettings)


class ApiServer:
    """An API server; `start` it, and `stop` it."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._store = Store(settings.database, history=settings.history)
        self.hub = Hub(self._store)
        self.objects = Objects(self._store)
        self._registry = Registry(KINDS)
        self._gate = Gate(settings.token)
        self._cuts = Cuts(settings.cut_file)
        proxy = NodeProxy(settings.node_sockets)
        self._rest = Rest(self._registry, self.objects, self.hub, proxy)
        self._runner: web.ServerRunner | None = None
        self._controllers: asyncio.Task[None] | None = None
        self.port: int | None = None
        """The TCP port listened on, once started."""

    async def start(self) -> None:
        """Listen; returns when requests are answered."""
        ensure_namespaces(self.objects)
        if self._settings.controllers:
            controllers = make_controllers(self.objects, self._settings.controllers)
            self._controllers = asyncio.create_task(run_controllers(controllers, self.hub))
        server = web.Server(
            self._answer, request_factory=_make_request, handler_cancellation=True, access_log=None
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=_STOP_S)
        await self._runner.setup()
        if self._settings.unix_socket:
            await web.SockSite(self._runner, _listen_unix(self._settings.unix_socket)).start()
        if self._settings.port is not None:
            listening = _listen_tcp(self._settings.port)
            self.port = listening.getsockname()[1]
            tls = server_context(self._settings.tls_dir) if self._settings.tls_dir else None
            await web.SockSite(self._runner, listening, ssl_context=tls).start()

    async def stop(self) -> None:
        """End watches, finish what is being answered, close."""
        self.hub.close()
        if self._controllers:
            self._controllers.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._controllers
        if self._runner:
            await self._runner.cleanup()
        if self._settings.unix_socket:
            self._settings.unix_socket.unlink(missing_ok=True)
        self._store.close()

    def read_cuts(self) -> None:
        """Refuse the connections that the file now names, and no others."""
        self._cuts.read()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every failure becomes a Status."""
        try:
            if self._cuts.refuses(request.transport):
                return web.Response()  # which nobody gets any more
            self._gate.check(request)
            return await self._route(request)
        except ApiError as error:
            return _failure(error)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("request failed method=%s path=%s", request.method, request.path)
            return _failure(status.internal(f"see the API server's log for {request.path}"))

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        if parts[0] in _HEALTH:
            return web.Response(text="ok")
        if parts[0] in ("api", "apis") and len(parts) > (3 if parts[0] == "apis" else 2):
            return await self._rest.handle(request)
        if request.method not in ("GET", "HEAD"):
            raise status.method_not_allowed("discovery is read only")
        document = self._discovery(parts, request.host)
        if document is None:
            raise status.no_such_path()
        return web.Response(body=msgspec.json.encode(document), content_type=negotiation.JSON)

    def _discovery(self, parts: list[str], host: str) -> Any:
        match parts:
            case ["version"]:
                return discovery.version()
            case ["api"]:
                return discovery.core_versions(self._registry, host)
            case ["api", version]:
                return discovery.resource_list(self._registry, "", version)
            case ["apis"]:
                return discovery.group_list(self._registry)
            case ["apis", group]:
                return discovery.group(self._registry, group)
            case ["apis", group, version]:
                return discovery.resource_list(self._registry, group, version)
            case ["openapi", "v3"]:
                return openapi.index(self._registry)
            case ["openapi", "v3", "api", version]:
                return openapi.document(self._registry, "", version)
            case ["openapi", "v3", "apis", group, version]:
                return openapi.document(self._registry, group, version)
            case [""]:
                return {"paths": [*_ROOTS, *(f"/{name}" for name in _HEALTH)]}
        return None


def _make_request(
    message: Any, payload: Any, protocol: Any, writer: Any, task: Any
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    limit = negotiation.BODY_LIMIT
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=limit)


def _failure(error: ApiError) -> web.Response:
    body = msgspec.json.encode(status.to_json(error))
    response = web.Response(body=body, status=error.status, content_type=negotiation.JSON)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="podwire"'
    if retry := error.details.get("retryAfterSeconds"):
        response.headers["Retry-After"] = str(retry)
    return response


def _listen_unix(path: Path) -> socket.socket:
    try:
        return listen_unix(path, _BACKLOG)
    except OSError as error:
        raise LabError(f"cannot listen on {path}: {error}") from error


def _listen_tcp(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise LabError(
            f"cannot listen on 127.0.0.1:{port}: {error}", remedy="choose another with --port"
        ) from error
    return listening
