"""A node's addresses, as its kubelet follows them."""

from __future__ import annotations

import pytest

from podwire.lab.kubelet.node_addresses import NodeAddresses
from tests.conftest import Namespace


@pytest.mark.root
def test_a_node_is_known_by_what_its_link_has_now(inside: Namespace) -> None:
    inside.run(
        "ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up;"
        " ip address add 172.18.0.12/16 dev eth0; ip address add fd00::12/64 dev eth0 nodad;"
        " ip address add 10.0.0.1/24 dev far"
    )
    addresses = NodeAddresses(("172.18.0.12", "fd00::12"))

    def after(line: str) -> tuple[str, ...]:
        inside.run(line)
        addresses.look()
        return addresses.ips

    assert after("ip address add 172.18.0.99/16 dev eth0") == ("172.18.0.12", "fd00::12")
    inside.run("ip address flush dev eth0")
    new = "ip address add 172.18.0.99/16 dev eth0; ip address add fd00::99/64 dev eth0 nodad"
    assert after(new) == ("172.18.0.99", "fd00::99")
    # That it has none for a moment says nothing.
    assert after("ip address flush dev eth0") == ("172.18.0.99", "fd00::99")
    assert after("ip address add 172.18.0.98/16 dev eth0") == ("172.18.0.98", "fd00::99")
