"""`subnet.env` as flanneld writes it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec

from podwire.agent.files import subnet_env
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
