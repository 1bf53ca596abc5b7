"""Changes of what is wanted: few are applied one by one, very many as a whole, alike in the end."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from podwire.agent import mending
from podwire.agent.mending import Mender
from podwire.agent.worker import KernelWorker
from podwire.model.state import Blackhole, Desired, Entry, Link, Route, Vxlan, Why
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


def mends_after(inside: Namespace, wanted: Entry, cure: str) -> list[str | None]:
    """What was noted of devices while the kernel refused `wanted`, and after `cure`."""
    refused: list[str | None] = []

    async def change(worker: KernelWorker) -> None:
        woken = asyncio.Event()
        mender = Mender(worker, wake=woken.set, attach_again=ignore, note_refused=refused.append)
        await mender.replace(Desired({"Node/node1": (wanted,)}))
        inside.run(cure)
        async with asyncio.timeout(60):
            await woken.wait()
        await mender.mend_amiss()

    worker = KernelWorker()
    try:
        asyncio.run(change(worker))
    finally:
        worker.close()
    return refused


def test_a_device_that_is_refused_is_asked_for_again(
    inside: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kernel does not tell that nothing is in the way any more."""
    monkeypatch.setattr(mending, "_REFUSED_AGAIN_S", 0.01)
    inside.run("ip link add eth0 type bridge")
    inside.run("ip link add others type vxlan id 1 dstport 8472 dev eth0")
    kind = Vxlan(vni=1, port=8472, local=ip_address("172.18.0.11"), dev="eth0")
    device = Link(name="flannel.1", kind=kind, mtu=1450, alias="podwire VTEP", why=WHY)
    refused = mends_after(inside, device, "ip link del others")
    assert [reason is None for reason in refused] == [False, True]
    assert "podwire VTEP" in inside.run("ip link show flannel.1")


def test_a_route_that_is_refused_is_asked_for_again(
    inside: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interface whose MTU is too small for IPv6 takes no route of it until it has grown."""
    monkeypatch.setattr(mending, "_REFUSED_AGAIN_S", 0.01)
    inside.run("ip link add eth0 mtu 1200 type bridge; ip link set eth0 up")
    network = IPv6Network("fd00:10:244:2::/64")
    route = Route(dst=network, via=ip_address("fe80::12"), dev="eth0", protocol=112, why=WHY)
    refused = mends_after(inside, route, "ip link set eth0 mtu 1500")
    assert refused == [None, None]
    assert "via fe80::12" in inside.run(f"ip -6 route show {network}")
