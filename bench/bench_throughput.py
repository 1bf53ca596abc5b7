#!/usr/bin/env python3
"""TCP throughput and latency between pods on two nodes, against the same VXLAN set up by hand.

Three pairs of nodes on underlays of the same make: one wired by Podwire, one with the `ip`,
`bridge` and `nft` commands that a person would type for the same network, and one without its
masquerade, which no cluster can do without and which makes the kernel track connections. The
underlay itself, node to node, is the physical limit. Runs are interleaved; latency is half of an
echo's round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
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


MASQUERADE = """
add table ip hand
add chain ip hand post { type nat hook postrouting priority srcnat; }
add rule ip hand post ip saddr 10.9.0.0/16 ip daddr 10.9.0.0/16 return
add rule ip hand post ip saddr 10.9.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
"""


def by_hand(nodes: tuple[str, str], pods: tuple[str, str], *, masquerade: bool) -> None:
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
        if masquerade:
            subprocess.run(
                ["ip", "netns", "exec", node, "nft", "-f", "-"],
                input=MASQUERADE.encode(),
                check=True,
            )


def by_podwire(one: Cluster, nodes: tuple[str, str], pods: tuple[str, str], *options: str) -> str:
    """Two agents with these options, and a CNI ADD on each; the address of the second pod."""
    one.start_api()
    asyncio.run(register(one))
    ip = ""
    for number, node in enumerate(nodes, 1):
        one.start_agent(f"node{number}", node, *options)
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
    # A block is claimed for the first pod, and is then known to the other node.
    ping = ["ip", "netns", "exec", pods[0], "ping", "-c1", "-W1", ip]
    wait_for(lambda: subprocess.run(ping, capture_output=True).returncode == 0, "the pods' route")
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


#: Echo requests one at a time from a raw socket: the target's kernel answers without waking a
#: process, and the clock has more digits than ping prints.
_ECHO = """
import socket, struct, sys, time
target, count = sys.argv[1], int(sys.argv[2])
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
sock.settimeout(2)
sock.connect((target, 0))
words = struct.pack("!BBHHH", 8, 0, 0, 77, 1) + bytes(56)
total = sum(struct.unpack(f"!{len(words) // 2}H", words))
check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
packet = words[:2] + struct.pack("!H", check) + words[4:]
def rounds(number):
    for _ in range(number):
        sock.send(packet)
        sock.recv(200)
rounds(500)
started = time.perf_counter()
rounds(count)
print((time.perf_counter() - started) / count * 1e6 / 2)
"""


def latency(source: str, target: str) -> float:
    """Microseconds one way: half of the mean round trip of an echo, the sender's part included."""
    command = ["ip", "netns", "exec", source, sys.executable, "-c", _ECHO, target, str(PINGS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    with contextlib.ExitStack() as stack:
        made = {
            kind: stack.enter_context(
                namespaces(f"{kind}h", f"{kind}n", f"{kind}m", f"{kind}p", f"{kind}q")
            )
            for kind in ("w", "h", "b")
        }
        one = stack.enter_context(cluster())
        for hub, n1, n2, _, _ in made.values():
            wire_underlay(hub, [n1, n2])
        target = by_podwire(one, (made["w"][1], made["w"][2]), (made["w"][3], made["w"][4]))
        for kind in ("h", "b"):
            _, n1, n2, p1, p2 = made[kind]
            by_hand((n1, n2), (p1, p2), masquerade=kind == "h")
        paths = {
            "podwire": (made["w"][3], made["w"][4], target),
            "by hand": (made["h"][3], made["h"][4], "10.9.2.2"),
            "bare": (made["b"][3], made["b"][4], "10.9.2.2"),
            "underlay": (made["b"][1], made["b"][2], "172.18.0.12"),
        }
        gbits, micros = measure(paths)
    ratio = statistics.median(gbits["podwire"]) / statistics.median(gbits["by hand"])
    slower = statistics.median(micros["by hand"]) / statistics.median(micros["podwire"])
    show(
        f"Pod to pod across nodes over VXLAN, {ROUNDS} rounds of {SECONDS} s and {PINGS:,} echoes",
        [
            ("TCP, one stream, Gbit/s", spread(gbits["podwire"]), f"x0.97 by hand: x{ratio:.2f}"),
            ("  by hand", spread(gbits["by hand"]), ""),
            ("  by hand, no masquerade", spread(gbits["bare"]), ""),
            ("  underlay", spread(gbits["underlay"]), ""),
            ("one way, µs", spread(micros["podwire"]), f"x0.97 by hand: x{slower:.2f}"),
            ("  by hand", spread(micros["by hand"]), ""),
            ("  by hand, no masquerade", spread(micros["bare"]), ""),
            ("  underlay", spread(micros["underlay"]), ""),
        ],
    )


def measure(
    paths: dict[str, tuple[str, str, str]],
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Gbit/s and microseconds of each path (source, target's namespace, target's address)."""
    gbits: dict[str, list[float]] = {name: [] for name in paths}
    micros: dict[str, list[float]] = {name: [] for name in paths}
    with contextlib.ExitStack() as stack:
        for source, server, address in paths.values():
            command = ["ip", "netns", "exec", server, "iperf3", "-s"]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
            sh(f"ip netns exec {source} ping -c 3 -i 0.1 -q {address}")
        for _ in range(ROUNDS):
            for name, (source, _, address) in paths.items():
                gbits[name].append(throughput(source, address))
                micros[name].append(latency(source, address))
    return gbits, micros


if __name__ == "__main__":
    main()
