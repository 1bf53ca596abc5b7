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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ..conftest import Namespace

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


class Seen(msgspec.Struct, frozen=True):
    """A peer's lease as flanneld uses it."""

    subnet: IPv4Network
    public_ip: IPv4Address
    backend: str
    vtep: Vtep | None


def read_key(key: str, value: str) -> Seen:
    """A lease in etcd."""
    match = _KEY.search(key)
    assert match is not None, key
    attrs = msgspec.json.decode(value, type=Attrs)
    subnet = IPv4Network(f"{match[1]}/{match[2]}")
    return Seen(subnet, IPv4Address(attrs.PublicIP), attrs.BackendType, attrs.BackendData)


def read_node(node: Mapping[str, Any]) -> Seen | None:
    """A lease on a Node object; None as long as it has none."""
    found = node["metadata"].get("annotations", {})
    if found.get(f"{PREFIX}/kube-subnet-manager") != "true":
        return None
    return Seen(
        IPv4Network(node["spec"]["podCIDR"]),
        IPv4Address(found[f"{PREFIX}/public-ip"]),
        found[f"{PREFIX}/backend-type"],
        msgspec.json.decode(found[f"{PREFIX}/backend-data"], type=Vtep | None),
    )


class FlannelNode:
    """In `namespace`, whose underlay is eth0 with `address`, and a pod in `pod`."""

    def __init__(
        self,
        namespace: Namespace,
        pod: Namespace,
        address: str,
        network: str,
        subnet: str,
        backend: str,
    ) -> None:
        self.namespace = namespace
        self.pod = pod
        self.address = address
        self.network = IPv4Network(network)
        self.subnet = IPv4Network(subnet)
        self.backend = backend
        self.mac = "86:f5:2a:00:00:02"
        self._daemon: subprocess.Popen[str] | None = None

    @property
    def pod_ip(self) -> str:
        return str(self.subnet[2])

    @property
    def mtu(self) -> int:
        return 1500 - {"vxlan": 50, "host-gw": 0, "udp": 28}[self.backend]

    # What it publishes.

    @property
    def key(self) -> str:
        return f"/coreos.com/network/subnets/{self.subnet.network_address}-{self.subnet.prefixlen}"

    @property
    def value(self) -> str:
        value: dict[str, Any] = {"PublicIP": self.address, "PublicIPv6": None}
        if self.backend != "udp":
            value["BackendType"] = self.backend
        if self.backend == "vxlan":
            value["BackendData"] = {"VNI": 1, "VtepMAC": self.mac}
        return json.dumps(value, separators=(",", ":"))

    @property
    def annotations(self) -> dict[str, str]:
        data = {"VNI": 1, "VtepMAC": self.mac} if self.backend == "vxlan" else None
        return {
            f"{PREFIX}/kube-subnet-manager": "true",
            f"{PREFIX}/backend-type": "" if self.backend == "udp" else self.backend,
            f"{PREFIX}/backend-data": json.dumps(data, separators=(",", ":")),
            f"{PREFIX}/public-ip": self.address,
        }

    # What it makes.

    def start(self) -> None:
        """Its devices, and what Flannel's CNI plugin makes of `subnet.env` for the pod."""
        base, gateway = self.subnet.network_address, self.subnet[1]
        length = self.subnet.prefixlen
        if self.backend == "vxlan":
            self.make_vtep()
        if self.backend == "udp":
            self._start_daemon()
            self.namespace.run(
                f"ip address add {base}/32 dev flannel0; ip link set flannel0 mtu {self.mtu} up;"
                f"ip route add {self.network} dev flannel0"
            )
        self.namespace.run(
            "sysctl -qw net.ipv4.ip_forward=1;"
            f"ip link add cni0 type bridge; ip address add {gateway}/{length} dev cni0;"
            f"ip link set cni0 mtu {self.mtu} up;"
            f"ip link add veth1 mtu {self.mtu} master cni0 type veth"
            f" peer name eth0 mtu {self.mtu} netns {self.pod.name};"
            "ip link set veth1 up"
        )
        self.pod.run(
            f"ip address add {self.pod_ip}/{length} dev eth0; ip link set eth0 up;"
            f"ip route add default via {gateway}"
        )

    def make_vtep(self) -> None:
        """flannel.1, as it was just made: without any peer's entries."""
        self.namespace.run(
            "ip link del flannel.1 2>/dev/null;"
            f"ip link add flannel.1 mtu {self.mtu} address {self.mac} type vxlan id 1"
            f" local {self.address} dev eth0 dstport 8472 nolearning;"
            f"ip address add {self.subnet.network_address}/32 dev flannel.1;"
            "ip link set flannel.1 up"
        )

    def follow(self, peer: Seen) -> None:
        """Reach the pods of a peer."""
        base = peer.subnet.network_address
        if self.backend == "vxlan":
            assert peer.backend == "vxlan" and peer.vtep is not None and peer.vtep.VNI == 1, peer
            assert _MAC.fullmatch(peer.vtep.VtepMAC), peer
            mac = peer.vtep.VtepMAC
            self.namespace.run(
                f"ip neighbor replace {base} lladdr {mac} dev flannel.1 nud permanent;"
                f"bridge fdb replace {mac} dev flannel.1 dst {peer.public_ip};"
                f"ip route replace {peer.subnet} via {base} dev flannel.1 onlink"
            )
        elif self.backend == "host-gw":
            assert peer.backend == "host-gw", peer
            self.namespace.run(f"ip route replace {peer.subnet} via {peer.public_ip} dev eth0")
        else:
            # It looks at no type.
            assert self._daemon is not None and self._daemon.stdin is not None
            self._daemon.stdin.write(f"{peer.subnet} {peer.public_ip}\n")
            self._daemon.stdin.flush()

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.communicate()

    def _start_daemon(self) -> None:
        script = Path(__file__).with_name("flannel_udp.py")
        self._daemon = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.namespace.name),
                *(sys.executable, str(script), "flannel0", self.address, "8285"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._daemon.stdout is not None
        assert self._daemon.stdout.readline() == "up\n"


@contextmanager
def started(node: FlannelNode) -> Iterator[FlannelNode]:
    """The node, with its devices; its daemon ends with the block."""
    try:
        node.start()
        yield node
    finally:
        node.close()
