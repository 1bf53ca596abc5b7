"""What an agent is told on its command line: accepted, or refused with the option's name."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from podwire.agent.config import AgentConfig, parse_listen, parse_network
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
