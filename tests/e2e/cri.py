"""A kubelet's side of the Container Runtime Interface, as little of it as pod networking takes.

gRPC over HTTP/2 on containerd's Unix socket, carried by curl. The messages have a handful of
fields (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto), so they are packed and read here by field
number; the wire format is that of Protocol Buffers (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import subprocess
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Field numbers and values; a mapping is a nested message.
Message = Mapping[int, "str | int | bytes | Message"]
Fields = dict[int, list[bytes | int]]

_TIMEOUT_S = 60
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class CriError(Exception):
    """The runtime refused: its gRPC status and message."""


@dataclass(frozen=True)
class Cri:
    """The runtime that listens at `socket`."""

    socket: Path

    def network_ready(self) -> bool:
        """The NetworkReady condition, from which a kubelet takes whether its node is Ready."""
        (status,) = self._call("Status", {})[1]
        conditions = [fields(condition) for condition in fields(status)[1]]
        (network,) = (each for each in conditions if each[1] == [b"NetworkReady"])
        return network.get(2) == [1]

    def run_pod(self, namespace: str, name: str, uid: str) -> str:
        """Make a pod's sandbox, network and all; its ID. Raises CriError."""
        metadata: Message = {1: name, 2: uid, 3: namespace}
        config: Message = {1: metadata, 2: name, 8: {}}
        (sandbox,) = self._call("RunPodSandbox", {1: config})[1]
        return text(sandbox)

    def pod_ip(self, sandbox: str) -> str:
        """The IP that the runtime reports, which becomes the pod's `status.podIP`."""
        (status,) = self._call("PodSandboxStatus", {1: sandbox})[1]
        (network,) = fields(status)[5]
        (ip,) = fields(network)[1]
        return text(ip)

    def stop_pod(self, sandbox: str) -> None:
        """Kill what runs in a sandbox and take its network away. Raises CriError."""
        self._call("StopPodSandbox", {1: sandbox})

    def remove_pod(self, sandbox: str) -> None:
        """Delete a sandbox. Raises CriError."""
        self._call("RemovePodSandbox", {1: sandbox})

    def _call(self, method: str, request: Message) -> Fields:
        body = encode(request)
        # A gRPC message is preceded by a byte, compressed or not, and its length.
        done = subprocess.run(
            [
                *("curl", "--silent", "--show-error", "--http2-prior-knowledge"),
                *("--max-time", str(_TIMEOUT_S), "--unix-socket", str(self.socket)),
                *("--header", "content-type: application/grpc", "--header", "te: trailers"),
                *("--data-binary", "@-", "--dump-header", "/dev/stderr"),
                f"http://localhost/runtime.v1.RuntimeService/{method}",
            ],
            input=b"\0" + len(body).to_bytes(4, "big") + body,
            capture_output=True,
            check=False,
        )
        # The status comes in the trailers, which curl shows with the headers.
        lines = [line.partition(":") for line in done.stderr.decode().splitlines()]
        trailers = {name.strip(): value.strip() for name, _, value in lines}
        if done.returncode != 0 or trailers.get("grpc-status") != "0":
            message = urllib.parse.unquote(trailers.get("grpc-message", done.stderr.decode()))
            raise CriError(f"{method}: {trailers.get('grpc-status')}: {message}")
        return fields(done.stdout[5:])


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    out = bytearray()
    for number, value in message.items():
        if isinstance(value, int):
            out += _varint(number << 3 | _VARINT) + _varint(value)
            continue
        if isinstance(value, str):
            content = value.encode()
        else:
            content = value if isinstance(value, bytes) else encode(value)
        out += _varint(number << 3 | _LENGTH) + _varint(len(content)) + content
    return bytes(out)


def fields(message: bytes | int) -> Fields:
    """A message's fields by number, each with all its values."""
    assert isinstance(message, bytes)
    found: Fields = {}
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        value: bytes | int
        if key & 7 == _VARINT:
            value, at = _read_varint(message, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(key & 7)
            if size is None:
                size, at = _read_varint(message, at)
            value, at = message[at : at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def text(value: bytes | int) -> str:
    """A string field."""
    assert isinstance(value, bytes)
    return value.decode()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return number, at
