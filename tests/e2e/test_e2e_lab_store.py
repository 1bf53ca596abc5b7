"""A lab whose leases are in etcd: it dies, a lease expires, the pod network changes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from podwire.lab import Lab, LabPod, agents

from .commands import Command
from .steady_ping import SteadyPing
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(2, store="etcd")


def etcdctl(lab: Lab, *arguments: str) -> str:
    inside = ["ip", "netns", "exec", lab.info.underlay, "etcdctl", *arguments]
    return subprocess.run(inside, capture_output=True, text=True, check=True, timeout=30).stdout


def keys(lab: Lab) -> dict[str, str]:
    """What the nodes hold in etcd."""
    nodes = ("/coreos.com/network/nodes", "/coreos.com/network/subnets0")
    lines = etcdctl(lab, "get", *nodes).splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


def routes(lab: Lab, node: str) -> str:
    return lab.node(node).exec(["ip", "route", "show", "proto", "112"]).stdout


def talk(pods: list[LabPod]) -> bool:
    return pods[0].ping(pods[1], count=1).received == 1


def test_the_store_is_away(lab: Lab, pods: list[LabPod], command: Command) -> None:
    """Traffic goes on, pods come; what changed meanwhile is caught up with."""
    with SteadyPing(pods[0], pods[1]) as ping:
        assert command.ok("lab", "kill", "etcd") == "etcd is dead\n"
        late = lab.run("late", node="node2")
        late.wait_ready()
        assert pods[0].ping(late).lost == 0
        refused = command.run("lab", "set-profile", "flannel-udp", "--yes")
        assert (refused.returncode, "etcd is dead, and agents need it" in refused.stderr) == (
            1,
            True,
        )
        command.ok("lab", "heal", "etcd")
        assert all(agents.is_connected(lab.info, node.name) for node in lab.nodes)
        late.delete(grace_s=0)
    assert ping.lost == []
    added = lab.add_node()
    pod3 = lab.run("pod3", node=added.name)
    pod3.wait_ready()
    until(lambda: talk([pods[0], pod3]), "a node that came afterwards is reached")
    pod3.delete(grace_s=0)
    lab.remove_node(added.name)
    assert len(keys(lab)) == 2


def test_a_dead_nodes_lease_expires(lab: Lab, pods: list[LabPod], command: Command) -> None:
    """Its peers forget it. It boots with whatever is free, and is reached again."""
    (key,) = (key for key, value in keys(lab).items() if '"PodwireNode":"node2"' in value)
    subnet = key.rpartition("/")[2].replace("-", "/")
    assert subnet in routes(lab, "node1")
    command.ok("lab", "kill", "node2")
    assert subnet in routes(lab, "node1")
    # Etcd deletes it when its time to live is over, a day after the last renewal.
    etcdctl(lab, "del", key)
    until(lambda: subnet not in routes(lab, "node1"), "node1 has forgotten it")
    command.ok("lab", "heal")
    lab.wait_ready()
    until(lambda: talk(pods), "pods talk")


def test_another_network_leaves_no_lease_of_the_old_one(
    lab: Lab, pods: list[LabPod], command: Command
) -> None:
    ips = [pod.ips for pod in pods]
    command.ok("lab", "set-profile", "flannel-host-gw", "--yes")
    assert [pod.ips for pod in pods] == ips
    until(lambda: talk(pods), "pods talk")
    command.ok("lab", "set-profile", "calico", "--yes")
    until(lambda: talk(pods), "pods talk")
    prefix = "/coreos.com/network/nodes/"
    until(lambda: set(keys(lab)) == {f"{prefix}node1", f"{prefix}node2"}, "only these are left")
