"""Changes of what is wanted: few are applied one by one, very many as a whole, alike in the end."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network

import pytest

from podwire.agent.mending import Mender
from podwire.agent.worker import KernelWorker
from podwire.model.state import Blackhole, Desired, Entry, Why
from tests.conftest import Namespace

pytestmark = pytest.mark.root

WHY = Why("Node/node1", "is tried out")


def plans(count: int) -> dict[str, tuple[Entry, ...]]:
    """A route for each of so many causes."""
    networks = list(IPv4Network("10.0.0.0/8").subnets(new_prefix=24))[:count]
    return {f"Node/{one}": (Blackhole(dst=one, why=WHY),) for one in networks}


async def ignore(names: list[str]) -> None:
    pass


@pytest.mark.parametrize("count", [3, 600])
def test_changes_come_and_go(inside: Namespace, count: int) -> None:
    async def change(worker: KernelWorker) -> None:
        mender = Mender(
            worker, wake=lambda: None, attach_again=ignore, note_refused=lambda reason: None
        )
        await mender.replace(Desired({}))
        await mender.update(plans(count))
        assert len(inside.run("ip route show proto 112").splitlines()) == count
        await mender.update(dict.fromkeys(plans(count), ()))
        assert inside.run("ip route show proto 112") == ""
        mender.hold(True)
        await mender.update(plans(count))
        assert inside.run("ip route show proto 112") == ""
        mender.hold(False)
        await mender.mend_amiss()
        assert len(inside.run("ip route show proto 112").splitlines()) == count

    worker = KernelWorker()
    try:
        asyncio.run(change(worker))
    finally:
        worker.close()
