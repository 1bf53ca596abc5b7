#!/usr/bin/env python3
"""A node joins a cluster of 10, 500 or 5,000 nodes: from the start of its agent's process until its
kernel holds all entries for all peers, for each transport.

The peers are simulated: Node objects as their agents would have published them, with a block or a
range of the pod network where the IPAM has such, and in the fabric of one segment ten pods each.
The limits in the same run are the same agent as the only node, and a process that imports what an
agent does. And the other way round: a peer that comes later, from before the API is told until its
entries are in the kernel of the node that runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.harness import BIN, Cluster, cluster, namespaces, sh, show, spread, wait_for
from podwire.agent.tunnel_process import stop_tunnel
from podwire.cluster.kube import NODES, PODS, ClientConfig, KubeClient
from podwire.cluster.kube.resources import IPAM_BLOCKS, IPAM_RANGES, Resource
from podwire.cluster.nodes import lease_annotations
from podwire.ipam.block import Block, document_name, encode_block
from podwire.ipam.ranges import Token, encode_token
from podwire.kernel import messages, netns
from podwire.kernel.netlink import socket_in
from podwire.model.cluster import Lease
from podwire.model.fabric import Fabric
from podwire.model.state import IPNetwork
from podwire.plan.profiles import PROFILES
from podwire.plan.transport import transport_of
from podwire.trace.connection import Connection
from podwire.trace.wire import Status

ROUNDS = 5
PODS_A_NODE = 10
SIZES = (10, 500, 5_000)
PROFILE_OF = {
    "vxlan": "flannel-vxlan",
    "direct": "flannel-host-gw",
    "udp": "flannel-udp",
    "blocks": "calico",
    "l2-vxlan": "weave",
}
_NETWORKS = {"l2-vxlan": ip_network("10.32.0.0/12")}
_NETWORK = ip_network("10.0.0.0/8")
#: Of the 256 slots that the one big range is cut into: the others are left to those that join.
_SLOTS = 240

Call = Callable[[KubeClient], Awaitable[object]]


class Site:
    """An API with `count` peers in it, and a place for the node that joins."""

    def __init__(self, one: Cluster, transport: str, count: int) -> None:
        self.one, self.transport, self.count = one, transport, count
        self.fabric: Fabric = PROFILES[PROFILE_OF[transport]]
        self.network = _NETWORKS.get(transport, _NETWORK)
        #: The number of the last peer that came later.
        self.later = count + 1000
        one.start_api("--cluster-cidr", str(_NETWORK))
        self.call(self.peer(number) for number in range(count))

    def call(self, calls: Iterable[Call]) -> None:
        asyncio.run(self._call(list(calls)))

    async def _call(self, calls: list[Call]) -> None:
        config = ClientConfig.from_kubeconfig(self.one.root / "kubeconfig")
        async with KubeClient(config) as client:
            for start in range(0, len(calls), 50):
                await asyncio.gather(*(call(client) for call in calls[start : start + 50]))

    def peer(self, number: int) -> Call:
        """Makes a peer with all that its agent would have made."""
        name, ip = f"peer{number}", IPv4Address(0xAC120100 + number)
        ipam = self.fabric.ipam
        lease = Lease(
            subnets=(self.part(number),) if ipam != "node-subnet" else (),
            backend=transport_of(self.fabric).BACKEND,
            public_ip=ip,
            vni=self.fabric.vni,
            vtep_mac=b"\x02\x01" + number.to_bytes(4, "big") if self.fabric.uses_vxlan else None,
        )
        node = {
            "metadata": {"name": name, "annotations": lease_annotations(lease, ())},
            "status": {"addresses": [{"type": "InternalIP", "address": str(ip)}]},
        }

        async def make(client: KubeClient) -> None:
            await client.create(NODES, node | {"apiVersion": "v1", "kind": "Node"})
            if ipam == "blocks":
                block = Block(self.part(number), name, 0, {})
                await self._keep(client, IPAM_BLOCKS, block.cidr, encode_block(block))
            elif ipam == "cluster-range":
                first = self.part(number).network_address
                token = Token(self.network, first, name, "x")
                await self._keep(client, IPAM_RANGES, first, encode_token(token))
                for pod in range(PODS_A_NODE):
                    await self._run(client, f"p{number}-{pod}", name, str(first + 2 + pod))

        return make

    @staticmethod
    async def _keep(client: KubeClient, resource: Resource, of: Any, value: bytes) -> None:
        await client.create(
            resource,
            {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {"name": document_name(of)},
                "spec": json.loads(value),
            },
        )

    @staticmethod
    async def _run(client: KubeClient, name: str, node: str, ip: str) -> None:
        containers = [{"name": "c", "image": "i"}]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": node, "containers": containers},
        }
        await client.create(PODS, pod, namespace="default")
        status = {"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}}
        await client.merge_patch(PODS, name, status, namespace="default", subresource="status")

    def part(self, number: int) -> IPNetwork:
        """A peer's block, or a network that its range begins with."""
        base = int(self.network.network_address)
        if self.fabric.ipam == "blocks":
            return ip_network((base + (number << 6), 26))
        slot, nth = number % _SLOTS, number // _SLOTS
        return ip_network((base + (slot << 12) + (nth << 7), 25))

    def join(self, number: int) -> tuple[float, float]:
        """Milliseconds until all is in, and until a peer that comes later is in."""
        name = f"new{number}"
        own = [{"type": "InternalIP", "address": "172.18.0.11"}]
        with namespaces("node") as (node,):
            sh(
                f"ip -n {node} link add eth0 type veth peer name x && ip -n {node} link set x up &&"
                f" ip -n {node} link set eth0 up &&"
                f" ip -n {node} address add 172.18.0.11/16 dev eth0 &&"
                f" ip -n {node} route add default via 172.18.0.1"
            )
            obj = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
            obj["status"] = {"addresses": own}
            self.call([lambda client: client.create(NODES, obj)])
            fd = netns.open_netns(f"/run/netns/{node}")
            try:
                return self._timed(name, node, fd)
            finally:
                os.close(fd)
                self.stop(name)
                self.call([lambda client: client.delete(NODES, name)])

    def _timed(self, name: str, node: str, fd: int) -> tuple[float, float]:
        options = ["--profile", PROFILE_OF[self.transport], "--network", str(self.network)]
        started = time.perf_counter()
        self.one.start_agent(name, node, *options)
        if self.count:
            wait_for(lambda: self.has(name, fd, self.count), "the entries of all peers", 180)
        else:
            wait_for(lambda: self.one.is_ready(name), "the agent")
        joined = time.perf_counter() - started
        wait_for(lambda: self.one.is_ready(name), "the agent", 180)
        self.later += 1
        later = self.later
        added = time.perf_counter()
        self.call([self.peer(later)])
        wait_for(lambda: self.has(name, fd, self.count + 1), "the entries of one more", 180)
        took = time.perf_counter() - added
        self.call([lambda client: client.delete(NODES, f"peer{later}")])
        return joined * 1000, took * 1000

    def has(self, name: str, fd: int, peers: int) -> bool:
        """Whether there is all of so many peers, the last of what is made of them."""
        if self.transport == "udp":
            return asyncio.run(_tunnel_peers(self.one.root / name)) >= peers
        with socket_in(fd) as sock:
            if self.transport != "l2-vxlan":
                protocol = self.fabric.route_protocol
                dump = sock.dump(messages.RTM_GETROUTE, messages.get_routes(2, protocol))
                blackholes = 1 if self.transport == "blocks" else 0
                return len(list(dump)) >= peers + blackholes
            dump = sock.dump(messages.RTM_GETNEIGH, messages.get_neighbors(2))
            found = sum(bool(messages.neighbor_head(one)[1] & 0x80) for one in dump)
            return found >= peers * PODS_A_NODE

    def stop(self, name: str) -> None:
        process = self.one.agents.pop(name)
        self.one.processes.remove(process)
        process.terminate()
        process.wait()
        asyncio.run(stop_tunnel(self.one.root / name / "run" / "tunnel.sock"))


