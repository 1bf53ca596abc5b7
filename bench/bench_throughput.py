#!/usr/bin/env python3
"""TCP throughput and latency between pods on two nodes, against the same VXLAN set up by hand.

Two pairs of nodes on underlays of the same make: one wired by Podwire, one with the `ip` and
`bridge` commands that a person would type, without masquerade. The underlay itself, node to node,
is the physical limit. Runs are interleaved; latency is half of a round trip of `ping -f`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.harness import (
    Cluster,
    cluster,
    namespaces,
    sh,
    show,
    spread,
    wait_for,
    wire_underlay,
)
from podwire.cluster.kube import NODES, ClientConfig, KubeClient

ROUNDS = 7
SECONDS = 3
PINGS = 20_000


def by_hand(nodes: tuple[str, str], pods: tuple[str, str]) -> None:
    """Node N has 10.9.N.0/24; its pod is 10.9.N.2."""
    macs = ("02:00:00:00:09:01", "02:00:00:00:09:02")
    for own, (node, pod) in enumerate(zip(nodes, pods, strict=True), 1):
        peer = 3 - own
        for line in (
            f"ip -n {node} link add flannel.1 mtu 1450 address {macs[own - 1]} type vxlan id 1"
            f" local 172.18.0.{10 + own} dev eth0 dstport 8472 nolearning",
            f"ip -n {node} link set flannel.1 up",
            f"ip -n {node} address add 10.9.{own}.0/32 dev flannel.1",
            f"ip -n {node} link add cni0 type bridge",
            f"ip -n {node} link set cni0 mtu 1450 up",
            f"ip -n {node} address add 10.9.{own}.1/24 dev cni0",
            f"ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1",
            f"ip -n {node} neigh add 10.9.{peer}.0 lladdr {macs[peer - 1]} dev flannel.1"
            " nud permanent",
            f"bridge -n {node} fdb add {macs[peer - 1]} dev flannel.1 dst 172.18.0.{10 + peer}",
            f"ip -n {node} route add 10.9.{peer}.0/24 via 10.9.{peer}.0 dev flannel.1 onlink",
            f"ip -n {node} link add v0 mtu 1450 type veth peer name eth0 mtu 1450 netns {pod}",
            f"ip -n {node} link set v0 master cni0 up",
            f"ip -n {pod} link set eth0 up",
            f"ip -n {pod} address add 10.9.{own}.2/24 dev eth0",
            f"ip -n {pod} route add default via 10.9.{own}.1",
        ):
            sh(line)


def by_podwire(one: Cluster, nodes: tuple[str, str], pods: tuple[str, str]) -> str:
    """Two agents and a CNI ADD on each; the address of the second pod."""
    one.start_api()
    asyncio.run(register(one))
    ip = ""
    for number, node in enumerate(nodes, 1):
        one.start_agent(f"node{number}", node)
    for number, pod in enumerate(pods, 1):
        name = f"node{number}"
        wait_for(functools.partial(one.is_ready, name), "the agent")
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": pod,
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
        }
        conf = b'{"cniVersion":"1.0.0","name":"podwire","type":"podwire"}'
        answer = subprocess.run(
            [one.plugin(name)], input=conf, env=environment, capture_output=True, check=True
        )
        ip = json.loads(answer.stdout)["ips"][0]["address"].partition("/")[0]
    return ip


async def register(one: Cluster) -> None:
    config = ClientConfig.from_kubeconfig(one.root / "kubeconfig")
    async with KubeClient(config) as client:
        for number in (1, 2):
            name = f"node{number}"
            await client.create(
                NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
            )
            own = [{"type": "InternalIP", "address": f"172.18.0.{10 + number}"}]
            await client.merge_patch(
                NODES, name, {"status": {"addresses": own}}, subresource="status"
            )


def throughput(source: str, target: str) -> float:
    """Gbit/s of one TCP stream, as received."""
    output = sh(f"ip netns exec {source} iperf3 -J -t {SECONDS} -O 1 -c {target}")
    received: float = json.loads(output)["end"]["sum_received"]["bits_per_second"]
    return received / 1e9


def latency(source: str, target: str) -> float:
    """Microseconds one way."""
    output = sh(f"ip netns exec {source} ping -f -q -c {PINGS} {target}")
    found = re.search(r"= [\d.]+/([\d.]+)/", output)
    assert found is not None, output
    return float(found.group(1)) * 1000 / 2


def main() -> None:
    names = ("hub", "n1", "n2", "p1", "p2", "hhub", "h1", "h2", "hp1", "hp2")
    with namespaces(*names) as made, cluster() as one:
        hub, n1, n2, p1, p2, hand_hub, h1, h2, hp1, hp2 = made
        wire_underlay(hub, [n1, n2])
        wire_underlay(hand_hub, [h1, h2])
        target = by_podwire(one, (n1, n2), (p1, p2))
        by_hand((h1, h2), (hp1, hp2))
        paths = {
            "podwire": (p1, p2, target),
            "by hand": (hp1, hp2, "10.9.2.2"),
            "underlay": (h1, h2, "172.18.0.12"),
        }
        servers = [
            subprocess.Popen(
                ["ip", "netns", "exec", server, "iperf3", "-s"], stdout=subprocess.DEVNULL
            )
            for _, server, _ in paths.values()
        ]
        gbits: dict[str, list[float]] = {name: [] for name in paths}
        micros: dict[str, list[float]] = {name: [] for name in paths}
        try:
            for source, _, address in paths.values():
                sh(f"ip netns exec {source} ping -c 3 -i 0.1 -q {address}")
            for _ in range(ROUNDS):
                for name, (source, _, address) in paths.items():
                    gbits[name].append(throughput(source, address))
                    micros[name].append(latency(source, address))
        finally:
            for server in servers:
                server.terminate()
                server.wait()
    ratio = statistics.median(gbits["podwire"]) / statistics.median(gbits["by hand"])
    slower = statistics.median(micros["by hand"]) / statistics.median(micros["podwire"])
    show(
        f"Pod to pod across nodes over VXLAN, {ROUNDS} rounds of {SECONDS} s and {PINGS:,} pings",
        [
            ("TCP, one stream, Gbit/s", spread(gbits["podwire"]), f"x0.97 by hand: x{ratio:.2f}"),
            ("  by hand", spread(gbits["by hand"]), ""),
            ("  underlay", spread(gbits["underlay"]), ""),
            ("one way, µs", spread(micros["podwire"]), f"x0.97 by hand: x{slower:.2f}"),
            ("  by hand", spread(micros["by hand"]), ""),
            ("  underlay", spread(micros["underlay"]), ""),
        ],
    )


if __name__ == "__main__":
    main()
