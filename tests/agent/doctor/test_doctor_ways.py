"""Whom the doctor asks at the end of the way to a peer, in each fabric."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec
import pytest

from podwire.agent.doctor import mtu
from podwire.agent.doctor.ways import devices, ways
from podwire.model.cluster import Lease, NetworkConfig, Node, Underlay
from podwire.model.state import IPAddress
from podwire.plan.profiles import fabric
from podwire.plan.transport import transport_of

NEAR, ROUTED = ip_address("172.18.0.12"), ip_address("172.18.9.12")


def lease(number: int, backend: str, ip: IPAddress) -> Lease:
    return Lease(
        # The first is an address borrowed from another node: no end of any way.
        subnets=(ip_network("10.244.9.7/32"), ip_network(f"10.244.{number}.0/24")),
        backend=backend,
        public_ip=ip,
        vtep_mac=bytes([2, 0, 0, 0, 0, number]),
    )


def network(transport: str, wiring: str) -> NetworkConfig:
    ipam = "cluster-range" if transport == "l2-vxlan" else None
    one = fabric(ipam=ipam, wiring=wiring, transport=transport)
    own = ip_address("172.18.0.11")
    return NetworkConfig(
        node="node1",
        network=(ip_network("10.244.0.0/16"),),
        lease=lease(1, transport_of(one).BACKEND, own),
        underlay=Underlay("eth0", own, 1500, on_link=(ip_network("172.18.0.0/24"),)),
        mtu=1450,
        fabric=one,
    )


def test_no_mtu_is_advised_that_leaves_pods_too_little() -> None:
    config = network("vxlan", "bridge")
    narrow = mtu._Narrow(1300, "", 50)
    assert mtu._too_small(config, narrow, ["node2"]).lines == ("ip link set dev eth0 mtu 1300",)
    both = (*config.network, ip_network("fd00:10:244::/48"))
    finding = mtu._too_small(msgspec.structs.replace(config, network=both), narrow, ["node2"])
    assert finding.lines == ()
    assert "IPv6 needs 1280" in finding.remedy


@pytest.mark.parametrize(
    ("transport", "wiring", "ip", "blocked", "kind", "dev", "port", "far"),
    [
        ("vxlan", "bridge", NEAR, False, "vxlan", "flannel.1", 8472, "10.244.2.0"),
        ("vxlan", "routed", NEAR, False, "vxlan", "vxlan.calico", 4789, "10.244.2.0"),
        ("udp", "bridge", NEAR, False, "udp", "flannel0", 8285, "10.244.2.0"),
        ("udp", "routed", NEAR, False, "udp", "flannel0", 8285, "10.244.2.0"),
        ("direct", "bridge", NEAR, False, "direct", "eth0", 0, "10.244.2.1"),
        # Nobody but pods has an address of its subnets there.
        ("direct", "routed", NEAR, False, "direct", "eth0", 0, None),
        ("l2-vxlan", "bridge", NEAR, False, "l2-vxlan", "vxlan-6784", 6784, "10.244.2.1"),
        # The tunnels' own address goes by whatever way is used.
        ("auto", "bridge", NEAR, False, "direct", "eth0", 0, "10.244.2.1"),
        ("auto", "routed", NEAR, False, "direct", "eth0", 0, "10.244.2.0"),
        ("auto", "bridge", ROUTED, False, "vxlan", "flannel.1", 8472, "10.244.2.0"),
        ("auto", "bridge", ROUTED, True, "udp", "flannel0", 8285, "10.244.2.0"),
        ("auto", "routed", ROUTED, True, "udp", "flannel0", 8285, "10.244.2.0"),
    ],
)
def test_the_end_of_the_way(
    transport: str,
    wiring: str,
    ip: IPAddress,
    blocked: bool,
    kind: str,
    dev: str,
    port: int,
    far: str | None,
) -> None:
    config = network(transport, wiring)
    peer = Node("node2", lease=lease(2, config.lease.backend, ip))
    (way,) = ways(config, (peer,), {"node2"} if blocked else ())
    assert (way.kind, way.dev, way.port, way.node) == (kind, dev, port, ip)
    assert str(way.far) == str(far)
    # What another plugin could have left is told from these.
    assert (config.bridge in devices(config)) is (wiring == "bridge")
    assert dev in (*devices(config), "eth0")
