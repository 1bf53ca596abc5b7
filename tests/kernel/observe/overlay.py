"""Two nodes with a pod each, and VXLAN between: something to break, to see what the kernel drops.

    pod1 eth0 ── pod1 node1 flannel.1 ── eth0 ~~~ eth0 ── flannel.1 node2 pod2 ── eth0 pod2

Both families, no bridges. Pods that do not answer are given up after a few milliseconds, so that
a test does not wait for it.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from podwire.kernel import netns
from podwire.kernel.observe.drops import DropTap, RawDrop
from podwire.model.probe import MAGIC, ProbeMatch, Protocol
from tests.conftest import Namespace

_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_PROBE = 3
_HEADER = {4: 20, 6: 40}
#: How long a drop that is to come may take; one that is not to come isn't waited for.
_PATIENCE_S = 60


def address(name: str, version: int) -> str:
    """Of `pod1`, `pod2`, and `node1`; of `nobody`, whom node2 looks for in vain."""
    return {
        "pod1": ("10.97.1.2", "fd97:1::2"),
        "pod2": ("10.97.2.2", "fd97:2::2"),
        "nobody": ("10.97.2.9", "fd97:2::9"),
        "node1": ("10.97.1.1", "fd97:1::1"),
    }[name][version == 6]


class Overlay:
    """`run(place, line)` breaks it; `probe` sends, and returns what was dropped of that."""

    def __init__(self, make_namespace: Callable[[], Namespace]) -> None:
        self.places = {name: make_namespace() for name in ("pod1", "node1", "node2", "pod2")}
        self.inodes: dict[int, str] = {}
        for name, place in self.places.items():
            fd = netns.open_netns(place.path)
            self.inodes[netns.netns_inode(fd)] = name
            os.close(fd)
            place.run("echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
        one, two = self.places["node1"].name, self.places["node2"].name
        self._ip("node1", f"link add eth0 netns {one} type veth peer eth0 netns {two}")
        for number, other in ((1, 2), (2, 1)):
            self._node(number, other)

    def run(self, place: str, line: str) -> None:
        self.places[place].run(line)

    def match(self, protocol: Protocol, version: int, **more: Any) -> ProbeMatch:
        """Of a probe from pod1."""
        fields: dict[str, Any] = {
            "protocol": protocol,
            "source": address("pod1", version),
            "target": address("pod2", version),
            "ident": 0x8000 | secrets.randbits(15),
            "port": None if protocol == "icmp" else 4444,
        }
        return ProbeMatch(**(fields | more))

    def send(self, match: ProbeMatch, *, size: int = 84) -> None:
        """One packet of an even `size` out of pod1's stack, DF set; the answer isn't waited for."""
        version = 6 if ":" in match.target else 4
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        kind, protocol = {
            "icmp": (socket.SOCK_RAW, 58 if version == 6 else 1),
            "udp": (socket.SOCK_DGRAM, 0),
            "tcp": (socket.SOCK_STREAM, 0),
        }[match.protocol]
        fd = netns.open_netns(self.places["pod1"].path)
        with netns.entered(fd):
            sock = socket.socket(family, kind, protocol)
        os.close(fd)
        with sock:
            sock.setsockopt(*_MTU_DISCOVER[version], _PMTUDISC_PROBE)
            sock.setblocking(False)
            payload = MAGIC + struct.pack("!HH", match.ident, 1)
            payload = payload.ljust(size - _HEADER[version] - 8, b"\0")
            if match.protocol == "icmp":
                sock.sendto(_echo_request(version, match.ident, payload), (match.target, 0))
                return
            sock.bind(("", match.ident))
            sock.connect_ex((match.target, match.port))
            if match.protocol == "udp":
                sock.send(payload)
            else:
                # The socket is closed below, but the kernel has answered or dropped the SYN, or
                # waits for a neighbour that it will give up, before that matters.
                select.select([], [sock], [], 1)

    def probe(self, protocol: Protocol, version: int, *, size: int = 84, **more: Any) -> RawDrop:
        """The one drop that a probe ends with."""
        match = self.match(protocol, version, **more)
        with DropTap(match) as tap:
            self.send(match, size=size)
            (drop,) = self.wait(tap)
            return drop

    def wait(self, tap: DropTap, count: int = 1) -> list[RawDrop]:
        """The first `count` drops, or more, in these namespaces."""
        drops: list[RawDrop] = []
        deadline = time.monotonic() + _PATIENCE_S
        while len(drops) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(drops)} of {count} drops came"
            select.select([tap], [], [], left)
            drops += [drop for drop in tap.read() if drop.netns in self.inodes]
        return drops

    def where(self, drop: RawDrop) -> str:
        return f"{self.inodes[drop.netns]} {drop.interface}"

    def _node(self, number: int, other: int) -> None:
        node, pod = f"node{number}", f"pod{number}"
        mac = "02:00:00:00:00:{:02}"
        self._ip(node, f"link add {pod} mtu 1450 type veth peer eth0 netns {self.places[pod].name}")
        self._ip(
            node,
            f"address add 192.0.2.{number}/24 dev eth0",
            f"address add fd97::{number}/64 dev eth0",
            "link set eth0 up",
            f"link add flannel.1 address {mac.format(number)} mtu 1450 type vxlan id 1"
            f" dev eth0 local 192.0.2.{number} dstport 8472 nolearning",
            "link set flannel.1 up",
            f"address add 10.97.{number}.1/24 dev {pod}",
            f"address add fd97:{number}::1/64 dev {pod}",
            f"link set {pod} up",
            f"neighbor add 10.97.{other}.0 lladdr {mac.format(other)} dev flannel.1",
            f"neighbor add fd97:{other}:: lladdr {mac.format(other)} dev flannel.1",
            f"route add 10.97.{other}.0/24 via 10.97.{other}.0 dev flannel.1 onlink",
            f"route add fd97:{other}::/64 via fd97:{other}:: dev flannel.1 onlink",
        )
        self.run(
            node,
            f"bridge fdb append {mac.format(other)} dev flannel.1 dst 192.0.2.{other};"
            "cd /proc/sys/net; echo 1 >ipv4/ip_forward; echo 1 >ipv6/conf/all/forwarding;"
            f"for each in ipv4 ipv6; do echo 10 >$each/neigh/{pod}/retrans_time_ms; done",
        )
        self._ip(
            pod,
            "link set eth0 mtu 1450 up",
            f"address add 10.97.{number}.2/24 dev eth0",
            f"address add fd97:{number}::2/64 dev eth0",
            f"route add 10.97.0.0/16 via 10.97.{number}.1",
            f"route add fd97::/16 via fd97:{number}::1",
        )

    def _ip(self, place: str, *lines: str) -> None:
        batch = "\n".join(lines)
        self.places[place].run(f"ip -batch - <<'END'\n{batch}\nEND")


def _echo_request(version: int, ident: int, payload: bytes) -> bytes:
    """The kernel fills in ICMPv6's checksum, but not ICMP's."""
    kind = 128 if version == 6 else 8
    packet = struct.pack("!BBHHH", kind, 0, 0, ident, 1) + payload
    if version == 6:
        return packet
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return packet[:2] + struct.pack("!H", ~total & 0xFFFF) + packet[4:]
