"""Routes whose next hop is in their own destination, as VXLAN's: they come and go in any order."""

from __future__ import annotations

from contextlib import closing
from ipaddress import ip_address, ip_network

import pytest

from podwire.kernel.reconcile import Reconciler
from podwire.model.state import Bridge, Desired, Link, Route, Why
from tests.conftest import Namespace

pytestmark = pytest.mark.root

WHY = Why("Node/node2", "leases")


@pytest.mark.parametrize("dst", ["10.244.2.0/24", "fd00:10:244:2::/64"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_way_changes_there_and_back(inside: Namespace, dst: str, whole: bool) -> None:
    network = ip_network(dst)
    links = tuple(Link(name=name, kind=Bridge(), why=WHY) for name in ("near", "far"))
    plain = Route(dst=network, dev="near", why=WHY)
    tunnel = Route(
        dst=network, via=ip_address(dst.partition("/")[0]), dev="far", onlink=True, why=WHY
    )
    with closing(Reconciler()) as reconciler:
        for number, route in enumerate((plain, tunnel, plain, tunnel)):
            if whole or not number:
                reconciler.replace(Desired({"Node/node1": links, "Node/node2": (route,)}))
                report = reconciler.reconcile()
            else:
                found = reconciler.update("Node/node2", (route,))
                assert found is not None
                report = found
            assert report.failures == []
            assert f"dev {route.dev} " in inside.run(f"ip -{network.version} route show {dst}")
            assert reconciler.plan() == []
