"""Real etcds for the tests of the etcd store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from podwire.cluster.etcd.client import EtcdClient
from podwire.cluster.etcd.url import EtcdConfig

from .server import EtcdServer, Wire


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """A server for the module's tests, which use prefixes of their own."""
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """A server that the test may stop, or fill with users."""
    with EtcdServer(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
def config(etcd: EtcdServer, request: pytest.FixtureRequest) -> EtcdConfig:
    """Settings for `etcd`, with a prefix of the test's own, and quick to notice silence."""
    prefix = f"/{request.node.name.translate(str.maketrans('[]/', '---'))}"
    return replace(etcd.config, prefix=prefix, call_timeout_s=2.0, probe_s=0.2)


@pytest.fixture
async def client(config: EtcdConfig) -> AsyncIterator[EtcdClient]:
    """A client of `etcd`."""
    async with EtcdClient(config) as connected:
        yield connected


@pytest.fixture
async def wire(etcd: EtcdServer) -> AsyncIterator[Wire]:
    """A proxy in front of `etcd`."""
    proxy = Wire(etcd.port)
    await proxy.open()
    yield proxy
    proxy.heal()
    await proxy.cut()
