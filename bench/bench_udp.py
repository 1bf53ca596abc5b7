#!/usr/bin/env python3
"""The UDP tunnel between pods on two nodes: throughput, latency and small packets.

Four pairs of nodes of the same make: one with the tunnel's process on each, one with the same and
encryption, one with the plainest loop in C (`packet_loop.c`), which is what Flannel's udp backend
does, and one with VXLAN set up by hand, the kernel's own way to do the same. The underlay is a
veth, so nothing but the processors limits anything: two nodes, two pods and what is measured share
the machine's cores. Each round sets everything up anew, since two set-ups of the very same differ
for as long as they live. What is compared follows each other, in random order; latency comes
first, since for some seconds after everything was busy all of it is slower.

Latency is half of a round trip, as ping tells it of echoes that follow each other, and, in the line
below, as a process sees it that sends one and waits for it, its own part included.

A flood is sent as fast as one process can, far more than gets through, so that what is delivered is
what is left under overload; and at the rate that has to be reached, with what was lost on the way.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import multiprocessing
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.bursts import latency_us
from bench.flood import flooding
from bench.harness import namespaces, sh, show, spread, wait_for
from bench.two_nodes import by_hand
from podwire.kernel import netns
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.tun import create_tun
from podwire.model.tunnel import Configure, Ready, TunnelConfig, TunnelPeer
from podwire.plan.wiring.pods import gso_max_size
from podwire.tunnel.client import command
from podwire.tunnel.control import Frames, pack
from podwire.tunnel.noise import StaticKey

KINDS = ("vxlan", "loop", "tunnel", "sealed")
ROUNDS = 5
SECONDS = 3
ECHOES = 20_000
FLOOD_S = 2.0
WANTED = 150_000
#: 64 bytes of payload.
SMALL = b"x" * 64
PORT = 9000
MTU = 1472

_spawn = multiprocessing.get_context("spawn")


class Pair:
    """Two nodes and their pods; `target` is the second pod's address."""

    def __init__(self, nodes: tuple[str, str], pods: tuple[str, str], target: str) -> None:
        self.nodes, self.pods, self.target = nodes, pods, target


def wire(nodes: tuple[str, str]) -> None:
    """A veth between the nodes: 172.18.0.11 and .12."""
    sh(f"ip -n {nodes[0]} link add eth0 type veth peer name eth0 netns {nodes[1]}")
    for number, node in enumerate(nodes, 1):
        sh(f"ip -n {node} address add 172.18.0.{10 + number}/16 dev eth0")
        sh(f"ip -n {node} link set eth0 up")


def by_tunnel(nodes: tuple[str, str], pods: tuple[str, str], *, encrypt: bool) -> None:
    """Node N has 10.9.N.0/24; its pod is 10.9.N.2; the tunnel's device is flannel0."""
    for number, (node, pod) in enumerate(zip(nodes, pods, strict=True), 1):
        fd = netns.open_netns(f"/run/netns/{node}")
        with netns.entered(fd), NetlinkSocket() as sock:
            create_tun(sock, "flannel0", mtu=MTU)
        os.close(fd)
        for line in (
            f"ip -n {node} link set flannel0 up",
            f"ip -n {node} address add 10.9.{number}.0/32 dev flannel0",
            f"ip -n {node} route add 10.9.0.0/16 dev flannel0",
            f"ip -n {node} link add cni0 type bridge",
            f"ip -n {node} link set cni0 mtu {MTU} up",
            f"ip -n {node} address add 10.9.{number}.1/24 dev cni0",
            f"ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1",
            f"ip -n {node} link add v0 mtu {MTU} type veth peer name eth0 mtu {MTU} netns {pod}",
            f"ip -n {node} link set v0 master cni0 up",
            f"ip -n {pod} link set eth0 up gso_max_size {gso_max_size(MTU, encrypt=encrypt)}",
            f"ip -n {pod} address add 10.9.{number}.2/24 dev eth0",
            f"ip -n {pod} route add default via 10.9.{number}.1",
        ):
            sh(line)


