"""What is not a sender's own to send is dropped, and counted where a person sees it.

Real packets, made byte by byte: from pods, from a node, and from a machine that is no node. A pod
on another node listens. What arrives there after each of them is a genuine packet, and nothing
else, which takes no waiting for what does not come.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from subprocess import Popen

import pytest

from podwire.lab import Lab, LabNode, LabPod
from podwire.model.state import link_local

from ..tunnel.packets import Packet
from .commands import Command
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

PORT, TUNNEL_PORT, VXLAN_PORT = 4242, 8285, 8472
UDP = 17
#: RFC 4861, sections 4.2, 4.4 and 4.5.
ROUTER_ADVERT, NEIGHBOR_ADVERT, REDIRECT = 134, 136, 137
REASONS = (
    *("spoofed_ip", "spoofed_arp", "spoofed_nd", "spoofed_ra"),
    *("not_a_peer", "foreign_source", "vxlan_stranger"),
)
#: Prints what comes, a line each.
LISTEN = """
import socket, sys
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind(("", int(sys.argv[1])))
print("listening", flush=True)
while True:
    print(listener.recv(2048).decode(), flush=True)
"""
#: A whole IP packet, as it is.
SEND_PACKET = """
import socket, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 0))
"""
SEND_FRAME = """
import socket, sys
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
raw.send(bytes.fromhex(sys.argv[1]))
"""
SEND_DATAGRAM = """
import socket, sys
datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagram.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], int(sys.argv[3])))
"""


def packet(source: str, target: str, text: str) -> bytes:
    """UDP in IPv4 to the listener."""
    return Packet(
        protocol=UDP,
        payload=text.encode(),
        source=ip_address(source).packed,
        target=ip_address(target).packed,
        dport=PORT,
    ).data()


def tunneled(source: str, target: str, inner: bytes) -> bytes:
    """What the tunnel of `source` would send."""
    return Packet(
        protocol=UDP,
        payload=inner,
        source=ip_address(source).packed,
        target=ip_address(target).packed,
        sport=TUNNEL_PORT,
        dport=TUNNEL_PORT,
    ).data()


def arp_reply(mac: bytes, ip: str, to: str) -> bytes:
    """A frame for all: `ip` has this MAC (RFC 826)."""
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2)
    body = head + mac + ip_address(ip).packed + b"\xff" * 6 + ip_address(to).packed
    return b"\xff" * 6 + mac + b"\x08\x06" + body


def discovery(mac: bytes, kind: int, target: bytes) -> bytes:
    """A frame for all nodes with a message of neighbour discovery; its checksum is left out."""
    message = struct.pack("!BBHI", kind, 0, 0, 0) + target
    head = struct.pack("!IHBB", 6 << 28, len(message), 58, 255)
    ips = link_local(mac).packed + ip_address("ff02::1").packed
    return bytes.fromhex("333300000001") + mac + b"\x86\xdd" + head + ips + message


def datagram_of_nobody(mac: bytes) -> bytes:
    """A frame for all nodes with an empty UDP datagram from `::`."""
    datagram = struct.pack("!HHHH", PORT, PORT, 8, 0)
    head = struct.pack("!IHBB", 6 << 28, len(datagram), UDP, 64)
    ips = bytes(16) + ip_address("ff02::1").packed
    return bytes.fromhex("333300000001") + mac + b"\x86\xdd" + head + ips + datagram


def vxlan(frame_to: bytes, inner: bytes) -> bytes:
    """RFC 7348, of VNI 1."""
    return bytes.fromhex("0800000000000100") + frame_to + bytes.fromhex("02aabbccddee0800") + inner


@dataclass
class Scene:
    """Pod `pod` and `free`, which may spoof, on node1; `there` on node2 listens."""

    lab: Lab
    pod: LabPod
    free: LabPod
    there: LabPod
    listener: Popen[str]

    def drops(self, node: str) -> Mapping[str, int]:
        """What a node's status has of it."""
        document = json.loads(Command(self.lab.name).run("status", "-o", "json").stdout)
        (found,) = (one for one in document["nodes"] if one["node"] == node)
        counts = {drop["reason"]: drop["packets"] for drop in found["drops"]}
        return {reason: counts[reason] for reason in REASONS}

    def arrived(self) -> str:
        assert self.listener.stdout is not None
        return self.listener.stdout.readline().strip()

    def stranger(self, data: bytes, port: int) -> None:
        """A datagram to node2 of one that is on the underlay, and no node."""
        netns = f"--net=/run/netns/{self.lab.info.underlay}"
        enter = ["nsenter", netns, sys.executable, "-c", SEND_DATAGRAM]
        with Popen([*enter, data.hex(), self.lab.node("node2").ip, str(port)]) as process:
            assert process.wait(60) == 0


def send(place: LabPod | LabNode, script: str, *arguments: str) -> None:
    place.exec([sys.executable, "-c", script, *arguments], check=True)


def mac_of(place: LabPod | LabNode, dev: str) -> bytes:
    found = place.exec(["cat", f"/sys/class/net/{dev}/address"], check=True).stdout
    return bytes.fromhex(found.strip().replace(":", ""))


