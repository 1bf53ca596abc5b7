#!/usr/bin/env python3
"""Without a tunnel: `direct` between bridges (host-gw) and between routed pods (Calico's way).

Each against the same network set up with the `ip` and `nft` commands that a person would type: the
same links, addresses, routes and masquerade. What Podwire has beyond that, its pods' anti-spoofing,
is its own to pay. Also without masquerade, which makes the kernel track connections, and node to
node, the physical limit. Runs are interleaved; latency is half of an echo's round trip.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.bench_throughput import MASQUERADE, by_podwire
from bench.bursts import ECHOES, STREAM_BYTES, measure, quartiles
from bench.harness import cluster, namespaces, sh, show, wire_underlay

ROUNDS = 40
PROFILES = {"bridge": "flannel-host-gw", "routed": "calico"}
#: As the profiles have it.
_MTU = {"bridge": 1500, "routed": 1450}

Pair = tuple[str, str]


def by_hand(wiring: str, nodes: Pair, pods: Pair, *, masquerade: bool) -> None:
    """Node N has 10.9.N.0/24; its pod is 10.9.N.2."""
    mtu = _MTU[wiring]
    for own, (node, pod) in enumerate(zip(nodes, pods, strict=True), 1):
        peer = 3 - own
        lines = [
            f"ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1",
            f"ip -n {node} route add 10.9.{peer}.0/24 via 172.18.0.{10 + peer} dev eth0",
            f"ip -n {node} link add v0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}",
        ]
        for line in lines + (_bridge if wiring == "bridge" else _routed)(node, pod, own):
            sh(line)
        if masquerade:
            subprocess.run(
                ["ip", "netns", "exec", node, "nft", "-f", "-"],
                input=MASQUERADE.encode(),
                check=True,
            )


def _bridge(node: str, pod: str, own: int) -> list[str]:
    return [
        f"ip -n {node} link add cni0 type bridge",
        f"ip -n {node} link set cni0 mtu {_MTU['bridge']} up",
        f"ip -n {node} address add 10.9.{own}.1/24 dev cni0",
        f"ip -n {node} link set v0 master cni0 up",
        f"ip -n {pod} link set eth0 up",
        f"ip -n {pod} address add 10.9.{own}.2/24 dev eth0",
        f"ip -n {pod} route add default via 10.9.{own}.1",
    ]


def _routed(node: str, pod: str, own: int) -> list[str]:
    return [
        f"ip -n {node} link set v0 address ee:ee:ee:ee:ee:ee up",
        f"ip netns exec {node} sysctl -qw net.ipv4.conf.v0.proxy_arp=1",
        f"ip -n {node} route add 10.9.{own}.2 dev v0",
        f"ip -n {node} route add blackhole 10.9.{own}.0/24",
        f"ip -n {pod} link set eth0 up",
        f"ip -n {pod} address add 10.9.{own}.2/32 dev eth0",
        f"ip -n {pod} route add 169.254.1.1 dev eth0",
        f"ip -n {pod} route add default via 169.254.1.1",
    ]


def main() -> None:
    paths: dict[str, tuple[str, str, str]] = {}
    with contextlib.ExitStack() as stack:
        for wiring, profile in PROFILES.items():
            for kind in ("podwire", "by hand", "bare"):
                tag = f"{wiring[0]}{kind[0]}{kind[1]}"
                names = [f"{tag}{letter}" for letter in "hnmpq"]
                hub, n1, n2, p1, p2 = stack.enter_context(namespaces(*names))
                wire_underlay(hub, [n1, n2])
                for node in (n1, n2):
                    # Proxy ARP answers for what there is a route to.
                    sh(f"ip -n {node} route add default via 172.18.0.1")
                target = "10.9.2.2"
                if kind == "podwire":
                    one = stack.enter_context(cluster())
                    target = by_podwire(one, (n1, n2), (p1, p2), "--profile", profile)
                else:
                    by_hand(wiring, (n1, n2), (p1, p2), masquerade=kind == "by hand")
                paths[f"{wiring} {kind}"] = (p1, p2, target)
        paths["underlay"] = (n1, n2, "172.18.0.12")
        gbits, micros = measure(paths, ROUNDS)
    rows = []
    for wiring, profile in PROFILES.items():
        for what, values, faster in (
            ("TCP, one stream, Gbit/s", gbits, True),
            ("one way, µs", micros, False),
        ):
            pairs = zip(values[f"{wiring} podwire"], values[f"{wiring} by hand"], strict=True)
            # Of runs one after the other, so that both met the same pace.
            ratio = statistics.median(a / b if faster else b / a for a, b in pairs)
            rows += [
                (
                    f"{profile}: {what}",
                    quartiles(values[f"{wiring} podwire"]),
                    f"x0.97 by hand: x{ratio:.2f}",
                ),
                ("  by hand", quartiles(values[f"{wiring} by hand"]), ""),
                ("  by hand, no masquerade", quartiles(values[f"{wiring} bare"]), ""),
                ("  underlay", quartiles(values["underlay"]), ""),
            ]
    show(
        f"Pod to pod across nodes, no tunnel: {ROUNDS} runs each of {STREAM_BYTES >> 20} MiB and of"
        f" {ECHOES} echoes, quartiles",
        rows,
    )


if __name__ == "__main__":
    main()
