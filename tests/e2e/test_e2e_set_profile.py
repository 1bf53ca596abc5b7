"""A running lab gets another pod network: what is interrupted, what stays, what is gone."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from podwire.lab import Lab, LabPod, lifecycle, rollout
from podwire.lab.control import Control
from podwire.lab.places import is_ready
from podwire.lab.shape_change import changed

from .commands import Command
from .steady_ping import SteadyPing
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Flannel's, by default.
NETWORK = "10.244.0.0/16,fd00:10:244::/48"

#: All that a network may have put into a node.
_HELD = """
    ip -br link; ip -o address | cut -d' ' -f2-9
    ip rule; ip route show table all; ip -6 route show table all
    ip neigh show nud permanent; bridge fdb show
    nft -s list ruleset
    sysctl -a -r 'forwarding|accept_(ra|local)$|proxy_arp|rp_filter|bridge-nf' 2> /dev/null | sort
    find /etc/cni/net.d /run/podwire /run/flannel | sort; cat /run/flannel/subnet.env
    ps -eo args | grep -c '[p]odwire.tunnel'
"""
#: Differs from lab to lab, as names of veths and MACs do.
_OWN = (
    (r"(veth|cali)[0-9a-f]+", r"\1"),
    (r"@if\d+", ""),
    (r"(?!33:33|01:00|02:00)[0-9a-f]{2}(:[0-9a-f]{2}){5}", "MAC"),
    (r"33:33:ff:\S+", "33:33:ff"),
    (r"fe80::[0-9a-f:]+", "fe80::"),
    (r"0xfe80[0-9a-f]+", "0xfe80"),
)


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(2, family="dual")


def links(lab: Lab, node: str) -> str:
    return lab.node(node).exec(["ip", "-br", "link"]).stdout


def held(lab: Lab, node: str) -> list[str]:
    """What a node holds, in words that are the same in another lab."""
    text = lab.node(node).exec(["sh", "-c", _HELD]).stdout
    for pattern, word in _OWN:
        text = re.sub(pattern, word, text)
    return sorted(text.splitlines())


def gateway(pod: LabPod) -> str:
    return pod.exec(["ip", "route", "show", "default"]).stdout.split()[2]


def talk(pods: list[LabPod]) -> None:
    for ip in pods[1].ips:
        until(lambda ip=ip: pods[0].ping(ip).lost == 0, f"pods talk over {ip}")  # type: ignore[misc]


def stale(lab: Lab) -> list[str]:
    with Control(lab.info) as control:
        return [one.name for one in control.request("status").processes if one.stale]


def died_and_came_back(lab: Lab, name: str) -> None:
    pid = lab.process(name).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: lab.process(name).pid not in (pid, None), f"{name} runs again")


def test_another_transport_under_a_running_ping(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    before = [(pod.ips, pod.pause) for pod in pods]
    with SteadyPing(pods[0], pods[1]) as ping:
        said = command.ok("lab", "set-profile", "flannel-host-gw", "--yes")
        seen = len(ping.answered)
        until(lambda: len(ping.answered) > seen + 10, "pings are answered again")
    # Between the first node's change and the last one's, the two don't believe each other.
    print(f"{len(ping.lost)} pings lost, one every 10 ms")
    assert "profile flannel-host-gw, not flannel-vxlan" in said
    assert "Pods go on running, with their addresses." in said
    assert [(pod.ips, pod.pause) for pod in pods] == before
    assert "flannel.1" not in links(lab, "node1") + links(lab, "node2")
    routes = lab.node("node1").exec(["ip", "route"]).stdout
    assert "10.244.2.0/24 via 172.18.0.12 dev eth0" in routes
    assert "flannel-host-gw (node-subnet × bridge × direct)" in command.ok("lab", "status")


def test_another_wiring_under_running_pods(lab: Lab, pods: list[LabPod], command: Command) -> None:
    before = [(pod.ips, pod.pause) for pod in pods]
    said = command.ok("lab", "set-profile", "--wiring", "routed", "--yes")
    assert "Each one's interface is replaced (bridge to routed)" in said
    talk(pods)
    assert [(pod.ips, pod.pause) for pod in pods] == before
    assert gateway(pods[0]) == "169.254.1.1"
    assert "cni0" not in links(lab, "node1")


def test_another_ipam_of_the_same_network_leaves_pods_their_addresses(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    before = [pod.ips for pod in pods]
    said = command.ok("lab", "set-profile", "calico", "--network", NETWORK, "--yes")
    assert "with their addresses where no other node claims these blocks" in said
    assert "default/pod1, default/pod2" in said
    # The command has waited for them.
    assert {pod.object["status"]["containerStatuses"][0]["restartCount"] for pod in pods} == {1}
    assert [pod.ips for pod in pods] == before
    talk(pods)
    assert "blackhole 10.244.1.0/26" in lab.node("node1").exec(["ip", "route"]).stdout


def test_another_network_gives_pods_other_addresses(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    assert "Made anew, with other addresses: default/pod1, default/pod2." in command.ok(
        "lab", "set-profile", "weave", "--yes"
    )
    # The command has waited for the pods.
    assert all(is_ready(pod.object) for pod in pods)
    assert all(ip_address(pod.ip) in ip_network("10.32.0.0/12") for pod in pods)
    talk(pods)


def test_what_was_interrupted_is_completed_by_the_next_up_and_nothing_is_left(
    lab: Lab, pods: list[LabPod], make_lab: Callable[..., Lab]
) -> None:
    lab.set_profile("flannel-udp", transport="auto")
    talk(pods)
    record = lab.info.record()
    assert record is not None
    shape = changed(record.shape, {"profile": "flannel-vxlan"})
    rollout.apply(lab.info, msgspec.structs.replace(record, shape=shape))
    names = [f"{node}/{process}" for node in ("node1", "node2") for process in ("agent", "kubelet")]
    assert set(stale(lab)) == {name for name in names if name.endswith("/agent")}
    for name in ("node1/agent", "node1/kubelet"):
        died_and_came_back(lab, name)
    assert set(stale(lab)) == {name for name in names if name.endswith("/agent")}
    assert "flannel0" in links(lab, "node1")
    lifecycle.up(lab.name)
    assert stale(lab) == []
    lab.wait_ready()
    talk(pods)
    fresh = make_lab(2, family="dual")
    for number in (1, 2):
        fresh.run(f"pod{number}", node=f"node{number}", annotations=_same_ip(pods[number - 1]))
    fresh.wait_ready()
    for node in ("node1", "node2"):
        until(lambda n=node: held(lab, n) == held(fresh, n), f"{node} is like a new one")  # type: ignore[misc]


def _same_ip(pod: LabPod) -> dict[str, str]:
    return {"podwire.io/ips": ",".join(pod.ips)}


def test_nothing_to_change_and_nothing_sensible(command: Command) -> None:
    assert "flannel-vxlan" in command.ok("lab", "set-profile", "flannel-vxlan")
    nothing = command.run("lab", "set-profile")
    assert (nothing.returncode, "name a profile" in nothing.stderr) == (2, True)
    for arguments, said in (
        (("calico", "--wiring", "bridge"), "makes no sense"),
        (("--network", "10.9.0.0/16"), "which its nodes keep"),
        (("flannel-udp",), "give --yes"),  # nobody answers the question
    ):
        refused = command.run("lab", "set-profile", *arguments)
        assert (refused.returncode, said in refused.stderr) == (1, True), refused
    said = command.ok("lab", "set-profile", "calico", "--dry-run")
    assert "Made anew" in said
    assert "flannel-vxlan (" in command.ok("lab", "status")
