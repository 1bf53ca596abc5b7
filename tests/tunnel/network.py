"""Two nodes with a pod each, and the tunnel's process on both: pod1 - node1 === node2 - pod2.

Node N has 192.0.2.N and 2001:db8::N on the underlay and leases 10.244.N.0/24 and fd00:244:N::/64;
its pod has .2 (::2) of them. A second underlay address of node2, 192.0.2.3, is a peer that leases
10.244.3.0/24 and whose datagrams the test itself receives and sends.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from podwire.kernel import netns
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.tun import create_tun
from podwire.model.tunnel import (
    Answer,
    Configure,
    Done,
    GetStats,
    Ready,
    Request,
    Stats,
    TunnelConfig,
    TunnelPeer,
)
from podwire.tunnel.control import Frames, pack
from podwire.tunnel.noise import StaticKey
from tests.conftest import Namespace, namespaces
from tests.tunnel.packets import checksum

PATIENCE_S = 60
KEYS = {number: bytes([number]) * 32 for number in (1, 2, 3)}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@contextmanager
def inside(where: Namespace) -> Iterator[None]:
    fd = netns.open_netns(where.path)
    try:
        with netns.entered(fd):
            yield
    finally:
        os.close(fd)


class Controller:
    """The agent's side, without an event loop."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))
        self._frames: Frames[Answer] = Frames(Answer)

    def ask(self, request: Request) -> Answer:
        self._socket.sendall(pack(request))
        while True:
            data = self._socket.recv(1 << 16)
            assert data, "the tunnel has hung up"
            for answer in self._frames.feed(data):
                return answer

    def is_closed(self) -> bool:
        return self._socket.recv(1) == b""

    def close(self) -> None:
        self._socket.close()


class Node:
    """One end: its namespaces, its process, and who controls it."""

    def __init__(self, number: int, node: Namespace, pod: Namespace, root: Path) -> None:
        self.number, self.node, self.pod = number, node, pod
        self.path = root / f"tunnel{number}.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.controller: Controller | None = None

    def start(self, *options: str) -> None:
        command = ["ip", "netns", "exec", self.node.name, sys.executable, "-m", "podwire.tunnel"]
        self.process = subprocess.Popen([*command, "--socket", str(self.path), *options])
        until(self.is_listening, "the tunnel does not listen")
        self.connect()

    def is_listening(self) -> bool:
        assert self.process is not None and self.process.poll() is None, "the tunnel has ended"
        try:
            Controller(self.path).close()
        except OSError:
            return False
        return True

    def connect(self) -> None:
        self.controller = Controller(self.path)

    def ask(self, request: Request) -> Answer:
        assert self.controller is not None
        return self.controller.ask(request)

    def configure(self, config: TunnelConfig, *peers: TunnelPeer) -> Ready:
        answer = self.ask(Configure(config, peers))
        assert isinstance(answer, Ready), answer
        return answer

    def tell(self, request: Request) -> None:
        assert self.ask(request) == Done()

    def stats(self) -> Stats:
        answer = self.ask(GetStats())
        assert isinstance(answer, Stats), answer
        return answer

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.stats().drops.items() if count}

    def stop(self) -> None:
        if self.controller is not None:
            self.controller.close()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)


class Network:
    """Both ends."""

    def __init__(self, one: Node, two: Node) -> None:
        self.one, self.two = one, two

    def start(self, *options: str, version: int = 4, encrypt: bool = False) -> None:
        for end in (self.one, self.two):
            end.start(*options)
            self.configure(end, version=version, encrypt=encrypt)

    def configure(self, end: Node, *, version: int = 4, encrypt: bool = False) -> Ready:
        other = self.two if end is self.one else self.one
        peers = [peer_of(other.number, version=version, encrypt=encrypt)]
        if end is self.one and version == 4 and not encrypt:
            peers.append(TunnelPeer(name="node3", subnets=("10.244.3.0/24",), address="192.0.2.3"))
        return end.configure(config_of(end.number, version=version, encrypt=encrypt), *peers)

    def stop(self) -> None:
        self.one.stop()
        self.two.stop()


def underlay(number: int, version: int) -> str:
    return f"192.0.2.{number}" if version == 4 else f"2001:db8::{number}"


def config_of(number: int, *, version: int = 4, encrypt: bool = False) -> TunnelConfig:
    return TunnelConfig(
        dev="flannel0",
        local=(underlay(number, version),),
        subnets=(f"10.244.{number}.0/24", f"fd00:244:{number}::/64"),
        private_key=KEYS[number] if encrypt else None,
        require_encryption=encrypt,
    )


def peer_of(number: int, *, version: int = 4, encrypt: bool = False) -> TunnelPeer:
    return TunnelPeer(
        name=f"node{number}",
        subnets=(f"10.244.{number}.0/24", f"fd00:244:{number}::/64"),
        address=underlay(number, version),
        public_key=StaticKey(KEYS[number]).public if encrypt else None,
    )


@contextmanager
def network() -> Iterator[Network]:
    with namespaces() as make, tempfile.TemporaryDirectory(prefix="pwt-tunnel-") as root:
        ends = [Node(number, make(), make(), Path(root)) for number in (1, 2)]
        one, two = ends
        one.node.run(f"ip link add eth0 type veth peer name eth0 netns {two.node.name}")
        two.node.run("ip address add 192.0.2.3/24 dev eth0")
        for end in ends:
            _wire(end)
        made = Network(one, two)
        try:
            yield made
        finally:
            made.stop()


def _wire(end: Node) -> None:
    number, node, pod = end.number, end.node, end.pod
    node.run(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1;"
        f"ip address add 192.0.2.{number}/24 dev eth0;"
        f"ip address add 2001:db8::{number}/64 dev eth0 nodad; ip link set eth0 up;"
        f"ip link add pod mtu 1472 type veth peer name eth0 mtu 1472 netns {pod.name};"
        f"ip address add 10.244.{number}.1/24 dev pod;"
        f"ip address add fd00:244:{number}::1/64 dev pod nodad; ip link set pod up"
    )
    pod.run(
        f"ip address add 10.244.{number}.2/24 dev eth0;"
        f"ip address add fd00:244:{number}::2/64 dev eth0 nodad; ip link set eth0 up;"
        f"ip route add default via 10.244.{number}.1;"
        f"ip -6 route add default via fd00:244:{number}::1"
    )
    with inside(node), NetlinkSocket() as sock:
        create_tun(sock, "flannel0", mtu=1472)
    node.run(
        f"ip link set flannel0 up; ip address add 10.244.{number}.0/32 dev flannel0;"
        f"ip address add fd00:244:{number}::/128 dev flannel0 nodad;"
        "ip route add 10.244.0.0/16 dev flannel0; ip -6 route add fd00:244::/32 dev flannel0"
    )


def forge(where: Namespace, payload: bytes, source: str = "192.0.2.2", port: int = 8285) -> None:
    """Send node1 a datagram that any process with CAP_NET_RAW could send."""
    udp = struct.pack("!HHHH", port, 8285, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton("192.0.2.1")
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    with inside(where), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(head + udp, ("192.0.2.1", 0))