@contextmanager
def listening(pod: LabPod, port: int = PORT) -> Iterator[Popen[str]]:
    with pod.popen([sys.executable, "-c", LISTEN, str(port)]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def scene(make_lab: Callable[..., Lab]) -> Iterator[Scene]:
    # Both tunnels are there, whichever is used.
    lab = make_lab(2, transport="auto")
    pod, there = lab.run("pod", node="node1"), lab.run("there", node="node2")
    off = {"podwire.io/anti-spoofing": "off"}
    free = lab.run("free", node="node1", annotations=off)
    lab.wait_ready()
    with listening(there) as listener:
        yield Scene(lab, pod, free, there, listener)


def test_what_is_forged_is_dropped_and_counted(scene: Scene) -> None:
    lab, pod, there = scene.lab, scene.pod, scene.there
    spoofed = "10.244.1.99"

    def only_the_genuine_arrives(node: str, reason: str, forge: Callable[[], None]) -> None:
        before = scene.drops(node)
        forge()
        send(pod, SEND_PACKET, packet(pod.ip, there.ip, f"after {reason}").hex(), there.ip)
        assert scene.arrived() == f"after {reason}"
        # The tunnel, a process of its own, may come to it later than the kernel to the other one.
        until(lambda: scene.drops(node)[reason] > before[reason], f"{reason} is counted")
        assert scene.drops(node) == {**before, reason: before[reason] + 1}

    # A pod with another's address, and with another's ARP.
    forged = packet(spoofed, there.ip, "spoofed")
    only_the_genuine_arrives(
        "node1", "spoofed_ip", lambda: send(pod, SEND_PACKET, forged.hex(), there.ip)
    )
    claim = arp_reply(mac_of(pod, "eth0"), scene.free.ip, "10.244.1.1")
    only_the_genuine_arrives("node1", "spoofed_arp", lambda: send(pod, SEND_FRAME, claim.hex()))
    # A datagram of nobody.
    nobody = datagram_of_nobody(mac_of(pod, "eth0")).hex()
    only_the_genuine_arrives("node1", "spoofed_ip", lambda: send(pod, SEND_FRAME, nobody))
    # A pod that says it is another one, or a router: a node and pods would believe it.
    mac = mac_of(pod, "eth0")
    for kind, target, reason in (
        (NEIGHBOR_ADVERT, link_local(mac_of(scene.free, "eth0")).packed, "spoofed_nd"),
        (ROUTER_ADVERT, b"", "spoofed_ra"),
        (REDIRECT, bytes(32), "spoofed_ra"),
    ):
        frame = discovery(mac, kind, target).hex()
        only_the_genuine_arrives("node1", reason, lambda frame=frame: send(pod, SEND_FRAME, frame))  # type: ignore[misc]
    # A bare packet for the UDP tunnel: from no node, and from a node that has no such pods.
    bare = packet(pod.ip, there.ip, "forged")
    only_the_genuine_arrives("node2", "not_a_peer", lambda: scene.stranger(bare, TUNNEL_PORT))
    node1, node2 = lab.node("node1"), lab.node("node2")
    inner = packet("10.244.7.7", there.ip, "foreign")
    foreign = tunneled(node1.ip, node2.ip, inner).hex()
    only_the_genuine_arrives(
        "node2", "foreign_source", lambda: send(node1, SEND_PACKET, foreign, node2.ip)
    )
    # VXLAN that is right in all but who sends it.
    wrapped = vxlan(mac_of(node2, "flannel.1"), bare)
    only_the_genuine_arrives("node2", "vxlan_stranger", lambda: scene.stranger(wrapped, VXLAN_PORT))
    # The same bytes from a node pass, so it was not for anything else about them.
    send(node1, SEND_DATAGRAM, wrapped.hex(), node2.ip, str(VXLAN_PORT))
    assert scene.arrived() == "forged"
    # Between pods that port is theirs.
    with listening(there, VXLAN_PORT) as listener:
        send(pod, SEND_DATAGRAM, b"of a pod".hex(), there.ip, str(VXLAN_PORT))
        assert listener.stdout is not None
        assert listener.stdout.readline() == "of a pod\n"
    # What passes at its port is explained.
    alias = "ip -o link | grep 'podwire pod default/pod ' | cut -d: -f2 | cut -d@ -f1"
    port = node1.exec(["sh", "-c", alias], check=True).stdout.strip()
    explained = Command(lab.name).ok("explain", "link", port, "--node", "node1")
    assert f"passes what comes from {pod.ip}" in explained
    # Nobody looks at a pod whose annotation says so.
    allowed = packet(spoofed, there.ip, "allowed")
    send(scene.free, SEND_PACKET, allowed.hex(), there.ip)
    assert scene.arrived() == "allowed"
    text = Command(lab.name).ok("status")
    for meaning in (
        "packets from a pod with a source not its own (spoofed_ip)",
        "ARP from a pod about an address not its own (spoofed_arp)",
        "the datagram came from an address that holds no lease (not_a_peer)",
        "VXLAN packets from an address that was no known node's (vxlan_stranger)",
    ):
        assert re.search(rf"dropped \d+: {re.escape(meaning)}", text), text
