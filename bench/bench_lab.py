#!/usr/bin/env python3
"""`podwire lab up` with 3 nodes until all are Ready, and `lab down`.

The limit in the same run is the same number of Python processes started at once that only import
what an agent imports: a lab of 3 nodes is 3 agents, 3 kubelets, an API server and a supervisor.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.harness import BIN, show, spread

ROUNDS = 7
NODES = 3
_IMPORT = "import podwire.agent.daemon"


def timed(*arguments: str) -> float:
    started = time.perf_counter()
    done = subprocess.run([BIN / "podwire", *arguments], capture_output=True, check=False)
    took = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"podwire {' '.join(arguments)}\n{done.stderr.decode()}")
    return took


def bare_processes(count: int) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-c", _IMPORT]
    for process in [subprocess.Popen(command) for _ in range(count)]:
        process.wait()
    return time.perf_counter() - started


def main() -> None:
    up, down, bare = [], [], []
    for _ in range(ROUNDS):
        name = f"bench-{secrets.token_hex(2)}"
        try:
            up.append(timed("lab", "up", "--name", name, "--nodes", str(NODES)))
        finally:
            down.append(timed("lab", "down", name))
        bare.append(bare_processes(2 * NODES + 2))
    show(
        f"A lab of {NODES} nodes, {ROUNDS} rounds, s",
        [
            ("lab up, all nodes Ready", spread(up), "5"),
            ("lab down", spread(down), ""),
            (f"  {2 * NODES + 2} processes that import the agent", spread(bare), ""),
        ],
    )


if __name__ == "__main__":
    main()
