"""One flat network: everybody reaches everybody, without NAT, with the TTL and MTU of the path."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from podwire.lab import Lab, LabNode, LabPod

from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Answers each HTTP request with the address that it came from.
WHO_ASKS = """
mkdir -p /tmp/www/cgi-bin
printf '#!/bin/sh\\necho; echo $REMOTE_ADDR\\n' > /tmp/www/cgi-bin/me
chmod +x /tmp/www/cgi-bin/me
exec busybox httpd -f -p 0.0.0.0:8080 -h /tmp/www
"""
ASK = """
exec 3<>/dev/tcp/$1/8080
printf 'GET /cgi-bin/me HTTP/1.0\\r\\n\\r\\n' >&3
cat <&3
"""
#: Pings each argument in turn, and waits up to a second for the last reply.
PING_EACH = 'for target; do ping -n -c 3 -l 3 -i 1 -W 1 "$target"; done'


@pytest.fixture(scope="module")
def pods(lab: Lab) -> dict[str, LabPod]:
    """Two pods on each node: a1, b1 on node1 and so on."""
    made = {
        f"{letter}{number}": lab.run(
            f"{letter}{number}", ["sh", "-c", WHO_ASKS], node=f"node{number}"
        )
        for number in (1, 2, 3)
        for letter in "ab"
    }
    lab.wait_ready()
    return made


@pytest.fixture(scope="module")
def addresses(lab: Lab, pods: Mapping[str, LabPod]) -> dict[str, str]:
    """Everybody's own address, pods and nodes, by name."""
    everybody: dict[str, LabPod | LabNode] = {**pods, **{node.name: node for node in lab.nodes}}
    return {name: one.ip for name, one in everybody.items()}


def answers(output: str) -> dict[str, tuple[int, set[int]]]:
    """From the output of several pings: replies and their TTLs by target."""
    found = {}
    for block in output.split("PING ")[1:]:
        ttls = [int(ttl) for ttl in re.findall(r" ttl=(\d+)", block)]
        found[block.split()[0]] = (len(ttls), set(ttls))
    return found


def node_of(name: str) -> str:
    return f"node{name[-1]}"


def expected_ttl(source: str, target: str) -> int:
    """Of the reply: 64, less one for each node that routes it."""
    if node_of(source) == node_of(target):
        return 64
    return 62 if not {source[:4], target[:4]} & {"node"} else 63


def test_every_pod_and_node_reaches_every_pod_and_node(
    lab: Lab, pods: Mapping[str, LabPod], addresses: Mapping[str, str]
) -> None:
    sources: dict[str, LabPod | LabNode] = {**pods, **{node.name: node for node in lab.nodes}}

    def ping_all(source: str) -> dict[str, tuple[int, set[int]]]:
        targets = [ip for name, ip in addresses.items() if name != source]
        return answers(sources[source].exec(["sh", "-c", PING_EACH, "sh", *targets]).stdout)

    with ThreadPoolExecutor() as pool:
        found = dict(zip(sources, pool.map(ping_all, sources), strict=True))
    wrong = [
        f"{source} to {target}: {found[source].get(ip)}"
        for source in sources
        for target, ip in addresses.items()
        if target != source
        and {source[:4], target[:4]} != {"node"}
        and found[source].get(ip) != (3, {expected_ttl(source, target)})
    ]
    assert wrong == []
    assert sum(map(len, found.values())) == 9 * 8


def asked_by(client: LabPod | LabNode, server: LabPod) -> str:
    """The address that a server in a pod sees this client under."""
    question = ["bash", "-c", ASK, "bash", server.ip]
    return until(lambda: client.exec(question).stdout, "an answer").split()[-1]


@pytest.mark.parametrize(("client", "server"), [("a1", "a2"), ("b3", "b1"), ("a2", "b2")])
def test_a_server_sees_the_clients_own_pod_ip(
    pods: Mapping[str, LabPod], client: str, server: str
) -> None:
    assert asked_by(pods[client], pods[server]) == pods[client].ip


def test_a_server_sees_a_node_under_an_address_of_its_subnet(
    lab: Lab, pods: Mapping[str, LabPod]
) -> None:
    """A node has two in the pod network: the base one on flannel.1, the gateway's on cni0."""
    held = {
        address["local"]
        for link in json.loads(lab.node("node1").exec(["ip", "-j", "-4", "address"]).stdout)
        if link["ifname"] in ("flannel.1", "cni0")
        for address in link["addr_info"]
    }
    assert len(held) == 2
    assert asked_by(lab.node("node1"), pods["a1"]) in held
    assert asked_by(lab.node("node1"), pods["a2"]) in held


def test_a_pod_sees_the_address_that_its_peers_see(pods: Mapping[str, LabPod]) -> None:
    (eth0,) = json.loads(pods["a1"].exec(["ip", "-j", "-4", "address", "show", "eth0"]).stdout)
    assert [address["local"] for address in eth0["addr_info"]] == [pods["a1"].ip]


def test_the_network_says_which_nodes_subnet_an_address_is_of(
    lab: Lab, pods: Mapping[str, LabPod]
) -> None:
    subnets = {node.name: lab.node_object(node.name)["spec"]["podCIDR"] for node in lab.nodes}
    assert len(set(subnets.values())) == 3
    for name, pod in pods.items():
        assert pod.ip.rpartition(".")[0] == subnets[node_of(name)].rpartition(".")[0]
    assert len({pod.ip for pod in pods.values()}) == 6


def test_a_pods_mtu_is_the_underlays_less_the_encapsulation(pods: Mapping[str, LabPod]) -> None:
    for pod in pods.values():
        (eth0,) = json.loads(pod.exec(["ip", "-j", "link", "show", "eth0"]).stdout)
        assert eth0["mtu"] == 1450


@pytest.mark.parametrize("target", ["b1", "a2"])
def test_a_packet_of_the_mtu_passes_and_a_larger_one_is_refused_at_the_sender(
    pods: Mapping[str, LabPod], target: str
) -> None:
    sender, ip = pods["a1"], pods[target].ip
    passed = sender.ping(ip, size=1450, dont_fragment=True)
    assert (passed.received, passed.lost) == (3, 0), passed.output
    refused = sender.exec(["ping", "-c", "1", "-W", "0.1", "-M", "do", "-s", str(1451 - 28), ip])
    assert refused.returncode != 0
    assert "message too long, mtu=1450" in (refused.stdout + refused.stderr).lower()


def test_a_larger_packet_that_may_be_fragmented_passes(pods: Mapping[str, LabPod]) -> None:
    assert pods["a1"].ping(pods["a3"], size=4000).lost == 0
