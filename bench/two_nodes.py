"""Two nodes with a pod each, wired by Podwire, or with the commands that a person would type.

By hand, node N has 10.9.N.0/24 and its pod 10.9.N.2. The nodes are at 172.18.0.11 and .12.
"""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
from typing import Literal, TypeAlias

from bench.harness import Cluster, sh, wait_for
from podwire.cluster.kube import NODES, ClientConfig, KubeClient

#: Namespaces, of both nodes or of both pods.
Pair: TypeAlias = tuple[str, str]
Way: TypeAlias = Literal["vxlan", "bridge", "routed"]

#: The second pod, by hand.
TARGET = "10.9.2.2"

#: As the profiles have it.
_MTU: dict[Way, int] = {"vxlan": 1450, "bridge": 1500, "routed": 1450}
_MASQUERADE = """
add table ip hand
add chain ip hand post { type nat hook postrouting priority srcnat; }
add rule ip hand post ip saddr 10.9.0.0/16 ip daddr 10.9.0.0/16 return
add rule ip hand post ip saddr 10.9.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
"""


def by_hand(
    way: Way, nodes: Pair, pods: Pair, *, masquerade: bool = True, rp_filter: bool = False
) -> None:
    """`rp_filter`: the kernel drops what comes from a pod with a source that is not routed to it,
    as Calico sets it."""
    mtu = _MTU[way]
    for own, (node, pod) in enumerate(zip(nodes, pods, strict=True), 1):
        lines = [
            f"ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1",
            f"ip -n {node} link add v0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}",
            f"ip -n {pod} link set eth0 up",
            *(_way_to_peer(node, own, mtu) if way == "vxlan" else _route_to_peer(node, own)),
            *(_routed(node, pod, own) if way == "routed" else _bridged(node, pod, own, mtu)),
        ]
        if rp_filter:
            lines.append(f"ip netns exec {node} sysctl -qw net.ipv4.conf.v0.rp_filter=1")
        for line in lines:
            sh(line)
        if masquerade:
            load = ["ip", "netns", "exec", node, "nft", "-f", "-"]
            subprocess.run(load, input=_MASQUERADE.encode(), check=True)


def _way_to_peer(node: str, own: int, mtu: int) -> list[str]:
    peer = 3 - own
    return [
        f"ip -n {node} link add flannel.1 mtu {mtu} address 02:00:00:00:09:0{own} type vxlan id 1"
        f" local 172.18.0.{10 + own} dev eth0 dstport 8472 nolearning",
        f"ip -n {node} link set flannel.1 up",
        f"ip -n {node} address add 10.9.{own}.0/32 dev flannel.1",
        f"ip -n {node} neigh add 10.9.{peer}.0 lladdr 02:00:00:00:09:0{peer} dev flannel.1"
        " nud permanent",
        f"bridge -n {node} fdb add 02:00:00:00:09:0{peer} dev flannel.1 dst 172.18.0.{10 + peer}",
        f"ip -n {node} route add 10.9.{peer}.0/24 via 10.9.{peer}.0 dev flannel.1 onlink",
    ]


def _route_to_peer(node: str, own: int) -> list[str]:
    peer = 3 - own
    return [f"ip -n {node} route add 10.9.{peer}.0/24 via 172.18.0.{10 + peer} dev eth0"]


def _bridged(node: str, pod: str, own: int, mtu: int) -> list[str]:
    return [
        f"ip -n {node} link add cni0 type bridge",
        f"ip -n {node} link set cni0 mtu {mtu} up",
        f"ip -n {node} address add 10.9.{own}.1/24 dev cni0",
        f"ip -n {node} link set v0 master cni0 up",
        f"ip -n {pod} address add 10.9.{own}.2/24 dev eth0",
        f"ip -n {pod} route add default via 10.9.{own}.1",
    ]


def _routed(node: str, pod: str, own: int) -> list[str]:
    return [
        f"ip -n {node} link set v0 address ee:ee:ee:ee:ee:ee up",
        f"ip netns exec {node} sysctl -qw net.ipv4.conf.v0.proxy_arp=1",
        f"ip -n {node} route add 10.9.{own}.2 dev v0",
        f"ip -n {node} route add blackhole 10.9.{own}.0/24",
        f"ip -n {pod} address add 10.9.{own}.2/32 dev eth0",
        f"ip -n {pod} route add 169.254.1.1 dev eth0",
        f"ip -n {pod} route add default via 169.254.1.1",
    ]


def by_podwire(one: Cluster, nodes: Pair, pods: Pair, *options: str) -> str:
    """Two agents with these options, and a CNI ADD on each; the address of the second pod."""
    one.start_api()
    asyncio.run(_register(one))
    ip = ""
    for number, node in enumerate(nodes, 1):
        one.start_agent(f"node{number}", node, *options)
    for number, pod in enumerate(pods, 1):
        name = f"node{number}"
        wait_for(functools.partial(one.is_ready, name), "the agent")
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": pod,
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
        }
        conf = b'{"cniVersion":"1.0.0","name":"podwire","type":"podwire"}'
        answer = subprocess.run(
            [one.plugin(name)], input=conf, env=environment, capture_output=True, check=True
        )
        ip = json.loads(answer.stdout)["ips"][0]["address"].partition("/")[0]
    # A block is claimed for the first pod, and is then known to the other node.
    ping = ["ip", "netns", "exec", pods[0], "ping", "-c1", "-W1", ip]
    wait_for(lambda: subprocess.run(ping, capture_output=True).returncode == 0, "the pods' route")
    return ip


async def _register(one: Cluster) -> None:
    config = ClientConfig.from_kubeconfig(one.root / "kubeconfig")
    async with KubeClient(config) as client:
        for number in (1, 2):
            name = f"node{number}"
            await client.create(
                NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
            )
            own = [{"type": "InternalIP", "address": f"172.18.0.{10 + number}"}]
            await client.merge_patch(
                NODES, name, {"status": {"addresses": own}}, subresource="status"
            )
