"""Links in the reconciler: what is somebody else's, what is a pod's, and what is no alarm."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

from podwire.kernel import netns, tun
from podwire.kernel.attach import attach
from podwire.kernel.links import diff, refusal
from podwire.kernel.messages import RTNLGRP_LINK
from podwire.kernel.netlink import Failure, NetlinkSocket
from podwire.kernel.reconcile import Reconciler
from podwire.model.state import Desired, Link, Tun
from tests.conftest import Namespace
from tests.kernel.entries import UNDERLAY, WHY, own, pod, port

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("cni0", "ip link add cni0 type bridge; ip link set cni0 up"),
        ("flannel.1", "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning"),
    ],
)
def test_a_foreign_link_gets_nothing_of_ours(
    inside: Namespace, reconciler: Reconciler, name: str, foreign: str
) -> None:
    inside.run(foreign)
    look = f"ip address show {name}; ip neigh show dev {name}; bridge fdb show dev {name}"
    before = inside.run(look)
    report = reconciler.reconcile()
    assert len(report.refused) == 1
    assert f"{name} exists and was not made by Podwire" in report.refused[0]
    assert report.refused == report.failures
    assert inside.run(look) == before
    assert "proto 112" not in inside.run(f"ip route show dev {name}")
    assert reconciler.reconcile().changes == 0


def test_a_foreign_link_that_goes_makes_room(inside: Namespace, reconciler: Reconciler) -> None:
    inside.run("ip link add cni0 type bridge")
    reconciler.reconcile()
    with NetlinkSocket(groups=(RTNLGRP_LINK,)) as watch:

        def amiss() -> bool:
            return any(reconciler.is_amiss(one.type, one.payload) for one in watch.notifications())

        inside.run("ip link set cni0 up; ip link set cni0 mtu 1300")
        assert not amiss(), "what others do to their link is their business"
        inside.run("ip link del cni0")
        assert amiss()
        assert reconciler.reconcile().refused == []
        assert reconciler.plan() == []
        inside.run("ip link del cni0; ip link add cni0 type bridge")
        assert amiss(), "ours was replaced"


def test_a_pod_that_comes_and_goes_is_no_alarm(
    inside: Namespace, reconciler: Reconciler, make_namespace: Callable[[], Namespace]
) -> None:
    namespace = make_namespace()
    reconciler.reconcile()
    host, cause = port(), "Attachment/c1/eth0"
    fd = netns.open_netns(namespace.path)
    try:
        with NetlinkSocket() as sock, NetlinkSocket(groups=(RTNLGRP_LINK,)) as watch:

            def amiss() -> bool:
                found = watch.notifications()
                assert found
                return any(reconciler.is_amiss(one.type, one.payload) for one in found)

            for _ in range(2):
                attach(sock, host, pod(), fd)
                reconciler.note(cause, (host,))
                assert not amiss()
                reconciler.note(cause, ())
                inside.run(f"ip link del {host.name}")
                assert not amiss()
            attach(sock, host, pod(), fd)
            reconciler.note(cause, (host,))
            inside.run(f"ip link set {host.name} nomaster")
            assert amiss()
    finally:
        os.close(fd)


def test_the_tunnel_makes_itself_no_ipv6_address(inside: Namespace, reconciler: Reconciler) -> None:
    reconciler.reconcile()
    assert "inet6" not in inside.run("ip address show dev flannel.1")


def test_an_underlay_that_came_back_is_noticed(inside: Namespace, reconciler: Reconciler) -> None:
    reconciler.reconcile()
    with NetlinkSocket(groups=(RTNLGRP_LINK,)) as watch:
        inside.run("ip link del eth0")
        assert any(reconciler.is_amiss(one.type, one.payload) for one in watch.notifications())
        report = reconciler.reconcile()
        assert any("eth0 does not exist" in one for one in report.refused)
        inside.run(UNDERLAY)
        assert any(reconciler.is_amiss(one.type, one.payload) for one in watch.notifications())
    assert reconciler.reconcile().failures == []


def test_a_port_that_is_taken_is_refused_with_what_to_do(
    inside: Namespace, reconciler: Reconciler
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("172.18.0.11", 8472))
        (refused,) = reconciler.reconcile().refused
        assert "flannel.1: Address already in use" in refused
        assert "UDP port 8472" in refused
        assert "--vxlan-port" in refused
    assert reconciler.reconcile().refused == []
    assert reconciler.plan() == []


def test_what_this_kernel_does_not_have_is_named(
    inside: Namespace, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    no = Failure(0, errno.EOPNOTSUPP, "Unknown device type.")
    found = []
    for one in own():
        if isinstance(one, Link):
            found += [refusal(op, no) for op in diff({one.name: one}, {}).ops]
    assert found == [
        "cni0: this kernel makes no bridge links; load it (modprobe bridge), or choose"
        " --wiring routed",
        "flannel.1: this kernel makes no vxlan links; load it (modprobe vxlan), or choose"
        " --transport udp or direct",
    ]
    monkeypatch.setattr(tun, "_DEVICE", "/dev/net/none")
    reconciler.replace(Desired({"Node/node1": (Link(name="flannel0", kind=Tun(), why=WHY),)}))
    (refused,) = reconciler.reconcile().refused
    assert "modprobe tun" in refused
