"""The executable, in C and in Python: the same cases, the same behaviour. No root, no kernel.

The agent's end is a socket of the test.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from podwire.cni import shim
from podwire.cni.types import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from tests.cni.conftest import Answer

Call = Callable[..., "Answer"]
CONF = b'{"cniVersion": "0.4.0", "name": "podwire", "type": "podwire"}'


class Agent:
    """Accepts one connection and answers with `script(connection)`; what was received is kept."""

    def __init__(self, path: Path, script: Callable[[socket.socket], None]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._script = script
        self.received = b""
        self.fds: list[int] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            self.received, self.fds, _, _ = socket.recv_fds(connection, 1 << 16, 4)
            while len(self.received) < self.announced:
                self.received += connection.recv(1 << 16)
            self._script(connection)

    @property
    def announced(self) -> int:
        _, env, stdin, _ = self.header
        return shim.REQUEST_HEADER.size + env + stdin

    @property
    def header(self) -> tuple[bytes, int, int, int]:
        header: tuple[bytes, int, int, int] = shim.REQUEST_HEADER.unpack_from(self.received)
        return header

    @property
    def environment(self) -> set[bytes]:
        size = shim.REQUEST_HEADER.size
        return set(self.received[size : size + self.header[1]].split(b"\0")) - {b""}

    @property
    def stdin(self) -> bytes:
        return self.received[shim.REQUEST_HEADER.size + self.header[1] :]

    def close(self) -> None:
        self._thread.join(timeout=60)
        self._listener.close()
        while self.fds:
            os.close(self.fds.pop())


def reply(status: int, stdout: bytes) -> Callable[[socket.socket], None]:
    frame = shim.REPLY_HEADER.pack(status, len(stdout)) + stdout
    return lambda connection: connection.sendall(frame)


NOTHING = reply(0, b"")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def start(script: Callable[[socket.socket], None] = NOTHING) -> Agent:
        agents.append(Agent(tmp_path / "cni.sock", script))
        return agents[-1]

    yield start
    for one in agents:
        one.close()


def test_hands_over_environment_stdin_and_namespace(
    call: Call, agent: Callable[..., Agent], tmp_path: Path
) -> None:
    netns = tmp_path / "netns"
    netns.write_text("it is this one")
    server = agent(reply(0, b'{"answer": 1}'))
    answer = call(CONF, CNI_COMMAND="ADD", CNI_NETNS=str(netns), CNI_ARGS="A=B;C=D", OTHER="no")
    assert answer == (0, '{"answer": 1}')
    server.close()
    assert server.environment == {
        b"CNI_COMMAND=ADD",
        b"CNI_NETNS=%s" % os.fsencode(netns),
        b"CNI_ARGS=A=B;C=D",
    }
    assert server.stdin == CONF
    assert server.header[3] == 0


def test_the_descriptor_is_of_the_namespace(
    call: Call, agent: Callable[..., Agent], tmp_path: Path
) -> None:
    netns = tmp_path / "netns"
    netns.touch()
    seen: list[int] = []

    def look(connection: socket.socket) -> None:
        seen.extend(os.fstat(fd).st_ino for fd in server.fds)
        NOTHING(connection)

    server = agent(look)
    assert call(CONF, CNI_COMMAND="ADD", CNI_NETNS=str(netns)).status == 0
    assert seen == [netns.stat().st_ino]


@pytest.mark.parametrize("netns", ["", "/there/is/no/such"])
def test_a_namespace_that_cannot_be_opened(
    call: Call, agent: Callable[..., Agent], netns: str
) -> None:
    server = agent()
    assert call(CONF, CNI_COMMAND="DEL", CNI_NETNS=netns).status == 0
    assert server.fds == []
    assert server.header[3] == (2 if netns else 0)


def test_a_fifo_in_place_of_a_namespace_does_not_block(
    call: Call, agent: Callable[..., Agent], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    agent()
    assert call(CONF, CNI_COMMAND="ADD", CNI_NETNS=str(tmp_path / "fifo")).status == 0


def test_the_exit_status_and_an_error_object_are_passed_on(
    call: Call, agent: Callable[..., Agent]
) -> None:
    agent(reply(1, b'{"code": 7}'))
    assert call(CONF, CNI_COMMAND="ADD") == (1, '{"code": 7}')


def test_large_requests_and_answers(call: Call, agent: Callable[..., Agent]) -> None:
    conf, answer = b'{"a": "%s"}' % (b"x" * 2_000_000), b"y" * 1_000_000
    server = agent(reply(0, answer))
    assert call(conf, CNI_COMMAND="GC") == (0, answer.decode())
    assert server.stdin == conf


def test_too_large_a_configuration_is_refused(call: Call) -> None:
    assert call(b" " * ((4 << 20) + 1), CNI_COMMAND="ADD").error == (
        6,
        "configuration on stdin: is larger than 4 MiB",
    )


def test_too_large_an_environment_is_refused(call: Call) -> None:
    assert call(CONF, CNI_COMMAND="ADD", CNI_ARGS="A=" + "x" * 70_000).error == (
        4,
        "environment of CNI_*: is larger than 64 KiB",
    )


def test_no_agent(call: Call, tmp_path: Path) -> None:
    answer = call(CONF, CNI_COMMAND="ADD")
    assert answer.error == (
        11,
        f"podwire agent at {tmp_path}/cni.sock: No such file or directory",
    )
    assert answer.json["cniVersion"] == "0.4.0"


def test_an_agent_that_died(call: Call, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "cni.sock"))
    listener.close()
    assert call(CONF, CNI_COMMAND="ADD").error[0] == 11


@pytest.mark.parametrize(
    "partial",
    [
        b"",
        b"\0\0\0",
        struct.pack("=II", 0, 100) + b"half",
        struct.pack("=II", 0, 0xFFFFFFFF),
    ],
)
def test_an_agent_that_goes_away_in_the_middle(
    call: Call, agent: Callable[..., Agent], partial: bytes
) -> None:
    agent(lambda connection: connection.sendall(partial))
    code, message = call(CONF, CNI_COMMAND="ADD").error
    assert code == 11
    assert "went away without an answer" in message


def test_a_socket_path_that_would_break_the_json(call: Call, tmp_path: Path) -> None:
    assert call(CONF, tmp_path / 'a"b\\c\n', CNI_COMMAND="ADD").error[0] == 11


def test_a_socket_path_that_is_too_long(call: Call) -> None:
    code, message = call(CONF, Path("/" + "x" * 200), CNI_COMMAND="ADD").error
    assert code == 11
    assert "path" in message


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        *((b'{"cniVersion": "%s"}' % v.encode(), v) for v in SUPPORTED_VERSIONS),
        (b'{"name":"x","cniVersion":"1.0.0"}', "1.0.0"),
        (b'{"cniVersion" \n:\t"0.3.1"}', "0.3.1"),
        (b'{"cniVersion": "0.2.0"}', "1.1.0"),
        (b'{"cniVersion": "1.0.0', "1.1.0"),
        (b'{"cniVersion": 7}', "1.1.0"),
        (b"\0\xff garbage", "1.1.0"),
        (b"", "1.1.0"),
    ],
)
def test_version_is_answered_without_the_agent(call: Call, stdin: bytes, version: str) -> None:
    answer = call(stdin, CNI_COMMAND="VERSION")
    assert answer.status == 0
    assert json.loads(answer.stdout) == {
        "cniVersion": version,
        "supportedVersions": list(SUPPORTED_VERSIONS),
    }


def test_called_by_a_person(call: Call, agent: Callable[..., Agent]) -> None:
    server = agent(reply(1, b'{"code": 4}'))
    assert call(b"").status == 1
    assert server.environment == set()
