"""`podwire capture` as a person uses it: into a file, into a pipe, until Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from podwire.lab import Lab, LabPod

from .commands import PODWIRE, Command
from .test_e2e_repair import port_of
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

_FIELDS = ("frame.interface_name", "frame.len", "frame.comment", "ip.src_host", "ip.ttl")


class Shown(NamedTuple):
    """A packet as tshark shows it; of several headers the outermost values come first."""

    interface: str
    size: int
    comment: str
    source: str
    ttl: str


class Site(NamedTuple):
    lab: Lab
    podwire: Command
    a: LabPod
    b: LabPod


@pytest.fixture(scope="module")
def site(lab: Lab) -> Site:
    if shutil.which("tshark") is None:
        pytest.fail("this test reads captures with tshark: script/setup --dev installs it")
    pods = lab.run("a", node="node1"), lab.run("b", node="node2")
    lab.wait_ready()
    assert pods[0].ping(pods[1], count=1).lost == 0
    return Site(lab, Command(lab.name), *pods)


class Running:
    """A capture that runs. What it says is kept in `told`."""

    def __init__(self, process: subprocess.Popen[bytes], told: Path) -> None:
        self.process = process
        self._told = told

    @property
    def told(self) -> str:
        return self._told.read_text()

    def end(self, number: int = signal.SIGINT) -> str:
        """End it with a signal, which has to work; what it said."""
        self.process.send_signal(number)
        assert self.process.wait(60) == 0, self.told
        return self.told


@contextmanager
def capture(
    site: Site, tmp_path: Path, *arguments: str, stdout: int | None = None
) -> Iterator[Running]:
    """A capture, from the moment when it sees everything."""
    told = tmp_path / "told"
    with told.open("wb") as stderr:
        process = subprocess.Popen(
            [str(PODWIRE), "capture", *arguments],
            env={**os.environ, "PODWIRE_LAB": site.lab.name},
            stdout=stdout,
            stderr=stderr,
        )
    try:
        until(
            lambda: "capturing at" in told.read_text() or process.poll() is not None,
            "it captures",
        )
        yield Running(process, told)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def read(file: Path, tunnel: bool = False) -> list[Shown]:
    """The capture, with the names that are in it."""
    command = ["tshark", "-N", "n", "-r", str(file), "-T", "fields", "-E", "separator=|"]
    command += [word for field in _FIELDS for word in ("-e", field)]
    if tunnel:
        command += ["-d", "udp.port==8472,vxlan"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return [Shown(row[0], int(row[1]), *row[2:]) for row in rows]


def test_everything_of_a_ping_is_in_one_file_with_names(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "all.pcapng"
    with capture(site, tmp_path, "icmp or udp port 8472", "-o", str(file)) as running:
        assert site.a.ping(site.b, count=3).lost == 0
        told = running.end()
    packets = [one for one in read(file) if one.comment]
    veths = [f"{pod.node.name}/{port_of(pod.node, pod)}" for pod in (site.a, site.b)]
    path = [
        "pod:default/a/eth0", veths[0], "node1/cni0", "node1/flannel.1", "node1/eth0",
        "node2/eth0", "node2/flannel.1", "node2/cni0", veths[1], "pod:default/b/eth0",
    ]  # fmt: skip
    assert Counter(one.interface for one in packets) == dict.fromkeys(path, 6)
    assert [one.interface for one in packets[:20]] == [*path, *reversed(path)]
    assert {one.size for one in packets if one.interface.endswith("eth0")} == {98, 148}
    request, reply = packets[0], packets[10]
    assert request.comment == "pod:default/a → pod:default/b"
    assert reply.comment == "pod:default/b → pod:default/a"
    assert (request.source, reply.source) == ("pod:default/a", "pod:default/b")
    underlay = packets[4]
    assert underlay.comment == "pod:default/a → pod:default/b,in a tunnel: node1 → node2"
    assert underlay.source == "node1"
    (decoded,) = (one for one in read(file, tunnel=True)[4:5])
    assert (decoded.source, decoded.ttl) == ("node1,pod:default/a", "64,63")
    assert "packets of 10 interfaces" in told
    assert "  6  node1/cni0\n" in told


def test_the_filter_and_the_choice_of_places_hold(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "some.pcapng"
    arguments = ["icmp[icmptype] == icmp-echo", "--node", "node2", "--pod", "a", "-o", str(file)]
    with capture(site, tmp_path, *arguments) as running:
        assert site.a.ping(site.b, count=2).lost == 0
        told = running.end(signal.SIGTERM)
    assert "capturing at pod:default/a, node2 (2 namespaces)" in told
    counts = Counter(one.interface for one in read(file))
    veth = f"node2/{port_of(site.b.node, site.b)}"
    assert counts == {
        "pod:default/a/eth0": 2, "node2/flannel.1": 2, "node2/cni0": 2, veth: 2,
    }  # fmt: skip


def test_it_ends_by_itself_after_a_count_or_a_time(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "counted.pcapng"
    with capture(site, tmp_path, "icmp", "-c", "5", "-o", str(file)) as running:
        assert site.a.ping(site.b, count=3).lost == 0
        assert running.process.wait(60) == 0
        assert "5 packets of" in running.told
    assert len(read(file)) == 5
    done = site.podwire.run("capture", "icmp", "--duration", "100ms", "-o", str(file))
    assert (done.returncode, read(file)) == (0, [])
    assert "0 packets of 0 interfaces" in done.stderr


def test_a_pipe_gets_packets_as_they_come(site: Site, tmp_path: Path) -> None:
    """Nothing ends the capture but its reader, when that has seen enough."""
    arguments = ["icmp", "--pod", "a", "-o", "-"]
    with capture(site, tmp_path, *arguments, stdout=subprocess.PIPE) as running:
        reader = subprocess.Popen(
            ["tshark", "-l", "-n", "-r", "-", "-c", "4", "-T", "fields", "-e", "frame.len"],
            stdin=running.process.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert running.process.stdout is not None
        running.process.stdout.close()  # the reader's now
        assert site.a.ping(site.b, count=2).lost == 0
        assert reader.communicate(timeout=60)[0].split() == [b"98"] * 4
        assert running.process.wait(60) == 0
        assert "4 packets of 1 interfaces" in running.told


def test_a_reader_that_stands_still_does_not_keep_it_from_ending(
    site: Site, tmp_path: Path
) -> None:
    with capture(site, tmp_path, "-o", "-", stdout=subprocess.PIPE) as running:
        flood = ["ping", "-f", "-q", "-c", "500", site.b.ip]
        assert site.a.exec(flood).returncode == 0  # more than a pipe has room for
        running.end()


def test_an_agent_that_dies_leaves_a_file_and_is_told(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "rest.pcapng"
    with capture(site, tmp_path, "icmp", "-o", str(file)) as running:
        assert site.a.ping(site.b, count=1).lost == 0
        pid = site.lab.node("node2").process("agent").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: "the agent of node2 went away" in running.told, "it is told")
        assert site.a.ping(site.b, count=1).lost == 0
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == 1, "a part is missing"
    counts = Counter(one.interface for one in read(file))
    assert counts["pod:default/a/eth0"] == 4
    until(lambda: site.lab.node("node2").process("agent").pid not in (None, pid), "a new agent")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tcp port http-that-is-none", "-o", "/dev/null"], 2, "unknown port 'http-that-is-none'"),
        (["icmp and", "-o", "/dev/null"], 2, "syntax error"),
        (["icmp"], 2, "Missing option '-o'"),
        (["-o", "/nowhere/x.pcapng"], 1, "/nowhere/x.pcapng: No such file or directory"),
        (["--pod", "none", "-o", "/dev/null"], 1, "there is no pod none"),
        (["--pod", "--node", "-o", "/dev/null"], 1, "--pod"),
        (["--node", "node7", "-o", "/dev/null"], 1, "there is no node node7"),
    ],
)
def test_mistakes_are_told(site: Site, arguments: list[str], code: int, said: str) -> None:
    done = site.podwire.run("capture", *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr
