"""Whom a node asks whether VXLAN gets through, and of which address."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec
import pytest

from podwire.agent.paths.targets import targets
from podwire.model.cluster import Node
from podwire.plan.claims import Claims

from ...plan.fabrics import behind_a_router, config, peer


def leasing(node: Node, *subnets: str, **more: object) -> Node:
    assert node.lease is not None
    lease = msgspec.structs.replace(node.lease, subnets=tuple(map(ip_network, subnets)))
    return msgspec.structs.replace(node, lease=lease, **more)


def test_each_family_is_asked_about_by_itself() -> None:
    of = config(versions=(4, 6), transport="auto")
    found = targets(of, behind_a_router(of), Claims())
    assert {key: (one.version, one.dev) for key, one in found.items()} == {
        ("node2", 4): (4, "flannel.1"),
        ("node2", 6): (6, "flannel-v6.1"),
    }
    assert found["node2", 4].question.ip == ip_address("10.244.2.0").packed
    assert found["node2", 6].question.ip == ip_address("fd00:10:244:2::").packed


@pytest.mark.parametrize("transport", ["vxlan", "direct", "udp"])
def test_without_a_choice_nobody_is_asked(transport: str) -> None:
    of = config(transport=transport)
    assert targets(of, behind_a_router(of), Claims()) == {}


def test_nobody_is_asked_whose_answer_changes_nothing() -> None:
    of = config(transport="auto")
    assert targets(of, peer(of), Claims()) == {}, "a neighbour on the link"
    far = behind_a_router(of)
    older = msgspec.structs.replace(peer(of, 3), created="2026-01-01T00:00:00Z")
    taken = leasing(far, "10.244.3.0/24", created="2026-01-01T00:00:01Z")
    assert targets(of, taken, Claims([older, taken])) == {}, "its lease is another one's"
    assert targets(of, msgspec.structs.replace(far, lease=None), Claims()) == {}


def test_who_has_borrowed_addresses_only_answers_for_its_nodes_own() -> None:
    of = config("calico-vxlan", transport="auto")
    far = leasing(behind_a_router(of), "172.31.9.7/32")
    (target,) = targets(of, far, Claims()).values()
    assert far.lease is not None
    assert target.question.ip == far.lease.public_ip.packed
