"""The CNI part of an agent as a process of its own, for tests that kill it.

    agent_process.py STATE_DIR SOCKET SUBNET[,SUBNET] [--not-ready] [--awaited] [--routed]
                     [--annotations JSON]

Runs in the network namespace that it is started in, makes what the wiring needs there, prints
"ready" when it listens, and stops on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

from podwire import log
from podwire.cni.server import CniServer
from podwire.cni.service import CniService
from podwire.ipam.record import PodIdentity
from podwire.ipam.store import Store
from podwire.kernel.reconcile import Reconciler
from podwire.model.cluster import Lease, NetworkConfig, Underlay
from podwire.model.fabric import Fabric, Guard
from podwire.model.state import Desired
from podwire.plan.node import plan_tables
from podwire.plan.profiles import PROFILES
from podwire.plan.profiles import fabric as choose
from podwire.plan.wiring import wiring_of

#: What the wiring looks at; addresses are always the node's own.
FABRICS = {
    "bridged": PROFILES["flannel-vxlan"],
    "routed": choose("calico", ipam="node-subnet"),
    "segment": PROFILES["weave"],
}


def network_config(subnets: str, fabric: Fabric, guard: Guard) -> NetworkConfig:
    """A node with these subnets; only what the wiring looks at matters."""
    networks = tuple(map(ip_network, subnets.split(",")))
    return NetworkConfig(
        node="node1",
        network=tuple(
            network.supernet(new_prefix=16 if network.version == 4 else 48) for network in networks
        ),
        lease=Lease(networks, "vxlan", ip_address("172.18.0.11")),
        underlay=Underlay("eth0", ip_address("172.18.0.11"), 1500),
        mtu=1450,
        fabric=fabric,
        guard=guard,
    )


async def main(options: argparse.Namespace) -> None:
    config = network_config(options.subnets, FABRICS[options.fabric], options.guard)
    reconciler = Reconciler()
    entries = (*wiring_of(config.fabric).plan_node(config), *plan_tables(config))
    reconciler.replace(Desired({"Node/node1": entries}))
    report = reconciler.reconcile()
    reconciler.close()
    if report.failures:
        raise SystemExit(f"node: {report.failures}")

    async def annotations(pod: PodIdentity) -> Mapping[str, str]:
        found: dict[str, str] = options.annotations.get(str(pod), {})
        return found

    store = Store(options.state_dir / "ipam.db")
    service = CniService(store, annotations=annotations)
    await service.start()
    if not options.not_ready:
        service.network = config
    if options.awaited:
        service.awaited = "this is a test"
    server = CniServer(options.socket, service)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    await server.stop()
    await service.stop()
    store.close()


if __name__ == "__main__":
    log.setup("info")
    parser = argparse.ArgumentParser()
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("socket", type=Path)
    parser.add_argument("subnets")
    parser.add_argument("--not-ready", action="store_true")
    parser.add_argument("--awaited", action="store_true")
    parser.add_argument("--fabric", choices=FABRICS, default="bridged")
    parser.add_argument("--guard", choices=("ebpf", "nftables"), default="ebpf")
    parser.add_argument("--annotations", type=json.loads, default={})
    asyncio.run(main(parser.parse_args()))
