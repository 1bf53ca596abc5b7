"""The kubelet process: its parts, tied together, until SIGTERM.

What lives here: making the parts and running them side by side. Stopping stops nothing else: pods
run on, and the next kubelet adopts them.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from podwire.cluster.kube import ClientConfig, KubeClient
from podwire.lab.kubelet import pods as pods_module
from podwire.lab.kubelet.events import EventRecorder
from podwire.lab.kubelet.network import PodNetwork
from podwire.lab.kubelet.node import Node
from podwire.lab.kubelet.node_addresses import NodeAddresses
from podwire.lab.kubelet.node_status import NodeStatus
from podwire.lab.kubelet.pods import Pods
from podwire.lab.kubelet.records import RecordStore
from podwire.lab.kubelet.server import Server

STATE = Path("/var/lib/kubelet")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `grace`: how long the node may be silent, in seconds.

    `pod_network` names the network that pods are attached to.
    """

    kubeconfig: Path
    node_name: str
    node_ips: tuple[str, ...]
    grace: float
    pod_network: str
    socket: Path
    ready_fd: int | None


async def run(options: Options) -> None:
    """Run until SIGTERM or SIGINT, or until a part fails."""
    records = RecordStore(STATE)
    pods_module.end_unknown_sandboxes(records)
    async with KubeClient(ClientConfig.from_kubeconfig(options.kubeconfig)) as client:
        node = Node(
            name=options.node_name,
            addresses=NodeAddresses(options.node_ips),
            client=client,
            records=records,
            network=PodNetwork(lambda: pods_module.attachments(records)),
            events=EventRecorder(client, options.node_name),
            pod_network=options.pod_network,
            resolv_conf=Path("/etc/resolv.conf").read_text(),
        )
        pods = Pods(node)
        status = NodeStatus(node, options.grace, lambda problem: _report(options.ready_fd, problem))
        async with Server(options.socket, pods, records):
            parts = [node.network.follow(), node.events.send(), status.keep(), pods.follow()]
            tasks = [asyncio.create_task(part) for part in parts]
            stop = asyncio.create_task(_signalled())
            try:
                done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (stop, *tasks):
                    task.cancel()
                await asyncio.gather(stop, *tasks, return_exceptions=True)


async def _signalled() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


def _report(fd: int | None, problem: str | None) -> None:
    if fd is not None:
        text = "ready" if problem is None else "waiting " + " ".join(problem.split())
        os.write(fd, f"{text}\n".encode())
