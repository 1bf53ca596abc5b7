"""exec and logs on real pods in a lab: streams, exit codes, terminals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import secrets
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import PODWIRE

pytestmark = pytest.mark.root

CHATTY = "for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2; sleep infinity"


def container(name: str, script: str) -> dict[str, Any]:
    return {"name": name, "image": "busybox", "command": ["sh", "-c", script]}


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    """A lab of one node with one pod `a` of two containers."""
    name = f"cli-{secrets.token_hex(3)}"
    try:
        podwire(name, "lab", "up", "--name", name, "--nodes", "1")
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a"},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [container("main", CHATTY), container("other", "sleep infinity")],
            },
        }
        podwire(name, "apply", "-f", "-", stdin=json.dumps(pod).encode())
        podwire(name, "wait", "pod/a", "--for=condition=Ready", "--timeout=60s")
        yield name
    finally:
        podwire(name, "lab", "down", name)


def run(lab: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [PODWIRE, *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PODWIRE_LAB": lab},
    )


def podwire(lab: str, *arguments: str, stdin: bytes = b"") -> str:
    done = run(lab, *arguments, stdin=stdin)
    assert done.returncode == 0, done
    return done.stdout.decode()


def test_output_error_and_exit_code(lab: str) -> None:
    done = run(lab, "exec", "a", "-c", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_the_first_container_is_the_default(lab: str) -> None:
    done = run(lab, "exec", "pod/a", "--", "echo", "hello")
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    assert done.stderr == b'container "main" of main, other; choose with -c\n'
    wrong = run(lab, "exec", "a", "-c", "nothing", "--", "true")
    assert wrong.returncode == 1
    assert wrong.stderr == b'error: pod "a" has no container "nothing"\nhint: it has: main, other\n'


def test_a_pod_that_is_not_there(lab: str) -> None:
    done = run(lab, "exec", "gone", "--", "true")
    assert (done.returncode, done.stderr) == (1, b'error: pods "gone" not found\n')


def test_standard_input_to_its_end_and_back(lab: str) -> None:
    data = os.urandom(3_000_000)
    done = run(lab, "exec", "-i", "a", "-c", "main", "--", "cat", stdin=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_without_i_the_command_has_no_input(lab: str) -> None:
    done = run(lab, "exec", "a", "-c", "main", "--", "cat", stdin=b"unread")
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_command_that_ends_first_ends_exec(lab: str) -> None:
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [PODWIRE, "--lab", lab, "exec", "-i", "a", "-c", "main", "--", "true"],
            stdin=reader,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_ctrl_c_ends_exec(lab: str) -> None:
    process = subprocess.Popen(
        [PODWIRE, "--lab", lab, "exec", "a", "-c", "main", "--", "sh", "-c", "echo on; sleep 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "")


class Terminal:
    """A pseudo-terminal with `podwire exec -it` on it."""

    def __init__(self, lab: str, *command: str, rows: int, columns: int) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            [PODWIRE, "--lab", lab, "exec", "-it", "a", "-c", "main", "--", *command],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=self._take_terminal,
            env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")},
        )
        self._seen = b""

    def _take_terminal(self) -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> None:
        """Read until `text` appears."""
        deadline = time.monotonic() + 60
        while text.encode() not in self._seen:
            readable, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert readable, self._seen
            self._seen += os.read(self._master, 4096)
        self._seen = self._seen.partition(text.encode())[2]

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


def test_a_terminal_is_passed_on(lab: str) -> None:
    script = (
        'size() { until [ "$(stty size)" = "$1" ]; do sleep 0.05; done; echo it is $1; };'
        "size '33 99'; size '44 111'; read line; echo got $line; read line || exit 5"
    )
    terminal = Terminal(lab, "sh", "-c", script, rows=33, columns=99)
    try:
        terminal.expect("it is 33 99")
        terminal.resize(44, 111)
        terminal.expect("it is 44 111")
        terminal.type("one\r")
        terminal.expect("got one")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 5
        assert terminal.settings() == terminal.before
    finally:
        terminal.close()


def test_ctrl_c_goes_to_the_command(lab: str) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    terminal = Terminal(lab, "sh", "-c", script, rows=24, columns=80)
    try:
        terminal.expect("ready")
        terminal.type("\x03")
        terminal.expect("caught")
        assert terminal.process.wait(60) == 9
        assert terminal.settings() == terminal.before
    finally:
        terminal.close()


def test_t_without_a_terminal_is_left_out(lab: str) -> None:
    done = run(lab, "exec", "-it", "a", "-c", "main", "--", "cat", stdin=b"x")
    assert (done.returncode, done.stdout) == (0, b"x")
    assert b"no terminal" in done.stderr


def test_logs(lab: str) -> None:
    assert podwire(lab, "logs", "a", "-c", "main").splitlines() == [
        *(f"line {number}" for number in range(1, 6)),
        "oops",
    ]
    assert podwire(lab, "logs", "a", "-c", "main", "--tail", "2") == "line 5\noops\n"
    assert podwire(lab, "logs", "a", "-c", "other") == ""


def test_logs_follow_until_the_container_ends(lab: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "short"},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                container("main", "echo one; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo two")
            ],
        },
    }
    podwire(lab, "apply", "-f", "-", stdin=json.dumps(pod).encode())
    podwire(lab, "wait", "pod/short", "--for=condition=Ready")
    process = subprocess.Popen(
        [PODWIRE, "--lab", lab, "logs", "-f", "short"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    podwire(lab, "exec", "short", "--", "touch", "/tmp/go")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "two\n")
    podwire(lab, "wait", "pod/short", "--for=jsonpath={.status.phase}=Succeeded")
    podwire(lab, "exec", "a", "-c", "main", "--", "rm", "-f", "/tmp/go")


def test_a_lab_that_is_not_there_is_named(lab: str) -> None:
    done = run("no-such-lab", "get", "pods")
    assert done.returncode == 1
    assert b'no lab is named "no-such-lab"' in done.stderr