async def _tunnel_peers(home: Path) -> int:
    """How many peers the UDP tunnel's process knows, as its agent says; -1 while there is none.

    The process itself is not asked: it has one controller at a time, the newest, and would hang up
    on the agent that is just telling it its peers.
    """
    if "tunnel forwards" not in (home / "agent.log").read_text():
        return -1
    sock = await asyncio.open_unix_connection(str(home / "run" / "operator.sock"))
    connection = await Connection.open(*sock, agent="the agent")
    try:
        status = (await connection.call(Status(id=0))).status
    finally:
        await connection.close()
    return sum(peer.encrypted is not None for peer in status.peers)


def imports() -> float:
    """Milliseconds of a process that imports what an agent does, and ends."""
    started = time.perf_counter()
    subprocess.run([BIN / "python", "-c", "import podwire.agent.daemon"], check=True)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    chosen = sys.argv[1:] or list(PROFILE_OF)
    for transport in chosen:
        rows = []
        alone = []
        for count in (0, *SIZES):
            if transport == "l2-vxlan" and count > 500:
                continue
            with cluster() as one:
                site = Site(one, transport, count)
                took = [site.join(number) for number in range(ROUNDS)]
            joined, later = [one[0] for one in took], [one[1] for one in took]
            if not count:
                alone = joined
                rows.append(("the only node", spread(alone, 0), ""))
                continue
            more = statistics.median(joined) - statistics.median(alone)
            limit = "1000" if count == 500 else ""
            rows.append((f"{count:,} peers", spread(joined, 0), limit))
            rows.append(("  of these, for the peers", f"{more:.0f}", ""))
            rows.append(("  a peer more", spread(later, 0), ""))
        rows.append(
            ("  a process with the agent's imports", spread([imports() for _ in range(5)], 0), "")
        )
        show(f"A node joins, {transport}: {ROUNDS} rounds, ms", rows)


if __name__ == "__main__":
    main()
