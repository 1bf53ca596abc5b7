"""What stands before a real cluster's API: TLS, client certificates and tokens.

A reverse proxy that ends TLS and checks who comes, before the embedded server's Unix socket.
"""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

FORBIDDEN = {"kind": "Status", "status": "Failure", "code": 401, "reason": "Unauthorized"}


@dataclass(frozen=True)
class Certificates:
    """A CA and what it signed, made with `openssl`; the server's is for 127.0.0.1 and api.test."""

    directory: Path

    def file(self, name: str) -> Path:
        return self.directory / name

    def make(self) -> None:
        self._openssl(
            *("req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=ca"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-keyout", "ca.key", "-out", "ca.crt"),
        )
        self._sign("server", "subjectAltName=DNS:api.test,IP:127.0.0.1")
        self._sign("client", "extendedKeyUsage=clientAuth")

    def _sign(self, name: str, extension: str) -> None:
        self._openssl(
            *("req", "-nodes", "-subj", f"/CN={name}"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        self.file(f"{name}.ext").write_text(extension)
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-days", "2", "-CAcreateserial"),
            *("-CA", "ca.crt", "-CAkey", "ca.key"),
            *("-extfile", f"{name}.ext", "-out", f"{name}.crt"),
        )

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)


@dataclass
class TlsFront:
    """The proxy. With `token` set, requests without it are refused with 401."""

    certificates: Certificates
    target: Path
    token: str | None = None
    wants_certificate: bool = False
    port: int = 0
    headers_seen: list[dict[str, str]] = field(default_factory=list)
    throttle: int = 0
    """How many of the next requests are answered with 429."""
    _runner: web.AppRunner | None = None
    _session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def open(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made = self.certificates
        context.load_cert_chain(made.file("server.crt"), made.file("server.key"))
        if self.wants_certificate:
            context.load_verify_locations(made.file("ca.crt"))
            context.verify_mode = ssl.CERT_REQUIRED
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.target)), auto_decompress=False
        )
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        assert self._runner is not None
        assert self._session is not None
        await self._runner.cleanup()
        await self._session.close()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        self.headers_seen.append(dict(request.headers))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response(FORBIDDEN, status=401)
        if self.throttle:
            self.throttle -= 1
            return web.Response(status=429, headers={"Retry-After": "1"})
        assert self._session is not None
        headers = {key: value for key, value in request.headers.items() if key != "Authorization"}
        async with self._session.request(
            request.method,
            f"http://localhost{request.raw_path}",
            headers=headers,
            data=await request.read(),
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response
