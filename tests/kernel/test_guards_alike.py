"""Both kinds of guards, of both wirings, count the same frames as the same: real ones, from a pod.

The plans are those of the agent; what they make is made here by hand.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

import pytest
from msgspec import structs

from podwire.kernel.reconcile import Reconciler
from podwire.model.cluster import Attachment
from podwire.model.fabric import Guard
from podwire.model.state import Desired, Link, Veth, Why, link_local
from podwire.plan import spoofing
from podwire.plan.node import plan_tables
from tests.conftest import Namespace
from tests.e2e.waiting import until
from tests.plan.fabrics import attachment, config

pytestmark = pytest.mark.root

PORT, NODE_MAC = "veth1", bytes.fromhex("020000000001")
WHY = Why("Pod/default/a", "is tried out")
#: How the pod's port is wired, with its own address and what is behind.
WIRED = {
    "flannel-vxlan": "ip link add cni0 address 02:00:00:00:00:01 type bridge && ip link set cni0 up"
    f" && ip address add 10.244.1.1/24 dev cni0 && ip link set {PORT} master cni0",
    "calico": f"ip link set {PORT} address 02:00:00:00:00:01 && ip route add 172.31.1.70 dev {PORT}"
    f" && ip route add fd00:172:31:1::70 dev {PORT} && ip address add fe80::1/64 dev {PORT} nodad",
}
OWN = {
    "flannel-vxlan": ("10.244.1.5", "fd00:10:244:1::5"),
    "calico": ("172.31.1.70", "fd00:172:31:1::70"),
}


def frames(of: Attachment, *, routed: bool) -> Iterator[bytes]:
    """One of each kind."""
    mac, own = of.mac, [one.ip for one in of.ips]
    on_link, nobody4, nobody6 = link_local(mac), ip_address("0.0.0.0"), ip_address("::")  # noqa: S104
    for source4 in (own[0], nobody4, own[0] + 1):
        yield ethernet(mac, 0x800, ipv4(source4.packed))
        sender = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + mac + source4.packed
        yield ethernet(mac, 0x806, sender + bytes(10))
    for source6 in (own[1], on_link, nobody6, own[1] + 1):
        for upper, kind in ((17, 0), (58, 128), (58, 134), (58, 137)):
            if routed and source6 == own[1] + 1 and kind > 128:
                continue  # It is both, and either counts it as what it sees first.
            message = bytes([kind]) + bytes(23)
            yield ethernet(mac, 0x86DD, ipv6(source6.packed, upper, message))
            options = bytes([upper, 0, 1, 4, 0, 0, 0, 0])
            yield ethernet(mac, 0x86DD, ipv6(source6.packed, 0, options + message))
    for target in (on_link, own[1], own[1] + 1):
        message = b"\x88" + bytes(7) + target.packed
        yield ethernet(mac, 0x86DD, ipv6(on_link.packed, 58, message))
    for strange in (bytes.fromhex("020000000099"), mac):
        yield ethernet(strange, 0x800, ipv4(own[0].packed))
        yield ethernet(strange, 0x88B5, bytes(40))


def ethernet(sender: bytes, kind: int, body: bytes) -> bytes:
    return b"".join((NODE_MAC, sender, kind.to_bytes(2, "big"), body))


def ipv4(source: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0, source, b"\x0a\xf4\x01\x01")
    total = sum(struct.unpack("!10H", head))
    checksum: int = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + checksum.to_bytes(2, "big") + head[12:] + bytes(8)


def ipv6(source: bytes, following: int, body: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(body), following, 255)
    return b"".join((head, source, ip_address("ff02::1").packed, body))


def counted(reconciler: Reconciler, guard: Guard) -> Mapping[str, int]:
    if guard == "ebpf":
        return reconciler.guards.counts()
    found = reconciler.counters()
    names = ("spoofed_ip", "spoofed_arp", "spoofed_nd", "spoofed_ra", "other_frames")
    return {name: sum(n for (_, _, one), (n, _) in found.items() if one == name) for name in names}


@pytest.mark.parametrize("profile", WIRED)
def test_they_count_alike(inside: Namespace, profile: str) -> None:
    of = config(profile, (4, 6))
    pod = structs.replace(attachment(of, *OWN[profile]), host_ifname=PORT)
    inside.run(
        f"ip link add {PORT} group 7077 type veth peer name pod1 && ip link set {PORT} up"
        f" && ip link set pod1 up && {WIRED[profile]} && sysctl -qw net.ipv4.ip_forward=1"
        " net.ipv6.conf.all.forwarding=1 net.ipv6.conf.pod1.disable_ipv6=1"
    )
    # A bridge looks at what enters by a port from when that forwards.
    state = f"cat /sys/class/net/{PORT}/brport/state 2>/dev/null || echo 3"
    until(lambda: inside.run(state).strip() == "3", "the port forwards")
    master = "cni0" if profile == "flannel-vxlan" else None
    link = Link(name=PORT, kind=Veth(peer="pod1", peer_mac=pod.mac), master=master, why=WHY)
    verdicts: dict[Guard, list[tuple[str, ...]]] = {}
    guards: tuple[Guard, ...] = ("nftables", "ebpf")
    for guard in guards:
        planned = structs.replace(of, guard=guard)
        reconciler = Reconciler()
        try:
            entries = (link, *spoofing.plan_attachment(planned, pod))
            tables = plan_tables(planned)
            reconciler.replace(Desired({"Node/node1": tables, "Attachment/1": entries}))
            assert reconciler.reconcile().failures == []
            verdicts[guard] = []
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind(("pod1", 0))
                before = counted(reconciler, guard)
                for frame in frames(pod, routed=profile == "calico"):
                    sock.send(frame)
                    now = counted(reconciler, guard)
                    verdicts[guard].append(tuple(k for k in now if now[k] > before[k]))
                    before = now
        finally:
            reconciler.close()
    assert verdicts["ebpf"] == verdicts["nftables"]
