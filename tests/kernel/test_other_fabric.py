"""One fabric's entries give way to another's, and to none: nothing of it is left, and whatever
others made is as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from podwire.kernel import netns
from podwire.kernel.attach import attach, detach
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.reconcile import Reconciler
from podwire.model.cluster import ClusterView, NetworkConfig, PodPlace
from podwire.model.state import Desired, IPAddress
from podwire.plan.node import plan
from podwire.plan.wiring import plan_attachment
from tests.conftest import Namespace
from tests.plan.fabrics import attachment, behind_a_router, config, peer

pytestmark = pytest.mark.root

#: An underlay of both families, and things of somebody else that look much like ours.
NODE = """
ip link add eth0 type veth peer name wire; ip link set eth0 up; ip link set wire up
ip address add 172.18.0.11/16 dev eth0; ip address add fd00:172:18::1/64 dev eth0 nodad
ip route add default via 172.18.0.1
ip -6 route add default via fd00:172:18::99
ip route add 10.99.0.0/16 via 172.18.0.1 proto static
ip route add blackhole 10.98.0.0/16
ip -6 route add blackhole fd00:98::/64
ip neigh add 172.18.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
ip link add docker0 type bridge; ip link set docker0 up
ip address add 172.17.0.1/16 dev docker0
ip link add veth0 type veth peer name other; ip link set veth0 master docker0 up
ip link add vxlan9 type vxlan id 9 dstport 4789 local 172.18.0.11 dev eth0 nolearning
ip link set vxlan9 up
bridge fdb append 02:00:00:00:00:42 dev vxlan9 dst 172.18.0.77
ip tuntap add dev tun9 mode tun
nft add table inet other '{ chain c { type filter hook forward priority 0; }; }'
nft add table bridge other
"""

FABRICS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "flannel-vxlan": ("flannel-vxlan", (4, 6), {}),
    "cross-subnet": ("flannel-vxlan", (4,), {"cross_subnet": True, "isolate_host": True}),
    "flannel-host-gw": ("flannel-host-gw", (4, 6), {}),
    "flannel-udp": ("flannel-udp", (4, 6), {}),
    "auto": ("flannel-vxlan", (4, 6), {"transport": "auto"}),
    "calico": ("calico", (4, 6), {}),
    "calico-vxlan": ("calico-vxlan", (4,), {}),
    "weave": ("weave", (4, 6), {}),
}


def view(name: str) -> ClusterView:
    """A node with a neighbour and, where the transport gets there, a peer behind a router."""
    profile, versions, options = FABRICS[name]
    made = config(profile, versions, **options)
    nodes = [peer(made, 2)]
    if made.fabric.transport != "direct":
        nodes.append(behind_a_router(made, 3))
    pods = {"default/far": PodPlace("default/far", "node2", tuple(ips(made, 2)))}
    return ClusterView(made, {one.name: one for one in nodes}, pods=pods)


def ips(made: NetworkConfig, number: int) -> list[IPAddress]:
    """Of a pod on node `number`."""
    lease = peer(made, number).lease
    assert lease is not None
    return [subnet.network_address + 5 for subnet in lease.subnets]


def everything(node: Namespace) -> dict[str, Any]:
    """All that is configured but for sysctls of the whole stack, which stay; and counters."""
    lines = {
        "links": "ip -j -d link",
        "addresses": "ip -j address",
        "routes": "ip -j route",
        "routes6": "ip -j -6 route",
        "rules": "ip -j rule",
        "neighbours": "ip -j neigh show nud permanent",
        "fdb": "bridge -j fdb show",
    }
    found: dict[str, Any] = {key: json.loads(node.run(line)) for key, line in lines.items()}
    found["links"] = list(map(_link, found["links"]))
    for one in (*found["routes"], *found["routes6"]):
        del one["flags"]  # Whether the link is up just now.
    found["addresses"] = [
        (link["ifname"], one["local"], one["prefixlen"])
        for link in found["addresses"]
        for one in link["addr_info"]
        if one["scope"] != "link"
    ]
    for key in ("routes6", "fdb"):  # Link-local addresses and multicast come when they like.
        found[key] = [
            one
            for one in found[key]
            if not str(one.get("dst", "")).startswith(("fe80", "ff00", "multicast"))
            and not one.get("mac", "").startswith(("33:33", "01:00"))
        ]
    state = {key: sorted(map(str, value)) for key, value in found.items()}
    state["nft"] = sorted(node.run("nft -s list tables").splitlines())
    settings = node.run("grep -rs . /proc/sys/net/ipv4/conf/eth0 /proc/sys/net/ipv4/neigh/eth0")
    state["settings"] = sorted(one for one in settings.splitlines() if "forwarding" not in one)
    return state


@pytest.fixture
def node(inside: Namespace) -> Namespace:
    inside.run(NODE)
    return inside


@pytest.fixture
def reconciler(node: Namespace) -> Iterator[Reconciler]:
    """It knows what agents keep in a file: the protocols of the routes from before."""
    one = Reconciler(protocols=(80,))
    yield one
    one.close()


def _link(found: dict[str, Any]) -> dict[str, Any]:
    """What is configured; bridges have timers, too."""
    info = found.get("linkinfo", {})
    data = info.get("info_data", {}) if info.get("info_kind") != "bridge" else {}
    port = info.get("info_slave_data", {})
    return {
        **{key: found.get(key) for key in ("ifname", "link", "mtu", "master", "group", "ifalias")},
        **{key: data.get(key) for key in ("id", "local", "local6", "port", "learning", "gbp")},
        **{key: port.get(key) for key in ("hairpin", "isolated", "neigh_suppress", "learning")},
        "kind": info.get("info_kind"),
        "promiscuous": "PROMISC" in found["flags"],
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {key: sorted(set(one[key]) ^ set(other[key])) for key in one if one[key] != other[key]}


def hold(reconciler: Reconciler, desired: Desired) -> None:
    reconciler.replace(desired)
    report = reconciler.reconcile()
    assert report.failures == []
    assert reconciler.plan() == []


@pytest.mark.parametrize("name", FABRICS)
def test_a_fabric_with_a_pod_is_taken_away(
    node: Namespace,
    reconciler: Reconciler,
    make_namespace: Callable[[], Namespace],
    name: str,
) -> None:
    before = everything(node)
    seen = view(name)
    hold(reconciler, plan(seen))
    pod = attachment(seen.config, *map(str, ips(seen.config, 1)))
    wired = plan_attachment(seen.config, pod)
    fd = netns.open_netns(make_namespace().path)
    try:
        with NetlinkSocket() as sock:
            attach(sock, wired.host, wired.pod, fd)
            reconciler.note("Attachment/c1/eth0", wired.host)
            hold(reconciler, plan(seen, [pod]))
            held = everything(node)
            detach(sock, wired.port.name)
        hold(reconciler, Desired({}))
    finally:
        os.close(fd)
    assert differences(before, held) != {}
    assert differences(before, everything(node)) == {}


def test_each_fabric_gives_way_to_the_next_as_a_whole(
    node: Namespace, reconciler: Reconciler
) -> None:
    fresh = {}
    for name in FABRICS:
        hold(reconciler, plan(view(name)))
        fresh[name] = everything(node)
        hold(reconciler, Desired({}))
    for before, after in pairwise([*FABRICS, *reversed(FABRICS)]):
        hold(reconciler, plan(view(before)))
        hold(reconciler, plan(view(after)))
        assert differences(fresh[after], everything(node)) == {}, (before, after)
