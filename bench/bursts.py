"""Short runs between two namespaces, taken in turn: echoes one at a time, and one TCP stream.

A machine's pace changes from one second to the next. Runs of some milliseconds that alternate
between what is compared meet the same pace, and there are enough of them for a median. Two set-ups
of the very same may differ by some percent for as long as they are there, by where things lie in
caches, so all of it is set up anew again and again.

A process in the source's namespace does the runs and tells what they took. Echo requests are sent
by a raw socket, so that the target's kernel answers without waking a process; a stream is sent to a
process in the target's namespace, which says when it has all of it.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from bench.harness import sh

#: The source, the target's namespace, the target's address.
Ends: TypeAlias = tuple[str, str, str]

SET_UPS, ROUNDS = 6, 10
#: Of one run.
ECHOES, STREAM_BYTES = 500, 128 << 20
#: What is measured, for a title.
RUNS = (
    f"{SET_UPS} times {ROUNDS} runs each of {STREAM_BYTES >> 20} MiB and of {ECHOES} echoes,"
    " quartiles"
)
#: Runs that nothing is noted of: neighbours are found, windows grow.
_WARM_UP = 3

_SINK = """
import socket, sys
server = socket.create_server(("", 5999))
print("listening", flush=True)
connection, _ = server.accept()
buffer, size = bytearray(1 << 20), int(sys.argv[1])
while True:
    left = size
    while left:
        count = connection.recv_into(buffer, min(left, len(buffer)))
        if not count:
            sys.exit()
        left -= count
    connection.send(b"!")
"""
_SOURCE = """
import socket, struct, sys, time
target, size = sys.argv[1], int(sys.argv[2])
stream = socket.create_connection((target, 5999)) if size else None
chunk = memoryview(bytes(1 << 17))
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw.settimeout(2)
raw.connect((target, 0))
words = struct.pack("!BBHHH", 8, 0, 0, 77, 1) + bytes(56)
total = sum(struct.unpack(f"!{len(words) // 2}H", words))
check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
packet = words[:2] + struct.pack("!H", check) + words[4:]
def echo(count):
    for _ in range(count):
        raw.send(packet)
        raw.recv(200)
def send(left):
    while left:
        left -= stream.send(chunk[:left])
    stream.recv(1)
print("ready", flush=True)
for line in sys.stdin:
    what, count = line.split()
    work = echo if what == "echo" else send
    began = time.perf_counter()
    work(int(count))
    print(time.perf_counter() - began, flush=True)
"""


class Pair:
    """Two namespaces and the target's address; see `pair`."""

    def __init__(self, run: Callable[[str, int], float]) -> None:
        self._run = run

    def one_way_us(self, echoes: int = ECHOES) -> float:
        """Half of the mean round trip of so many echoes, the sender's own part included."""
        return self._run("echo", echoes) / echoes / 2 * 1e6

    def gbits(self) -> float:
        """Gbit/s of a stream of `STREAM_BYTES`, until the last byte has been received."""
        return STREAM_BYTES * 8 / self._run("stream", STREAM_BYTES) / 1e9


@contextlib.contextmanager
def pair(source: str, target: str, address: str, *, stream: bool = True) -> Iterator[Pair]:
    """Ready to run from the namespace `source` to `address`, which is in `target`."""
    size = STREAM_BYTES if stream else 0
    sh(f"ip netns exec {source} ping -c 3 -i 0.1 -q {address}")
    with contextlib.ExitStack() as stack:
        if stream:
            _start(stack, target, _SINK, str(size))
        process = _start(stack, source, _SOURCE, address, str(size))

        def run(what: str, count: int) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{what} {count}\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield Pair(run)


def latency_us(source: str, address: str, echoes: int) -> float:
    """One way, of one run by itself."""
    with pair(source, source, address, stream=False) as one:
        return one.one_way_us(echoes)


def _start(
    stack: contextlib.ExitStack, namespace: str, program: str, *arguments: str
) -> subprocess.Popen[str]:
    """A Python program in a namespace, which has said that it is ready."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", program, *arguments]
    process = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    stack.callback(process.terminate)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def measure(
    set_up: Callable[[contextlib.ExitStack], Mapping[str, Ends]],
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Gbit/s and microseconds of each path, by runs that were taken in turn."""
    gbits: dict[str, list[float]] = {}
    micros: dict[str, list[float]] = {}
    for _ in range(SET_UPS):
        with contextlib.ExitStack() as stack:
            paths = list(set_up(stack).items())
            # What ran before a run matters too.
            random.shuffle(paths)
            pairs = {name: stack.enter_context(pair(*path)) for name, path in paths}
            for number in range(-_WARM_UP, ROUNDS):
                for name, one in pairs.items():
                    found = one.gbits(), one.one_way_us()
                    if number >= 0:
                        gbits.setdefault(name, []).append(found[0])
                        micros.setdefault(name, []).append(found[1])
    return gbits, micros


def compared(
    title: str, own: str, peers: Mapping[str, str], values: Mapping[str, list[float]], *, more: bool
) -> list[tuple[str, str, str]]:
    """Rows of a table: the path `own`, and its peers by what they are called there, each with how
    `own` does beside it. `more`: more is better."""
    rows = [(title, quartiles(values[own]), "")]
    for name, path in peers.items():
        pairs = zip(values[own], values[path], strict=True)
        # Of runs one after the other, so that both met the same pace.
        ratio = statistics.median(a / b if more else b / a for a, b in pairs)
        rows.append((f"  {name}", quartiles(values[path]), f"x{ratio:.2f}"))
    return rows


def quartiles(values: list[float]) -> str:
    """`median (quarter to three quarters)`, of many runs."""
    ordered = sorted(values)
    low, middle, high = (ordered[int(len(ordered) * part)] for part in (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
