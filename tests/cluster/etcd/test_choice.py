"""Which subnet is taken: never one that is leased, and always one while there is one."""

from __future__ import annotations

import random
from ipaddress import IPv4Network, ip_network
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.cluster.etcd.choice import Taken, choose, free_subnets
from podwire.cluster.etcd.network import FlannelConfig, parse_config
from podwire.errors import PodwireError

DUAL = b'{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}'
SMALL = b'{"Network":"10.5.0.0/27","SubnetLen":29}'


def config(document: bytes = DUAL) -> FlannelConfig:
    return parse_config(document, "/config")


def test_one_of_the_first_hundred_that_are_free() -> None:
    seen = {choose(config(), [], [], random.Random(seed)) for seed in range(300)}
    assert all(int(str(four).split(".")[2]) <= 100 for four, _ in seen)
    assert len({four for four, _ in seen}) > 50
    assert len({six for _, six in seen}) > 50
    late = {choose(config(), [], [], random.Random(seed), spread=2)[0] for seed in range(100)}
    assert any(int(str(four).split(".")[2]) > 100 for four in late)


def test_the_previous_one_of_each_family_where_it_is_free() -> None:
    four, six = ip_network("10.5.200.0/24"), ip_network("fd00:5:0:200::/64")
    assert choose(config(), [], [four, six], random.Random(1)) == (four, six)
    other, kept = choose(config(), [ip_network("10.5.192.0/20")], [four, six], random.Random(1))
    assert (other != four, kept) == (True, six)
    wrong = [ip_network("10.5.200.0/25"), ip_network("10.9.0.0/24")]
    assert not set(wrong) & set(choose(config(), [], wrong, random.Random(1)))


def test_a_full_network() -> None:
    leased = list(IPv4Network("10.5.0.0/27").subnets(new_prefix=29))
    assert choose(config(SMALL), leased[:3], [], random.Random(1)) == (leased[3],)
    with pytest.raises(PodwireError, match="are leased"):
        choose(config(SMALL), leased, [], random.Random(1))


def test_what_is_outside_of_the_network_takes_nothing_of_it() -> None:
    everything = [ip_network("0.0.0.0/0"), ip_network("10.0.0.0/8"), ip_network("::/0")]
    kept = (ip_network("10.5.9.0/24"), ip_network("fd00:5:0:9::/64"))
    assert choose(config(), everything, kept, random.Random(1)) == kept


def test_thousands_of_leases_cost_little() -> None:
    leased = list(islice(IPv4Network("10.0.0.0/8").subnets(new_prefix=24), 10_000))
    wanted = config(b'{"Network":"10.0.0.0/8"}')
    (found,) = choose(wanted, leased, [], random.Random(1))
    assert not Taken(leased).overlaps(found)


_LEASED = st.lists(
    st.builds(
        lambda length, index: IPv4Network(
            (0x0A050000 + (index % (1 << length - 16) << 32 - length), length)
        ),
        st.integers(17, 30),
        st.integers(0, 1 << 14),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(_LEASED)
def test_free_is_what_no_lease_overlaps(leased: list[IPv4Network]) -> None:
    (wanted, _) = config().ranges
    subnets = [
        one for one in ip_network("10.5.0.0/16").subnets(new_prefix=24) if wanted.allows(one)
    ]
    expected = [one for one in subnets if not any(one.overlaps(other) for other in leased)]
    assert list(free_subnets(wanted, Taken(leased))) == expected