@contextlib.contextmanager
def loops(nodes: tuple[str, str], root: Path) -> Iterator[None]:
    """The loop in C on both nodes."""
    program = root / "packet_loop"
    sh(f"cc -O2 -o {program} {Path(__file__).with_name('packet_loop.c')}")
    processes = []
    try:
        for number, node in enumerate(nodes, 1):
            line = f"ip netns exec {node} {program} flannel0 172.18.0.{10 + number}"
            processes.append(subprocess.Popen([*line.split(), f"172.18.0.{13 - number}"]))
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def tunnels(nodes: tuple[str, str], root: Path, *, encrypt: bool) -> Iterator[None]:
    """The process on both nodes, each knowing the other."""
    keys = [bytes([number]) * 32 for number in (1, 2)]
    processes = []
    try:
        for number, node in enumerate(nodes, 1):
            path = root / f"{node}.sock"
            line = ["ip", "netns", "exec", node, *command(path), "--log-level", "warning"]
            processes.append(subprocess.Popen(line))
            wait_for(path.exists, "the tunnel")
            other = 3 - number
            config = TunnelConfig(
                dev="flannel0",
                local=(f"172.18.0.{10 + number}",),
                subnets=(f"10.9.{number}.0/24",),
                private_key=keys[number - 1] if encrypt else None,
                require_encryption=encrypt,
            )
            peer = TunnelPeer(
                name=f"node{other}",
                subnets=(f"10.9.{other}.0/24",),
                address=f"172.18.0.{10 + other}",
                public_key=StaticKey(keys[other - 1]).public if encrypt else None,
            )
            with socket.socket(socket.AF_UNIX) as controller:
                controller.connect(str(path))
                controller.sendall(pack(Configure(config, (peer,))))
                (answer,) = Frames[Ready](Ready).feed(controller.recv(1 << 16))
                _tell(answer.features)
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


@functools.cache
def _tell(features: tuple[str, ...]) -> None:
    print(f"The tunnel uses: {' '.join(features)}")


def throughput(pair: Pair) -> float:
    """Gbit/s of one TCP stream, as received."""
    line = f"ip netns exec {pair.pods[0]} iperf3 -J -t {SECONDS} -O 1 -c {pair.target}"
    received: float = json.loads(sh(line))["end"]["sum_received"]["bits_per_second"]
    return received / 1e9


def ping_us(pair: Pair) -> float:
    """Microseconds one way: half of ping's mean round trip."""
    said = sh(f"ip netns exec {pair.pods[0]} ping -q -f -c {ECHOES} {pair.target}")
    found = re.search(r"= [\d.]+/([\d.]+)/", said)
    assert found is not None, said
    return float(found[1]) * 1000 / 2


def flood(pair: Pair, rate: float) -> float:
    """Datagrams a second that the second pod reads of `rate` sent to it a second (0: all that one
    process can send)."""
    ours, theirs = _spawn.Pipe()
    reader = _spawn.Process(target=_read, args=(f"/run/netns/{pair.pods[1]}", theirs), daemon=True)
    reader.start()
    ours.recv()
    place = f"/run/netns/{pair.pods[0]}"
    with flooding(place, (pair.target, PORT), rate, FLOOD_S, senders=1, payload=SMALL):
        count, seconds = ours.recv()
    reader.join()
    return float(count / seconds)


