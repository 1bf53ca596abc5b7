#!/usr/bin/env python3
"""`podwire trace` in a lab whose node has 100,000 other packets a second to carry.

Traces are run back to back for some seconds, in turns: with nothing else going on, and beside a
flood of small UDP packets from another pod of the first node. It goes

    away     through veth, bridge, tunnel and underlay to a third node that there is not; node 2
             sees each packet too, for a MAC that is not its own, and drops it
    dropped  against an nft rule of node 1, so that the kernel drops each one there
    same     to the very host and port, outside of the cluster, that is traced as well

For the last, the probe's source port is translated at random, so that host and port are all that
its packets are known by on the underlay. Meanwhile somebody pings: then the kernel stamps a packet
as it enters and not where it is seen, so that several of its hops have the same time.

A trace is complete when it shows each hop there and back, in the order of the first trace, in
which nothing else went on, and no note says that anything was missed. The agent's processor time
is that of all its threads.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.flood import flooding
from bench.harness import BIN, cpu_s, sh, show, spread, wait_for
from podwire.lab import Lab
from podwire.lab.places import LabPod

ROUNDS = 7
SECONDS = 5.0
RATE = 130_000
AWAY, DROPPED = "10.244.99.2", "10.244.98.2"
OUTSIDE, PORT = "192.0.2.7", 5353
#: Answers what begins as a probe's payload does, and is not given anything else.
SERVER = """\
import ctypes, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
code = [(0x20, 0, 0, 8), (0x15, 0, 1, 0x706f6477), (6, 0, 0, 65535), (6, 0, 0, 0)]
held = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
s.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", len(code), ctypes.addressof(held)))
s.bind((sys.argv[1], int(sys.argv[2])))
print("up", flush=True)
while True:
    s.sendto(*s.recvfrom(65536))
"""


Spot = tuple[int, str, str]


class Case(NamedTuple):
    """What is traced, and the flood beside it."""

    name: str
    arguments: tuple[str, ...]
    flood: tuple[str, int] | None = None


ACROSS = ("pod1", "pod2")
OUT = ("pod1", OUTSIDE, "--proto", "udp", "--port", str(PORT))
CASES = (
    Case("pod to pod, alone", ACROSS),
    Case("pod to pod, away", ACROSS, (AWAY, 9)),
    Case("pod to pod, dropped", ACROSS, (DROPPED, 9)),
    Case("pod to outside, alone", OUT),
    Case("pod to outside, same", OUT, (OUTSIDE, PORT)),
)


class Site:
    """A lab of two nodes, with a way to a third that there is not, and a server outside."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pods = [lab.run("pod1", node="node1"), lab.run("pod2", node="node2")]
        self.other = lab.run("other", node="node1")
        lab.wait_ready()
        for pod in self.pods:
            assert self.other.ping(pod).lost == 0
        self.place = netns_path(self.other)
        node = lab.node("node1")
        for line in (
            "ip neigh add 172.18.0.99 lladdr 02:00:00:00:09:33 dev eth0 nud permanent",
            "ip neigh add 10.244.99.0 lladdr 02:00:00:00:09:03 dev flannel.1 nud permanent",
            "bridge fdb add 02:00:00:00:09:03 dev flannel.1 dst 172.18.0.99",
            "ip route add 10.244.99.0/24 via 10.244.99.0 dev flannel.1 onlink",
            "nft add table inet bench",
            "nft 'add chain inet bench fw { type filter hook forward priority 0 ; }'",
            f"nft add rule inet bench fw ip daddr {DROPPED} drop",
        ):
            node.exec(["sh", "-c", line], check=True)
        sh(f"ip -n {lab.info.underlay} address add {OUTSIDE}/32 dev lo")

    def agent(self) -> float:
        """Processor seconds that the agent of node 1 has used."""
        pid = self.lab.node("node1").process("agent").pid
        assert pid is not None
        return cpu_s(pid)

    def entered(self) -> int:
        """Packets that node 1 was given by the flooding pod."""
        text = self.other.exec(["cat", "/sys/class/net/eth0/statistics/tx_packets"]).stdout
        return int(text)


def netns_path(pod: LabPod) -> str:
    """A path on this host to the pod's network namespace."""
    name = pod.exec(["readlink", "/proc/self/ns/net"], check=True).stdout.strip()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "ns/net").readlink()) == name:
                return str(process / "ns/net")
    raise SystemExit(f"no process is in the network of {pod!r}")


