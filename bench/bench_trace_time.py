#!/usr/bin/env python3
"""How long `podwire trace` takes, from the command's start to its end.

In a lab of two nodes: across nodes, within one, to the outside, TCP, UDP, and two that do not
arrive: one that waits for an answer as long as it may (500 ms), since nobody answers its ARP, and
one of whose drop a kernel tells. In turns with

    ping and tcpdump   what a person would do: tcpdump started at each of the ten interfaces
                       between the two pods, until all watch; one ping; until each has seen both
    interpreter        Python started, with nothing to do
    podwire version    and the command line loaded
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.bench_trace_busy import OUTSIDE, PORT, server
from bench.harness import BIN, sh, show, spread
from podwire.lab import Lab, LabPod

ROUNDS = 15
TCP_SERVER = """
import socket
server = socket.create_server(("", 8080))
while True: server.accept()[0].close()
"""


class Case(NamedTuple):
    """A trace, the exit code that it is to have, and node1's break before it, if any."""

    name: str
    arguments: tuple[str, ...]
    code: int = 0
    broken: str = ""


class Site:
    """A lab with pods, and words for its addresses."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pod1 = lab.run("pod1", node="node1")
        self.pod2 = lab.run("pod2", node="node2")
        self.beside = lab.run("beside", node="node1")
        lab.run("tcp", [sys.executable, "-c", TCP_SERVER], node="node2")
        lab.wait_ready()
        assert self.pod1.ping(self.pod2).lost == self.pod1.ping(self.beside).lost == 0
        sh(f"ip -n {lab.info.underlay} address add {OUTSIDE}/32 dev lo")
        node = lab.node_object("node2")
        self.unused = node["spec"]["podCIDR"].replace(".0/24", ".200")
        shown = lab.node("node1").exec(["bridge", "fdb", "show", "dev", "flannel.1"], check=True)
        self.mac = next(line for line in shown.stdout.splitlines() if "dst" in line).split()[0]

    def cases(self) -> list[Case]:
        udp = ("--proto", "udp", "--port", str(PORT))
        return [
            Case("across nodes", ("pod1", "pod2")),
            Case("same node", ("pod1", "beside")),
            Case("outside", ("pod1", OUTSIDE)),
            Case("TCP, across nodes", ("pod1", "tcp", "--proto", "tcp", "--port", "8080")),
            Case("UDP, outside", ("pod1", OUTSIDE, *udp)),
            Case("dropped: address not in use", ("pod1", self.unused), 1),
            Case(
                "dropped: no FDB entry",
                ("pod1", "pod2"),
                1,
                f"bridge fdb del {self.mac} dev flannel.1",
            ),
        ]

    def podwire(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "podwire"), *arguments, "--lab", self.lab.name]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def trace(site: Site, case: Case) -> None:
    done = site.podwire("trace", *case.arguments)
    if done.returncode != case.code:
        raise SystemExit(f"{case.name}\n{done.stdout}{done.stderr}")


@contextmanager
def broken(site: Site, line: str) -> Iterator[None]:
    """node1 with `line` run in it, which its agent does not mend meanwhile."""
    if not line:
        yield
        return
    site.podwire("agent", "hold", "--node", "node1")
    try:
        site.lab.node("node1").exec(["sh", "-c", line], check=True)
        yield
    finally:
        site.podwire("agent", "resume", "--node", "node1")
        while site.pod1.ping(site.pod2, count=1).lost:
            pass


def tcpdumps(site: Site) -> list[list[str]]:
    """For each of the ten interfaces. They end by themselves, after the echo and its answer."""
    found: list[list[str]] = []
    dump = ["tcpdump", "-nl", "-c", "2", "-i"]
    for pod in (site.pod1, site.pod2):
        found.append(pod.command([*dump, "eth0", "icmp"]))
        found += [
            pod.node.command([*dump, *where])
            for where in (
                (port_of(pod), "icmp"),
                ("cni0", "icmp"),
                ("flannel.1", "icmp"),
                ("eth0", "udp port 8472"),
            )
        ]
    return found


def port_of(pod: LabPod) -> str:
    """The node's end of a pod's cable."""
    index = pod.exec(["cat", "/sys/class/net/eth0/iflink"], check=True).stdout.strip()
    shown = pod.node.exec(["ip", "-o", "link"], check=True).stdout
    return shown.partition(f"{index}: ")[2].partition("@")[0]


def by_hand(ping: list[str], dumps: list[list[str]]) -> None:
    """tcpdump says on stderr when it listens."""
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(one, stdout=subprocess.DEVNULL, stderr=pipe, text=True) for one in dumps
    ]
    for one in running:
        assert one.stderr is not None
        while "listening on" not in (line := one.stderr.readline()):
            if not line:
                raise SystemExit("tcpdump has ended")
    subprocess.run(ping, stdout=subprocess.DEVNULL, check=True)
    for one in running:
        one.communicate()


def main() -> None:
    found: dict[str, list[float]] = defaultdict(list)
    with Lab(nodes=2, name=f"bench-{secrets.token_hex(2)}") as lab, ExitStack() as stack:
        site = Site(lab)
        stack.enter_context(server(lab))
        cases = site.cases()
        ping = site.pod1.command(["ping", "-c1", site.pod2.ip])
        dumps = tcpdumps(site)
        peers: dict[str, Callable[[], object]] = {
            "ping and tcpdump": lambda: by_hand(ping, dumps),
            "interpreter": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
            "podwire version": lambda: subprocess.run(
                [BIN / "podwire", "--version"], check=True, capture_output=True
            ),
        }
        for _ in range(ROUNDS):
            for case in cases:
                with broken(site, case.broken):
                    found[case.name].append(timed(partial(trace, site, case)))
            for name, work in peers.items():
                found[name].append(timed(work))
    show(
        f"podwire trace, {ROUNDS} rounds, s",
        [(case.name, spread(found[case.name]), "1") for case in cases]
        + [(f"  {name}", spread(found[name]), "") for name in peers],
    )


if __name__ == "__main__":
    main()
