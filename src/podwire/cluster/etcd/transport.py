"""HTTP to the members of one etcd cluster: whom to ask, and as whom.

What lives here: the order of endpoints, TLS, and the token that a password is exchanged for. What
does not: what is asked (`client`), and what a failure means (`failures`).

It is etcd's own JSON gateway that is spoken to, with what follows from that (3.4):
- A certificate's name is not taken for a user; where etcd has users, a password is needed, and with
  `--client-cert-auth` a certificate without a common name.
- With `--client-cert-auth`, the gateway shows the server's own certificate to the server, so that
  has to be good for clients too, or every answer is "connection closed" or "connection error".
- A member without a leader waits 7 s before it says so, unless `hasleader` is asked for; a watch
  at such a member would be silent for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from typing import TypeVar

import aiohttp
import msgspec

from podwire import __version__
from podwire.cluster.etcd.failures import (
    NO_USERS,
    StaleTokenError,
    all_of,
    failing,
    failure,
    no_gateway,
    unavailable,
)
from podwire.cluster.etcd.messages import Json, TokenAnswer, decode, failure_in
from podwire.cluster.etcd.url import EtcdConfig
from podwire.cluster.keepalive import socket_with_keepalive
from podwire.errors import InputError, StoreError, StoreUnavailableError
from podwire.log import fields

log = logging.getLogger(__name__)

T = TypeVar("T")


class Transport:
    """The connections to one cluster. Open it with `async with`."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._session: aiohttp.ClientSession | None = None
        self._first = 0
        self._token: str | None = None
        self._authenticating = asyncio.Lock()
        self._ssl: tuple[tuple[float, ...], ssl.SSLContext] | None = None

    async def __aenter__(self) -> Transport:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=socket_with_keepalive),
            headers={"User-Agent": f"podwire/{__version__}", "Grpc-Metadata-hasleader": "true"},
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, path: str, body: Json, kind: type[T], *, changes: bool = False) -> T:
        """Ask one endpoint after the other, beginning with the one that answered last.

        A request that `changes` anything is not sent again once it may have been done. Raises
        StoreError, as StoreUnavailableError where no endpoint could answer.
        """
        failures: list[StoreUnavailableError] = []
        for url in self._in_order():
            try:
                answer = await self.call_at(url, path, body, kind)
            except StoreUnavailableError as error:
                if changes and error.may_have_happened:
                    raise
                failures.append(error)
            else:
                self._first = self.config.urls.index(url)
                return answer
        raise all_of(failures)

    async def call_at(self, url: str, path: str, body: Json, kind: type[T]) -> T:
        """Ask that endpoint."""
        async with self._request(url, path, body, self._call_timeout) as response:
            return decode(await response.read(), kind)

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, body: Json
    ) -> AsyncIterator[tuple[str, aiohttp.ClientResponse]]:
        """An answer that never ends, and the endpoint that gives it; raises as `call`.

        Failures while it is read are raised from within the block.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.config.connect_timeout_s)
        failures: list[StoreUnavailableError] = []
        for url in self._in_order():
            async with contextlib.AsyncExitStack() as stack:
                request = self._request(url, path, body, timeout)
                try:
                    async with asyncio.timeout(self.config.call_timeout_s):
                        response = await stack.enter_async_context(request)
                except TimeoutError:
                    failures.append(unavailable(self.config, url, "no answer in time"))
                    continue
                except StoreUnavailableError as error:
                    failures.append(error)
                    continue
                self._first = self.config.urls.index(url)
                yield url, response
                return
        raise all_of(failures)

    def skip(self, url: str) -> None:
        """Begin with another endpoint from now on: this one's stream has ended."""
        if self.config.urls[self._first] == url:
            self._first = (self._first + 1) % len(self.config.urls)

    def failure(self, url: str, message: str, code: int) -> StoreError:
        """The error for what the member at `url` answered."""
        return failure(self.config, url, message, code)

    # --- one request ----------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _request(
        self, url: str, path: str, body: Json, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful answer; once more with a new token where etcd does not take the old one."""
        token = await self._token_from(url)
        with failing(self.config, url):
            async with self._post(url, path, body, timeout, token) as response:
                failure = await self._failure_in(url, response)
                if failure is None:
                    yield response
                    return
            if not isinstance(failure, StaleTokenError):
                raise failure
            self.forget_token(token)
            async with self._post(
                url, path, body, timeout, await self._token_from(url)
            ) as response:
                failure = await self._failure_in(url, response)
                if failure is not None:
                    raise failure
                yield response

    def _post(
        self, url: str, path: str, body: Json, timeout: aiohttp.ClientTimeout, token: str | None
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("the client is used outside of its `async with`")
        return self._session.post(
            url + path,
            data=msgspec.json.encode(body),
            headers={"Authorization": token} if token else {},
            ssl=self._context() if self.config.tls else True,
            timeout=timeout,
            allow_redirects=False,
        )

    async def _failure_in(self, url: str, response: aiohttp.ClientResponse) -> StoreError | None:
        if response.status == 200:
            return None
        body = await response.read()
        found = failure_in(body)
        if found is None or found.code is None:
            return no_gateway(url, response.status, body)
        return self.failure(url, found.message, found.code)

    @property
    def _call_timeout(self) -> aiohttp.ClientTimeout:
        config = self.config
        return aiohttp.ClientTimeout(
            total=config.call_timeout_s, sock_connect=config.connect_timeout_s
        )

    def _in_order(self) -> list[str]:
        urls = list(self.config.urls)
        return urls[self._first :] + urls[: self._first]

    # --- who we are -----------------------------------------------------------------------

    def forget_token(self, token: str | None) -> None:
        """Authenticate anew, unless somebody did since `token` was used."""
        if self._token == token:
            self._token = None

    @property
    def token(self) -> str | None:
        return self._token

    async def _token_from(self, url: str) -> str | None:
        """None without a user; empty where etcd has none."""
        config = self.config
        if config.user is None:
            return None
        async with self._authenticating:
            if self._token is None:
                body = {"name": config.user, "password": config.password or ""}
                with failing(self.config, url, sent=False):
                    async with self._post(
                        url, "/v3/auth/authenticate", body, self._call_timeout, None
                    ) as response:
                        failure = await self._failure_in(url, response)
                        if failure is None:
                            self._token = decode(await response.read(), TokenAnswer).token
                        elif NO_USERS in failure.message:
                            self._token = ""
                        else:
                            raise failure
            return self._token

    def _context(self) -> ssl.SSLContext:
        """The TLS context of the files as they are now."""
        config = self.config
        files = [one for one in (config.ca, config.certificate, config.key) if one is not None]
        try:
            stamp = tuple(one.stat().st_mtime for one in files)
        except OSError:
            stamp = ()  # Which of them is missing, `ssl_context` says.
        if self._ssl is None:
            self._ssl = (stamp, config.ssl_context())
        elif self._ssl[0] != stamp:
            try:
                self._ssl = (stamp, config.ssl_context())
            except InputError as error:
                # Files are being replaced: the old ones are still as good as they were.
                log.warning("certificates not read again", extra=fields(error=error))
        return self._ssl[1]
