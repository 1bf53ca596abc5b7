"""The CNI part of an agent as a process of its own, for tests that kill it.

    agent_process.py STATE_DIR SOCKET SUBNET[,SUBNET] [--not-ready]

Runs in the network namespace that it is started in, makes the bridge there, prints "ready" when it
listens, and stops on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

from podwire import log
from podwire.cni.server import CniServer
from podwire.cni.service import CniService
from podwire.ipam.store import Store
from podwire.kernel.reconcile import Reconciler
from podwire.model.cluster import Lease, NetworkConfig, Underlay
from podwire.model.state import Desired
from podwire.plan.wiring import bridge


def network_config(subnets: str) -> NetworkConfig:
    """A node with these subnets; only what the bridge wiring looks at matters."""
    networks = tuple(map(ip_network, subnets.split(",")))
    return NetworkConfig(
        node="node1",
        network=tuple(
            network.supernet(new_prefix=16 if network.version == 4 else 48) for network in networks
        ),
        lease=Lease(networks, "vxlan", ip_address("172.18.0.11")),
        underlay=Underlay("eth0", ip_address("172.18.0.11"), 1500),
        mtu=1450,
    )


async def main(state_dir: Path, socket_path: Path, subnets: str, *, ready: bool) -> None:
    config = network_config(subnets)
    reconciler = Reconciler()
    reconciler.replace(Desired({"Node/node1": bridge.plan_node(config)}))
    report = reconciler.reconcile()
    reconciler.close()
    if report.failures:
        raise SystemExit(f"bridge: {report.failures}")
    store = Store(state_dir / "ipam.db")
    service = CniService(store)
    await service.start()
    if ready:
        service.network = config
    server = CniServer(socket_path, service)
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
    asyncio.run(
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], ready="--not-ready" not in sys.argv)
    )
