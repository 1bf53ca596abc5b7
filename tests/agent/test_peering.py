"""What the tunnel is told of peers."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest

from podwire.agent.config import AgentConfig
from podwire.agent.nodes import Nodes
from podwire.agent.peering import Peering
from podwire.tunnel.table import Peer, Table

from ..plan.fabrics import config, peer


def peering(nodes: Nodes, run_dir: Path) -> Peering:
    return Peering(
        AgentConfig(node_name="node1", run_dir=run_dir),
        nodes,
        on_paths=lambda names: None,
        on_tunnel=lambda: None,
    )


#: Whose name comes first tells nothing of who is there.
BEFORE, NOW = "node-b", "node-a"


@pytest.mark.parametrize("names", [(BEFORE, NOW), (NOW, BEFORE)])
def test_of_two_at_one_address_the_newer_is_there(tmp_path: Path, names: tuple[str, str]) -> None:
    """A node that was made anew, under another name or with another subnet and key."""
    of, nodes = config("flannel-udp", encrypt=True), Nodes("node1")
    for name in names:
        number, second = {BEFORE: (2, 1), NOW: (3, 2)}[name]
        lease = peer(of, number, public_key=bytes([number]) * 32).lease
        assert lease is not None
        lease = msgspec.structs.replace(lease, public_ip=of.underlay.on_link[0][99])
        created = f"2026-01-01T00:00:0{second}Z"
        nodes.put(name, msgspec.structs.replace(peer(of), name=name, lease=lease, created=created))
    told = peering(nodes, tmp_path)
    told.use(of, bytes(32))
    table = Table()
    table.replace(Peer(one) for one in told.tunnel.peers.values())
    assert [one.name for one in table.by_source.values()] == [NOW]


@pytest.mark.parametrize(("fabric", "later"), [("udp", "it ended"), ("auto", None)])
def test_a_tunnel_that_is_one_way_of_several_is_waited_for_once(
    tmp_path: Path, fabric: str, later: str | None
) -> None:
    told = peering(Nodes("node1"), tmp_path)
    told.use(config(transport=fabric), None)
    assert told.not_ready == "the UDP tunnel is not configured yet"
    told.tunnel._note("it ended")
    assert told.not_ready == later


def test_a_tunnel_that_forwards_is_not_waited_for_when_the_node_has_a_block_more(
    tmp_path: Path,
) -> None:
    of, told = config("calico", transport="udp"), peering(Nodes("node1"), tmp_path)
    told.use(of, None)
    told.tunnel._note(None)
    more = msgspec.structs.replace(
        of.lease, subnets=(*of.lease.subnets, ip_network("172.31.9.0/26"))
    )
    told.use(msgspec.structs.replace(of, lease=more), None)
    assert told.not_ready is None
    elsewhere = msgspec.structs.replace(of.underlay, ip=ip_address("172.18.0.99"))
    told.use(msgspec.structs.replace(of, underlay=elsewhere), None)
    assert told.not_ready == "the UDP tunnel is not configured yet"
