"""The checks by name, in the order in which they are shown, with what each looks at."""

from __future__ import annotations

from collections.abc import Mapping

CHECKS: Mapping[str, str] = {
    "agent": "the agent: ready, connected, lease published, CNI plugin installed, not held",
    "desired": "the kernel's state against the desired one",
    "kernel": "features of the kernel that the network and its tracing use",
    "forwarding": "what would keep the node from forwarding: settings, rp_filter, firewalls",
    "tunnel": "the way to each peer: does it get through?",
    "mtu": "the largest packet to each peer, and the pods' MTU",
    "offload": "checksums of what goes through the tunnel",
    "guards": "what is dropped right now: forged sources, strangers' tunnel packets",
    "overlap": "pod network, leases, node addresses and routes that overlap",
    "clock": "the clock, against the API server's",
    "leftovers": "what other network plugins have left here",
}
