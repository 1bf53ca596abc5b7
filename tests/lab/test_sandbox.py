"""Namespaces, processes and sandboxes on their own."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from podwire.errors import LabError
from podwire.lab import namespaces as ns
from podwire.lab import processes, sandbox
from podwire.lab.nodes import PATH
from podwire.lab.processes import Process
from podwire.lab.sandbox import Sandbox

ENV = {"PATH": PATH}


def output_of(argv: list[str], **options: object) -> str:
    """What a program that is spawned writes to standard output."""
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        pid = ns.spawn(argv, env=ENV, stdio=(null, write, 2), **options)  # type: ignore[arg-type]
    finally:
        os.close(write)
        os.close(null)
    with open(read) as pipe:  # noqa: PTH123 - a descriptor
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


# -- namespaces ------------------------------------------------------------------------------------


def test_a_program_that_does_not_exist_is_an_oserror_here() -> None:
    with pytest.raises(FileNotFoundError):
        ns.spawn(["no-such-program"], env=ENV)


def test_what_fails_before_the_program_runs_is_raised_here() -> None:
    def fail() -> None:
        raise PermissionError(1, "on purpose")

    with pytest.raises(PermissionError, match="on purpose"):
        ns.spawn(["true"], env=ENV, setup=fail)


def test_signals_are_as_a_program_expects_them() -> None:
    status = output_of(["grep", "-E", "^(SigIgn|SigBlk)", "/proc/self/status"])
    assert [line.split()[1] for line in status.splitlines()] == ["0" * 16, "0" * 16]


@pytest.mark.root
def test_program_in_new_namespaces_is_pid_1_and_our_child() -> None:
    wanted = ns.NEW_PID | ns.NEW_MOUNT | ns.NEW_UTS
    assert output_of(["sh", "-c", "echo $$"], new_namespaces=wanted) == "1\n"
    assert Path("/proc/self/ns/pid_for_children").readlink() == Path("/proc/self/ns/pid").readlink()


@pytest.mark.root
def test_parent_death_signal_ends_the_child() -> None:
    script = (
        "import os, sys; from podwire.lab import namespaces as ns;"
        f"print(ns.spawn(['sleep', '1000'], env={ENV!r}, death_signal=9), flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    child = Process.of(int(done.stdout))
    if child is not None:
        fd = child.open()
        assert fd is None or processes._wait({fd: child}, 5.0) == {}


# -- processes -------------------------------------------------------------------------------------


def test_a_process_is_told_from_another_with_its_pid() -> None:
    me = Process.unreaped(os.getpid())
    assert me.alive
    assert not Process(me.pid, me.started + 1).alive
    assert Process(me.pid, me.started + 1).open() is None
    assert Process.parse(str(me)) == me
    assert Process.parse("12") is None


def test_a_thread_that_has_the_pid_by_now_is_no_process() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        gone = Process(thread.native_id, 1)
        assert gone.open() is None
        assert gone.open_even_ended() is None
        assert processes.end([gone]) == []
    finally:
        done.set()
        thread.join()


def test_end_is_gentle_first_and_certain_then() -> None:
    gentle = subprocess.Popen(["sleep", "1000"])
    script = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    stubborn = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    assert processes.end([Process.unreaped(p.pid) for p in (gentle, stubborn)], grace_s=0.2) == []
    assert (gentle.wait(), stubborn.wait()) == (-signal.SIGTERM, -signal.SIGKILL)
    stubborn.stdout.close()


def test_marked_finds_by_environment() -> None:
    env = {**ENV, processes.LAB_ID: "the-id", processes.LAB_PROCESS: "api"}
    child = subprocess.Popen(["sleep", "1000"], env=env)
    try:
        assert processes.marked("the-id") == {Process.unreaped(child.pid): "api"}
        assert processes.marked("the-i") == {}
    finally:
        child.kill()
        child.wait()


# -- sandboxes -------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Sandbox]:
    for name in sandbox.POD_FILES:
        (tmp_path / name).write_text(f"the pod's {name}\n")
    sandbox.NETNS_DIR.mkdir(exist_ok=True)
    made = sandbox.create(tmp_path, "a-pod")
    try:
        yield made
    finally:
        sandbox.destroy(made)
        os.waitpid(made.pid, 0)


def run_in(made: Sandbox, script: str) -> str:
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    pid = sandbox.run(made, ["sh", "-c", script], env=ENV, stdio=(null, write, write))
    os.close(write)
    os.close(null)
    with open(read) as pipe:  # noqa: PTH123 - a descriptor
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.root
def test_sandbox_has_namespaces_of_its_own(made: Sandbox) -> None:
    assert made.alive
    mine, its = processes.namespaces(os.getpid()), processes.namespaces(made.pid)
    assert not mine & its
    assert ("net", Path(made.netns).stat().st_ino) in its
    assert run_in(made, "hostname; cat /etc/hosts; ls /sys/class/net") == (
        "a-pod\nthe pod's hosts\nlo\n"
    )


@pytest.mark.root
def test_sandbox_reaps_what_its_processes_leave(made: Sandbox) -> None:
    left = run_in(made, "(sleep 0.01 &) ; sleep 0.1; ps -e -o stat=")
    assert "Z" not in left


@pytest.mark.root
def test_ended_sandbox_takes_its_processes_along(made: Sandbox) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    pid = sandbox.run(made, ["sleep", "1000"], env=ENV, stdio=(null, null, null))
    os.close(null)
    sandbox.destroy(made)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not Path(made.netns).exists()
    sandbox.destroy(made)
    os.waitid(os.P_PID, made.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(LabError, match="has ended"):
        sandbox.run(made, ["true"], env=ENV)


@pytest.mark.root
def test_sandbox_of_another_life_of_the_node_is_dead(made: Sandbox) -> None:
    import msgspec

    earlier = msgspec.structs.replace(made, life="another boot/1", netns="")
    assert not earlier.alive
    sandbox.destroy(earlier)
    assert made.alive, "its PID was not taken for the other's"
