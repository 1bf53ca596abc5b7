"""A command running in a container, over the API's websocket.

Each binary message starts with a byte that names its stream; the rest is data. The last message
is on the error stream: a `Status` that says how the command ended. Protocol v5 adds a way to
close our half (stdin), which v4 lacks: with v4 a command that reads to the end of its input only
ends with the connection.

Source: k8s.io/apimachinery/pkg/util/remotecommand/constants.go and KEP-4006.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from podwire.cluster.kube.status import Status, error_from_status
from podwire.decoding import from_json
from podwire.errors import ApiUnavailableError

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
_CLOSE = 255


class ExecSession:
    """The streams of one remote command. Iterate over it for output, until it ends."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._websocket = websocket
        self._exit_code: int | None = None

    async def __aenter__(self) -> ExecSession:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._websocket.close()

    @property
    def exit_code(self) -> int:
        """The command's exit code, once the iteration has ended."""
        if self._exit_code is None:
            raise ApiUnavailableError("the connection ended before the command did")
        return self._exit_code

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """Pairs of `STDOUT` or `STDERR` and data.

        Raises the server's error when the command could not be run at all.
        """
        async for message in self._websocket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel in (STDOUT, STDERR):
                if data:
                    yield channel, data
            elif channel == ERROR:
                self._exit_code = exit_code_of(data)

    async def write(self, data: bytes) -> None:
        """Send `data` to the command's standard input."""
        await self._send(STDIN, data)

    async def close_stdin(self) -> None:
        """Tell the command that its input has ended (nothing happens with protocol v4)."""
        if self._websocket.protocol == PROTOCOLS[0]:
            await self._send(_CLOSE, bytes([STDIN]))

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the command's terminal its size in characters."""
        await self._send(RESIZE, msgspec.json.encode({"Width": columns, "Height": rows}))

    async def _send(self, channel: int, data: bytes) -> None:
        # A command that has ended reads no more; its status is on the way to us.
        if not self._websocket.closed:
            try:
                await self._websocket.send_bytes(bytes([channel]) + data)
            except ConnectionError:
                return


def exit_code_of(data: bytes) -> int:
    """The exit code in the error stream's `Status`.

    Raises the error it describes when there is no exit code: the command was never run.
    """
    try:
        status = from_json(data, Status)
    except msgspec.DecodeError:
        raise ApiUnavailableError(
            f"the command ended without a status: {data.decode(errors='replace')[:200]}"
        ) from None
    if status.status == "Success":
        return 0
    causes: Any = (status.details or {}).get("causes") or []
    for cause in causes:
        if cause.get("reason") == "ExitCode" and str(cause.get("message", "")).isdecimal():
            return int(cause["message"])
    raise error_from_status(status)
