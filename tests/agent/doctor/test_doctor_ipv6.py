"""The doctor over IPv6, where every check is the same code: two agents, a cable between them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from podwire.cluster.kube import NODES
from podwire.trace.wire import Check, Checked

from ...conftest import Namespace
from ...e2e.waiting import until
from ..conftest import AgentProcess, Cluster
from ..operating import connected

pytestmark = [pytest.mark.root, pytest.mark.slow]

NETWORK = "fd00:244::/48"


@pytest.fixture
def pair(
    cluster: Cluster,
    make_namespace: Callable[[], Namespace],
    make_agent: Callable[[str], AgentProcess],
) -> list[AgentProcess]:
    """Two nodes of IPv6 alone, ready."""
    agents = [make_agent("node1"), make_agent("node2")]
    wire = make_namespace()
    # Without a querier, a bridge that snoops loses the first neighbour solicitations.
    wire.run("ip link add bridge0 type bridge mcast_snooping 0; ip link set bridge0 up")
    for number, agent in enumerate(agents, 1):
        agent.namespace.run(
            f"ip link set wire netns {wire.name}; ip address flush dev eth0;"
            f" ip address add fd00:172::{number}/64 dev eth0 nodad"
        )
        wire.run(f"ip link set wire name w{number} master bridge0; ip link set w{number} up")
        subnet = f"fd00:244:0:{number}::/64"
        node: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": agent.name},
            "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
        }
        addresses = [{"type": "InternalIP", "address": f"fd00:172::{number}"}]
        cluster.call(lambda client, node=node: client.create(NODES, node))  # type: ignore[misc]
        cluster.call(
            lambda client, name=agent.name, addresses=addresses: client.merge_patch(  # type: ignore[misc]
                NODES, name, {"status": {"addresses": addresses}}, subresource="status"
            )
        )
    for agent in agents:
        agent.start("--network", NETWORK, "--health-address", "").wait_ready()
    for agent in agents:
        peers = functools.partial(agent.namespace.run, "ip -6 route show proto 112")
        until(peers, f"{agent.name} has its peer")
    # A port of the bridge may be disabled for a second more: the kernel's link watch is slow
    # where the two ends of a cable happen to have the same interface index.
    ping = functools.partial(agents[0].namespace.run, "ping -c 1 -W 1 fd00:172::2", check=False)
    until(lambda: " 0% packet loss" in ping(), "the underlay carries")
    return agents


async def amiss(agent: AgentProcess) -> list[Checked]:
    async with connected(agent) as connection:
        await connection.call(Check(id=0))
        found = []
        while not connection.events.empty():
            event = connection.events.get_nowait()
            if isinstance(event, Checked) and event.level != "ok":
                found.append(event)
        return found


async def test_two_nodes_of_ipv6(pair: list[AgentProcess]) -> None:
    node1, node2 = pair
    assert await amiss(node1) == []
    assert await amiss(node2) == []

    node2.namespace.run("ip6tables-legacy -A INPUT -p udp --dport 8472 -j DROP")
    (finding,) = await amiss(node1)
    assert finding.text == (
        "node2 answers at fd00:172::2, and not at fd00:244:0:2:: through flannel-v6.1"
    )
    named, _ = await amiss(node2)
    assert named.lines == ("ip6tables-legacy -I INPUT -p udp --dport 8472 -j ACCEPT",)
    node2.namespace.run("ip6tables-legacy -F")

    node2.namespace.run("ip6tables -P FORWARD DROP; ip -6 route add fd00:244:0:1:8000::/65 dev lo")
    forward, overlap = sorted(await amiss(node2), key=lambda one: one.check)
    assert "the policy of ip6tables FORWARD" in forward.text
    assert forward.lines[0] == f"ip6tables -I FORWARD -s {NETWORK} -j ACCEPT"
    assert "takes what is for node1's pods" in overlap.text
