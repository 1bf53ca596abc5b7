"""Whatever is deleted by hand comes back at once; whatever others made stays as it is."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from podwire.lab import Lab, LabNode, LabPod

from .notifications import Notifications
from .waiting import DEADLINE_S

pytestmark = [pytest.mark.root, pytest.mark.slow]

log = logging.getLogger(__name__)

State = dict[str, Any]

#: Things of somebody else in a node. The VXLAN device is another overlay's.
FOREIGN = """\
link add foreign0 type veth peer name foreign1
link add foreign-br type bridge
link set foreign0 master foreign-br up
link set foreign-br up
address add 192.0.2.1/24 dev foreign-br
route add 198.51.100.0/24 via 192.0.2.9 proto static
route add 10.99.0.0/16 via 172.18.0.1
link add foreign-vx type vxlan id 42 dstport 4789 local {ip} dev eth0 nolearning
link set foreign-vx up
neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev foreign-br nud permanent
neigh add 172.18.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
"""
FOREIGN_TABLE = """
table inet foreign {
    chain forward {
        type filter hook forward priority 0
        ip saddr 203.0.113.0/24 drop
    }
}
table ip nat {
    chain post {
        type nat hook postrouting priority 90
    }
}
"""
FOREIGN_FILE = "/run/foreign.nft"


@dataclass(frozen=True)
class Site:
    """A node that is disturbed, two pods on it, one on another node, and words to speak of them."""

    node: LabNode
    a: LabPod
    b: LabPod
    far: LabPod
    words: Mapping[str, str]


@pytest.fixture(scope="module")
def sites(lab: Lab) -> list[Site]:
    """Three of them: an agent that is disturbed 20 times in 10 s begins to take its time."""
    for node in lab.nodes:
        run(node, "ip -batch -", FOREIGN.format(ip=node.ip))
        run(node, f"cat > {FOREIGN_FILE}; nft -f {FOREIGN_FILE}", FOREIGN_TABLE)
        run(node, "bridge fdb append 02:00:00:00:00:42 dev foreign-vx dst 172.18.0.77")
        for letter in "ab":
            lab.run(f"{letter}-{node.name}", node=node.name)
    lab.wait_ready()
    return [site(lab, node, far) for node, far in pairwise([*lab.nodes, lab.nodes[0]])]


def site(lab: Lab, node: LabNode, far: LabNode) -> Site:
    a = lab.pod(f"a-{node.name}")
    annotations = lab.node_object(far.name)["metadata"]["annotations"]
    subnet = lab.node_object(far.name)["spec"]["podCIDR"]
    words = {
        "own": base(lab.node_object(node.name)["spec"]["podCIDR"]),
        "subnet": subnet,
        "base": base(subnet),
        "mac": json.loads(annotations["flannel.alpha.coreos.com/backend-data"])["VtepMAC"],
        "port": port_of(node, a),
    }
    return Site(node, a, lab.pod(f"b-{node.name}"), lab.pod(f"a-{far.name}"), words)


def base(subnet: str) -> str:
    return subnet.partition("/")[0]


def run(node: LabNode, line: str, input: str = "") -> str:
    """Run a shell line, which has to succeed."""
    done = node.exec(["sh", "-ec", line], input=input)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def settled(node: LabNode) -> State:
    """A node's state, which is not just changing."""
    state = read(node)
    while (again := read(node)) != state:
        state = again
    return state


def read(node: LabNode) -> State:
    """All that is configured in a node, its numbers of interfaces left out."""
    commands = {
        "links": "ip -j -d link",
        "addresses": "ip -j -4 address",
        "routes": "ip -4 -j route show table all",
        "neighbours": "ip -j neigh show nud permanent",
        "fdb": "bridge -j fdb show",
        "nft": "nft -j list ruleset",
    }
    script = " && echo && ".join(commands.values())
    parsed = [json.loads(line) for line in run(node, script).splitlines() if line]
    found = dict(zip(commands, parsed, strict=True))
    return {
        "links": {link["ifname"]: _link(link) for link in found["links"]},
        "addresses": sorted(
            (link["ifname"], one["local"], one["prefixlen"])
            for link in found["addresses"]
            for one in link["addr_info"]
        ),
        "routes": sorted(json.dumps(route, sort_keys=True) for route in found["routes"]),
        "neighbours": sorted((one["dst"], one["lladdr"]) for one in found["neighbours"]),
        "fdb": sorted(
            (one["ifname"], one["mac"], one.get("dst", ""))
            for one in found["fdb"]
            if one["ifname"] in ("flannel.1", "foreign-vx")
        ),
        "nft": sorted(map(_lasting, found["nft"]["nftables"]), key=_place),
        "guards": run(node, GUARDS),
        "forwarding": run(node, "cat /proc/sys/net/ipv4/ip_forward"),
    }


