"""Who has this address (ARP, RFC 826; neighbour solicitation, RFC 4861), in one segment of nodes.

What lives here: what crosses the VXLAN of a pod's node when the pod asks. Nothing for a pod that
the node knows; a copy to each peer for what nobody knows.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from .capture import Capture, Encapsulated, Packet
from .echoes import Echoes
from .looks import Seen
from .places import Place

#: As for pings: nodes have much else to do.
_PATIENCE_S = 60.0
_ARP, _REQUEST = b"\x08\x06", b"\x00\x01"
_ICMPV6, _SOLICITATION = 58, 135


def carried(seen: Seen, echoes: Echoes, pod: Place) -> list[str]:
    """What is carried of a pod's questions, and should not be; or the other way round."""
    (node,) = (one for one in seen.nodes if one.name == pod.node)
    ((over, dev),) = seen.look.vxlan_devs.items()
    ends = {peer.ip(over) for peer in seen.nodes if peer != node}
    problems = []
    with Capture(node.namespace, dev) as segment, Capture(node.namespace, "eth0") as underlay:
        known = [ip for one in seen.pods if one.node != pod.node for ip in one.ips]
        with pod.entered():
            subprocess.run(["ip", "neighbor", "flush", "dev", "eth0"], check=True)
        answers = echoes.ask([(pod, ip) for ip in known], patience_s=_PATIENCE_S)
        problems += [f"no reply to {key}: {one}" for key, one in answers.items() if not one.replied]
        crossed = {ip for frame in segment.frames() for ip in asked_for(frame)}
        problems += [f"a question for {ip} crosses {dev}" for ip in crossed & {*known}]
        for own in pod.ips:
            reached: set[str] = set()
            nobody = _nobody(seen, own)
            deadline = time.monotonic() + _PATIENCE_S
            while reached != ends and time.monotonic() < deadline:
                echoes.ask([(pod, nobody)], patience_s=0.2)
                reached |= _reached(underlay, nobody)
            if reached != ends:
                problems.append(f"a question for {nobody} goes to {reached}, not to {ends}")
    return problems


def _reached(underlay: Capture, ip: str) -> set[str]:
    """Ends of the tunnels in which a question for the address has gone since the last call."""
    inside = (Encapsulated.of_packet(packet) for packet in underlay.packets())
    return {one.outer.target for one in inside if one is not None and ip in asked_for(one.frame)}


def asked_for(frame: bytes) -> Iterator[str]:
    """The address whose owner an Ethernet frame asks for, if it does."""
    if frame[12:14] == _ARP and frame[20:22] == _REQUEST:
        yield str(ip_address(frame[38:42]))
    packet = Packet.of_frame(frame)
    if packet is not None and packet.protocol == _ICMPV6 and packet.payload[0] == _SOLICITATION:
        yield str(ip_address(packet.payload[8:24]))


def _nobody(seen: Seen, ip: str) -> str:
    """The last usable address of a pod's network: given to none in so small a lab."""
    length = seen.look.prefix_len[ip_address(ip).version]
    network = ip_network(f"{ip}/{length}", strict=False)
    return str(network.broadcast_address - 1)
