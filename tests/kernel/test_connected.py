"""Routes that the kernel makes with addresses: they are wanted like the addresses themselves."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface

import pytest

from podwire.kernel.judge import ROUTE_GROUPS
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.reconcile import Reconciler
from podwire.model.state import Address, Bridge, Desired, Link, Tun, Why
from tests.conftest import Namespace

pytestmark = pytest.mark.root

WHY = Why("Node/node1", "is tried out")
IPS = ("10.244.1.1/24", "fd00:10:244:1::1/64")
WIDE = ("10.244.1.0/16", "fd00:10:244:1::/48")
#: A device of somebody else, with the same networks.
OTHERS = (
    "ip link add other type bridge; ip link set other up;"
    "ip address add 10.244.9.9/16 dev other; ip address add fd00:10:244:9::9/48 dev other nodad"
)


@pytest.fixture
def node(inside: Namespace) -> Iterator[Reconciler]:
    """A bridge and a tunnel's device, applied."""
    inside.run(OTHERS)
    one = Reconciler()
    links = (
        Link(name="cni0", kind=Bridge(), why=WHY, mtu=1450),
        Link(name="flannel0", kind=Tun(), why=WHY, mtu=1450),
    )
    named = [("cni0", ip) for ip in IPS] + [("flannel0", ip) for ip in WIDE]
    addresses = [Address(dev=dev, ip=ip_interface(ip), why=WHY) for dev, ip in named]
    one.replace(Desired({"Node/node1": (*links, *addresses)}))
    report = one.reconcile()
    assert report.failures == []
    yield one
    one.close()


def routes(inside: Namespace) -> list[str]:
    found = inside.run("ip route show proto kernel; ip -6 route show proto kernel")
    return sorted(line.strip().removesuffix(" linkdown") for line in found.splitlines())


def test_what_the_kernel_has_made_is_as_it_should_be(node: Reconciler, inside: Namespace) -> None:
    before = routes(inside)
    assert node.plan() == []
    assert node.reconcile().changes == 0
    assert routes(inside) == before


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "ip route del 10.244.0.0/16 dev flannel0",
            "ip route prepend 10.244.0.0/16 dev flannel0 src 10.244.1.0 proto 2",
        ),
        (
            "ip route del 10.244.1.0/24",
            "ip route prepend 10.244.1.0/24 dev cni0 src 10.244.1.1 proto 2",
        ),
        (
            "ip route del fd00:10:244:1::/64",
            "ip route prepend fd00:10:244:1::/64 dev cni0 metric 256 proto 2",
        ),
        (
            "ip route del fd00:10:244::/48 dev flannel0",
            "ip route prepend fd00:10:244::/48 dev flannel0 metric 256 proto 2",
        ),
    ],
)
def test_one_that_is_deleted_is_told_of_and_mended(
    node: Reconciler, inside: Namespace, line: str, told: str
) -> None:
    before = routes(inside)
    with NetlinkSocket(groups=ROUTE_GROUPS) as sock:
        inside.run(line)
        assert node.any_amiss(sock.notifications())
        assert [change.line for change in node.plan()] == [told]
        assert node.reconcile().changes == 1
        assert not node.any_amiss(sock.notifications()), "what it has just made"
    assert routes(inside) == before
    inside.run(f"{line}; {told}")
    assert node.plan() == []
    # It goes with its address, as the kernel's own does.
    node.replace(Desired({}))
    assert node.reconcile().failures == []
    assert not {one for one in routes(inside) if "dev other" not in one}


@pytest.mark.parametrize("route", ["10.244.1.0/24", "fd00:10:244:1::/64"])
def test_what_has_taken_its_place_does_not_stand_in_for_it(
    node: Reconciler, inside: Namespace, route: str
) -> None:
    metric = "" if "." in route else "metric 256"
    before = routes(inside)
    with NetlinkSocket(groups=ROUTE_GROUPS) as sock:
        inside.run(f"ip route replace {route} dev other {metric}")
        assert node.any_amiss(sock.notifications())
    assert node.reconcile().failures == []
    assert node.plan() == []
    assert set(before) <= set(routes(inside))


def test_one_with_another_source_does_not_stand_in_for_it(
    node: Reconciler, inside: Namespace
) -> None:
    inside.run("ip route change 10.244.1.0/24 dev cni0 src 10.244.1.0 proto kernel")
    assert node.reconcile().changes == 1
    assert "src 10.244.1.1" in inside.run("ip route get 10.244.1.9")
    assert node.plan() == []


def test_a_blackhole_of_before_makes_room(node: Reconciler, inside: Namespace) -> None:
    """As a node has it whose pods were routed, and get a bridge."""
    before = routes(inside)
    inside.run(
        "ip address del 10.244.1.1/24 dev cni0; ip route add blackhole 10.244.1.0/24 proto 112"
    )
    assert node.reconcile().failures == []
    assert routes(inside) == before
    assert inside.run("ip route show proto 112") == ""
    assert node.plan() == []


def test_those_of_others_are_theirs(node: Reconciler, inside: Namespace) -> None:
    inside.run("ip route del 10.244.0.0/16 dev other; ip route del fd00:10:244::/48 dev other")
    before = routes(inside)
    assert node.plan() == []
    assert node.reconcile().changes == 0
    assert routes(inside) == before