def _read(place: str, pipe: Connection) -> None:
    """Count datagrams from the first one on, for most of the time that they are sent."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = netns.open_netns(place)
    with netns.entered(fd):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    os.close(fd)
    sock.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
    sock.bind(("", PORT))
    sock.settimeout(20)
    batch = 64
    data = ctypes.create_string_buffer(batch * 2048)
    vectors = (ctypes.c_uint64 * (2 * batch))()
    messages = (ctypes.c_uint64 * (8 * batch))()
    for number in range(batch):
        vectors[2 * number] = ctypes.addressof(data) + number * 2048
        vectors[2 * number + 1] = 2048
        messages[8 * number + 2] = ctypes.addressof(vectors) + number * 16
        messages[8 * number + 3] = 1
    pipe.send(None)
    sock.recv(2048)
    started = now = time.perf_counter()
    count = 0
    waitforone = 0x10000
    os.set_blocking(sock.fileno(), True)
    while now - started < FLOOD_S * 0.8:
        count += max(libc.recvmmsg(sock.fileno(), messages, batch, waitforone, None), 0)
        now = time.perf_counter()
    pipe.send((count, now - started))


@contextlib.contextmanager
def pairs() -> Iterator[dict[str, Pair]]:
    """The pairs, ready."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podwire-bench-")))
        found = {}
        for kind in KINDS:
            n1, n2, p1, p2 = stack.enter_context(namespaces(*(f"{kind[0]}{n}" for n in "nmpq")))
            wire((n1, n2))
            if kind == "vxlan":
                by_hand("vxlan", (n1, n2), (p1, p2), masquerade=False)
            else:
                by_tunnel((n1, n2), (p1, p2), encrypt=kind == "sealed")
                if kind == "loop":
                    stack.enter_context(loops((n1, n2), root))
                else:
                    stack.enter_context(tunnels((n1, n2), root, encrypt=kind == "sealed"))
            found[kind] = Pair((n1, n2), (p1, p2), "10.9.2.2")
            server = ["ip", "netns", "exec", p2, "iperf3", "-s"]
            process = stack.enter_context(
                subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
            sh(f"ip netns exec {p1} ping -c 3 -i 0.1 -q 10.9.2.2")
        yield found


def main() -> None:
    measures: tuple[Callable[[Pair], float], ...] = (
        ping_us,
        lambda pair: latency_us(pair.pods[0], pair.target, ECHOES),
        throughput,
        lambda pair: flood(pair, 0) / 1e3,
        lambda pair: flood(pair, WANTED) / 1e3,
    )
    figures = [{kind: list[float]() for kind in KINDS} for _ in measures]
    for _ in range(ROUNDS):
        with pairs() as found:
            for measure, figure in zip(measures, figures, strict=True):
                for kind in random.sample(KINDS, len(KINDS)):
                    figure[kind].append(measure(found[kind]))
    micros, seen, gbits, most, wanted = figures
    middle = statistics.median
    share = middle(gbits["tunnel"]) / middle(gbits["vxlan"])
    show(
        f"Pod to pod through the UDP tunnel, {ROUNDS} rounds of {SECONDS} s",
        [
            ("TCP, one stream, Gbit/s", spread(gbits["tunnel"]), f"4, x0.35 VXLAN: x{share:.2f}"),
            ("  encrypted", spread(gbits["sealed"]), "1.5"),
            ("  one packet at a time, C", spread(gbits["loop"]), ""),
            ("  VXLAN by hand", spread(gbits["vxlan"]), ""),
            ("one way, µs", spread(micros["tunnel"]), "20"),
            ("  as its sender sees it", spread(seen["tunnel"]), ""),
            ("  encrypted", spread(micros["sealed"]), ""),
            ("  one packet at a time, C", spread(micros["loop"]), ""),
            ("  VXLAN by hand", spread(micros["vxlan"]), ""),
            ("  as its sender sees it", spread(seen["vxlan"]), ""),
            ("flood delivered, 1000/s", spread(most["tunnel"], 0), "150"),
            ("  encrypted", spread(most["sealed"], 0), ""),
            ("  one packet at a time, C", spread(most["loop"], 0), ""),
            ("  VXLAN by hand", spread(most["vxlan"], 0), ""),
            (f"of {WANTED // 1000} delivered, 1000/s", spread(wanted["tunnel"], 0), "150"),
            ("  encrypted", spread(wanted["sealed"], 0), ""),
            ("  one packet at a time, C", spread(wanted["loop"], 0), ""),
            ("  VXLAN by hand", spread(wanted["vxlan"], 0), ""),
        ],
    )


if __name__ == "__main__":
    main()
