"""What an agent is told on its command line: accepted, or refused with the option's name."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from podwire.agent.config import (
    AgentConfig,
    parse_block_size,
    parse_listen,
    parse_network,
    parse_node_name,
)
from podwire.agent.fabrics import FabricOptions, stored_fabric
from podwire.agent.files import make_directory
from podwire.cluster.source import BackendOptions, StoredNetwork
from podwire.errors import InputError


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.244.0.0/16", ["10.244.0.0/16"]),
        ("fd00:244::/48", ["fd00:244::/48"]),
        ("10.244.0.0/16,fd00:244::/48", ["10.244.0.0/16", "fd00:244::/48"]),
        ("fd00:244::/48, 10.244.0.0/16", ["fd00:244::/48", "10.244.0.0/16"]),
    ],
)
def test_a_network_is_one_cidr_of_each_family(text: str, networks: list[str]) -> None:
    assert parse_network(text) == tuple(map(ip_network, networks))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "''"),
        ("10.244.0.0/33", "10.244.0.0/33"),
        ("10.244.0.1/16", "has host bits set"),
        ("pods", "'pods'"),
        ("10.244.0.0/16,", "''"),
        ("10.244.0.0/16,10.245.0.0/16", "two networks of one family"),
        ("127.0.0.0/8", "its addresses are loopback"),
        ("fe80::/64", "its addresses are link-local"),
        ("10.244.0.0/16,ff02::/64", "its addresses are multicast"),
        ("0.0.0.0/0", "it is all addresses there are"),
    ],
)
def test_another_network_is_refused_with_the_option(text: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_network(text)
    assert refused.value.field == "--network"
    assert says in refused.value.message
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("127.0.0.1:9910", ("127.0.0.1", 9910)),
        ("[::]:9910", ("::", 9910)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_an_address_to_listen_on(text: str, listen: tuple[str, int]) -> None:
    assert parse_listen(text) == listen


@pytest.mark.parametrize(
    "text", ["", "9910", ":9910", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536"]
)
def test_anything_else_to_listen_on_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_listen(text)
    assert refused.value.field == "--health-address"
    assert refused.value.remedy


def test_both_sockets_are_in_the_run_directory() -> None:
    config = AgentConfig(node_name="n", network=(), run_dir=Path("/run/elsewhere"))
    assert config.cni_socket == Path("/run/elsewhere/cni.sock")
    assert config.api_socket == Path("/run/elsewhere/agent.sock")


def test_a_nodes_name() -> None:
    assert parse_node_name("node-1.example.com") == "node-1.example.com"


@pytest.mark.parametrize("text", ["", "a b", "a/b", "-a", "a" * 254, "node1\n"])
def test_what_is_no_nodes_name_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_node_name(text)
    assert refused.value.field == "--node-name"
    assert refused.value.remedy


@pytest.mark.parametrize("text", ["", "19", "31", "26,27", "122,127", "x"])
def test_blocks_are_as_large_as_pools_have_them(text: str) -> None:
    assert parse_block_size("30, 116") == {4: 30, 6: 116}
    with pytest.raises(InputError, match="20 to 30"):
        parse_block_size(text)


def test_a_directory_that_cannot_be_is_told_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--run-dir: .*can't be made: Not a directory"):
        make_directory(tmp_path / "file" / "run", "--run-dir")
    with pytest.raises(InputError, match="too long for a Unix socket"):
        make_directory(tmp_path / ("x" * 100), "--run-dir", longest="cni.sock")
    make_directory(tmp_path / "run", "--run-dir", longest="s")
    assert (tmp_path / "run").is_dir()


IPV4, DUAL = parse_network("10.1.0.0/16"), parse_network("10.1.0.0/16,fd00:1::/48")


@pytest.mark.parametrize(
    ("given", "option", "wanted"),
    [
        ({"transport": "udp", "vni": 7}, "vni", "it takes a transport with VXLAN"),
        ({"transport": "direct", "udp_port": 9}, "udp-port", "the transport udp or auto"),
        ({"profile": "calico", "hairpin": False}, "hairpin", "the wiring bridge"),
        ({"block_len": 26}, "block-size", "the IPAM blocks, and this is node-subnet"),
        ({"profile": "calico", "block_len6": 122}, "block-size", "IPv6, and this is IPv4"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(
    given: dict[str, Any], option: str, wanted: str
) -> None:
    with pytest.raises(InputError, match=wanted) as refused:
        stored_fabric(FabricOptions(**given), IPV4, None)
    assert refused.value.field == option
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("fabric", "given", "option", "wanted"),
    [
        (FabricOptions(), {"probe_interval_s": 0.5}, "probe-interval", "auto, and this is vxlan"),
        (FabricOptions(anti_spoofing=False), {"guard": "ebpf"}, "guard", "takes anti-spoofing"),
    ],
)
def test_an_option_beside_the_fabrics_that_changes_nothing_is_refused(
    fabric: FabricOptions, given: dict[str, Any], option: str, wanted: str
) -> None:
    with pytest.raises(InputError, match=wanted) as refused:
        AgentConfig(node_name="node1", **given).refuse_idle(fabric.fabric())
    assert refused.value.field == option
    both = FabricOptions(transport="auto").fabric()
    AgentConfig(node_name="node1", guard="ebpf", probe_interval_s=0.5).refuse_idle(both)
    AgentConfig(node_name="node1").refuse_idle(fabric.fabric())


def test_an_option_that_matters_or_only_says_what_is_usual_is_not() -> None:
    auto = FabricOptions(transport="auto", vni=7, udp_port=9)
    assert stored_fabric(auto, IPV4, None)[0].vni == 7
    blocks = FabricOptions(profile="calico", block_len=28, block_len6=124, promiscuous=False)
    assert stored_fabric(blocks, DUAL, None)[0].block_len6 == 124


def test_what_a_store_says_beside_the_point_is_no_options_fault() -> None:
    stored = StoredNetwork(IPV4, BackendOptions(type="udp", vni=7, port=9000))
    assert stored_fabric(FabricOptions(), (), stored)[0].udp_port == 9000
    # Which fabric it is, only the store knows: a port of its transport is an option, a VNI none.
    assert stored_fabric(FabricOptions(udp_port=9000), (), stored)[0].transport == "udp"
    with pytest.raises(InputError, match="this is udp") as refused:
        stored_fabric(FabricOptions(vni=7), (), stored)
    assert refused.value.field == "vni"
