"""The operator socket of a running agent: who may, what goes wrong, and that nothing is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from podwire.errors import AgentAwayError, PodwireError
from podwire.kernel import netns
from podwire.model.probe import Probe
from podwire.trace.records import Frame
from podwire.trace.wire import (
    Capture,
    Done,
    Failed,
    Fire,
    Frames,
    Hold,
    Observing,
    Prepare,
    Stop,
    Stopped,
    Welcome,
    pack,
    unpack_response,
)

from ..cluster.api_process import ApiProcess
from ..conftest import namespaces
from ..e2e.waiting import until
from .conftest import AgentProcess, Cluster, agents, write_kubeconfig
from .operating import NOWHERE, connected, left, nothing_left, observe, prepare, raw
from .test_agent_process import FLANNELS, PREFIX

pytestmark = pytest.mark.root

_ROUTES = "ip route show proto 112"
_VTEP_3 = {PREFIX + "backend-data": '{"VNI":1,"VtepMAC":"d6:2f:4b:4e:5a:13"}'}
PUBLIC_IP = PREFIX + "public-ip"


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent that is ready, for tests that leave it so."""
    directory = tmp_path_factory.mktemp("standing")
    with (
        ApiProcess(directory / "api") as api,
        namespaces() as make_namespace,
        agents(
            make_namespace, directory, write_kubeconfig(directory / "config", api.socket)
        ) as make,
    ):
        Cluster(api).add_node("node1")
        yield make("node1").start().wait_ready()


@pytest.fixture
def ready(cluster: Cluster, agent: AgentProcess) -> AgentProcess:
    cluster.add_node("node1")
    return agent.start().wait_ready()


def receive(sock: socket.socket) -> object:
    """The next message of a bare connection, None at its end."""
    head = sock.recv(4)
    if not head:
        return None
    (length,) = struct.unpack("!I", head)
    body = bytearray()
    while len(body) < length:
        body += sock.recv(length - len(body))
    return unpack_response(bytes(body))


async def test_the_greeting_says_who_it_is(standing: AgentProcess) -> None:
    async with connected(standing) as connection:
        said = connection.welcome
    assert (said.node, said.not_ready, said.held) == ("node1", "", False)
    assert said.network == ("10.244.0.0/16",)
    assert (said.underlay, said.bridge, said.tunnel) == ("172.18.0.11", "cni0", "flannel.1")
    assert (said.tunnel_port, said.mtu) == (8472, 1450)
    assert said.clock == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def test_an_agent_that_is_not_ready_says_why(agent: AgentProcess, cluster: Cluster) -> None:
    agent.start().wait_not_ready("does not exist")
    async with connected(agent) as connection:
        assert "node1 does not exist" in connection.welcome.not_ready
        with pytest.raises(PodwireError, match="nothing to hold yet"):
            await connection.call(Hold(id=0, on=True))


# --- who may ------------------------------------------------------------------------------------


@pytest.fixture
def open_to_all(standing: AgentProcess) -> Iterator[Path]:
    """The socket, where whoever wants may connect to it."""
    directory = Path(tempfile.mkdtemp(prefix="podwire-test-"))
    try:
        directory.chmod(0o755)
        os.link(standing.home / "run" / "operator.sock", directory / "operator.sock")
        (directory / "operator.sock").chmod(0o666)
        yield directory / "operator.sock"
    finally:
        shutil.rmtree(directory)


def test_the_socket_is_for_its_owner(standing: AgentProcess) -> None:
    assert (standing.home / "run" / "operator.sock").stat().st_mode & 0o777 == 0o600


