"""Pods without a bridge, as Calico wires them: ADD, CHECK and DEL on a real kernel."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cni.conftest import Node

pytestmark = pytest.mark.root
DUAL = "10.244.1.0/24,fd00:10:244:1::/64"
POD = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx;IgnoreUnknown=1"
PORT = "calic440f455693"  # printf default.nginx | sha1sum
MakeNode = Callable[..., "Node"]
MakePod = Callable[[], str]


def ip_json(netns: str, *arguments: str) -> list[dict[str, Any]]:
    command = ["ip", "-n", Path(netns).name, "-j", *arguments]
    done = subprocess.run(command, capture_output=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
    return [entry for entry in found if entry]


def ping(netns: str, target: str) -> bool:
    command = ["ip", "netns", "exec", Path(netns).name, "ping", "-c1", "-W5", target]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_a_routed_pod_in_both_families(make_node: MakeNode, pod: str) -> None:
    node = make_node(DUAL, "--fabric=routed")
    result = node.add("c1", pod, args=POD)
    host, inside = result["interfaces"]
    assert (host["name"], host["mac"]) == (PORT, "ee:ee:ee:ee:ee:ee")
    assert (inside["name"], inside["sandbox"]) == ("eth0", pod)
    assert result["ips"] == [
        {"address": "10.244.1.2/32", "gateway": "169.254.1.1", "interface": 1},
        {
            "address": "fd00:10:244:1::2/128",
            "gateway": "fe80::ecee:eeff:feee:eeee",
            "interface": 1,
        },
    ]
    routes = ip_json(pod, "route")
    assert {(one["dst"], one.get("gateway")) for one in routes} == {
        ("default", "169.254.1.1"),
        ("169.254.1.1", None),
    }
    [own] = [one for one in ip_json(node.netns, "route") if one.get("dev") == PORT]
    assert (own["dst"], own["protocol"], own["scope"]) == ("10.244.1.2", "80", "link")
    assert not node.links("bridge")


def test_pods_reach_each_other_through_the_node(make_node: MakeNode, make_pod: MakePod) -> None:
    node = make_node(DUAL, "--fabric=routed")
    # The kernel answers ARP by proxy only for what it has a route to, as every node has.
    subprocess.run(["ip", "-n", node.netns, "route", "add", "default", "dev", "lo"], check=True)
    pods = [make_pod(), make_pod()]
    for number, pod in enumerate(pods):
        node.add(f"c{number}", pod)
    assert ping(pods[0], "10.244.1.3")
    assert ping(pods[0], "fd00:10:244:1::3")


def test_check_sees_that_the_route_to_the_pod_is_gone(make_node: MakeNode, pod: str) -> None:
    node = make_node("10.244.1.0/24", "--fabric=routed")
    result = node.add("c1", pod, args=POD)
    config = {"cniVersion": "1.1.0", "name": "podwire", "type": "podwire", "prevResult": result}
    assert node.cni("CHECK", "c1", pod, config=config).status == 0
    subprocess.run(["ip", "-n", node.netns, "route", "del", "10.244.1.2"], check=True)
    code, message = node.cni("CHECK", "c1", pod, config=config).error
    assert code == 105
    assert "10.244.1.2/32" in message


def test_a_pod_that_gets_a_new_sandbox_first_keeps_its_name(
    make_node: MakeNode, make_pod: MakePod
) -> None:
    node = make_node("10.244.1.0/24", "--fabric=routed")
    node.add("old", make_pod(), args=POD)
    node.add("new", make_pod(), args=POD)
    node.delete("old")
    assert [link["ifname"] for link in node.links()] == [PORT]
    assert "10.244.1.3" in {one["dst"] for one in ip_json(node.netns, "route")}


def test_what_a_pod_asks_for_by_annotation(make_node: MakeNode, make_pod: MakePod) -> None:
    wishes = {
        "default/nginx": {"podwire.io/ips": "10.244.1.77", "podwire.io/anti-spoofing": "off"},
        "default/wrong": {"podwire.io/ips": "10.9.9.9"},
        "default/pools": {"podwire.io/pools": "east"},
    }
    node = make_node("10.244.1.0/24", "--fabric=routed", "--annotations", json.dumps(wishes))
    result = node.add("c1", make_pod(), args=POD)
    assert result["ips"][0]["address"] == "10.244.1.77/32"
    guarded = subprocess.run(
        ["ip", "netns", "exec", node.netns, "tc", "filter", "show", "dev", PORT, "ingress"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert guarded == ""
    for name, said in (("wrong", "podwire.io/ips"), ("pools", "podwire.io/pools")):
        args = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};IgnoreUnknown=1"
        code, message = node.cni("ADD", name, make_pod(), args=args).error
        assert code == 101
        assert message.startswith(f"metadata.annotations[{said}]: ")


def test_del_leaves_nothing(make_node: MakeNode, pod: str) -> None:
    node = make_node(DUAL, "--fabric=routed")
    node.add("c1", pod)
    node.delete("c1", pod)
    node.restart("--fabric=routed")
    assert node.links() == []
    assert "10.244.1.2" not in {one["dst"] for one in ip_json(node.netns, "route")}
