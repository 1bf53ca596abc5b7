"""`podwire agent relay`: bytes both ways, and its end with either side."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import PODWIRE


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "operator.sock"))
        sock.listen()
        sock.settimeout(60)
        yield sock


@contextmanager
def relay(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [str(PODWIRE), "agent", "relay", "--socket", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_exactly(process: subprocess.Popen[bytes], size: int) -> bytes:
    assert process.stdout is not None
    data = b""
    while len(data) < size:
        data += process.stdout.read(size - len(data)) or b""
    return data


def test_bytes_go_both_ways_whole(listener: socket.socket, tmp_path: Path) -> None:
    with relay(tmp_path / "operator.sock") as process:
        agent, _ = listener.accept()
        assert process.stdin is not None
        # More than one piece, and less than the kernel keeps for those who do not read yet.
        there, back = bytes(range(256)) * 300, bytes(range(255, -1, -1)) * 300
        agent.sendall(back[:10])
        assert read_exactly(process, 10) == back[:10]
        process.stdin.write(there)
        received = b""
        while len(received) < len(there):
            received += agent.recv(65536)
        assert received == there
        agent.sendall(back[10:])
        assert read_exactly(process, len(back) - 10) == back[10:]


def test_it_ends_when_its_input_does(listener: socket.socket, tmp_path: Path) -> None:
    with relay(tmp_path / "operator.sock") as process:
        agent, _ = listener.accept()
        agent.settimeout(60)
        assert process.stdin is not None
        process.stdin.close()
        assert agent.recv(1) == b""
        assert process.wait(60) == 0


def test_it_ends_when_nobody_reads_it(listener: socket.socket, tmp_path: Path) -> None:
    with relay(tmp_path / "operator.sock") as process:
        listener.accept()
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 0


def test_it_ends_with_the_agent(listener: socket.socket, tmp_path: Path) -> None:
    with relay(tmp_path / "operator.sock") as process:
        agent, _ = listener.accept()
        agent.close()
        assert process.wait(60) == 0


def test_without_an_agent_it_says_so(tmp_path: Path) -> None:
    with relay(tmp_path / "operator.sock") as process:
        assert process.wait(60) == 1
        assert process.stderr is not None
        text = process.stderr.read().decode()
    assert "no agent listens" in text
    assert "No such file" in text
