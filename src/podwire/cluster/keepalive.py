"""TCP sockets that notice when their peer is gone without a word."""

from __future__ import annotations

import socket

import aiohttp


def socket_with_keepalive(address: aiohttp.AddrInfoType) -> socket.socket:
    """A TCP socket that fails within a minute of its peer's silent end."""
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return connection
