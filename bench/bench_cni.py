#!/usr/bin/env python3
"""CNI ADD and DEL of 100 pods one after another, against Debian's bridge + host-local.

Both executables are called as a runtime calls them, in turn, each in a node namespace of its own;
the time is from before the process is started until it has ended and its answer is read. Once with
pods on a bridge, and once with routed ones, whose addresses come from blocks that are claimed.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.harness import Cluster, cluster, namespaces, sh, show, wait_for, wire_underlay
from podwire.cluster.kube import NODES, ClientConfig, KubeClient
from podwire.kernel import netns

PODS = 100
ROUNDS = 5
PROFILES = ("flannel-vxlan", "calico")
REFERENCE = Path("/usr/lib/cni/bridge")


def call(executable: Path, node: int, command: str, pod: str, conf: bytes) -> float:
    """Milliseconds for one call, made inside the node's namespace (a descriptor of it)."""
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod,
        "CNI_NETNS": f"/run/netns/{pod}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(executable.parent),
    }
    with netns.entered(node):
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(executable)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            close_fds=False,
        )
        output, _ = process.communicate(conf)
        took = (time.perf_counter() - started) * 1000
    if process.returncode != 0:
        raise SystemExit(f"{executable.name} {command}: {output.decode()}")
    return took


def reference_conf(directory: Path) -> bytes:
    return json.dumps(
        {
            "cniVersion": "1.0.0",
            "name": "reference",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "dataDir": str(directory),
                "subnet": "10.245.0.0/24",
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.244.0.0/16"}],
            },
        }
    ).encode()


class Plugin(NamedTuple):
    """An executable, its configuration, and the node namespace that it is called in."""

    executable: Path
    conf: bytes
    node: int


def one_round(plugins: dict[str, Plugin], times: dict[str, list[float]], tag: str) -> None:
    """100 pods for each plugin, interleaved."""
    for command in ("ADD", "DEL"):
        for number in range(PODS):
            for name, plugin in plugins.items():
                pod = f"pwb-{tag}-{name[0]}{number}"
                if command == "ADD":
                    sh(f"ip netns add {pod}")
                took = call(plugin.executable, plugin.node, command, pod, plugin.conf)
                times[f"{name} {command}"].append(took)
                if command == "DEL":
                    sh(f"ip netns del {pod}")


def measure(profile: str) -> dict[str, list[float]]:
    """Milliseconds of each call, by plugin and command."""
    times: dict[str, list[float]] = {
        f"{name} {command}": [] for name in ("podwire", "reference") for command in ("ADD", "DEL")
    }
    with namespaces("hub", "node", "peer") as (hub, node, peer), cluster() as one:
        wire_underlay(hub, [node])
        one.start_api()
        one.start_agent("node1", node, "--profile", profile)
        create_node(one, "node1", "172.18.0.11")
        wait_for(lambda: one.is_ready("node1"), "the agent")
        own_conf = b'{"cniVersion":"1.0.0","name":"podwire","type":"podwire"}'
        plugins = {
            "podwire": Plugin(
                one.plugin("node1"), own_conf, netns.open_netns(f"/run/netns/{node}")
            ),
            "reference": Plugin(
                REFERENCE,
                reference_conf(one.root / "host-local"),
                netns.open_netns(f"/run/netns/{peer}"),
            ),
        }
        tag = secrets.token_hex(2)
        try:
            for number in range(ROUNDS):
                one_round(plugins, times, f"{tag}{number}")
        finally:
            for name in sh("ip netns list").split():
                if name.startswith(f"pwb-{tag}"):
                    sh(f"ip netns del {name}")
    return times


def main() -> None:
    if not REFERENCE.exists():
        raise SystemExit("the peer is missing: apt-get install containernetworking-plugins")
    for profile in PROFILES:
        times = measure(profile)
        median = {key: statistics.median(values) for key, values in times.items()}
        rows = []
        for command, limit in (("ADD", "4"), ("DEL", "5")):
            ours, theirs = f"podwire {command}", f"reference {command}"
            ratio = median[ours] / median[theirs]
            target = f"{limit} and x0.5 of theirs" if command == "ADD" else limit
            rows.append((f"podwire {command}", quartiles(times[ours]), target))
            rows.append(("  bridge + host-local", quartiles(times[theirs]), f"x{ratio:.2f}"))
        title = f"CNI, {profile}, {PODS} pods one after another, {ROUNDS} rounds, ms"
        show(f"{title}: p50 (p5 to p95)", rows)


def quartiles(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=20)
    return f"{statistics.median(values):.2f} ({cuts[0]:.2f} to {cuts[-1]:.2f})"


def create_node(one: Cluster, name: str, ip: str) -> None:
    async def create() -> None:
        config = ClientConfig.from_kubeconfig(one.root / "kubeconfig")
        async with KubeClient(config) as client:
            await client.create(
                NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
            )
            status = {"status": {"addresses": [{"type": "InternalIP", "address": ip}]}}
            await client.merge_patch(NODES, name, status, subresource="status")

    asyncio.run(create())


if __name__ == "__main__":
    main()
