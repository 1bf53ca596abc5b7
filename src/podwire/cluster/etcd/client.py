"""The verbs of etcd that Podwire uses: range, transaction, lease, watch.

What lives here: requests and what becomes of their answers. What does not: connections and errors
(`transport`), keeping up with a range for ever (`mirror`).

A watch is one HTTP answer that goes on. It may rightly be silent for days, so silence is asked
after: a small linearizable read at the same member tells that it is reachable, still has a leader
and still takes our token. (etcd's own progress notifications come every 10 minutes, and those of
3.4 may name revisions whose changes are still to come, so a watch can't be resumed from them.)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence

import aiohttp
import msgspec

from podwire.cluster.etcd.failures import NOT_FOUND, StaleTokenError
from podwire.cluster.etcd.messages import (
    Change,
    Json,
    KeepAliveLine,
    KeyValue,
    LeaseAnswer,
    RangeAnswer,
    TxnAnswer,
    WatchAnswer,
    WatchLine,
    decode,
    text,
)
from podwire.cluster.etcd.transport import Transport
from podwire.cluster.etcd.url import EtcdConfig
from podwire.cluster.kube.lines import LineSplitter
from podwire.errors import StoreCompactedError, StoreError, StoreUnavailableError

PAGE_SIZE = 1000
"""Keys a range; etcd answers with at most a few MB at once."""


class Listing(msgspec.Struct, frozen=True):
    """All keys of a range as they were at `revision` of that cluster."""

    kvs: tuple[KeyValue, ...]
    revision: int
    cluster_id: int


class Batch(msgspec.Struct, frozen=True):
    """Changes in order; a watch may be resumed after `revision` once they are taken in."""

    changes: tuple[Change, ...]
    revision: int


class EtcdClient:
    """A client of one cluster. Open it with `async with`; every method raises `StoreError`."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._transport = Transport(config)

    async def __aenter__(self) -> EtcdClient:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._transport.__aexit__(*exc_info)

    async def get(self, key: bytes) -> KeyValue | None:
        """One key, None where it does not exist."""
        answer = await self._transport.call("/v3/kv/range", {"key": text(key)}, RangeAnswer)
        return answer.kvs[0] if answer.kvs else None

    async def range(self, key: bytes, range_end: bytes, *, keys_only: bool = False) -> Listing:
        """All keys from `key` on, before `range_end`, in order; with `keys_only` without values."""
        body: Json = {"range_end": text(range_end), "limit": PAGE_SIZE, "keys_only": keys_only}
        found: list[KeyValue] = []
        while True:
            body["key"] = text(key)
            answer = await self._transport.call("/v3/kv/range", body, RangeAnswer)
            found += answer.kvs
            revision = int(body.setdefault("revision", str(answer.header.revision)))
            if not answer.more or not answer.kvs:
                return Listing(tuple(found), revision, answer.header.cluster_id)
            key = answer.kvs[-1].key + b"\0"

    async def txn(
        self, compare: Sequence[Json], success: Sequence[Json], failure: Sequence[Json] = ()
    ) -> TxnAnswer:
        """Do `success` where all of `compare` hold, else `failure`; as one.

        Raises StoreUnavailableError with `may_have_happened` where nobody knows whether it did.
        """
        body = {"compare": list(compare), "success": list(success), "failure": list(failure)}
        return await self._transport.call("/v3/kv/txn", body, TxnAnswer, changes=True)

    async def grant(self, ttl_s: int) -> int:
        """A new lease; its id. Keys put with it go when it is not kept alive."""
        # A lease that nobody heard of expires by itself, so asking twice does no harm.
        answer = await self._transport.call("/v3/lease/grant", {"TTL": ttl_s}, LeaseAnswer)
        return answer.ID

    async def keep_alive(self, lease: int) -> int:
        """Let it begin anew. Its whole time to live in seconds, 0 where it is gone."""
        body = {"ID": str(lease)}
        answer = await self._transport.call("/v3/lease/keepalive", body, KeepAliveLine)
        return max(answer.result.TTL, 0)

    async def revoke(self, lease: int) -> None:
        """End a lease, and every key put with it; one that is not there is fine."""
        try:
            await self._transport.call("/v3/lease/revoke", {"ID": str(lease)}, LeaseAnswer)
        except StoreError as error:
            if error.code != NOT_FOUND:
                raise

    async def watch(
        self,
        key: bytes,
        range_end: bytes,
        *,
        after: Listing,
        revision: int,
        on_open: Callable[[], None] | None = None,
    ) -> AsyncGenerator[Batch, None]:
        """Changes after `revision`, which is that of `after` or later, until the member ends it.

        `on_open` is called once the member has accepted it. Raises StoreCompactedError where it no
        longer knows that revision, or is of another cluster: list again. Close the iterator
        (`contextlib.aclosing`) when leaving it early.
        """
        wanted = {"key": text(key), "range_end": text(range_end), "fragment": True}
        body = {"create_request": {**wanted, "start_revision": str(revision + 1)}}
        token = self._transport.token
        url = None
        try:
            async with self._transport.stream("/v3/watch", body) as (url, response):
                pending: list[Change] = []
                async for answer in self._answers(url, response, key):
                    if answer.canceled:
                        raise self._canceled(url, answer)
                    if answer.created:
                        self._check_past(url, answer, after, revision)
                        if on_open is not None:
                            on_open()
                    pending += answer.events
                    if pending and not answer.fragment:
                        yield Batch(tuple(pending), pending[-1].kv.mod_revision)
                        pending = []
        except StaleTokenError:
            self._transport.forget_token(token)
            raise
        except StoreUnavailableError:
            if url is not None:
                self._transport.skip(url)
            raise

    async def _answers(
        self, url: str, response: aiohttp.ClientResponse, key: bytes
    ) -> AsyncGenerator[WatchAnswer, None]:
        lines = LineSplitter()
        while True:
            try:
                async with asyncio.timeout(self.config.probe_s):
                    chunk = await response.content.readany()
            except TimeoutError:
                await self._probe(url, key)
                continue
            if not chunk:
                return
            for line in lines.feed(chunk):
                answer = decode(line, WatchLine)
                if answer.error is not None:
                    failure = answer.error
                    raise self._transport.failure(url, failure.message, failure.grpc_code)
                if answer.result is not None:
                    yield answer.result

    async def _probe(self, url: str, key: bytes) -> None:
        body = {"key": text(key), "count_only": True}
        await self._transport.call_at(url, "/v3/kv/range", body, RangeAnswer)

    def _canceled(self, url: str, answer: WatchAnswer) -> StoreError:
        if answer.compact_revision:
            return StoreCompactedError(f"etcd at {url} has compacted that revision", code=11)
        _, _, reason = answer.cancel_reason.rpartition("desc = ")
        return self._transport.failure(url, reason or "the watch was canceled", 2)

    @staticmethod
    def _check_past(url: str, answer: WatchAnswer, after: Listing, revision: int) -> None:
        """A cluster restored from a backup, or another one, would be silent for long."""
        header = answer.header
        if header.cluster_id != after.cluster_id or header.revision < revision:
            raise StoreCompactedError(f"etcd at {url} has another past than what was read", code=11)


async def end(client: EtcdClient, lease: int) -> None:
    """Revoke a lease that is of no use any more, as far as the store can be reached; 0 is none."""
    if lease:
        with contextlib.suppress(StoreError):
            await client.revoke(lease)
