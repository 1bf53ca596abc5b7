"""Two nodes with pods, made once for all tests of a module."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Namespace
from tests.trace.two_nodes import Network


@pytest.fixture(scope="module")
def make_namespaces() -> Iterator[Callable[[], Namespace]]:
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run it as root (sudo script/test)")
    made: list[Namespace] = []

    def make() -> Namespace:
        one = Namespace(f"pwt-decide-{secrets.token_hex(4)}")
        subprocess.run(["ip", "netns", "add", one.name], check=True)
        made.append(one)
        one.run("ip link set lo up")
        return one

    yield make
    for one in made:
        subprocess.run(["ip", "netns", "del", one.name], check=False)


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
