#!/usr/bin/env python3
"""The agent's memory with 3 nodes and with 10,000, and its processor time when nothing happens.

The limit in the same run is an empty Python process with asyncio and the HTTP client imported.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.harness import (
    Cluster,
    cluster,
    cpu_s,
    namespaces,
    rss_mb,
    sh,
    show,
    spread,
    wait_for,
    wire_underlay,
)
from podwire.cluster.kube import NODES, ClientConfig, KubeClient
from podwire.cluster.nodes import lease_annotations
from podwire.model.cluster import Lease
from podwire.model.state import IPAddress

ROUNDS = 5
IDLE_S = 10.0
_EMPTY = "import asyncio, aiohttp, sqlite3, sys; print('up', flush=True); sys.stdin.read()"


def address(number: int) -> IPAddress:
    return IPv4Address(0xAC120000 + 10 + number)


def node(number: int) -> dict[str, Any]:
    """A peer as its agent would have published it; node 1 is the one under test."""
    lease = Lease(
        subnets=(),
        backend="vxlan",
        public_ip=address(number),
        vni=1,
        vtep_mac=b"\x02\x01" + number.to_bytes(4, "big"),
    )
    annotations = lease_annotations(lease) if number > 1 else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node{number}", "annotations": annotations},
        "status": {"addresses": [{"type": "InternalIP", "address": str(address(number))}]},
    }


async def create_nodes(one: Cluster, count: int) -> None:
    config = ClientConfig.from_kubeconfig(one.root / "kubeconfig")
    async with KubeClient(config) as client:
        for start in range(1, count + 1, 50):
            numbers = range(start, min(start + 50, count + 1))
            await asyncio.gather(*(client.create(NODES, node(number)) for number in numbers))
        own = {"status": node(1)["status"]}
        await client.merge_patch(NODES, "node1", own, subresource="status")


def routes(namespace: str) -> int:
    return int(sh(f"ip -n {namespace} route show proto 112 | wc -l"))


def is_still(pid: int) -> bool:
    """Whether the process has used no processor time for a second."""
    before = cpu_s(pid)
    time.sleep(1)
    return cpu_s(pid) == before


def measure(count: int) -> tuple[float, float]:
    """(MB, percent of a core) of an agent in a cluster of `count` nodes."""
    with namespaces("hub", "node") as (hub, own), cluster() as one:
        wire_underlay(hub, [own])
        one.start_api("--cluster-cidr", "10.0.0.0/8")
        asyncio.run(create_nodes(one, count))
        one.start_agent("node1", own, "--network", "10.0.0.0/8")
        wait_for(lambda: one.is_ready("node1"), "the agent")
        wait_for(lambda: routes(own) == count - 1, f"{count - 1} routes", 120)
        pid = one.agents["node1"].pid
        wait_for(lambda: is_still(pid), "the end of the start")
        before = cpu_s(pid)
        time.sleep(IDLE_S)
        return rss_mb(pid), (cpu_s(pid) - before) / IDLE_S * 100


def empty_process() -> float:
    with subprocess.Popen(
        [sys.executable, "-c", _EMPTY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return rss_mb(process.pid)


def main() -> None:
    small, large, empty = [], [], []
    for _ in range(ROUNDS):
        small.append(measure(3))
        empty.append(empty_process())
        large.append(measure(10_000))
    show(
        f"Agent, {ROUNDS} rounds",
        [
            ("memory, 3 nodes, MB", spread([one[0] for one in small], 1), "60"),
            ("memory, 10,000 nodes, MB", spread([one[0] for one in large], 1), "200"),
            ("  Python with the HTTP client, MB", spread(empty, 1), ""),
            ("idle, 3 nodes, % of a core", spread([one[1] for one in small]), "0.5"),
            ("idle, 10,000 nodes, % of a core", spread([one[1] for one in large]), ""),
        ],
    )


if __name__ == "__main__":
    main()
