"""The CNI executable in Python, for a machine without a C compiler: does as shim/podwire-cni.c.

`podwire cni install` copies this file with an interpreter line on top, so it imports only the
standard library and nothing of Podwire. It is also the client that `podwire cni status` uses, and
it holds the layout of the frames, which `podwire.cni.server` describes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys

SOCKET_PATH = "/run/podwire/cni.sock"
REQUEST_HEADER = struct.Struct("=4sIIi")  # magic, bytes of environment, of stdin, errno of netns
REPLY_HEADER = struct.Struct("=II")  # exit status, bytes of stdout
MAGIC = b"PWC1"
ENVIRONMENT_MAX = 64 << 10
STDIN_MAX = 4 << 20
ANSWER_S = 60.0
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")


class Failure(Exception):
    """A call that did not get an answer: CNI error code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def call(
    path: str, environment: bytes, stdin: bytes, netns: str = "", timeout_s: float = ANSWER_S
) -> tuple[int, bytes]:
    """Send one request to the agent's socket at `path`; its exit status and what it prints.

    `environment` is NUL-terminated `CNI_*` variables. Raises Failure.
    """
    fds, netns_errno = [], 0
    if netns:
        try:
            fds = [os.open(netns, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)]
        except OSError as error:
            netns_errno = error.errno or 0
    frame = REQUEST_HEADER.pack(MAGIC, len(environment), len(stdin), netns_errno)
    frame += environment + stdin
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            sent = socket.send_fds(connection, [frame], fds) if fds else 0
            if sent < len(frame):
                # Not with nothing: the agent may have answered and closed already.
                connection.sendall(frame[sent:])
            status, size = REPLY_HEADER.unpack(_receive(connection, REPLY_HEADER.size))
            return status, _receive(connection, size)
    except TimeoutError as error:
        raise Failure(11, f"podwire agent at {path}: went away without an answer") from error
    except (OSError, struct.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Failure(11, f"podwire agent at {path}: {why}") from error
    finally:
        for fd in fds:
            os.close(fd)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise OSError("went away without an answer")
        data += part
    return data


def _version_of(stdin: bytes) -> str:
    match = re.search(rb'"cniVersion"\s*:\s*"([0-9.]{1,15})"', stdin)
    version = match[1].decode() if match else ""
    return version if version in VERSIONS else VERSIONS[-1]


def _run(stdin: bytes) -> tuple[int, bytes]:
    variables = [
        name + b"=" + value + b"\0"
        for name, value in os.environb.items()
        if name.startswith(b"CNI_")
    ]
    environment = b"".join(variables)
    if len(environment) > ENVIRONMENT_MAX:
        raise Failure(4, "environment of CNI_*: is larger than 64 KiB")
    if len(stdin) > STDIN_MAX:
        raise Failure(6, "configuration on stdin: is larger than 4 MiB")
    if os.environ.get("CNI_COMMAND") == "VERSION":
        body = {"cniVersion": _version_of(stdin), "supportedVersions": VERSIONS}
        return 0, json.dumps(body).encode()
    path = os.environ.get("PODWIRE_CNI_SOCKET") or SOCKET_PATH
    return call(path, environment, stdin, os.environ.get("CNI_NETNS", ""))


def main() -> int:
    """The executable. The exit status."""
    stdin = b""
    try:
        stdin = sys.stdin.buffer.read(STDIN_MAX + 1)
        status, stdout = _run(stdin)
    except Failure as failure:
        body = {"cniVersion": _version_of(stdin), "code": failure.code, "msg": str(failure)}
        status, stdout = 1, json.dumps(body).encode()
    sys.stdout.buffer.write(stdout)
    sys.stdout.buffer.flush()
    return status


if __name__ == "__main__":
    sys.exit(main())