def test_another_user_is_sent_away_whatever_the_mode(open_to_all: Path) -> None:
    script = f"""
import socket
s = socket.socket(socket.AF_UNIX); s.connect({str(open_to_all)!r}); s.settimeout(60)
data = b""
while piece := s.recv(4096): data += piece
print(data.hex())
"""
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=True,
    )
    frame = bytes.fromhex(done.stdout)
    (length,) = struct.unpack("!I", frame[:4])
    assert len(frame) == 4 + length, "one message, then the end"
    assert unpack_response(frame[4:]) == Failed(
        to=0, message="user 65534 may not ask", remedy="use sudo"
    )


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_request_of_a_later_version_fails_and_the_session_goes_on(standing: AgentProcess) -> None:
    with raw(standing) as sock:
        assert isinstance(receive(sock), Welcome)
        body = msgspec.msgpack.encode({"type": "Juggle", "id": 7})
        sock.sendall(struct.pack("!I", len(body)) + body)
        answer = receive(sock)
        assert isinstance(answer, Failed)
        assert (answer.to, "Juggle" in answer.message) == (7, True)
        sock.sendall(pack(Hold(id=8, on=False)))
        assert receive(sock) == Done(to=8)


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", struct.pack("!I", 3) + b"abc"]
)
def test_what_is_no_frame_ends_the_session(standing: AgentProcess, garbage: bytes) -> None:
    with raw(standing) as sock:
        assert isinstance(receive(sock), Welcome)
        sock.sendall(garbage)
        assert receive(sock) is None
    assert standing.http.not_ready is None


async def test_requests_out_of_order_say_so(standing: AgentProcess) -> None:
    async with connected(standing) as connection:
        with pytest.raises(PodwireError, match="no probe is prepared"):
            await connection.call(Fire(id=0))
        with pytest.raises(PodwireError, match="observes nothing"):
            await connection.call(Stop(id=0))
        match = await prepare(connection)
        with pytest.raises(PodwireError, match="prepared already"):
            await prepare(connection)
        await observe(connection, match)
        with pytest.raises(PodwireError, match="observed already"):
            await observe(connection, match)


async def test_a_pod_that_is_not_here_can_send_nothing(standing: AgentProcess) -> None:
    async with connected(standing) as connection:
        with pytest.raises(PodwireError, match="pod default/x is not attached"):
            probe = Probe(target="10.244.1.9")
            await connection.call(Prepare(id=0, probe=probe, pod="default/x"))
        with pytest.raises(PodwireError, match="pod default/x is not attached"):
            await connection.call(Capture(id=0, pods=("default/x",)))


async def test_a_stack_without_a_way_is_told_with_its_errno(standing: AgentProcess) -> None:
    async with connected(standing) as connection:
        prepared = await connection.call(Prepare(id=0, probe=Probe(target="192.0.2.1")))
        assert prepared.refused is not None
        assert (prepared.refused.outcome, prepared.refused.errno) == ("error", 101)


async def test_a_wrong_filter_is_told(standing: AgentProcess) -> None:
    async with connected(standing) as connection:
        with pytest.raises(PodwireError, match="FILTER"):
            await connection.call(Capture(id=0, filter="icmp and and"))
    nothing_left(standing)


# --- what is seen -------------------------------------------------------------------------------


async def test_what_is_watched_for_is_seen_and_nothing_else(standing: AgentProcess) -> None:
    async with connected(standing) as connection:
        match = await prepare(connection, timeout_s=0.05)
        assert await observe(connection, match) == ()
        standing.namespace.run("ping -c 1 -W 0.1 172.18.0.98", check=False)
        (result,) = (await connection.call(Fire(id=0))).results
        await connection.call(Stop(id=0))
        assert result.outcome in ("timeout", "error")
        frames: list[Frame] = []
        while not connection.events.empty():
            event = connection.events.get_nowait()
            if isinstance(event, Frames):
                frames += event.frames
        # ARP requests are all that leaves for an address that nobody has.
        asked = {frame.data[38:42] for frame in frames if frame.data[12:14] == b"\x08\x06"}
        assert asked == {bytes(map(int, NOWHERE.split(".")))}


def test_a_slow_reader_is_told_what_it_missed(standing: AgentProcess) -> None:
    """The agent neither waits for an operator who does not read, nor keeps it all for it."""
    count = 30_000
    with raw(standing) as slow, inside(standing) as sender:
        assert isinstance(receive(slow), Welcome)
        slow.sendall(pack(Capture(id=1, filter="udp port 9")))
        assert isinstance(receive(slow), Observing)
        for _ in range(count):
            sender.sendto(bytes(1000), ("127.0.0.1", 9))
        assert standing.http.not_ready is None
        slow.sendall(pack(Stop(id=2)))
        seen = lost = 0
        while isinstance(event := receive(slow), Frames):
            seen += len(event.frames)
            lost += event.lost
        assert event == Stopped(to=2)
    assert seen + lost == 2 * count, "lo shows each on its way out and in"
    assert seen > 0
    assert lost > 0
    nothing_left(standing)


