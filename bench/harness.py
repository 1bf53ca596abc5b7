"""What the benchmarks share: throw-away namespaces, a small cluster without a lab, one table.

Every figure is a median of interleaved runs with the spread (lowest to highest) beside it, because
machines are noisy; a peer or a physical limit is measured in the same run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent

# Ended from outside, a benchmark still takes away what it made.
signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))


def sh(line: str, *, check: bool = True) -> str:
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"{line}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def namespaces(*names: str) -> Iterator[list[str]]:
    """Network namespaces with unique names, `lo` up, gone at the end."""
    tag = secrets.token_hex(3)
    made = [f"pwb-{tag}-{name}" for name in names]
    try:
        for name in made:
            sh(f"ip netns add {name} && ip -n {name} link set lo up")
        yield made
    finally:
        for name in made:
            sh(f"ip netns del {name}", check=False)


def wire_underlay(hub: str, nodes: Sequence[str]) -> None:
    """A bridge in `hub` with each node's eth0 on it: 172.18.0.11, .12, …"""
    sh(f"ip -n {hub} link add br0 type bridge && ip -n {hub} link set br0 up")
    for number, node in enumerate(nodes, 1):
        sh(
            f"ip -n {node} link add eth0 type veth peer name p{number} netns {hub} &&"
            f"ip -n {hub} link set p{number} master br0 up && ip -n {node} link set eth0 up &&"
            f"ip -n {node} address add 172.18.0.{10 + number}/16 dev eth0"
        )


class Cluster:
    """The embedded API and agents, started as a person would start them, without a lab."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes: list[subprocess.Popen[bytes]] = []
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def start_api(self, *options: str) -> None:
        token = self.root / "token"
        token.write_text(secrets.token_hex(16))
        ready = self.root / "ready"
        where = ["--unix", str(self.root / "api.sock"), "--db", str(self.root / "api.db")]
        command = [sys.executable, "-m", "podwire.lab.api", *where, "--port", "0", *options]
        command += ["--token-file", str(token), "--ready-file", str(ready)]
        with (self.root / "api.log").open("wb") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        wait_for(ready.exists, "the API server")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "b", "cluster": {"server": f"unix://{self.root / 'api.sock'}"}}],
            "contexts": [{"name": "b", "context": {"cluster": "b", "user": "b"}}],
            "users": [{"name": "b", "user": {}}],
            "current-context": "b",
        }
        (self.root / "kubeconfig").write_text(json.dumps(config))

    def start_agent(self, node: str, netns: str, *options: str) -> None:
        home = self.root / node
        paths = {
            "--run-dir": home / "run",
            "--state-dir": home / "state",
            "--cni-conf-dir": home / "conf",
            "--cni-bin-dir": home / "bin",
            "--subnet-file": home / "subnet.env",
        }
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        command = ["ip", "netns", "exec", netns, str(BIN / "podwire"), "agent"]
        command += ["--kubeconfig", str(self.root / "kubeconfig"), "--node-name", node, *options]
        for option, path in paths.items():
            command += [option, str(path)]
        with (home / "agent.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.processes.append(process)
        self.agents[node] = process

    def is_ready(self, node: str) -> bool:
        return " ready node=" in (self.root / node / "agent.log").read_text()

    def plugin(self, node: str) -> Path:
        return self.root / node / "bin" / "podwire"

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait()


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    root = Path(tempfile.mkdtemp(prefix="podwire-bench-"))
    one = Cluster(root)
    try:
        yield one
    finally:
        one.stop()
        shutil.rmtree(root)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come up in {timeout_s} s")
        time.sleep(0.01)


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} is gone")


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        body: bytes = answer.read()
        return body


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (lowest to highest)`."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def show(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """A table of (figure, measured, to reach or compared with)."""
    print(f"\n{title}")
    table: list[Any] = [("FIGURE", "MEDIAN (SPREAD)", "TO REACH"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    sys.stdout.flush()
