"""`subnet.env` as flanneld writes it, and files of the agent that a crash has damaged."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest

from podwire.agent.files import read_subnet_env, subnet_env
from podwire.agent.memory import FabricMemory
from podwire.agent.paths.prober import Prober
from podwire.model.cluster import Lease, NetworkConfig, Underlay

CONFIG = NetworkConfig(
    node="node1",
    network=(ip_network("10.244.0.0/16"),),
    lease=Lease((ip_network("10.244.1.0/24"),), "vxlan", ip_address("172.18.0.11")),
    underlay=Underlay("eth0", ip_address("172.18.0.11"), 1500),
    mtu=1450,
)


def test_subnet_env_is_flannels() -> None:
    assert subnet_env(CONFIG) == (
        "FLANNEL_NETWORK=10.244.0.0/16\n"
        "FLANNEL_SUBNET=10.244.1.1/24\n"
        "FLANNEL_MTU=1450\n"
        "FLANNEL_IPMASQ=true\n"
    )


def test_subnet_env_of_two_families_without_masquerade() -> None:
    both = msgspec.structs.replace(
        CONFIG,
        network=(*CONFIG.network, ip_network("fd00:244::/48")),
        lease=msgspec.structs.replace(
            CONFIG.lease, subnets=(*CONFIG.lease.subnets, ip_network("fd00:244:0:1::/64"))
        ),
        masquerade=False,
    )
    assert subnet_env(both) == (
        "FLANNEL_NETWORK=10.244.0.0/16\n"
        "FLANNEL_SUBNET=10.244.1.1/24\n"
        "FLANNEL_IPV6_NETWORK=fd00:244::/48\n"
        "FLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\n"
        "FLANNEL_MTU=1450\n"
        "FLANNEL_IPMASQ=false\n"
    )


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 4096, b'["\xff"]', b'{"fabric": {"profile": "\xff"}}']
)
def test_a_damaged_file_says_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    assert FabricMemory(path).last is None
    assert Prober(1.0, path, lambda names: None).blocked == frozenset()
    assert list(read_subnet_env(path)) == []
