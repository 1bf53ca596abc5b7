"""Who may connect: on the Unix socket this user and root, on loopback whoever has the token.

The Unix socket's file mode keeps others out; the kernel's word for who is at the other end
(SO_PEERCRED) is checked besides, as the file may have been opened up. On TCP a bearer token is
needed, and the Host header must name loopback: a web page that has its own name resolve to
127.0.0.1 (DNS rebinding) is refused before anything is read.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
from pathlib import Path

from aiohttp import web

from podwire.errors import LabError
from podwire.lab.api import status

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_OPEN_PATHS = ("/healthz", "/livez", "/readyz")


def read_token(path: Path) -> str:
    """The token in a file; made, and the file too (mode 0600), if it does not exist."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if len(token) < 16:
            raise LabError(
                f"{path} holds no token of 16 characters or more", remedy="delete the file"
            ) from None
        return token
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


class Gate:
    """Decides about each request."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._users = {0, os.getuid()}

    def check(self, request: web.BaseRequest) -> None:
        """Raise `ForbiddenError` unless the request may come in."""
        connection = request.transport.get_extra_info("socket") if request.transport else None
        if connection is None:
            raise status.unauthorized("the connection is closing")
        if connection.family == socket.AF_UNIX:
            self._check_peer(connection)
            return
        if request.host.rsplit(":", 1)[0] not in _LOOPBACK and request.host not in _LOOPBACK:
            raise status.unauthorized("the Host header must be 127.0.0.1 or localhost")
        if request.path in _OPEN_PATHS:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._is_token(given):
            raise status.unauthorized()

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.strip().encode(errors="replace"), self._token)

    def _check_peer(self, connection: socket.socket) -> None:
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        _, user, _ = struct.unpack("3i", credentials)
        if user not in self._users:
            raise status.unauthorized(f"user {user} may not use this socket")
