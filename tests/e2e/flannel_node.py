"""A node of Flannel, made by hand: what flanneld publishes, and what it makes of what others do.

There is no flanneld here, so its part is played letter by letter: its lease in etcd or on its Node
object, its devices, and for each lease of a peer the entries that it makes. Leases are read as its
structs are declared, types and all: what does not fit would be ignored by it, and fails here.

Source: pkg/lease, pkg/subnet, pkg/backend of Flannel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ..conftest import Namespace

#: By the IP version of the underlay and of the pods.
DEVICES = {4: "flannel.1", 6: "flannel-v6.1"}
PREFIX = "flannel.alpha.coreos.com"
#: flanneld's own expression for a key; the last part of it counts.
_KEY = re.compile(r"(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class Vtep(msgspec.Struct):
    """`vxlanLeaseAttrs`."""

    VNI: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
    VtepMAC: str


class Attrs(msgspec.Struct):
    """`LeaseAttrs`: a value in etcd."""

    PublicIP: str
    PublicIPv6: str | None
    BackendType: str = ""
    BackendData: Vtep | None = None
    BackendV6Data: Vtep | None = None


class Way(msgspec.Struct, frozen=True):
    """Of one family: what a peer's pods have, and where they are reached."""

    subnet: IPv4Network | IPv6Network
    public_ip: IPv4Address | IPv6Address
    vtep: Vtep | None


class Seen(msgspec.Struct, frozen=True):
    """A peer's lease as flanneld uses it: a way a family, IPv4 first."""

    backend: str
    ways: tuple[Way, ...]


def read_key(key: str, value: str) -> Seen:
    """A lease in etcd."""
    match = _KEY.search(key)
    assert match is not None, key
    attrs = msgspec.json.decode(value, type=Attrs)
    ways = [
        Way(IPv4Network(f"{match[1]}/{match[2]}"), IPv4Address(attrs.PublicIP), attrs.BackendData)
    ]
    if match[3]:
        assert attrs.PublicIPv6 is not None
        subnet = IPv6Network(f"{match[3]}/{match[4]}")
        ways.append(Way(subnet, IPv6Address(attrs.PublicIPv6), attrs.BackendV6Data))
    return Seen(attrs.BackendType, tuple(ways))


def read_node(node: Mapping[str, Any]) -> Seen | None:
    """A lease on a Node object; None as long as it has none."""
    found = node["metadata"].get("annotations", {})
    if found.get(f"{PREFIX}/kube-subnet-manager") != "true":
        return None
    ways = []
    for subnet in map(ip_network, node["spec"]["podCIDRs"]):
        v6 = subnet.version == 6
        # Where its network has no IPv4, flanneld reads nothing of that.
        data = found[f"{PREFIX}/{'backend-v6-data' if v6 else 'backend-data'}"]
        address = ip_address(found[f"{PREFIX}/{'public-ipv6' if v6 else 'public-ip'}"])
        assert address.version == subnet.version
        ways.append(Way(subnet, address, msgspec.json.decode(data, type=Vtep | None)))
    return Seen(found[f"{PREFIX}/backend-type"], tuple(ways))


