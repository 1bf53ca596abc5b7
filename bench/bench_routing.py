#!/usr/bin/env python3
"""Without a tunnel: `direct` between bridges (host-gw) and between routed pods (Calico's way).

Each against the same network set up with the `ip` and `nft` commands that a person would type: the
same links, addresses, routes and masquerade. What Podwire has beyond that, its pods' anti-spoofing,
is its own to pay; routed pods are also compared with the kernel's own, strict reverse path
filtering, which Calico sets on their links. Also without masquerade, which makes the kernel track
connections, and node to node, the physical limit. Runs are interleaved, and all of it is
set up anew several times; latency is half of an echo's round trip.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.bursts import RUNS, Ends, compared, measure
from bench.harness import cluster, namespaces, sh, show, wire_underlay
from bench.two_nodes import TARGET, Way, by_hand, by_podwire

PROFILES: dict[Way, str] = {"bridge": "flannel-host-gw", "routed": "calico"}
#: By hand, what they are called in the table.
_HANDS: dict[Way, dict[str, str]] = {
    "bridge": {"hand": "by hand (x0.97)", "bare": "by hand, no masquerade"},
    "routed": {
        "hand": "by hand (x0.97)",
        "strict": "by hand, rp_filter=1",
        "bare": "by hand, no masquerade",
    },
}


def main() -> None:
    gbits, micros = measure(_set_up)
    rows = []
    for way, profile in PROFILES.items():
        own = f"{way} podwire"
        peers = {name: f"{way} {kind}" for kind, name in _HANDS[way].items()}
        peers["underlay"] = "underlay"
        rows += compared(f"{profile}: TCP, Gbit/s", own, peers, gbits, more=True)
        rows += compared(f"{profile}: one way, µs", own, peers, micros, more=False)
    show(f"Pod to pod across nodes, no tunnel: {RUNS}", rows)


def _set_up(stack: contextlib.ExitStack) -> dict[str, Ends]:
    """What is compared: its pods, and the second one's address."""
    paths: dict[str, Ends] = {}
    for way, profile in PROFILES.items():
        for kind in ("podwire", *_HANDS[way]):
            names = (f"{way[0]}{kind[0]}{letter}" for letter in "hnmpq")
            hub, n1, n2, p1, p2 = stack.enter_context(namespaces(*names))
            wire_underlay(hub, [n1, n2])
            for node in (n1, n2):
                # Proxy ARP answers for what there is a route to.
                sh(f"ip -n {node} route add default via 172.18.0.1")
            target = TARGET
            if kind == "podwire":
                one = stack.enter_context(cluster())
                target = by_podwire(one, (n1, n2), (p1, p2), "--profile", profile)
            else:
                by_hand(
                    way,
                    (n1, n2),
                    (p1, p2),
                    masquerade=kind != "bare",
                    rp_filter=kind == "strict",
                )
            paths[f"{way} {kind}"] = (p1, p2, target)
    paths["underlay"] = (n1, n2, "172.18.0.12")
    return paths


if __name__ == "__main__":
    main()
