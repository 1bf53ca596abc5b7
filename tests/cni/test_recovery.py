"""A database that is lost: what pods have is found in the kernel, and nobody else gets it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from podwire.cni.recovery import attachment_of
from podwire.ipam.record import PodIdentity
from podwire.kernel.pod_ports import PodPort

if TYPE_CHECKING:
    from tests.cni.conftest import Node

DUAL = "10.244.1.0/24,fd00:10:244:1::/64"
WEB = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"
FREE = json.dumps({"default/free": {"podwire.io/anti-spoofing": "off"}})
LONG = "0123456789ab" * 5


def lose(node: Node, *flags: str) -> None:
    """The agent dies, and its database with it."""
    node.end(kill=True)
    for path in node.directory.glob("ipam.db*"):
        path.unlink()
    node.start(*flags)


def ips_of(result: dict[str, Any]) -> list[str]:
    return [entry["address"].partition("/")[0] for entry in result["ips"]]


def asking(*ips: str) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": "podwire",
        "type": "podwire",
        "runtimeConfig": {"ips": list(ips)},
    }


def inside(pod: str, *command: str) -> int:
    entered = ["ip", "netns", "exec", Path(pod).name, *command]
    return subprocess.run(entered, capture_output=True).returncode


@pytest.mark.root
@pytest.mark.parametrize(
    "flags",
    [(), ("--guard=nftables",), ("--fabric=routed",), ("--fabric=routed", "--guard=nftables")],
    ids=["bridge", "bridge-nft", "routed", "routed-nft"],
)
def test_a_lost_database_is_made_up_from_what_stands(
    make_node: Callable[..., Node], make_pod: Callable[[], str], flags: tuple[str, ...]
) -> None:
    flags = (*flags, "--annotations", FREE)
    node = make_node(DUAL, *flags)
    pods = {name: make_pod() for name in ("web", "plain", "free")}
    results = {
        "web": node.add("c1", pods["web"], args=WEB),
        LONG: node.add(LONG, pods["plain"]),
        "free": node.add("c3", pods["free"], args=WEB.replace("web", "free")),
    }
    # What a pod gives itself is not what it was given.
    assert inside(pods["web"], "ip", "address", "add", "10.244.1.99/32", "dev", "eth0") == 0
    lose(node, *flags)
    assert "the database does not know interfaces of pods that are here" in node.log

    held = [ip for result in results.values() for ip in ips_of(result)]
    new = node.add("c4", make_pod())
    assert not set(ips_of(new)) & set(held)
    for ip in held:
        assert node.cni("ADD", "c5", make_pod(), config=asking(ip)).error[0] == 101
    refused = node.cni("ADD", "c5", make_pod(), config=asking(ips_of(results["web"])[0]))
    assert "is held by pod default/web" in refused.error[1]
    node.add("c6", make_pod(), config=asking("10.244.1.99"))

    # Each container is known again as soon as its runtime asks.
    for container, pod, args in (("c1", "web", WEB), (LONG, "plain", "")):
        prev = results["web" if container == "c1" else container]
        config = {**asking(), "prevResult": prev}
        answer = node.cni("CHECK", container, pods[pod], args=args, config=config)
        assert answer.status == 0, answer
        assert node.add(container, pods[pod], args=args) == prev
    assert inside(pods["plain"], "ping", "-c1", "-W5", ips_of(new)[1]) == 0

    # Over another start, and given back in any of the ways.
    node.restart(*flags)
    node.delete("c1", pods["web"], args=WEB)
    node.delete("c3", "", args=WEB.replace("web", "free"))
    valid = [{"containerID": one, "ifname": "eth0"} for one in ("c4", "c6")]
    answer = node.cni("GC", config={**asking(), "cni.dev/valid-attachments": valid})
    assert answer.status == 0, answer
    node.add("c7", make_pod(), config=asking(*ips_of(results[LONG])))
    node.add("c8", make_pod(), config=asking(*ips_of(results["web"])))
    node.restart(*flags)
    assert len(node.links()) == 4


@pytest.mark.root
@pytest.mark.parametrize("flags", [(), ("--fabric=routed",)], ids=["bridge", "routed"])
def test_what_the_runtime_still_has_is_not_collected(
    make_node: Callable[..., Node], make_pod: Callable[[], str], flags: tuple[str, ...]
) -> None:
    node = make_node(DUAL, *flags)
    node.add(LONG, make_pod())
    node.add("c2", make_pod(), args=WEB)
    lose(node, *flags)
    node.delete("c9", "", args=WEB.replace("web", "other"))
    valid = [{"containerID": one, "ifname": "eth0"} for one in (LONG, "c2")]
    # Calico's names are of pods, and a list of containers says nothing of those.
    for left, stay in ((valid, 2), (valid[:1], 2 if flags else 1)):
        answer = node.cni("GC", config={**asking(), "cni.dev/valid-attachments": left})
        assert answer.status == 0, answer
        node.restart(*flags)
        assert len(node.links()) == stay
    node.delete("c2", "", args=WEB)
    node.restart(*flags)
    assert len(node.links()) == 1


PORT = PodPort(
    name="veth00000000000",
    alias="podwire pod default/web eth0",
    mtu=1450,
    master=7,
    ifname="eth0",
    mac=bytes(6),
    ips=(ip_address("10.1.0.9"), ip_address("10.9.9.9"), ip_address("fd00::9")),
    netns="/run/netns/web",
)
BRIDGE = [ip_interface("10.1.0.1/24"), ip_interface("fd00::1/64")]


def test_what_guards_a_port_is_believed_rather_than_the_pod() -> None:
    guarded = {PORT.name: [ip_address("fd00::8"), ip_address("10.1.0.8")]}
    attachment, pod = attachment_of(PORT, BRIDGE, guarded)
    assert attachment.ips == (ip_interface("10.1.0.8/24"), ip_interface("fd00::8/64"))
    assert attachment.gateways == (ip_address("10.1.0.1"), ip_address("fd00::1"))
    assert (pod, attachment.may_spoof) == (PodIdentity("default", "web"), False)


def test_of_a_port_that_nothing_guards_the_first_addresses_count() -> None:
    for guarded, may_spoof in (({}, False), ({"veth1": [ip_address("10.1.0.7")]}, True)):
        attachment, _ = attachment_of(PORT, [], guarded)
        assert attachment.ips == (ip_interface("10.1.0.9/32"), ip_interface("fd00::9/128"))
        assert attachment.gateways == (
            ip_address("169.254.1.1"),
            ip_address("fe80::ecee:eeff:feee:eeee"),
        )
        assert attachment.may_spoof is may_spoof
