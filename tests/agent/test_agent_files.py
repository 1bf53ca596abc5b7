"""`subnet.env` as flanneld writes it, and files that are replaced as a whole."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec

from podwire.agent.files import subnet_env, write_atomically
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


def test_a_file_is_written_with_its_directory_and_mode_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "subnet.env"
    assert write_atomically(path, "A=1\n", 0o640)
    assert path.read_text() == "A=1\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_as_it_should_be_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_atomically(path, "A=1\n")
    before = path.stat()
    assert not write_atomically(path, "A=1\n")
    assert path.stat().st_ino == before.st_ino


def test_whoever_has_the_old_file_open_reads_the_whole_of_it(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_atomically(path, "A=1\n")
    with path.open() as reader:
        assert write_atomically(path, "A=2\n")
        assert reader.read() == "A=1\n"
    assert path.read_text() == "A=2\n"


def test_what_is_no_text_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(b"\xff\xfe")
    assert write_atomically(path, "A=1\n")
    assert path.read_text() == "A=1\n"
