"""Keeping an etcd lease alive: an hour before it would expire, and again until that succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import NoReturn

from podwire.cluster.etcd.client import EtcdClient
from podwire.errors import StoreError
from podwire.log import fields

log = logging.getLogger(__name__)

MARGIN_S = 3600.0
"""So long before it would expire it is renewed (flanneld's --subnet-lease-renew-margin)."""
_AGAIN_S = 60.0


class Renewal:
    """Keeps one lease at a time. `on_expired` is called where it is gone already."""

    def __init__(self, client: EtcdClient, ttl_s: int, on_expired: Callable[[], None]) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._on_expired = on_expired
        self._lease = 0
        self._at = 0.0
        self._changed = asyncio.Event()

    def keep(self, lease: int, *, is_new: bool = True) -> None:
        """Keep that one from now on; 0 is none. One that is not new is asked how long it lives."""
        self._lease = lease
        self._renew_in(_before(self._ttl_s) if is_new else 0)

    async def run(self) -> NoReturn:
        """Renew whatever is to be kept, for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            if not self._lease:
                await self._changed.wait()
            elif (left_s := self._at - clock()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._changed.wait()
            else:
                await self._renew(self._lease)

    async def _renew(self, lease: int) -> None:
        try:
            ttl_s = await self._client.keep_alive(lease)
        except StoreError as error:
            log.warning("lease not renewed", extra=fields(error=error))
            if lease == self._lease:
                self._renew_in(min(_AGAIN_S, self._ttl_s / 4))
            return
        if lease != self._lease:
            return
        if ttl_s:
            self._renew_in(_before(ttl_s))
        else:
            self._lease = 0
            self._on_expired()

    def _renew_in(self, seconds: float) -> None:
        self._at = asyncio.get_running_loop().time() + seconds
        self._changed.set()


def _before(ttl_s: float) -> float:
    """When to renew a lease that lives for so long."""
    return ttl_s - min(MARGIN_S, ttl_s / 2)
