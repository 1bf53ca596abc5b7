"""Nodes come, go and change, and all others follow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from podwire.cluster.kube import NODES
from podwire.lab import Lab, LabNode, LabPod

from ..agent.agent_http import AgentHttp
from .steady_ping import SteadyPing
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

BACKEND_DATA = "flannel.alpha.coreos.com/backend-data"
PUBLIC_IP = "flannel.alpha.coreos.com/public-ip"
UNDERLAY_GATEWAY = "172.18.0.1"


@pytest.fixture(autouse=True)
def still_right(lab: Lab, pods: list[LabPod]) -> Iterator[None]:
    """After each test: everybody's kernel is as planned, and pods reach each other."""
    yield
    for node in lab.nodes:
        agent = AgentHttp(node.directory / "run/podwire/agent.sock")
        until(lambda agent=agent: not agent.plan()["changes"], f"{node} is as planned")  # type: ignore[misc]
    for source, target in zip(pods, [*pods[1:], pods[0]], strict=True):
        until(lambda s=source, t=target: s.ping(t).lost == 0, f"{source} reaches {target}")  # type: ignore[misc]


def lease(lab: Lab, name: str) -> tuple[str, str, str]:
    """A node's subnet, public IP and VTEP MAC, as published."""
    node = lab.node_object(name)
    annotations = node["metadata"].get("annotations") or {}
    mac = json.loads(annotations.get(BACKEND_DATA, "{}")).get("VtepMAC", "")
    return node["spec"].get("podCIDR", ""), annotations.get(PUBLIC_IP, ""), mac


def reached(node: LabNode) -> dict[str, tuple[str, str]]:
    """What a node's kernel holds of its peers: VTEP MAC and underlay address by subnet.

    What belongs to no route is there too, under what it has for a name.
    """
    routes = json.loads(node.exec(["ip", "-j", "route", "show", "proto", "112"]).stdout or "[]")
    neighbors = json.loads(node.exec(["ip", "-j", "neigh", "show", "dev", "flannel.1"]).stdout)
    fdb = json.loads(node.exec(["bridge", "-j", "fdb", "show", "dev", "flannel.1"]).stdout)
    macs = {one["dst"]: one["lladdr"] for one in neighbors}
    vteps = {one["mac"]: one["dst"] for one in fdb}
    found = {ip: (mac, vteps.get(mac, "")) for ip, mac in macs.items()}
    found |= {mac: (mac, ip) for mac, ip in vteps.items() if mac not in macs.values()}
    for route in routes:
        found[route["dst"]] = found.pop(route["gateway"], ("", ""))
    return found


def converged(lab: Lab) -> bool:
    """Whether each node's kernel holds exactly what the others publish."""
    leases = {node.name: lease(lab, node.name) for node in lab.nodes}
    return all(
        reached(node)
        == {subnet: (mac, ip) for name, (subnet, ip, mac) in leases.items() if name != node.name}
        for node in lab.nodes
    )


def patch(lab: Lab, name: str, obj: dict[str, Any], subresource: str | None = None) -> None:
    lab.call(lambda client: client.merge_patch(NODES, name, obj, subresource=subresource))


def test_a_node_that_is_added_is_reached_and_reaches_and_is_forgotten_when_removed(
    lab: Lab, pods: list[LabPod]
) -> None:
    with SteadyPing(pods[0], pods[1]) as others:
        added = lab.add_node()
        assert added.name == "node4"
        pod = lab.run("pod4", node=added.name)
        for other in pods:
            assert other.ping(pod).lost == 0
            assert pod.ping(other).lost == 0
        until(lambda: converged(lab), "all nodes know node4")
        subnet = lease(lab, added.name)[0]
        lab.remove_node(added.name)
        until(lambda: converged(lab), "all nodes have forgotten node4")
    assert others.lost == []
    for node in lab.nodes:
        assert subnet not in node.exec(["ip", "route"]).stdout
    assert added.name not in {node.name for node in lab.nodes}


def test_a_node_whose_vtep_mac_is_published_otherwise(lab: Lab, pods: list[LabPod]) -> None:
    mac = "02:00:00:00:00:77"
    data = json.dumps({"VNI": 1, "VtepMAC": mac})
    patch(lab, "node2", {"metadata": {"annotations": {BACKEND_DATA: data}}})
    until(lambda: converged(lab), "peers use it")
    device = lab.node("node2").exec(["ip", "link", "show", "flannel.1"]).stdout
    assert mac in device
    assert lease(lab, "node2")[2] == mac


def test_a_node_whose_vtep_device_got_another_mac_goes_back_to_what_peers_know(
    lab: Lab, pods: list[LabPod]
) -> None:
    before = lease(lab, "node2")
    change = ["ip", "link", "set", "flannel.1", "address", "02:00:00:00:00:99"]
    lab.node("node2").exec(change, check=True)
    until(lambda: pods[0].ping(pods[1]).lost == 0, "pods talk again")
    assert lease(lab, "node2") == before


def test_a_node_whose_annotations_are_deleted_publishes_them_again(
    lab: Lab, pods: list[LabPod]
) -> None:
    before = lease(lab, "node2")
    patch(lab, "node2", {"metadata": {"annotations": {BACKEND_DATA: None, PUBLIC_IP: None}}})
    until(lambda: lease(lab, "node2") == before, "they are there again")
    until(lambda: converged(lab), "peers have it again")


def readdress(node: LabNode, old: str, new: str) -> None:
    """Give a node another address; the kernel drops the default route with the old one."""
    commands = [
        f"address del {old}/16 dev eth0",
        f"address add {new}/16 dev eth0",
        f"route add default via {UNDERLAY_GATEWAY}",
    ]
    node.exec(["ip", "-batch", "-"], input="\n".join(commands), check=True)


def test_a_node_whose_address_changes(lab: Lab, pods: list[LabPod]) -> None:
    node, new = lab.node("node3"), "172.18.0.99"
    subnet, old, mac = lease(lab, "node3")
    assert old == "172.18.0.13"
    try:
        readdress(node, old, new)
        until(lambda: lease(lab, "node3") == (subnet, new, mac), "the address is published")
        told = {"type": "InternalIP", "address": new}
        until(
            lambda: told in lab.get(NODES, "node3")["status"]["addresses"],
            "the kubelet tells it, too",
        )
        until(lambda: converged(lab), "peers use it")
        local = re.search(r" local (\S+) ", node.exec(["ip", "-d", "link"]).stdout)
        assert local is not None
        assert local[1] == new
        for source, target in (pods[0], pods[2]), (pods[2], pods[1]):
            until(lambda s=source, t=target: s.ping(t).lost == 0, "pods talk")  # type: ignore[misc]
    finally:
        readdress(node, new, old)
    until(lambda: lease(lab, "node3") == (subnet, old, mac), "and back")
    until(lambda: converged(lab), "peers use it again")
