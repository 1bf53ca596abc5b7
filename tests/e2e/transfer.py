"""Bytes by TCP from one network namespace to another: whole packets, with whatever offloads."""

from __future__ import annotations

import os
import secrets
import socket
import threading

from podwire.kernel import netns

from ..conftest import Namespace
from .waiting import DEADLINE_S


def transfer(source: Namespace, target: Namespace, ip: str, size: int = 1 << 20) -> None:
    """Send random bytes to a server at `ip` in `target`; they arrive as they were sent."""
    sent = secrets.token_bytes(size)
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with _socket_in(target, family) as server, _socket_in(source, family) as client:
        server.bind((ip, 0))
        server.listen()
        client.connect((ip, server.getsockname()[1]))

        def send() -> None:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        connection, _ = server.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            received = bytearray()
            while data := connection.recv(1 << 16):
                received += data
        sender.join(DEADLINE_S)
    assert received == sent, f"{len(received)} of {size} bytes"


def _socket_in(namespace: Namespace, family: socket.AddressFamily) -> socket.socket:
    fd = netns.open_netns(namespace.path)
    try:
        with netns.entered(fd):
            made = socket.socket(family, socket.SOCK_STREAM)
    finally:
        os.close(fd)
    made.settimeout(DEADLINE_S)
    return made
