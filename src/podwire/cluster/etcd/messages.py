"""The messages of etcd's JSON gateway: what is sent, and what of the answers is used.

Values only. Numbers of 64 bits come as strings and are taken as both; keys and values are base64,
which msgspec does for `bytes`. Fields that are zero are left out by the gateway.

Source: etcd/etcdserver/etcdserverpb/rpc.proto and etcd/mvcc/mvccpb/kv.proto (3.4).
"""

from __future__ import annotations

import contextlib
from base64 import b64encode
from typing import Any, TypeAlias, TypeVar

import msgspec

from podwire.decoding import from_json
from podwire.errors import StoreError

T = TypeVar("T")

Json: TypeAlias = dict[str, Any]


class Header(msgspec.Struct, gc=False):
    """`revision` of the store when it answered; a cluster's `cluster_id` never changes."""

    cluster_id: int = 0
    revision: int = 0


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """A key as it is stored. `lease` is 0 where it does not expire."""

    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class RangeAnswer(msgspec.Struct):
    """Keys in order; `more` of them where a limit was given."""

    header: Header = msgspec.field(default_factory=Header)
    kvs: list[KeyValue] = []
    more: bool = False


class _OpAnswer(msgspec.Struct):
    response_range: RangeAnswer | None = None


class TxnAnswer(msgspec.Struct):
    """`succeeded` tells which of the two lists of operations was done."""

    header: Header = msgspec.field(default_factory=Header)
    succeeded: bool = False
    responses: list[_OpAnswer] = []

    @property
    def kvs(self) -> list[KeyValue]:
        """What the ranges in it found."""
        ranges = (one.response_range for one in self.responses)
        return [kv for found in ranges if found is not None for kv in found.kvs]


class LeaseAnswer(msgspec.Struct):
    """`TTL` is in seconds; 0 or less for a lease that is not there."""

    ID: int = 0
    TTL: int = 0


class KeepAliveLine(msgspec.Struct):
    """A stream's line."""

    result: LeaseAnswer = msgspec.field(default_factory=LeaseAnswer)


class TokenAnswer(msgspec.Struct):
    """What proves who we are from now on."""

    token: str = ""


class Change(msgspec.Struct, frozen=True, gc=False):
    """A key was put or deleted; of one deleted, only `key` and `mod_revision` are known."""

    kv: KeyValue
    type: str = "PUT"

    @property
    def is_delete(self) -> bool:
        return self.type == "DELETE"


class WatchAnswer(msgspec.Struct):
    """Changes in order. With `fragment`, more of the same revision follow."""

    header: Header = msgspec.field(default_factory=Header)
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: list[Change] = []
    fragment: bool = False


class Failure(msgspec.Struct):
    """An answer of failure: of a call (`code`), or within a stream (`grpc_code`)."""

    message: str = ""
    code: int | None = None
    grpc_code: int = 2


class WatchLine(msgspec.Struct):
    """A line of a watch."""

    result: WatchAnswer | None = None
    error: Failure | None = None


def failure_in(body: bytes) -> Failure | None:
    """What a call's answer says, or a stream's that failed before it began; None for others'."""
    with contextlib.suppress(msgspec.DecodeError):
        found = from_json(body, Failure)
        if found.code is not None:
            return found
    with contextlib.suppress(msgspec.DecodeError):
        error = from_json(body, WatchLine).error
        if error is not None:
            return Failure(error.message, code=error.grpc_code)
    return None


def decode(body: bytes, kind: type[T]) -> T:
    """`body` as `kind`. Raises StoreError where it is something else."""
    try:
        return from_json(body, kind, strict=False)
    except msgspec.DecodeError as error:
        excerpt = " ".join(body.decode(errors="replace").split())[:200]
        raise StoreError(
            f"that is no answer of etcd: {excerpt!r} ({error})",
            remedy="name etcd's client URLs (usually port 2379), not its peer URLs",
        ) from None


def text(data: bytes) -> str:
    """As the gateway has bytes."""
    return b64encode(data).decode()


def end_of(prefix: bytes) -> bytes:
    """The `range_end` with which `prefix` stands for all keys that begin with it."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def put(key: bytes, value: bytes, lease: int = 0) -> Json:
    """An operation: put a key, to expire with `lease`."""
    request = {"key": text(key), "value": text(value)}
    return {"request_put": request | ({"lease": str(lease)} if lease else {})}


def delete(key: bytes) -> Json:
    """An operation: delete a key."""
    return {"request_delete_range": {"key": text(key)}}


def get(key: bytes) -> Json:
    """An operation: read a key."""
    return {"request_range": {"key": text(key)}}


def is_absent(key: bytes, range_end: bytes | None = None) -> Json:
    """A comparison: the key, or each one of the range, does not exist."""
    comparison = {"key": text(key), "target": "VERSION", "result": "EQUAL", "version": "0"}
    return comparison | ({"range_end": text(range_end)} if range_end is not None else {})


def is_at(key: bytes, mod_revision: int) -> Json:
    """A comparison: the key has not changed since it was read; 0 for one that was not there."""
    wanted = {"target": "MOD", "result": "EQUAL", "mod_revision": str(mod_revision)}
    return {"key": text(key), **wanted}
