"""What is planned anew of what the agent has heard: nodes, and the pods that are on them."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from podwire.agent.config import AgentConfig
from podwire.agent.nodes import Nodes
from podwire.agent.peering import Peering
from podwire.agent.planner import Planner
from podwire.agent.podwatch import PodObject, PodWatch
from podwire.cluster.kube import ClientConfig, KubeClient
from podwire.model.cluster import Node
from podwire.model.describe import describe

from ..plan.fabrics import config, peer


def pod(name: str, ip: str, phase: str = "Running", *, on_host: bool = False) -> PodObject:
    document = {
        "metadata": {"namespace": "default", "name": name},
        "spec": {"nodeName": "node2", "hostNetwork": on_host},
        "status": {"podIP": ip, "phase": phase},
    }
    return msgspec.convert(document, PodObject)


def at(node: Node, ip: str) -> Node:
    assert node.lease is not None
    lease = msgspec.structs.replace(node.lease, public_ip=ip_address(ip))
    return msgspec.structs.replace(node, lease=lease)


def test_nodes_that_are_gone_when_all_are_told_anew() -> None:
    of = config()
    nodes = Nodes("node1")
    nodes.sync({"node2": peer(of, 2), "node3": peer(of, 3)})
    assert nodes.take_changed() == {"node2", "node3"}
    nodes.sync({"node2": peer(of, 2)})
    assert nodes.take_changed() == {"node3"}
    assert nodes.by_name.keys() == {"node2"}


def test_in_one_segment_pods_follow_their_node(tmp_path: Path) -> None:
    of, nodes = config("weave"), Nodes("node1")
    peering = Peering(
        AgentConfig(node_name="node1", run_dir=tmp_path),
        nodes,
        on_paths=lambda names: None,
        on_tunnel=lambda: None,
    )
    client = KubeClient(ClientConfig(server=f"unix://{tmp_path}/nobody"))
    pods = PodWatch(client, "node1", everywhere=True, on_change=lambda: None)
    planner = Planner(nodes, peering, pods)

    def planned() -> dict[str, list[str]]:
        found = planner.changed(of)
        return {cause: [describe(one) for one in entries] for cause, entries in found.items()}

    # A pod may be heard of before its node.
    on_host = pod("c", "172.18.0.12", on_host=True)
    pods._on_sync([pod("a", "10.33.0.5"), pod("b", "10.33.0.6"), on_host, pod("d", "")])
    assert planned() == {"Pod/default/a": [], "Pod/default/b": []}
    nodes.put("node2", peer(of))
    assert "0a:58:0a:21:00:05 dst 172.18.0.12 dev vxlan-6784" in planned()["Pod/default/a"]
    assert planned() == {}
    nodes.put("node2", at(peer(of), "172.18.0.99"))
    assert "0a:58:0a:21:00:05 dst 172.18.0.99 dev vxlan-6784" in planned()["Pod/default/a"]
    # What has ended keeps its object, and may have told its address.
    pods._on_sync([pod("a", "10.33.0.5", "Succeeded")])
    assert planned() == {"Pod/default/a": [], "Pod/default/b": []}


def test_a_dispute_is_told_once_and_again_when_it_is_another_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of, nodes = config(), Nodes("node1")
    peering = Peering(
        AgentConfig(node_name="node1", run_dir=tmp_path),
        nodes,
        on_paths=lambda names: None,
        on_tunnel=lambda: None,
    )
    planner = Planner(nodes, peering, None)
    older, younger = peer(of, 2), peer(of, 3)
    assert older.lease is not None and younger.lease is not None
    taken = msgspec.structs.replace(younger.lease, subnets=older.lease.subnets)
    nodes.put("node2", older)
    nodes.put("node3", msgspec.structs.replace(younger, lease=taken))

    def told() -> int:
        caplog.clear()
        planner.changed(of)
        return len(caplog.records)

    planner.whole(of, [])
    assert [one.message for one in caplog.records] == ["lease not believed"]
    nodes.put("node2", at(older, "172.18.0.99"))
    nodes.put("node3", at(msgspec.structs.replace(younger, lease=taken), "172.18.0.98"))
    assert told() == 0
    vni = msgspec.structs.replace(taken, vni=9)
    nodes.put("node3", msgspec.structs.replace(younger, lease=vni))
    assert told() == 1
    nodes.put("node3", younger)
    assert told() == 0
    nodes.put("node3", msgspec.structs.replace(younger, lease=taken))
    assert told() == 1