#: What guards each pod's port, by the filter's name.
GUARDS = (
    "for port in $(ls /sys/class/net | grep ^veth); do"
    ' echo "$port $(tc filter show dev $port ingress | grep -o "podwire .* direct-action")"; done'
)


def _link(link: dict[str, Any]) -> dict[str, Any]:
    info = link.get("linkinfo", {})
    kind, data = info.get("info_kind"), info.get("info_data", {})
    compared = ("id", "local", "link", "port", "learning")
    return {
        "kind": kind,
        # The node's end of a pod's cable gets another one when the cable is made anew.
        "mac": link["address"] if kind != "veth" else None,
        "mtu": link["mtu"],
        "master": link.get("master"),
        "hairpin": info.get("info_slave_data", {}).get("hairpin"),
        "group": link.get("group"),
        "alias": link.get("ifalias"),
        "up": "UP" in link["flags"],
        "vxlan": {key: data.get(key) for key in compared} if kind == "vxlan" else None,
    }


#: What nft tells of an object that is another one each time it is made, or used.
_PASSING = ("handle", "packets", "bytes")


def _lasting(value: Any) -> Any:
    """nft's JSON without what passes; elements of sets come in the order of their hashes."""
    if isinstance(value, dict):
        return {
            key: sorted(map(_lasting, one), key=str) if key == "elem" else _lasting(one)
            for key, one in value.items()
            if key not in _PASSING
        }
    if isinstance(value, list):
        return [_lasting(one) for one in value]
    return value


def _place(item: dict[str, Any]) -> tuple[str, ...]:
    """Where an object is to be found: a table that is made anew is listed last. The rules of a
    chain stay in their order."""
    ((kind, of),) = item.items()
    where = (of.get("family", ""), of.get("table", ""), of.get("chain", ""), of.get("name", ""))
    return (kind, *map(str, where))


def port_of(node: LabNode, pod: LabPod) -> str:
    """The node's end of a pod's cable."""
    for name, link in read(node)["links"].items():
        if link["alias"] == f"podwire pod {pod.namespace}/{pod.name} eth0":
            return str(name)
    raise AssertionError(f"{pod} has no port")


def disturb(site: Site, line: str) -> None:
    """Run a shell line in the node, and wait until all is as it was.

    In the line, {subnet}, {base} and {mac} are those of the other node's lease, {own} is the base
    of the node's own subnet, {port} its end of pod a's cable.
    """
    before = settled(site.node)
    with Notifications(site.node.netns) as notifications:
        run(site.node, line.format(**site.words))
        started = time.monotonic()
        while left := differences(before, read(site.node)):
            assert time.monotonic() - started < DEADLINE_S, f"{line}: (before, now) is {left}"
        log.info("%.3f s: %s", time.monotonic() - started, line)
        assert notifications.changes() != [], "the line changes something"
    assert differences(before, settled(site.node)) == {}


def differences(before: State, now: State) -> State:
    return {key: (before[key], now[key]) for key in before if before[key] != now[key]}


LINES = [
    "ip link del flannel.1",
    "ip link set flannel.1 down",
    "ip link set flannel.1 mtu 1400",
    "ip link set flannel.1 address 02:00:00:00:00:aa",
    "ip address del {own}/32 dev flannel.1",
    "ip route del {subnet}",
    "ip route replace {subnet} via 172.18.0.1 proto 112",
    "bridge fdb del {mac} dev flannel.1",
    "bridge fdb replace {mac} dev flannel.1 dst 172.18.0.99",
    "ip neigh del {base} dev flannel.1",
    "ip neigh replace {base} lladdr 02:00:00:00:00:bb dev flannel.1 nud permanent",
    "ip link set {port} nomaster",
    "ip link set {port} down",
    "ip link del {port}",
    "ip link del cni0",
    "ip link set cni0 down",
    "ip address flush dev cni0",
    "sysctl -qw net.ipv4.ip_forward=0",
    "nft delete table inet podwire",
    "nft flush table inet podwire",
    "nft add element inet podwire cluster4 '{{ 8.8.8.0/24 }}'",
    "nft flush set inet podwire peers4; tc filter del dev {port} ingress",
    "nft flush table inet podwire; tc qdisc del dev {port} ingress",
    "nft flush ruleset; nft -f /run/foreign.nft",
    "ip link del cni0; ip link del flannel.1; nft delete table inet podwire",
    "ip link set eth0 down; ip link set eth0 up; ip route add default via 172.18.0.1;"
    " ip route add 10.99.0.0/16 via 172.18.0.1;"
    " ip neigh add 172.18.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
]


@pytest.mark.parametrize("line", LINES)
def test_what_is_undone_by_hand_is_done_again(sites: list[Site], line: str) -> None:
    site = sites[LINES.index(line) % len(sites)]
    disturb(site, line)
    assert site.a.ping(site.b).lost == 0
    assert site.a.ping(site.far).lost == 0
    assert site.far.ping(site.a).lost == 0
    assert site.node.ping(site.a).lost == 0
