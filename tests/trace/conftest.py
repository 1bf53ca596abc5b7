"""Two nodes with pods, made once for all tests of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Namespace, namespaces
from tests.trace.two_nodes import Network


@pytest.fixture(scope="module")
def make_namespaces() -> Iterator[Callable[[], Namespace]]:
    with namespaces() as make:
        yield make


@pytest.fixture(scope="module")
def network(make_namespaces: Callable[[], Namespace]) -> Iterator[Network]:
    """Over an IPv4 underlay."""
    yield from _whole(make_namespaces, 4)


@pytest.fixture(scope="module")
def network6(make_namespaces: Callable[[], Namespace]) -> Iterator[Network]:
    """Over an IPv6 underlay."""
    yield from _whole(make_namespaces, 6)


def _whole(make_namespaces: Callable[[], Namespace], version: int) -> Iterator[Network]:
    one = Network(make_namespaces, version)
    try:
        one.wait_until_whole()
        yield one
    finally:
        one.close()
