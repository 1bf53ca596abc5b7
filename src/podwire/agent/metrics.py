"""The agent's Prometheus metrics, in one place with their names and meanings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from podwire.trace.status import DropCount

RECONCILE_SECONDS = Histogram(
    "podwire_reconcile_seconds",
    "Time to read the kernel, compare and apply, by scope (full: everything, peer: one object).",
    ["scope"],
    buckets=(0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
)
KERNEL_CHANGES = Counter("podwire_kernel_changes_total", "Changes applied to the kernel.")
KERNEL_FAILURES = Counter("podwire_kernel_failures_total", "Changes that the kernel refused.")
PEERS = Gauge("podwire_peers", "Other nodes with a lease that this node has routes to.")
API_CONNECTED = Gauge("podwire_api_connected", "1 while nodes are watched, 0 while reconnecting.")
READY = Gauge("podwire_ready", "1 when pods can be wired and reach their peers.")
HELD = Gauge("podwire_held", "1 while an operator has the agent leave the kernel as it is.")
CNI_SECONDS = Histogram(
    "podwire_cni_seconds",
    "Time to answer a CNI request, by command and error code (0: success).",
    ["command", "code"],
    buckets=(0.001, 0.002, 0.004, 0.008, 0.016, 0.05, 0.2, 1, 5),
)
TUNNEL_RESTARTS = Counter(
    "podwire_tunnel_restarts_total",
    "Processes of the UDP tunnel started anew, by what became of the last one (ended, silent).",
    ["reason"],
)
ADDRESSES = Gauge("podwire_ipam_addresses", "Pod addresses of this node in use.")


class _Dropped(Collector):
    """What others count, as it was told last."""

    def __init__(self) -> None:
        self._counts: tuple[DropCount, ...] = ()

    def set(self, counts: Iterable[DropCount]) -> None:
        self._counts = tuple(counts)

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "podwire_dropped_packets_total",
            "Packets dropped, by reason: by the guards in nft, and by the UDP tunnel.",
            labels=["reason"],
        )
        for one in self._counts:
            family.add_metric([one.reason], one.packets)
        yield family


DROPPED = _Dropped()
REGISTRY.register(DROPPED)
