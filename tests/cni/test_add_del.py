"""ADD, DEL and CHECK on a real kernel, called as a runtime calls them, for every version."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cni.conftest import Node

pytestmark = pytest.mark.root
VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
DUAL = "10.244.1.0/24,fd00:10:244:1::/64"
MakeNode = Callable[..., "Node"]
MakePod = Callable[[], str]


def conf(version: str = "1.1.0", **more: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "podwire", "type": "podwire", **more}


def ip_json(netns: str, *arguments: str) -> list[dict[str, Any]]:
    command = ["ip", "-n", Path(netns).name, "-j", "-d", *arguments]
    found: list[dict[str, Any]] = json.loads(
        subprocess.run(command, capture_output=True, check=True).stdout or b"[]"
    )
    return [entry for entry in found if entry]


def addresses(netns: str, ifname: str = "eth0") -> list[str]:
    found = ip_json(netns, "addr", "show", "dev", ifname, "scope", "global")
    if not found:
        return []
    return [f"{a['local']}/{a['prefixlen']}" for a in found[0]["addr_info"] if "local" in a]


def wait_for_no_veth(node: Node) -> None:
    """DEL deletes in the background; a stopped agent has finished that."""
    node.restart()
    assert node.links() == []


@pytest.mark.parametrize("version", VERSIONS)
def test_add_wires_the_pod_and_answers_in_the_version_s_shape(
    node: Node, pod: str, version: str
) -> None:
    result = node.add("c1", pod, config=conf(version))
    [port] = node.links()
    mtu = {"mtu": 1450} if version == "1.1.0" else {}
    family = {"version": "4"} if version in ("0.3.1", "0.4.0") else {}
    assert result == {
        "cniVersion": version,
        "interfaces": [
            {"name": "cni0", "mac": "0a:58:0a:f4:01:01", **mtu},
            {"name": port["ifname"], **mtu},
            {"name": "eth0", "mac": "0a:58:0a:f4:01:02", "sandbox": pod, **mtu},
        ],
        "ips": [{**family, "address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 2}],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.244.1.1"},
            {"dst": "10.244.0.0/16", "gw": "10.244.1.1"},
        ],
        "dns": {},
    }
    assert port["master"] == "cni0"
    assert addresses(pod) == ["10.244.1.2/24"]
    [eth0] = ip_json(pod, "link", "show", "dev", "eth0")
    assert (eth0["mtu"], eth0["address"]) == (1450, "0a:58:0a:f4:01:02")
    assert {r["dst"] for r in ip_json(pod, "route")} == {
        "default",
        "10.244.0.0/16",
        "10.244.1.0/24",
    }
    node.delete("c1", pod, config=conf(version))
    wait_for_no_veth(node)


def test_both_families(make_node: MakeNode, pod: str) -> None:
    result = make_node(DUAL).add("c1", pod)
    assert [entry["address"] for entry in result["ips"]] == [
        "10.244.1.2/24",
        "fd00:10:244:1::2/64",
    ]
    assert addresses(pod) == ["10.244.1.2/24", "fd00:10:244:1::2/64"]


def test_pods_reach_the_gateway_and_each_other_at_once(node: Node, make_pod: MakePod) -> None:
    pods = [make_pod(), make_pod()]
    for number, pod in enumerate(pods):
        node.add(f"c{number}", pod)
    for target in ("10.244.1.1", "10.244.1.3"):
        command = ["ip", "netns", "exec", Path(pods[0]).name, "ping", "-c1", "-W1", target]
        assert subprocess.run(command, capture_output=True).returncode == 0, target


def test_add_twice_answers_the_same(node: Node, pod: str) -> None:
    assert node.add("c1", pod) == node.add("c1", pod)
    assert len(node.links()) == 1


def test_add_again_after_the_interface_was_lost_makes_it_anew(node: Node, pod: str) -> None:
    node.add("c1", pod)
    subprocess.run(["ip", "-n", Path(pod).name, "link", "del", "eth0"], check=True)
    result = node.add("c1", pod)
    assert addresses(pod) == [result["ips"][0]["address"]]
    assert len(node.links()) == 1


def test_del_twice_is_fine(node: Node, pod: str) -> None:
    node.add("c1", pod)
    node.delete("c1", pod)
    node.delete("c1", pod)


@pytest.mark.parametrize("netns", ["", "/run/netns/pw-there-is-no-such"])
def test_del_without_the_namespace_releases_the_address(
    node: Node, make_pod: MakePod, netns: str
) -> None:
    node.add("c1", make_pod())
    node.delete("c1", netns)
    wait_for_no_veth(node)
    wanted = conf(runtimeConfig={"ips": ["10.244.1.2"]})
    assert node.add("c2", make_pod(), config=wanted)["ips"][0]["address"] == "10.244.1.2/24"


def test_del_of_what_was_never_added_is_fine(node: Node) -> None:
    node.delete("never", "")


def test_add_right_after_del_in_the_same_namespace(node: Node, pod: str) -> None:
    """The old interface is still there for some milliseconds."""
    for number in range(10):
        node.add("c1", pod)
        node.delete("c1", pod)
        node.add(f"other{number}", pod)
        node.delete(f"other{number}", pod)


def test_a_released_address_is_not_reused_at_once(node: Node, make_pod: MakePod) -> None:
    first = node.add("c1", make_pod())["ips"][0]["address"]
    node.delete("c1")
    assert node.add("c2", make_pod())["ips"][0]["address"] != first


def test_two_interfaces_of_one_pod(node: Node, pod: str) -> None:
    node.add("c1", pod)
    answer = node.cni("ADD", "c1", pod, ifname="net1")
    # Both would have the default route; the second is refused by the kernel, and leaves nothing.
    assert answer.error[0] == 102
    assert "add route 0.0.0.0/0 via" in answer.error[1]
    assert addresses(pod) == ["10.244.1.2/24"]
    assert ip_json(pod, "link", "show", "type", "veth")[0]["ifname"] == "eth0"


@pytest.mark.parametrize(
    ("config", "args"),
    [
        (conf(runtimeConfig={"ips": ["10.244.1.77/24"]}), ""),
        (conf(args={"cni": {"ips": ["10.244.1.77"]}}), ""),
        (conf(), "IP=10.244.1.77"),
    ],
)
def test_a_requested_address_is_honoured(
    node: Node, pod: str, config: dict[str, Any], args: str
) -> None:
    assert node.add("c1", pod, config=config, args=args)["ips"][0]["address"] == "10.244.1.77/24"


def test_a_requested_mac_is_honoured(node: Node, pod: str) -> None:
    node.add("c1", pod, config=conf(runtimeConfig={"mac": "02:11:22:33:44:55"}))
    [eth0] = ip_json(pod, "link", "show", "dev", "eth0")
    assert eth0["address"] == "02:11:22:33:44:55"


def test_where_nodes_know_pods_macs_none_can_be_asked_for(
    make_node: MakeNode, make_pod: MakePod
) -> None:
    node = make_node("10.244.1.0/24", "--fabric=segment")
    code, message = node.cni("ADD", "c1", make_pod(), args="MAC=02:11:22:33:44:55").error
    assert code == 7 and "no hardware address can be asked for" in message
    assert not node.links()


def test_a_requested_address_that_is_held_is_refused_naming_the_pod(
    node: Node, make_pod: MakePod
) -> None:
    node.add("c1", make_pod(), args="K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
    code, message = node.cni("ADD", "c2", make_pod(), args="IP=10.244.1.2").error
    assert code == 101
    assert "10.244.1.2 is held by pod shop/web-0" in message


def test_exhaustion_is_an_error_that_names_the_subnet(
    make_node: MakeNode, make_pod: MakePod
) -> None:
    node = make_node("10.244.1.0/30")
    node.add("c1", make_pod())
    last = make_pod()
    code, message = node.cni("ADD", "c2", last).error
    assert (code, message) == (100, "subnet 10.244.1.0/30 has no free address: 1 of 1 held")
    node.delete("c1")
    node.add("c2", last)


def test_a_namespace_that_does_not_exist(node: Node) -> None:
    code, message = node.cni("ADD", "c1", "/run/netns/pw-there-is-no-such").error
    assert (code, message) == (
        3,
        "CNI_NETNS: /run/netns/pw-there-is-no-such: No such file or directory",
    )
    assert node.links() == []


def test_a_file_that_is_not_a_namespace(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, message = node.cni("ADD", "c1", str(tmp_path / "file")).error
    assert code == 4
    assert "is not a network namespace" in message


def test_the_node_s_own_namespace_is_refused(node: Node) -> None:
    code, message = node.cni("ADD", "c1", f"/run/netns/{node.netns}").error
    assert code == 4
    assert "node's own" in message


def test_an_interface_that_exists_is_refused_and_left_alone(node: Node, pod: str) -> None:
    subprocess.run(
        ["ip", "-n", Path(pod).name, "link", "add", "eth0", "type", "bridge"], check=True
    )
    code, message = node.cni("ADD", "c1", pod).error
    assert code == 102
    assert "exists" in message.lower()
    [eth0] = ip_json(pod, "link", "show", "dev", "eth0")
    assert eth0["linkinfo"]["info_kind"] == "bridge"
    assert node.links() == []
    node.delete("c1", pod)
    assert ip_json(pod, "link", "show", "dev", "eth0")


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_check_passes_after_add(node: Node, pod: str, version: str) -> None:
    result = node.add("c1", pod, config=conf(version))
    answer = node.cni("CHECK", "c1", pod, config=conf(version, prevResult=result))
    assert (answer.status, answer.stdout) == (0, "")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("addr del 10.244.1.2/24 dev eth0", "address 10.244.1.2/24 is missing"),
        ("route del default", "route 0.0.0.0/0 via 10.244.1.1 is missing"),
        ("link set eth0 down", "eth0 is down"),
        ("link del eth0", "does not exist"),
    ],
)
def test_check_finds_damage(node: Node, pod: str, damage: str, complaint: str) -> None:
    result = node.add("c1", pod)
    subprocess.run(["ip", "-n", Path(pod).name, *damage.split()], check=True)
    answer = node.cni("CHECK", "c1", pod, config=conf(prevResult=result))
    code, _ = answer.error
    assert code == 105
    assert complaint in answer.json["details"]


def test_check_of_a_result_that_is_not_ours(node: Node, pod: str) -> None:
    result = node.add("c1", pod)
    result["ips"][0]["address"] = "10.244.1.99/24"
    code, message = node.cni("CHECK", "c1", pod, config=conf(prevResult=result)).error
    assert code == 105
    assert "10.244.1.2/24" in message


def test_check_of_what_was_never_added(node: Node, pod: str) -> None:
    answer = node.cni("CHECK", "c1", pod, config=conf(prevResult={"interfaces": []}))
    assert answer.error[0] == 3


def test_gc_keeps_what_is_valid_of_its_own_network(node: Node, make_pod: MakePod) -> None:
    pods = [make_pod() for _ in range(3)]
    node.add("keep", pods[0])
    node.add("gone", pods[1])
    node.add("foreign", pods[2], config={**conf(), "name": "other"})
    valid = [{"containerID": "keep", "ifname": "eth0"}]
    answer = node.cni("GC", config={**conf(), "cni.dev/valid-attachments": valid})
    assert (answer.status, answer.stdout) == (0, "")
    node.restart()
    assert len(node.links()) == 2
    assert addresses(pods[0])
    assert addresses(pods[2])


def test_gc_of_an_empty_list_as_libcni_writes_it(node: Node, pod: str) -> None:
    node.add("c1", pod)
    assert node.cni("GC", config={**conf(), "cni.dev/valid-attachments": None}).status == 0
    wait_for_no_veth(node)


def test_a_chain_with_another_plugin_first(node: Node, pod: str) -> None:
    prev: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "dummy0", "mac": "02:00:00:00:00:01", "custom": True}],
        "ips": [{"address": "192.0.2.1/32", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    result = node.add("c1", pod, config=conf(prevResult=prev, dns={"nameservers": ["10.0.0.1"]}))
    assert [interface["name"] for interface in result["interfaces"]][0::3] == ["dummy0", "eth0"]
    assert result["interfaces"][0] == prev["interfaces"][0]
    assert [(entry["address"], entry["interface"]) for entry in result["ips"]] == [
        ("192.0.2.1/32", 0),
        ("10.244.1.2/24", 3),
    ]
    assert result["routes"][0] == {"dst": "192.0.2.0/24"}
    assert result["dns"] == {"nameservers": ["192.0.2.53"]}
    assert node.cni("CHECK", "c1", pod, config=conf(prevResult=result)).status == 0


def test_a_chain_whose_first_plugin_made_the_interface(node: Node, pod: str) -> None:
    prev = {"interfaces": [{"name": "eth0", "sandbox": pod}]}
    code, message = node.cni("ADD", "c1", pod, config=conf(prevResult=prev)).error
    assert code == 102
    assert "earlier plugin" in message


def test_64_at_once(node: Node, make_pod: MakePod) -> None:
    pods = {f"c{number}": make_pod() for number in range(64)}
    with ThreadPoolExecutor(64) as threads:
        results = list(threads.map(lambda item: node.add(*item), pods.items()))
        ips = {result["ips"][0]["address"] for result in results}
        assert len(ips) == 64
        assert {addresses(pod)[0] for pod in pods.values()} == ips
        list(threads.map(lambda item: node.delete(*item), pods.items()))
    wait_for_no_veth(node)


def test_the_same_attachment_64_times_at_once(node: Node, pod: str) -> None:
    with ThreadPoolExecutor(64) as threads:
        results = list(threads.map(lambda _: node.add("c1", pod), range(64)))
    assert all(result == results[0] for result in results)
    assert len(node.links()) == 1


def test_a_restart_of_the_agent_keeps_everything(node: Node, pod: str) -> None:
    before = node.add("c1", pod)
    node.restart(kill=True)
    assert node.add("c1", pod) == before
    assert len(node.links()) == 1


def test_a_pod_that_went_away_while_the_agent_was_down(node: Node, make_pod: MakePod) -> None:
    gone, stays = make_pod(), make_pod()
    node.add("c1", gone)
    node.add("c2", stays)
    node.end()
    subprocess.run(["ip", "netns", "del", Path(gone).name], check=True)
    while len(node.links()) > 1:
        pass
    node.start()
    wanted = conf(runtimeConfig={"ips": ["10.244.1.2"]})
    assert node.add("c3", make_pod(), config=wanted)["ips"][0]["address"] == "10.244.1.2/24"
    assert addresses(stays) == ["10.244.1.3/24"]


def test_an_agent_without_a_lease_says_try_again(make_node: MakeNode, pod: str) -> None:
    node = make_node("10.244.1.0/24", "--not-ready")
    assert node.cni("ADD", "c1", pod).error[0] == 11
    assert node.cni("STATUS").error[0] == 50
    node.delete("c1", pod)
    node.restart()
    assert node.cni("STATUS") == (0, "")
    node.add("c1", pod)


def test_an_agent_that_is_down(node: Node, pod: str) -> None:
    node.end()
    code, message = node.cni("ADD", "c1", pod).error
    assert code == 11
    assert str(node.socket) in message


def test_a_pod_whose_packets_would_be_lost_is_to_be_tried_again_later(
    make_node: MakeNode, pod: str
) -> None:
    node = make_node("10.244.1.0/24", "--awaited")
    assert node.cni("ADD", "c1", pod).error == (11, "podwire is not ready: this is a test")
    assert node.cni("STATUS").error == (50, "podwire is not ready: this is a test")
    node.delete("c1", pod)
    assert node.links() == []
