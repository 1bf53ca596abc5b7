"""A token bucket gives what it has, and no more."""

from __future__ import annotations

from podwire.tunnel.budget import Budget


def test_no_more_than_the_budget() -> None:
    budget = Budget(rate=10, burst=3, now=0.0)
    assert [budget.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.take(0.25) for _ in range(3)] == [True, True, False]
    assert [budget.take(100.0) for _ in range(4)] == [True, True, True, False]