@contextmanager
def inside(agent: AgentProcess) -> Iterator[socket.socket]:
    """A UDP socket in the agent's namespace."""
    fd = netns.open_netns(agent.namespace.path)
    try:
        with netns.entered(fd):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        os.close(fd)
    with sock:
        yield sock


# --- the end ------------------------------------------------------------------------------------


async def test_what_a_session_opens_is_there_and_goes_with_it(standing: AgentProcess) -> None:
    async with connected(standing) as connection:
        match = await prepare(connection)
        assert await observe(connection, match) == ()
        assert left(standing).keys() == {
            "packet sockets",
            "sockets of probes",
            "nft tables",
            "eBPF",
        }
    nothing_left(standing)


async def test_a_probe_that_waits_ends_with_its_session(standing: AgentProcess) -> None:
    async with connected(standing) as connection:
        match = await prepare(connection, timeout_s=600)
        await observe(connection, match)
        firing = asyncio.create_task(connection.call(Fire(id=0)))
        await connection.events.get()
        await connection.close()
        with pytest.raises(AgentAwayError):
            await firing
    nothing_left(standing)


async def test_a_session_that_ends_while_taps_are_opened_leaves_nothing(
    standing: AgentProcess,
) -> None:
    for _ in range(5):
        async with connected(standing) as connection:
            match = await prepare(connection)
            opening = asyncio.create_task(observe(connection, match))
            await asyncio.sleep(0)
            opening.cancel()
    nothing_left(standing)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_an_agent_that_ends_leaves_nothing_of_its_sessions(
    ready: AgentProcess, number: signal.Signals
) -> None:
    async with connected(ready) as connection:
        match = await prepare(connection, timeout_s=600)
        await observe(connection, match)
        firing = asyncio.create_task(connection.call(Fire(id=0)))
        await connection.events.get()
        assert ready.process is not None
        ready.process.send_signal(number)
        with pytest.raises(AgentAwayError, match="went away"):
            await firing
    code = await asyncio.to_thread(ready.process.wait, 20)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    nothing_left(ready)


async def test_sessions_are_told_apart(standing: AgentProcess) -> None:
    async with connected(standing) as one, connected(standing) as other:
        matches = [await prepare(each) for each in (one, other)]
        assert matches[0].ident != matches[1].ident
        for each, match in zip((one, other), matches, strict=True):
            await observe(each, match)
        await one.close()
        await other.call(Stop(id=0))
    nothing_left(standing)


# --- holding ------------------------------------------------------------------------------------


async def test_a_held_agent_mends_nothing_until_it_resumes(
    cluster: Cluster, ready: AgentProcess
) -> None:
    await asyncio.to_thread(cluster.add_node, "node2", FLANNELS)
    until(lambda: ready.namespace.run(_ROUTES), "node2 has its route")
    before = ready.namespace.run(_ROUTES)
    async with connected(ready) as connection:
        await connection.call(Hold(id=0, on=True))
        ready.namespace.run("ip route flush proto 112; ip link set cni0 down")
        third = {**FLANNELS, PUBLIC_IP: "172.18.0.13", **_VTEP_3}
        await asyncio.to_thread(cluster.add_node, "node3", third)
        until(lambda: any("node3" in one["object"] for one in ready.http.plan()["desired"]), "seen")
        assert ready.namespace.run(_ROUTES) == ""
        assert ready.http.plan()["held"]
        assert len(ready.http.plan()["changes"]) >= 4
        assert ready.http.metric("podwire_held") == 1
        assert ready.http.not_ready is None
    # To be held is not bound to a session.
    async with connected(ready) as connection:
        assert connection.welcome.held
        await connection.call(Hold(id=0, on=False))
    until(lambda: not ready.http.plan()["changes"], "all is mended")
    assert set(before.splitlines()) < set(ready.namespace.run(_ROUTES).splitlines())
    assert ready.http.metric("podwire_held") == 0
    assert not ready.http.plan()["held"]


async def test_a_held_agent_is_not_held_after_a_restart(ready: AgentProcess) -> None:
    async with connected(ready) as connection:
        await connection.call(Hold(id=0, on=True))
    ready.namespace.run("ip link delete cni0")
    assert ready.stop() == 0
    ready.start().wait_ready()
    assert not ready.http.plan()["held"]
    assert not ready.http.plan()["changes"]
