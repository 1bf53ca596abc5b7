"""The choice of the next address: order, reuse delay, reservations, refusals; v4 and v6 alike."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.ipam.node_subnet import ExhaustedError, RequestedAddressError, SubnetPool
from podwire.ipam.span import WINDOW
from podwire.model.state import IPAddress

SUBNETS = ["10.244.1.0/24", "fd00:10:244:1::/64"]


def take(pool: SubnetPool, now: float = 0.0) -> str:
    ip = pool.next_free(now)
    pool.hold(ip, "pod default/a", advance=True)
    return str(ip)


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        ("10.244.1.0/24", ["10.244.1.2", "10.244.1.3", "10.244.1.4"]),
        ("fd00:10:244:1::/64", ["fd00:10:244:1::2", "fd00:10:244:1::3", "fd00:10:244:1::4"]),
    ],
)
def test_starts_after_the_gateway_and_counts_up(subnet: str, expected: list[str]) -> None:
    pool = SubnetPool(ip_network(subnet))
    assert [take(pool) for _ in range(3)] == expected


@pytest.mark.parametrize("subnet", SUBNETS)
def test_continues_after_the_last_one_although_a_lower_one_is_free(subnet: str) -> None:
    pool = SubnetPool(ip_network(subnet), reuse_delay_s=0.0)
    first, _, third = take(pool), take(pool), take(pool)
    pool.release(ip_address(first), 0.0)
    assert take(pool) == str(ip_address(third) + 1)


def test_goes_round_to_a_free_lower_one() -> None:
    pool = SubnetPool(ip_network("10.0.0.0/29"), reuse_delay_s=10.0)
    for _ in range(4):
        take(pool)
    pool.release(ip_address("10.0.0.3"), 0.0)
    take(pool)
    assert take(pool, now=20.0) == "10.0.0.3"


def test_a_released_address_rests_while_another_is_free() -> None:
    pool = SubnetPool(ip_network("10.0.0.0/29"), reuse_delay_s=60.0)
    for _ in range(5):
        take(pool)
    pool.release(ip_address("10.0.0.4"), 0.0)
    pool.release(ip_address("10.0.0.2"), 50.0)
    assert take(pool, now=61.0) == "10.0.0.4"


def test_the_one_free_for_longest_is_reused_early_when_nothing_else_is_free() -> None:
    pool = SubnetPool(ip_network("10.0.0.0/29"), reuse_delay_s=60.0)
    for _ in range(5):
        take(pool)
    pool.release(ip_address("10.0.0.5"), 1.0)
    pool.release(ip_address("10.0.0.2"), 2.0)
    assert [take(pool, now=3.0), take(pool, now=3.0)] == ["10.0.0.5", "10.0.0.2"]


def test_a_clock_set_back_does_not_block_addresses() -> None:
    pool = SubnetPool(ip_network("10.0.0.0/30"), reuse_delay_s=60.0)
    take(pool)
    pool.release(ip_address("10.0.0.2"), 1e9)
    assert take(pool, now=5.0) == "10.0.0.2"


def test_network_gateway_and_broadcast_are_never_handed_out() -> None:
    pool = SubnetPool(ip_network("10.0.0.0/28"))
    handed_out = {take(pool) for _ in range(pool.capacity)}
    assert len(handed_out) == 13
    assert handed_out.isdisjoint({"10.0.0.0", "10.0.0.1", "10.0.0.15"})


def test_exhaustion_names_the_subnet_and_how_many_are_held() -> None:
    pool = SubnetPool(ip_network("10.0.0.0/29"))
    for _ in range(5):
        take(pool)
    with pytest.raises(ExhaustedError, match=r"10\.0\.0\.0/29 has no free address: 5 of 5 held"):
        pool.next_free(0.0)


@pytest.mark.parametrize("subnet", ["10.0.0.0/31", "10.0.0.0/32"])
def test_a_subnet_too_small_for_a_pod_is_exhausted_from_the_start(subnet: str) -> None:
    with pytest.raises(ExhaustedError, match="0 of 0 held"):
        SubnetPool(ip_network(subnet)).next_free(0.0)


@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        ("10.244.2.7", "outside of this node's subnet 10.244.1.0/24"),
        ("fd00::7", "outside"),
        ("10.244.1.0", "is the network address"),
        ("10.244.1.1", "is the gateway"),
        ("10.244.1.255", "is the broadcast address"),
        ("10.244.1.9", "is held by pod shop/web-0"),
    ],
)
def test_a_requested_address_is_refused_with_the_reason(ip: str, reason: str) -> None:
    pool = SubnetPool(ip_network("10.244.1.0/24"))
    pool.hold(ip_address("10.244.1.9"), "pod shop/web-0")
    with pytest.raises(RequestedAddressError, match=reason):
        pool.check_requested(ip_address(ip))


def test_a_requested_address_may_still_rest() -> None:
    pool = SubnetPool(ip_network("10.244.1.0/24"))
    pool.hold(ip_address("10.244.1.9"), "pod shop/web-0")
    pool.release(ip_address("10.244.1.9"), 0.0)
    pool.check_requested(ip_address("10.244.1.9"))


def test_a_requested_address_far_up_an_ipv6_subnet_can_be_held() -> None:
    pool = SubnetPool(ip_network("fd00::/64"))
    far = ip_address("fd00::dead:beef:0:1")
    pool.check_requested(far)
    pool.hold(far, "pod shop/web-0")
    with pytest.raises(RequestedAddressError, match="held by pod shop/web-0"):
        pool.check_requested(far)
    pool.release(far, 0.0)
    pool.check_requested(far)
    assert take(pool) == "fd00::2"


def test_a_large_subnet_is_handed_out_up_to_its_window() -> None:
    pool = SubnetPool(ip_network("fd00::/64"))
    assert pool.capacity == WINDOW - 2
    pool.continue_after(ip_address("fd00::ffff"))
    assert take(pool) == "fd00::2"


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "release"]), st.integers(0, 20), st.floats(0, 30)),
        max_size=60,
    )
)
def test_agrees_with_a_plain_scan(steps: list[tuple[str, int, float]]) -> None:
    """The bitmaps against the definition, written out: held set, release times, linear search."""
    subnet, delay = ip_network("10.0.0.0/28"), 20.0
    pool = SubnetPool(subnet, reuse_delay_s=delay)
    usable: list[IPAddress] = [subnet.network_address + n for n in range(2, 15)]
    held: list[IPAddress] = []
    released: dict[IPAddress, float] = {}
    last, now = usable[-1], 0.0
    for action, index, wait in steps:
        now += wait
        if action == "release" and held:
            gone = held.pop(index % len(held))
            released.pop(gone, None)
            released[gone] = now
            pool.release(gone, now)
        elif action == "take":
            start = usable.index(last) + 1
            order = usable[start:] + usable[:start]
            free = [ip for ip in order if ip not in held]
            rested = [ip for ip in free if now - released.get(ip, -delay) >= delay]
            if not free:
                with pytest.raises(ExhaustedError):
                    pool.next_free(now)
                continue
            expected = rested[0] if rested else min(free, key=list(released).index)
            assert pool.next_free(now) == expected
            pool.hold(expected, "pod default/a", advance=True)
            held.append(expected)
            released.pop(expected, None)
            last = expected
    assert pool.held == len(held)
