#!/usr/bin/env python3
"""TCP throughput and latency between pods on two nodes, against the same VXLAN set up by hand.

Three pairs of nodes on underlays of the same make: one wired by Podwire, one with the `ip`,
`bridge` and `nft` commands that a person would type for the same network, and one without its
masquerade, which no cluster can do without and which makes the kernel track connections. The
underlay itself, node to node, is the physical limit. Runs are interleaved, and all of it is set up
anew several times; latency is half of an echo's round trip.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.bursts import RUNS, Ends, compared, measure
from bench.harness import cluster, namespaces, show, wire_underlay
from bench.two_nodes import TARGET, by_hand, by_podwire

PEERS = {
    "by hand (x0.97)": "by hand",
    "by hand, no masquerade": "bare",
    "underlay": "underlay",
}


def main() -> None:
    gbits, micros = measure(_set_up)
    show(
        f"Pod to pod across nodes over VXLAN: {RUNS}",
        [
            *compared("TCP, one stream, Gbit/s", "podwire", PEERS, gbits, more=True),
            *compared("one way, µs", "podwire", PEERS, micros, more=False),
        ],
    )


def _set_up(stack: contextlib.ExitStack) -> dict[str, Ends]:
    """What is compared: its pods, and the second one's address."""
    paths: dict[str, Ends] = {}
    for kind in ("podwire", "by hand", "bare"):
        hub, n1, n2, p1, p2 = stack.enter_context(
            namespaces(*(f"{kind[1]}{letter}" for letter in "hnmpq"))
        )
        wire_underlay(hub, [n1, n2])
        target = TARGET
        if kind == "podwire":
            target = by_podwire(stack.enter_context(cluster()), (n1, n2), (p1, p2))
        else:
            by_hand("vxlan", (n1, n2), (p1, p2), masquerade=kind == "by hand")
        paths[kind] = (p1, p2, target)
    paths["underlay"] = (n1, n2, "172.18.0.12")
    return paths


if __name__ == "__main__":
    main()
