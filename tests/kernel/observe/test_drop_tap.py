"""What a drop tap takes, what it leaves, and how it says what this machine lacks."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import bpf
from podwire.kernel.ebpf import Program, Reg
from podwire.kernel.observe import btf
from podwire.kernel.observe.drops import DropTap
from podwire.model.probe import ProbeMatch, Protocol

pytestmark = pytest.mark.root

MATCH = ProbeMatch(protocol="icmp", source="10.97.1.2", target="10.97.2.2", ident=7)


def test_nothing_is_left_of_a_process_that_is_killed() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD.format(match=MATCH)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        held = _bpf_ids(child.pid)
        assert {kind for kind, _ in held} == {"map_id", "prog_id"}
        assert all(_exists(*one) for one in held)
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 60
    while left := [one for one in held if _exists(*one)]:
        assert time.monotonic() < deadline, f"left: {left}"
        select.select([], [], [], 0.01)


_HOLD = """
import sys
from podwire.kernel.observe.drops import DropTap
from podwire.model.probe import ProbeMatch, Protocol
tap = DropTap({match!r})
print("open", flush=True)
sys.stdin.read()
"""


def _bpf_ids(pid: int) -> set[tuple[str, int]]:
    """Of the maps that a process has open, and of the programs that it has attached."""
    found = set()
    for one in Path(f"/proc/{pid}/fdinfo").iterdir():
        for line in one.read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("map_id", "prog_id"):
                found.add((key, int(value)))
    return found


def _exists(kind: str, number: int) -> bool:
    command = {"prog_id": 13, "map_id": 14}[kind]  # BPF_PROG_GET_FD_BY_ID, BPF_MAP_…
    try:
        os.close(bpf.call(command, struct.pack("III", number, 0, 0), kind))
    except UnsupportedError:
        return False
    return True


@pytest.mark.parametrize("ports", [((), ()), ((), (8285,)), ((8472,), ()), ((8472, 4789), (8285,))])
@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_every_fabric_has_a_program_that_the_kernel_takes(
    protocol: Protocol, ports: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    """The verifier refuses code that nothing leads to, such as what opens tunnels that are not
    there."""
    vxlan, bare = ports
    match = msgspec.structs.replace(
        MATCH,
        protocol=protocol,
        port=None if protocol == "icmp" else 80,
        tunnel_ports=vxlan,
        bare_ports=bare,
        translated=True,
        neighbors=("10.97.1.1",),
    )
    for one in (
        match,
        msgspec.structs.replace(match, source="fd00:97:1::2", target="fd00:97:2::2"),
    ):
        with DropTap(one) as tap:
            assert tap.read() == []


def test_closing_twice_is_fine_and_leaves_no_descriptor() -> None:
    before = _open_descriptors()
    with DropTap(MATCH) as tap:
        assert tap.read() == []
        tap.close()
        assert tap.read() == []
    assert _open_descriptors() == before


def test_a_ring_that_cannot_be_mapped_leaves_no_descriptor() -> None:
    before = _open_descriptors()
    with pytest.raises(KernelError, match="ring buffer"):
        bpf.RingBuffer(os.open("/dev/null", os.O_RDWR), 4096)
    assert _open_descriptors() == before


def _open_descriptors() -> set[str]:
    return {one.name for one in Path("/proc/self/fd").iterdir()}


def test_who_may_not_is_told() -> None:
    script = f"""
import os
from podwire.errors import UnsupportedError
from podwire.kernel.observe.drops import DropTap
from podwire.model.probe import ProbeMatch, Protocol
os.setuid(65534)
try:
    DropTap({MATCH!r})
except UnsupportedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "Operation not permitted" in done.stdout
    assert "CAP_BPF and CAP_PERFMON" in done.stdout


def test_a_locked_down_kernel_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lockdown").write_text("none integrity [confidentiality]\n")
    monkeypatch.setattr(bpf, "LOCKDOWN", tmp_path / "lockdown")
    with pytest.raises(UnsupportedError, match="locked down"):
        DropTap(MATCH)


def test_a_kernel_without_type_information_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="No such file"):
        btf.load(tmp_path / "vmlinux")


def test_what_the_verifier_says_is_told() -> None:
    program = Program()
    program.mov(Reg.R0, Reg.R3)
    program.exit()
    with pytest.raises(UnsupportedError, match="R3 !read_ok"):
        bpf.load_raw_tracepoint("podwire_test", program.assemble(), "GPL")


def test_an_unknown_tracepoint_is_told() -> None:
    program = Program()
    program.mov(Reg.R0, 0)
    program.exit()
    fd = bpf.load_raw_tracepoint("podwire_test", program.assemble(), "GPL")
    try:
        with pytest.raises(UnsupportedError, match="tracepoint podwire: No such file"):
            bpf.attach_raw_tracepoint(fd, "podwire")
    finally:
        os.close(fd)