@contextlib.contextmanager
def server(lab: Lab) -> Iterator[None]:
    """Something outside that answers probes."""
    command = ["ip", "netns", "exec", lab.info.underlay, sys.executable, "-c", SERVER]
    with subprocess.Popen([*command, OUTSIDE, str(PORT)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()


def trace(lab: Lab, arguments: Sequence[str]) -> dict[str, Any]:
    command = [str(BIN / "podwire"), "trace", "--lab", lab.name, *arguments, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def hops(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """There and back."""
    (only,) = trace["rounds"]
    return [*only["request"]["hops"], *(only["reply"] or {"hops": ()})["hops"]]


def spots(trace: dict[str, Any]) -> list[Spot]:
    return [(hop["place"], hop["interface"], hop["direction"]) for hop in hops(trace)]


def is_complete(trace: dict[str, Any], expected: list[Spot]) -> bool:
    good = spots(trace) == expected and not trace["notes"]
    if not good:
        print("incomplete:", spots(trace), trace["verdict"], trace["notes"], file=sys.stderr)
    return good


def ties(trace: dict[str, Any]) -> int:
    """Hops with the very time of the one before."""
    times = [hop["time_ns"] for hop in hops(trace)]
    return sum(one == other for one, other in pairwise(times))


class Measured(NamedTuple):
    """`packets` of the flood a second, seconds that each trace `took`, the agent's `cpu` in
    percent of a core, and in milliseconds for each trace."""

    packets: float
    took: list[float]
    complete: list[bool]
    ties: list[int]
    cpu: float
    cpu_ms: float


def measure(site: Site, case: Case, expected: list[Spot]) -> Measured:
    """Traces back to back, beside the case's flood."""
    flood = flooding(site.place, case.flood, RATE) if case.flood else contextlib.nullcontext()
    with flood:
        start = site.entered()
        if case.flood:
            wait_for(lambda: site.entered() > start + RATE // 10, "the flood")
        took, traces = [], []
        packets, used, began = site.entered(), site.agent(), time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            started = time.perf_counter()
            traces.append(trace(site.lab, case.arguments))
            took.append(time.perf_counter() - started)
        elapsed = time.perf_counter() - began
        used = site.agent() - used
        packets = site.entered() - packets
    return Measured(
        packets / elapsed,
        took,
        [is_complete(one, expected) for one in traces],
        [ties(one) for one in traces],
        100 * used / elapsed,
        1000 * used / len(traces),
    )


@contextlib.contextmanager
def pinging(site: Site) -> Iterator[None]:
    """ping asks the kernel for its packets' times."""
    with site.pods[1].popen(["timeout", "600", "ping", "-qi5", site.pods[0].ip]) as process:
        try:
            yield
        finally:
            process.terminate()


def main() -> None:
    found: dict[str, list[Measured]] = defaultdict(list)
    with Lab(nodes=2, name=f"bench-{secrets.token_hex(2)}") as lab, contextlib.ExitStack() as stack:
        site = Site(lab)
        stack.enter_context(server(lab))
        expected = {case.arguments: spots(trace(lab, case.arguments)) for case in CASES}
        stack.enter_context(pinging(site))
        for _ in range(ROUNDS):
            for case in CASES:
                found[case.name].append(measure(site, case, expected[case.arguments]))
    rows = []
    for case in CASES:
        those = found[case.name]
        complete = [one for each in those for one in each.complete]
        times = [one for each in those for one in each.took]
        tied = [one for each in those for one in each.ties]
        rows.append((f"{case.name}: complete", f"{sum(complete)} of {len(complete)}", "all"))
        if case.flood:
            rate = spread([one.packets for one in those], 0)
            rows.append(("  other packets, 1/s", rate, "100,000"))
        rows.append(("  the agent, % of a core", spread([one.cpu for one in those], 1), "under 20"))
        rows.append(("  the agent, ms a trace", spread([one.cpu_ms for one in those], 0), ""))
        rows.append(("  a trace, s", spread(times), ""))
        rows.append(("  hops with the time of another", spread(tied, 0), ""))
    show(f"Traces back to back, {ROUNDS} rounds of {SECONDS:.0f} s", rows)


if __name__ == "__main__":
    main()
