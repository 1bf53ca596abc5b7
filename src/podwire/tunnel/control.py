"""The frames between the agent and the tunnel: four bytes of length, big-endian, and MessagePack.

Sans-I/O: bytes to values and back, what arrives in pieces put together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

import msgspec

from podwire.decoding import from_msgpack
from podwire.errors import InputError
from podwire.model.tunnel import Answer, Request

T = TypeVar("T")

_LENGTH = struct.Struct("!I")
#: Some 500,000 peers. More is a mistake of whoever writes.
MAX_FRAME = 64 << 20

_encoder = msgspec.msgpack.Encoder()


def pack(value: Request | Answer) -> bytes:
    """One frame."""
    body = _encoder.encode(value)
    return _LENGTH.pack(len(body)) + body


class Frames(Generic[T]):
    """Values out of the bytes of a stream, whatever pieces they come in."""

    def __init__(self, kind: type[T] | object) -> None:
        """`kind` is `Request` or `Answer`."""
        self._kind = cast(type[T], kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """The values that are whole now.

        Raises InputError for what is none; nothing more can be read from the stream then.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise InputError(f"{length} bytes, more than {MAX_FRAME}", field="frame")
            if len(self._buffer) < _LENGTH.size + length:
                return
            body = bytes(self._buffer[_LENGTH.size : _LENGTH.size + length])
            del self._buffer[: _LENGTH.size + length]
            try:
                value = from_msgpack(body, self._kind)
            except msgspec.DecodeError as error:
                raise InputError(str(error), field="frame") from error
            yield value
