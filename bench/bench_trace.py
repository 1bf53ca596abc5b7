#!/usr/bin/env python3
"""What looking for a probe costs on a node that forwards 100,000 other packets a second.

Two nodes and a pod on each, wired by hand as Podwire does it. A flood of small UDP packets goes
from the pod of node 1 through VXLAN to a third node that does not take them, so node 1 sees each
of them four times, on veth, bridge, tunnel and underlay, and nobody else works on them. One
process watches all interfaces of node 1 and of its pod for a prober's echoes, of which one follows
the other all the time; it should miss none of their sightings.

Then the flood goes as fast as it can, with nobody watching, with the probe's filter, and with a
filter that lets everything through, in turns: that is what not filtering in the kernel would
cost. The kernel works on a packet in its sender's time, so the sender's is what is shown.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import socket
import struct
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.flood import flooding
from bench.harness import namespaces, sh, show, spread, wait_for, wire_underlay
from bench.two_nodes import by_hand
from podwire.kernel import netns
from podwire.kernel.observe.frames import FrameTap
from podwire.kernel.observe.pcap_filter import compile_for_all
from podwire.kernel.observe.probe_filter import probe_filter
from podwire.model.probe import MAGIC, ProbeMatch

ROUNDS = 7
SECONDS = 3.0
FULL_SPEED_SECONDS = 2.0
RATE = 120_000
PAUSE = 0.002
KINDS = ("nobody", "probe", "everything")
IDENT = 0x7077
SOURCE, TARGET = "10.9.1.2", "10.9.2.2"
TO = ("10.9.3.2", 9)
MATCH = ProbeMatch(protocol="icmp", source=SOURCE, target=TARGET, ident=IDENT)
#: Of an echo and its reply, seen by whoever watches node 1 and its pod: veth, bridge, tunnel and
#: underlay, and the pod's own end, each both ways.
SIGHTINGS = 2 * (4 + 1)

_spawn = multiprocessing.get_context("spawn")


class Watched(NamedTuple):
    """What a process that watched used, and how often it saw each echo (by number)."""

    cpu_s: float
    seen: Counter[int]
    lost: int


def watch(places: list[str], kind: str, pipe: Connection) -> None:
    """Watch namespaces until the other end says stop, as an agent does; then tell."""
    program = probe_filter(MATCH) if kind == "probe" else compile_for_all("")
    seen: Counter[int] = Counter()
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        poll.register(pipe.fileno(), select.EPOLLIN)
        taps: dict[int, FrameTap] = {}
        for place in places:
            fd = netns.open_netns(path(place))
            tap = stack.enter_context(FrameTap(fd, program))
            os.close(fd)
            poll.register(tap.fileno(), select.EPOLLIN)
            taps[tap.fileno()] = tap
        started = time.process_time()
        pipe.send(None)
        stopped = False
        while not stopped:
            ready = [fd for fd, _ in poll.poll()]
            stopped = pipe.fileno() in ready
            for fd in taps if stopped else ready:
                for frame in taps[fd].read():
                    start = frame.data.find(MAGIC) + len(MAGIC)
                    seen[int.from_bytes(frame.data[start + 2 : start + 4], "big")] += 1
        used = time.process_time() - started
        pipe.send(Watched(used, seen, sum(tap.lost for tap in taps.values())))


@contextlib.contextmanager
def watching(places: list[str], kind: str) -> Iterator[Callable[[], Watched]]:
    """A process that watches; the function stops it and says what it found."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=watch, args=(places, kind, theirs), daemon=True)
    process.start()
    ours.recv()

    def stop() -> Watched:
        ours.send(None)
        found: Watched = ours.recv()
        return found

    try:
        yield stop
    finally:
        process.terminate()
        process.join()


def path(namespace: str) -> str:
    return f"/run/netns/{namespace}"


def add_third_node(node: str) -> None:
    """The way to a node that there is not, as `by_hand` makes it to one that there is."""
    for line in (
        f"ip -n {node} neigh add 172.18.0.13 lladdr 02:00:00:00:09:33 dev eth0 nud permanent",
        f"ip -n {node} neigh add 10.9.3.0 lladdr 02:00:00:00:09:03 dev flannel.1 nud permanent",
        f"bridge -n {node} fdb add 02:00:00:00:09:03 dev flannel.1 dst 172.18.0.13",
        f"ip -n {node} route add 10.9.3.0/24 via 10.9.3.0 dev flannel.1 onlink",
    ):
        sh(line)


