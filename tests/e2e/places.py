"""Nodes and pods of a lab as network namespaces that a test looks into.

What lives here: who there is, and the state of each, read once with ip(8) and bridge(8). What does
not: what it should be (`looks`), and packets (`echoes`, `wire`).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from podwire.kernel import netns
from podwire.lab import Lab, LabPod

from .tcpdump import namespace_of

Entry = dict[str, Any]

#: Each prints JSON, or nothing at all where there is nothing.
_READ = (
    "ip -d -j address",
    "ip -j -4 route",
    "ip -j -6 route",
    "ip -j neighbor",
    "bridge -j fdb",
)
_BETWEEN = "--"


@dataclass(frozen=True)
class State:
    """What a namespace holds, as ip(8) and bridge(8) say it in JSON."""

    links: dict[str, Entry]
    routes: dict[int, list[Entry]]
    neighbors: list[Entry]
    fdb: list[Entry]

    def addresses(self, version: int) -> dict[str, int]:
        """Global addresses with their prefix lengths."""
        return {
            one["local"]: one["prefixlen"]
            for link in self.links.values()
            for one in link["addr_info"]
            if one["scope"] == "global" and ip_address(one["local"]).version == version
        }

    def lladdr(self, ip: str | None) -> str | None:
        """The MAC of a neighbour."""
        return next((one.get("lladdr") for one in self.neighbors if one["dst"] == ip), None)


@dataclass(frozen=True)
class Place:
    """A node or pod; a node's `node` is its own name."""

    name: str
    node: str
    namespace: Path
    ips: tuple[str, ...]

    @property
    def is_node(self) -> bool:
        return self.name == self.node

    def ip(self, version: int) -> str:
        return next(ip for ip in self.ips if ip_address(ip).version == version)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread in it: sockets that it opens, and programs that it starts."""
        fd = netns.open_netns(self.namespace)
        try:
            with netns.entered(fd):
                yield
        finally:
            os.close(fd)

    def read(self) -> State:
        with self.entered():
            script = f"; echo {_BETWEEN}; ".join(_READ)
            done = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
        links, ipv4, ipv6, neighbors, fdb = (
            json.loads(text.strip() or "[]") for text in done.stdout.decode().split(_BETWEEN)
        )
        return State({one["ifname"]: one for one in links}, {4: ipv4, 6: ipv6}, neighbors, fdb)


def places(lab: Lab, pods: Sequence[LabPod]) -> list[Place]:
    """All nodes, and these pods."""
    return [
        *(Place(node.name, node.name, node.netns, tuple(node.ips)) for node in lab.nodes),
        *(Place(pod.name, pod.node.name, namespace_of(pod), tuple(pod.ips)) for pod in pods),
    ]
