"""The kubelet's HTTP server: logs and exec, for the API server to pass on.

    GET /containerLogs/NAMESPACE/POD/CONTAINER?follow=&tailLines=&previous=&limitBytes=
    GET /exec/NAMESPACE/POD/CONTAINER?command=…&stdin=&stdout=&stderr=&tty=      WebSocket
    GET /healthz

On a Unix socket that only root can open. What lives here: requests in, refusals with the words
that a kubelet uses.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from aiohttp import web

from podwire.lab.kubelet import exec_session
from podwire.lab.kubelet.log_stream import read_log
from podwire.lab.kubelet.pods import Pods
from podwire.lab.kubelet.records import ContainerRecord, RecordStore
from podwire.lab.kubelet.worker import PodWorker
from podwire.lab.processes import environment

_TRUE = frozenset({"1", "true", "True"})
_FRAME_LIMIT = 16 * 1024 * 1024


class Server:
    """Serves while it is entered."""

    def __init__(self, socket: Path, pods: Pods, records: RecordStore) -> None:
        self._socket = socket
        self._pods = pods
        self._records = records
        application = web.Application()
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        application.router.add_get("/exec/{namespace}/{pod}/{container}", self._exec)
        application.router.add_get("/healthz", _healthz)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)

    async def __aenter__(self) -> Server:
        self._socket.unlink(missing_ok=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._socket)).start()
        self._socket.chmod(0o600)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._runner.cleanup()
        self._socket.unlink(missing_ok=True)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        worker, known = self._container(request)
        previous = _flag(request, "previous")
        if previous and (not known.ran or known.restarts == 0):
            raise _refused(
                f'previous terminated container "{known.name}" in pod '
                f'"{worker.pod.metadata.name}" not found'
            )
        if not known.ran:
            raise _refused(
                f'container "{known.name}" in pod "{worker.pod.metadata.name}" is waiting to '
                f"start: {known.reason}"
            )
        for unsupported in ("timestamps", "sinceSeconds", "sinceTime"):
            if request.query.get(unsupported) not in (None, "", "0", "false"):
                raise _refused(f"{unsupported}: a lab's logs have no times")
        run = known.restarts - 1 if previous else known.restarts
        path = self._records.log(worker.record.uid, known.name, run)
        follow = None
        if _flag(request, "follow") and not previous:
            follow = worker.ended(known.name)
        limit = _number(request, "limitBytes")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        tail_lines = _number(request, "tailLines")
        # A client that goes away, or a pod whose files went with it, ends the answer.
        with suppress(ConnectionError, FileNotFoundError):
            async for chunk in read_log(path, tail_lines=tail_lines, follow=follow):
                part = chunk if limit is None else chunk[:limit]
                await response.write(part)
                if limit is not None:
                    limit -= len(part)
                    if limit <= 0:
                        break
            await response.write_eof()
        return response

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        worker, known = self._container(request)
        sandbox = worker.record.sandbox
        if known.state != "running" or sandbox is None:
            raise _refused(f'container not found ("{known.name}"): it does not run')
        argv = request.query.getall("command", [])
        if not argv:
            raise _refused("command: expected at least one")
        env = environment(known.pid)
        if _flag(request, "tty"):
            env.setdefault("TERM", "xterm")
        command = exec_session.Command(
            argv=argv,
            env=env,
            cwd=worker.working_directory(known.name),
            stdin=_flag(request, "stdin"),
            stdout=_flag(request, "stdout"),
            stderr=_flag(request, "stderr"),
            tty=_flag(request, "tty"),
        )
        websocket = web.WebSocketResponse(
            protocols=exec_session.PROTOCOLS, max_msg_size=_FRAME_LIMIT
        )
        if not websocket.can_prepare(request):
            raise _refused("expected a WebSocket upgrade")
        await websocket.prepare(request)
        with suppress(ConnectionError):
            await exec_session.serve(websocket, sandbox, command)
            await websocket.close()
        return websocket

    def _container(self, request: web.Request) -> tuple[PodWorker, ContainerRecord]:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        worker = self._pods.find(namespace, name)
        if worker is None:
            raise web.HTTPNotFound(text=f'pod "{name}" does not run on this node')
        container = request.match_info["container"]
        known = worker.record.containers.get(container)
        if known is None:
            declared = (*worker.pod.spec.init_containers, *worker.pod.spec.containers)
            if container not in {one.name for one in declared}:
                raise web.HTTPNotFound(text=f'pod "{name}" has no container "{container}"')
            known = ContainerRecord(container)
        return worker, known


def _refused(text: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=text)


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name) in _TRUE


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise _refused(f"{name}: expected a number, found {text!r}")
    return int(text)


async def _healthz(_request: web.Request) -> web.Response:
    return web.Response(text="ok")
