#!/usr/bin/env python3
"""Peers into the kernel: 10, 1,000 and 10,000 nodes planned, applied, compared, one changed.

The limit in the same run is the kernel itself: the same entries as messages that were encoded
beforehand, sent in batches with nothing else done.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.harness import namespaces, rss_mb, sh, show, spread
from podwire.kernel import netns, tables
from podwire.kernel.link_queries import links
from podwire.kernel.netlink import socket_in
from podwire.kernel.reconcile import Reconciler
from podwire.model.cluster import ClusterView, Lease, NetworkConfig, Node, Underlay
from podwire.plan.node import cause_of_node, plan, plan_peer

ROUNDS = 5
_BASE = int(ip_address("10.0.0.0"))


def lease(number: int, mac_prefix: int = 1) -> Lease:
    return Lease(
        subnets=(IPv4Network((_BASE + 256 * number, 24)),),
        backend="vxlan",
        public_ip=IPv4Address(0xAC120000 + 10 + number),
        vni=1,
        vtep_mac=bytes([2, mac_prefix]) + number.to_bytes(4, "big"),
    )


CONFIG = NetworkConfig(
    node="n1",
    network=(ip_network("10.0.0.0/8"),),
    lease=lease(1),
    underlay=Underlay("eth0", ip_address("172.18.0.11"), 1500),
    mtu=1450,
)


def measure(peers: int) -> dict[str, float]:
    with namespaces("node", "limit") as (node, limit):
        for name in (node, limit):
            sh(
                f"ip -n {name} link add eth0 type veth peer name x &&"
                f"ip -n {name} link set eth0 up && ip -n {name} link set x up &&"
                f"ip -n {name} address add 172.18.0.11/16 dev eth0"
            )
        nodes = {
            f"n{number}": Node(f"n{number}", lease=lease(number)) for number in range(1, peers + 2)
        }
        fd = netns.open_netns(f"/run/netns/{node}")
        with netns.entered(fd):
            reconciler = Reconciler()
            started = time.perf_counter()
            reconciler.replace(plan(ClusterView(CONFIG, nodes)))
            planned = time.perf_counter() - started
            report = reconciler.reconcile()
            assert not report.failures, report.failures[:3]
            unchanged = reconciler.reconcile()
            assert unchanged.changes == 0
            moved = msgspec.structs.replace(nodes["n5"], lease=lease(5, mac_prefix=9))
            started = time.perf_counter()
            update = reconciler.update(cause_of_node("n5"), plan_peer(CONFIG, moved))
            one = time.perf_counter() - started
            assert update is not None
            assert update.changes == 3
            reconciler.close()
        os.close(fd)
        return {
            "plan": planned,
            "apply": report.seconds,
            "unchanged": unchanged.seconds,
            "one": one,
            "limit": measure_limit(limit, nodes),
        }


def measure_limit(name: str, nodes: dict[str, Node]) -> float:
    """Seconds that the kernel takes for the same entries, ready encoded."""
    fd = netns.open_netns(f"/run/netns/{name}")
    sh(
        f"ip -n {name} link add flannel.1 type vxlan id 1 local 172.18.0.11 dev eth0"
        f" dstport 8472 nolearning && ip -n {name} link set flannel.1 up &&"
        f" ip -n {name} address add 10.0.1.0/32 dev flannel.1"
    )
    with socket_in(fd) as sock:
        scope = tables.Scope({link: state.index for link, state in links(sock).items()})
        entries = [entry for node in nodes.values() for entry in plan_peer(CONFIG, node)]
        messages = [
            table.add(*table.wire(entry, scope))
            for table in (tables.NEIGHBORS, tables.FDB, tables.ROUTES)
            for entry in entries
            if tables.TABLE_OF[type(entry)] is table
        ]
        started = time.perf_counter()
        failures = sock.request(messages)
        seconds = time.perf_counter() - started
        assert not failures, failures[:3]
    os.close(fd)
    return seconds


def main() -> None:
    for peers in (10, 1_000, 10_000):
        rounds = [measure(peers) for _ in range(ROUNDS)]
        values = {key: [one[key] * 1000 for one in rounds] for key in rounds[0]}
        ratio = statistics.median(values["apply"]) / statistics.median(values["limit"])
        big = peers == 10_000
        show(
            f"{peers:,} peers ({3 * peers:,} entries), {ROUNDS} rounds, ms",
            [
                ("plan", spread(values["plan"]), ""),
                ("read, compare, apply all", spread(values["apply"]), "2000" if big else ""),
                ("  the kernel alone", spread(values["limit"]), f"x{ratio:.2f}"),
                ("unchanged reconcile", spread(values["unchanged"]), "500" if big else ""),
                ("one peer changed", spread(values["one"], 3), "20" if big else ""),
            ],
        )
    print(f"memory of this process at the end: {rss_mb(os.getpid()):.0f} MB")


if __name__ == "__main__":
    main()
