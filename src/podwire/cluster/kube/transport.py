"""HTTP to one API server: connections, identity, and every failure as one of Podwire's errors.

What lives here: the aiohttp session over TCP, TLS or a Unix socket, retries that are safe
whatever the request is (the server says *later*, or a rotated token), and error mapping. What
does not: anything about Kubernetes objects (`client.py`).

A dead peer is found by TCP keepalive, since a watch may rightly be silent for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
import yarl

from podwire import __version__
from podwire.cluster.keepalive import socket_with_keepalive
from podwire.cluster.kube.config import ClientConfig
from podwire.cluster.kube.credentials import Credentials
from podwire.cluster.kube.status import error_from_body
from podwire.cluster.kube.tls import client_context
from podwire.errors import ApiError, ApiUnavailableError

CALL_TIMEOUT_S = 60.0
"""Longest silence within an ordinary request; an API server itself gives up after as long."""
CONNECT_TIMEOUT_S = 10.0
_MAX_RETRIES = 5
_MAX_RETRY_AFTER_S = 30.0
_WEBSOCKET_PING_S = 30.0
_UNIX = "unix://"

Query: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
Headers: TypeAlias = Sequence[tuple[str, str]]
Answer = TypeVar("Answer")


class Transport:
    """One server's connections. Open it with `async with`."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._ssl = client_context(config) if config.server.startswith("https://") else None
        self._credentials = Credentials(config, self._ssl)
        self._socket_path = config.server.removeprefix(_UNIX) if self._is_unix else None
        self._base = "http://localhost" if self._is_unix else config.server
        self._session: aiohttp.ClientSession | None = None

    @property
    def _is_unix(self) -> bool:
        return self.config.server.startswith(_UNIX)

    async def __aenter__(self) -> Transport:
        self.open()
        return self

    def open(self) -> None:
        """What `async with` begins with; in a running event loop."""
        connector: aiohttp.BaseConnector
        if self._socket_path is not None:
            connector = aiohttp.UnixConnector(self._socket_path, limit=0)
        else:
            connector = aiohttp.TCPConnector(
                limit=0, ssl=self._ssl or True, socket_factory=socket_with_keepalive
            )
        headers = {"User-Agent": f"podwire/{__version__}", "Accept": "application/json"}
        if self._is_unix:
            # Compressing for a socket on this machine only costs time.
            headers["Accept-Encoding"] = "identity"
        self._session = aiohttp.ClientSession(
            connector=connector, headers=headers, raise_for_status=_raise_api_error
        )

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        """Send one request, `body` as JSON, and give back what was answered.

        Raises `ApiError` for an answer of failure, `ApiUnavailableError` when there is none.
        """
        async with self.stream(
            method, path, query=query, body=body, content_type=content_type
        ) as response:
            return await response.read()

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Any = None,
        content_type: str = "application/json",
        silence_s: float | None = CALL_TIMEOUT_S,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and read its answer bit by bit.

        `silence_s` is how long the server may say nothing, None for ever. Raises as `call`, also
        from within the block while reading.
        """
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s
        )
        data = None if body is None else msgspec.json.encode(body)

        async def send(headers: Headers) -> aiohttp.ClientResponse:
            return await self._opened.request(
                method,
                self._url(path, query),
                headers=headers if data is None else [*headers, ("Content-Type", content_type)],
                data=data,
                timeout=timeout,
                allow_redirects=False,
                proxy=self.config.proxy_url,
                server_hostname=self.config.tls_server_name,
            )

        with self._unavailable():
            async with await self._attempt(send) as response:
                yield response

    async def websocket(
        self, path: str, *, query: Query, protocols: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        """Open a websocket that speaks one of `protocols`; the caller closes it.

        Raises as `call`.
        """

        async def send(headers: Headers) -> aiohttp.ClientWebSocketResponse[bool]:
            return await self._opened.ws_connect(
                self._url(path, query),
                protocols=protocols,
                headers=headers,
                heartbeat=_WEBSOCKET_PING_S,
                max_msg_size=0,
                proxy=self.config.proxy_url,
                server_hostname=self.config.tls_server_name,
            )

        with self._unavailable():
            return await self._attempt(send)

    async def _attempt(self, send: Callable[[Headers], Awaitable[Answer]]) -> Answer:
        """Send with our identity; again where the server asks for that, or our token rotated."""
        for attempt in itertools.count():
            try:
                return await send(await self._credentials.headers())
            except ApiError as error:
                delay_s = self._retry_delay_s(error, attempt)
                if delay_s is None:
                    raise
                await asyncio.sleep(delay_s)
        raise AssertionError("counting does not end")

    def _retry_delay_s(self, error: ApiError, attempt: int) -> float | None:
        if error.status == 401 and attempt == 0 and self._credentials.refreshable:
            self._credentials.forget()
            return 0.0
        # With Retry-After the server says that it did not act on the request.
        after_s = error.details.get("retryAfterSeconds")
        overloaded = error.status == 429 or error.status >= 500
        if overloaded and isinstance(after_s, int) and after_s > 0 and attempt < _MAX_RETRIES:
            return min(float(after_s), _MAX_RETRY_AFTER_S)
        return None

    @property
    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used outside of its `async with`")
        return self._session

    def _url(self, path: str, query: Query) -> yarl.URL:
        encoded = urlencode(query, quote_via=quote)
        return yarl.URL(self._base + path + (f"?{encoded}" if encoded else ""), encoded=True)

    @contextlib.contextmanager
    def _unavailable(self) -> Iterator[None]:
        """Turn a failure to reach the server, or to stay connected, into our error."""
        server = self.config.server
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as error:
            raise ApiUnavailableError(
                f"cannot trust the Kubernetes API at {server}: {error.certificate_error}",
                remedy="check certificate-authority and tls-server-name in the kubeconfig",
            ) from error
        except aiohttp.ClientConnectorError as error:
            cause = error.os_error.strerror or str(error.os_error)
            raise ApiUnavailableError(
                f"cannot reach the Kubernetes API at {server}: {cause}",
                remedy="check that it runs and that the kubeconfig names the right address",
            ) from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            cause = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise ApiUnavailableError(
                f"lost the Kubernetes API at {server}: {cause or type(error).__name__}"
            ) from error


async def _raise_api_error(response: aiohttp.ClientResponse) -> None:
    """Raise for every answer but success; for websockets too, whose refusal has a body as well."""
    if response.status < 300:
        return
    async with response:
        error = error_from_body(response.status, await response.read())
    retry_after = response.headers.get("Retry-After", "")
    if retry_after.isdecimal():
        error.details["retryAfterSeconds"] = int(retry_after)
    raise error
