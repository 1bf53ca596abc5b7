"""An embedded API server for the client to talk to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from podwire.cluster.kube import KubeClient

from .api_process import ApiProcess, Wire


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """A server for the module's tests, which use names of their own."""
    with ApiProcess(tmp_path_factory.mktemp("api")) as process:
        yield process


@pytest.fixture
async def client(api: ApiProcess) -> AsyncIterator[KubeClient]:
    """A client of `api`."""
    async with KubeClient(api.config) as connected:
        yield connected


@pytest.fixture
async def wire(api: ApiProcess, tmp_path: Path) -> AsyncIterator[Wire]:
    """A proxy in front of `api`."""
    proxy = Wire(tmp_path / "wire.sock", api.socket)
    await proxy.open()
    yield proxy
    await proxy.close()