class FlannelNode:
    """In `namespace`, whose underlay is eth0, and a pod in `pod`; an address of the underlay and a
    subnet a family, IPv4 first. `direct` is vxlan's DirectRouting: every peer is a neighbour."""

    def __init__(
        self,
        namespace: Namespace,
        pod: Namespace,
        backend: str,
        network: str,
        addresses: Sequence[str],
        subnets: Sequence[str],
        *,
        direct: bool = False,
    ) -> None:
        self._direct = direct
        self.namespace = namespace
        self.pod = pod
        self.backend = backend
        self.network = network
        self.addresses = tuple(addresses)
        self.subnets = tuple(map(ip_network, subnets))
        self.macs = {4: "86:f5:2a:00:00:04", 6: "86:f5:2a:00:00:06"}
        self._daemon: subprocess.Popen[str] | None = None

    @property
    def pod_ips(self) -> list[str]:
        return [str(subnet[2]) for subnet in self.subnets]

    @property
    def mtu(self) -> int:
        vxlan = 70 if any(one.version == 6 for one in self.subnets) else 50
        return 1500 - {"vxlan": vxlan, "host-gw": 0, "udp": 28}[self.backend]

    # What it publishes.

    @property
    def key(self) -> str:
        names = [f"{one.network_address}-{one.prefixlen}" for one in self.subnets]
        return "/coreos.com/network/subnets/" + "&".join(names)

    @property
    def value(self) -> str:
        value: dict[str, Any] = {"PublicIP": self.addresses[0], "PublicIPv6": None}
        if len(self.addresses) > 1:
            value["PublicIPv6"] = self.addresses[1]
        if self.backend != "udp":
            value["BackendType"] = self.backend
        if self.backend == "vxlan":
            for subnet, name in zip(self.subnets, ("BackendData", "BackendV6Data"), strict=False):
                value[name] = self._data(subnet.version)
        return _compact(value)

    @property
    def annotations(self) -> dict[str, str]:
        found = {
            "kube-subnet-manager": "true",
            "backend-type": "" if self.backend == "udp" else self.backend,
        }
        for subnet, address in zip(self.subnets, self.addresses, strict=True):
            v6 = "v6" if subnet.version == 6 else ""
            data = self._data(subnet.version) if self.backend == "vxlan" else None
            found[f"backend-{v6}-data" if v6 else "backend-data"] = _compact(data)
            found[f"public-ip{v6}"] = address
        return {f"{PREFIX}/{name}": value for name, value in found.items()}

    def _data(self, version: int) -> dict[str, Any]:
        return {"VNI": 1, "VtepMAC": self.macs[version]}

    # What it makes.

    def start(self) -> None:
        """Its devices, and what Flannel's CNI plugin makes of `subnet.env` for the pod."""
        if self.backend == "vxlan":
            self.make_vteps()
        if self.backend == "udp":
            self._start_daemon()
            base = self.subnets[0].network_address
            self.namespace.run(
                f"ip address add {base}/32 dev flannel0; ip link set flannel0 mtu {self.mtu} up;"
                f"ip route add {self.network} dev flannel0"
            )
        self.namespace.run(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1;"
            f"ip link add cni0 type bridge; ip link set cni0 mtu {self.mtu} up;"
            f"ip link add veth1 mtu {self.mtu} master cni0 type veth"
            f" peer name eth0 mtu {self.mtu} netns {self.pod.name};"
            "ip link set veth1 up"
        )
        self.pod.run("ip link set eth0 up")
        for subnet in self.subnets:
            flags = "nodad" if subnet.version == 6 else ""
            gateway, length = subnet[1], subnet.prefixlen
            self.namespace.run(f"ip address add {gateway}/{length} dev cni0 {flags}")
            self.pod.run(
                f"ip address add {subnet[2]}/{length} dev eth0 {flags};"
                f"ip route add default via {gateway}"
            )

    def make_vteps(self) -> None:
        """flannel.1 and flannel-v6.1, as they were just made: without any peer's entries."""
        for subnet, address in zip(self.subnets, self.addresses, strict=True):
            device, base = DEVICES[subnet.version], subnet.network_address
            self.namespace.run(
                f"ip link del {device} 2>/dev/null;"
                f"ip link add {device} mtu {self.mtu} address {self.macs[subnet.version]}"
                f" type vxlan id 1 local {address} dev eth0 dstport 8472 nolearning;"
                f"ip address add {base}/{subnet.max_prefixlen} dev {device};"
                f"ip link set {device} up"
            )

    def follow(self, peer: Seen) -> None:
        """Reach the pods of a peer."""
        # The udp backend looks at no type.
        assert self.backend in ("udp", peer.backend), peer
        assert len(peer.ways) == len(self.subnets), peer
        for way in peer.ways:
            if self.backend == "vxlan" and not self._direct:
                self._follow_vtep(way)
            elif self.backend != "udp":
                self.namespace.run(f"ip route replace {way.subnet} via {way.public_ip} dev eth0")
            else:
                assert self._daemon is not None and self._daemon.stdin is not None
                self._daemon.stdin.write(f"{way.subnet} {way.public_ip}\n")
                self._daemon.stdin.flush()

    def _follow_vtep(self, way: Way) -> None:
        assert way.vtep is not None and way.vtep.VNI == 1, way
        assert _MAC.fullmatch(way.vtep.VtepMAC), way
        device, base, mac = (
            DEVICES[way.subnet.version],
            way.subnet.network_address,
            way.vtep.VtepMAC,
        )
        self.namespace.run(
            f"ip neighbor replace {base} lladdr {mac} dev {device} nud permanent;"
            f"bridge fdb replace {mac} dev {device} dst {way.public_ip};"
            f"ip route replace {way.subnet} via {base} dev {device} onlink"
        )

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.communicate()

    def _start_daemon(self) -> None:
        script = Path(__file__).with_name("flannel_udp.py")
        self._daemon = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.namespace.name),
                *(sys.executable, str(script), "flannel0", self.addresses[0], "8285"),
                str(self.mtu),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._daemon.stdout is not None
        assert self._daemon.stdout.readline() == "up\n"


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


@contextmanager
def started(node: FlannelNode) -> Iterator[FlannelNode]:
    """The node, with its devices; its daemon ends with the block."""
    try:
        node.start()
        yield node
    finally:
        node.close()