def passed(place: str) -> int:
    """Packets that left the node for others."""
    file = "/sys/class/net/eth0/statistics/tx_packets"
    return int(sh(f"ip netns exec {place} cat {file}"))


def echoes(place: str, seconds: float) -> tuple[int, list[int]]:
    """Echo requests from a pod, one after the other: how many, and which were answered."""
    fd = netns.open_netns(path(place))
    with netns.entered(fd):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    os.close(fd)
    sock.settimeout(1)
    sock.connect((TARGET, 0))
    answered: list[int] = []
    number, ends = 0, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        number += 1
        body = MAGIC + struct.pack("!HH", IDENT, number) + bytes(48)
        words = struct.pack("!BBHHH", 8, 0, 0, IDENT, number) + body
        total = sum(struct.unpack(f"!{len(words) // 2}H", words))
        total = (total & 0xFFFF) + (total >> 16)
        checksum = struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
        sock.send(words[:2] + checksum + words[4:])
        with contextlib.suppress(TimeoutError):
            while not sock.recv(200).endswith(body):
                pass
            answered.append(number)
        time.sleep(PAUSE)
    sock.close()
    return number, answered


def traced_while_busy(pod: str, node: str, found: dict[str, list[float]]) -> None:
    """One round of the prober beside the flood."""
    with watching([node, pod], "probe") as stop, flooding(path(pod), TO, RATE, SECONDS + 1):
        wait_for_packets(node)
        before, started = passed(node), time.perf_counter()
        sent, answered = echoes(pod, SECONDS)
        elapsed = time.perf_counter() - started
        packets = passed(node) - before
        watched = stop()
    missing = sum(SIGHTINGS - watched.seen[number] for number in answered)
    found["packets/s"].append(packets / elapsed)
    found["cpu"].append(100 * watched.cpu_s / elapsed)
    found["echoes"].append(len(answered))
    found["unanswered"].append(sent - len(answered))
    found["missing"].append(missing + watched.lost)


def wait_for_packets(place: str) -> None:
    before = passed(place)
    wait_for(lambda: passed(place) > before + RATE // 100, "the flood")


def at_full_speed(pod: str, node: str, kind: str) -> float:
    """Nanoseconds of the processor that a packet takes, with a watcher of that kind."""
    with contextlib.ExitStack() as stack:
        if kind != "nobody":
            stack.enter_context(watching([node], kind))
        (pipe,) = stack.enter_context(flooding(path(pod), TO, 0, FULL_SPEED_SECONDS, senders=1))
        nanoseconds: float = pipe.recv()
        return nanoseconds


def main() -> None:
    found: dict[str, list[float]] = defaultdict(list)
    with namespaces("hub", "n1", "n2", "p1", "p2") as (hub, n1, n2, p1, p2):
        wire_underlay(hub, [n1, n2])
        by_hand("vxlan", (n1, n2), (p1, p2))
        add_third_node(n1)
        for _ in range(ROUNDS):
            traced_while_busy(p1, n1, found)
            for kind in KINDS:
                found[kind].append(at_full_speed(p1, n1, kind))
    show(
        f"A probe traced on a busy node, {ROUNDS} rounds of {SECONDS:.0f} s",
        [
            ("other packets through the node, 1/s", spread(found["packets/s"], 0), "100,000"),
            ("watching process, % of a core", spread(found["cpu"], 1), "under 20"),
            ("echoes answered a round", spread(found["echoes"], 0), ""),
            ("  not answered", spread(found["unanswered"], 0), ""),
            (f"  sightings missed, of {SIGHTINGS} each", spread(found["missing"], 0), "0"),
            ("kernel's ns for one of the others", spread(found["nobody"], 0), "nobody watches"),
            ("  seen four times by the filter", spread(found["probe"], 0), ""),
            ("  captured four times", spread(found["everything"], 0), ""),
        ],
    )


if __name__ == "__main__":
    main()
