"""A running lab gets another pod network: what is interrupted, what stays, what is gone."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from podwire.lab import Lab, LabPod, lifecycle, rollout
from podwire.lab.control import Control
from podwire.lab.places import is_ready
from podwire.lab.shape import changed

from .commands import Command
from .steady_ping import SteadyPing
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(2)


@pytest.fixture(scope="module")
def pods(lab: Lab) -> list[LabPod]:
    """One on each node."""
    made = [lab.run(f"pod{number}", node=f"node{number}") for number in (1, 2)]
    lab.wait_ready()
    return made


@pytest.fixture
def command(lab: Lab) -> Command:
    return Command(lab.name)


def links(lab: Lab, node: str) -> str:
    return lab.node(node).exec(["ip", "-br", "link"]).stdout


def settled(pods: list[LabPod], wiring: str, address: str) -> bool:
    """Whether all pods run anew, with addresses that begin so."""
    for pod in pods:
        obj = pod.object
        if not is_ready(obj) or not obj["status"]["podIP"].startswith(address):
            return False
    default = pods[0].exec(["ip", "route", "show", "default"]).stdout
    return ("169.254.1.1" in default) == (wiring == "routed")


def stale(lab: Lab) -> list[str]:
    with Control(lab.info) as control:
        return [one.name for one in control.request("status").processes if one.stale]


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


def test_another_wiring_leaves_pods_their_addresses(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    ips = [pod.ips for pod in pods]
    said = command.ok("lab", "set-profile", "--wiring", "routed", "--yes")
    assert "Pods are made anew, with the addresses that they have." in said
    until(lambda: settled(pods, "routed", "10.244."), "pods are wired otherwise")
    assert [pod.ips for pod in pods] == ips
    until(lambda: pods[0].ping(pods[1]).lost == 0, "pods talk")
    assert "cni0" not in links(lab, "node1")


def test_another_ipam_gives_pods_other_addresses(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    said = command.ok("lab", "set-profile", "calico", "--yes")
    assert "Pods are made anew, with other addresses." in said
    until(lambda: settled(pods, "routed", "172.31."), "pods have addresses of blocks")
    until(lambda: pods[0].ping(pods[1]).lost == 0, "pods talk")


def test_what_was_interrupted_is_completed_by_the_next_up(lab: Lab, pods: list[LabPod]) -> None:
    record = lab.info.record()
    assert record is not None
    shape = changed(record.shape, {"profile": "flannel-vxlan"})
    rollout.apply(lab.info, msgspec.structs.replace(record, shape=shape))
    names = [f"{node}/{process}" for node in ("node1", "node2") for process in ("agent", "kubelet")]
    assert set(stale(lab)) == {"api", *names}
    lifecycle.up(lab.name)
    assert stale(lab) == []
    until(lambda: settled(pods, "bridge", "10.244."), "pods are in the old network again")
    until(lambda: pods[0].ping(pods[1]).lost == 0, "pods talk")


def test_nothing_to_change_and_nothing_sensible(command: Command) -> None:
    assert "flannel-vxlan" in command.ok("lab", "set-profile", "flannel-vxlan")
    nothing = command.run("lab", "set-profile")
    assert (nothing.returncode, "name a profile" in nothing.stderr) == (2, True)
    senseless = command.run("lab", "set-profile", "calico", "--wiring", "bridge")
    assert (senseless.returncode, "makes no sense" in senseless.stderr) == (1, True)
