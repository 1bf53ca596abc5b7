"""Logs of and commands in pods: passed on to the kubelet of the pod's node.

What lives here: finding the node and the container, and moving bytes both ways. Each node's kubelet
serves HTTP on a Unix socket, NODE_SOCKET_DIR/<node>/kubelet.sock:

    GET /containerLogs/NAMESPACE/POD/CONTAINER?follow=&tailLines=...
    GET /exec/NAMESPACE/POD/CONTAINER?command=...   WebSocket, vN.channel.k8s.io

Frames of the exec protocol are passed through unread, in both versions.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import WSMsgType, web

from podwire.decoding import from_json
from podwire.errors import ApiError
from podwire.lab.api import status
from podwire.lab.api.registry import Object

EXEC_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_LOG_PARAMETERS = (
    "follow",
    "tailLines",
    "previous",
    "timestamps",
    "sinceSeconds",
    "sinceTime",
    "limitBytes",
)
_EXEC_PARAMETERS = ("command", "stdin", "stdout", "stderr", "tty")
_CONNECT_S = 5.0
_FRAME_LIMIT = 16 * 1024 * 1024
_CHUNK = 64 * 1024


class NodeProxy:
    """Reaches the kubelets under `sockets`; None: there are none."""

    def __init__(self, sockets: Path | None) -> None:
        self._sockets = sockets

    async def log(self, request: web.BaseRequest, pod: Object) -> web.StreamResponse:
        """Stream a container's log to the client."""
        path = _path("containerLogs", request, pod)
        async with self._session(pod) as session:
            try:
                answer = await session.get(path, params=_chosen(request, _LOG_PARAMETERS))
            except (aiohttp.ClientError, OSError) as error:
                raise _away(pod, error) from None
            async with answer:
                if answer.status >= 400:
                    raise _refusal(pod, answer.status, await answer.content.read(_CHUNK))
                return await _copy(request, answer)

    async def exec(self, request: web.BaseRequest, pod: Object) -> web.StreamResponse:
        """Connect the client's WebSocket with the kubelet's."""
        server = web.WebSocketResponse(protocols=EXEC_PROTOCOLS, max_msg_size=_FRAME_LIMIT)
        ready = server.can_prepare(request)
        if not ready.ok:
            raise status.bad_request("Upgrade request required: exec speaks WebSocket only")
        if not ready.protocol:
            wanted = ", ".join(EXEC_PROTOCOLS)
            raise status.bad_request(f"unable to negotiate a subprotocol: expected one of {wanted}")
        if not request.query.getall("command", []):
            raise status.bad_request("you must specify at least 1 command for the container")
        path = _path("exec", request, pod)
        async with self._session(pod) as session:
            try:
                # The kubelet first: while nothing is upgraded a refusal is still a plain answer.
                client = await session.ws_connect(
                    path,
                    params=_chosen(request, _EXEC_PARAMETERS),
                    protocols=(ready.protocol,),
                    max_msg_size=_FRAME_LIMIT,
                )
            except aiohttp.WSServerHandshakeError as error:
                raise _refusal(pod, error.status, error.message.encode()) from None
            except (aiohttp.ClientError, OSError) as error:
                raise _away(pod, error) from None
            async with client:
                await server.prepare(request)
                await _join(server, client)
        return server

    def _session(self, pod: Object) -> aiohttp.ClientSession:
        node = pod["spec"].get("nodeName")
        name = pod["metadata"]["name"]
        if not node:
            raise status.bad_request(f"pod {name} does not have a host assigned")
        if self._sockets is None:
            raise status.unavailable(f"this API server has no way to reach node {node}")
        socket = self._sockets / node / "kubelet.sock"
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
            read_bufsize=_CHUNK,
        )


def _path(verb: str, request: web.BaseRequest, pod: Object) -> str:
    metadata = pod["metadata"]
    parts = (metadata["namespace"], metadata["name"], _container(request, pod))
    return f"http://kubelet/{verb}/" + "/".join(quote(part, safe="") for part in parts)


def _container(request: web.BaseRequest, pod: Object) -> str:
    """The container meant: as named, else the only one (or the annotated default)."""
    spec, pod_name = pod["spec"], pod["metadata"]["name"]
    lists = ("containers", "initContainers", "ephemeralContainers")
    known = [entry["name"] for listed in lists for entry in spec.get(listed) or []]
    wanted = request.query.get("container")
    if wanted:
        if wanted not in known:
            raise status.bad_request(
                f"container {wanted} is not valid for pod {pod_name}; choose one of: {known}"
            )
        return wanted
    annotations = pod["metadata"].get("annotations") or {}
    default = annotations.get("kubectl.kubernetes.io/default-container")
    if default in known:
        return str(default)
    containers = [str(entry["name"]) for entry in spec["containers"]]
    if len(containers) > 1:
        raise status.bad_request(
            f"a container name must be specified for pod {pod_name}, choose one of: "
            f"[{' '.join(containers)}]"
        )
    return containers[0]


def _chosen(request: web.BaseRequest, names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in request.query.items() if name in names]


async def _copy(request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    # Whichever side goes away, what was said so far is all there is.
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    return response


async def _join(server: web.WebSocketResponse, client: aiohttp.ClientWebSocketResponse) -> None:
    """Pass messages both ways until either side closes, then close the other."""
    pumps = {
        asyncio.create_task(_pump(server, client)),
        asyncio.create_task(_pump(client, server)),
    }
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        with contextlib.suppress(ConnectionError, RuntimeError):
            await server.close()


_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _pump(source: _Socket, sink: _Socket) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):
        async for message in source:
            if message.type is WSMsgType.BINARY:
                await sink.send_bytes(message.data)
            elif message.type is WSMsgType.TEXT:
                await sink.send_str(message.data)


def _away(pod: Object, error: Exception) -> ApiError:
    node = pod["spec"]["nodeName"]
    return status.unavailable(f"the kubelet of node {node} cannot be reached: {error}")


def _refusal(pod: Object, code: int, body: bytes) -> ApiError:
    """The kubelet's refusal, as it put it if that was a Status."""
    node = pod["spec"]["nodeName"]
    text = body.decode(errors="replace").strip()
    with contextlib.suppress(msgspec.DecodeError):
        told = from_json(body, object)
        if isinstance(told, dict) and isinstance(told.get("message"), str):
            return ApiError(code, str(told.get("reason") or "InternalError"), told["message"])
    reason = {400: "BadRequest", 404: "NotFound", 409: "Conflict"}.get(code, "InternalError")
    return ApiError(code, reason, f"the kubelet of node {node} refused: {text or code}")
