"""Nodes by name, whatever they call themselves."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.cluster.etcd import values
from podwire.cluster.etcd.directory import Directory, Entry, read_entry
from podwire.cluster.etcd.layout import Layout
from podwire.cluster.etcd.messages import KeyValue
from podwire.errors import InputError
from podwire.model.cluster import Lease, Node

LAYOUT = Layout("/net")
LEASES = [
    Lease((ip_network(f"10.5.{number}.0/24"),), "udp", ip_address(f"192.168.64.{number}"))
    for number in range(1, 7)
]


def key(number: int) -> bytes:
    return LAYOUT.subnet(values.format_subnets(LEASES[number].subnets))


def entry(number: int, name: str = "", created: int | None = None) -> Entry:
    value = values.encode(LEASES[number], name)
    found = read_entry(LAYOUT, KeyValue(key(number), value, created or number + 1))
    assert found is not None
    return found


def names(directory: Directory) -> dict[str, Lease | None]:
    assert all(node.name == name for name, node in directory.nodes.items())
    return {name: node.lease for name, node in directory.nodes.items()}


def test_nodes_are_called_by_their_name_or_address() -> None:
    directory = Directory("node1")
    directory.sync([entry(0, "node1"), entry(1)])
    assert names(directory) == {"node1": LEASES[0], "192.168.64.2": LEASES[1]}


def test_of_one_name_the_older_has_it() -> None:
    directory = Directory("other")
    directory.sync([entry(2, "node1", created=9), entry(1, "node1", created=5)])
    assert names(directory) == {"node1": LEASES[1], "node1@10.5.3.0-24": LEASES[2]}
    changed = directory.remove(key(1))
    assert {name: node and node.lease for name, node in changed.items()} == {
        "node1": LEASES[2],
        "node1@10.5.3.0-24": None,
    }


def test_this_nodes_own_name_is_its_own() -> None:
    directory = Directory("node1")
    directory.sync([entry(1, "node1", created=5), entry(2, "", created=9)])
    assert set(directory.own_is_at(key(2))) == {"node1", "node1@10.5.2.0-24", "192.168.64.3"}
    assert names(directory) == {"node1": LEASES[2], "node1@10.5.2.0-24": LEASES[1]}
    directory.own_is_at(None)
    assert names(directory) == {"node1": LEASES[1], "192.168.64.3": LEASES[2]}


def test_what_is_as_it_was_is_no_change() -> None:
    directory = Directory("node1")
    directory.put(entry(1))
    assert directory.put(entry(1)) == {}
    assert directory.remove(key(2)) == {}


def test_a_node_with_blocks_is_at_its_name() -> None:
    value = values.encode(LEASES[0], "node1", with_subnets=True)
    found = read_entry(LAYOUT, KeyValue(LAYOUT.node("node1"), value, 1))
    assert found is not None
    assert (found.name, found.lease) == ("node1", LEASES[0])
    with pytest.raises(InputError, match="/net/nodes/node2: PodwireNode"):
        read_entry(LAYOUT, KeyValue(LAYOUT.node("node2"), value, 1))


def test_other_keys_are_nobodys() -> None:
    assert read_entry(LAYOUT, KeyValue(LAYOUT.config, b"{}", 1)) is None
    with pytest.raises(InputError, match="/net/subnets/x: "):
        read_entry(LAYOUT, KeyValue(LAYOUT.subnet("x"), b"{}", 1))


_NAMES = st.sampled_from(["", "node1", "node2"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), _NAMES),
        st.tuples(st.just("remove"), st.integers(0, 5), st.just("")),
        st.tuples(st.just("own"), st.integers(-1, 5), st.just("")),
    ),
    max_size=12,
)


@settings(max_examples=100)
@given(_STEPS)
def test_what_is_told_is_what_there_is(steps: list[tuple[str, int, str]]) -> None:
    """Whoever takes in every change has what a newcomer reads."""
    directory, known = Directory("node1"), dict[str, Node]()
    entries: dict[bytes, Entry] = {}
    own: bytes | None = None

    def take(changed: Mapping[str, Node | None]) -> None:
        for name, node in changed.items():
            if node is None:
                del known[name]
            else:
                known[name] = node

    for verb, number, name in steps:
        if verb == "own":
            own = key(number) if number >= 0 else None
            take(directory.own_is_at(own))
        elif verb == "put":
            entries[key(number)] = entry(number, name)
            take(directory.put(entry(number, name)))
        else:
            entries.pop(key(number), None)
            take(directory.remove(key(number)))
    fresh = Directory("node1")
    fresh.own_is_at(own)
    fresh.sync(entries.values())
    assert known == dict(directory.nodes) == dict(fresh.nodes)
    assert len(known) == len(entries)
