"""The data path of flanneld's udp backend, small and slow: what a node of Flannel is in the tests.

`python flannel_udp.py DEVICE ADDRESS PORT MTU`, in the node's network namespace; a line `SUBNET IP`
on standard input is a peer's lease. It says `up` when the device is there.

    flannel0 ──▶ TTL − 1 ──▶ the packet, bare, to port 8285 of the node that has the lease
    port 8285 ──▶ TTL − 1 ──▶ flannel0          of whoever sends, as flanneld does

Written from the description of the format, for IPv4 alone; nothing but its own tests use it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv4Network
from typing import Any

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001


def one_hop_less(packet: bytearray) -> bool:
    """Decrement the TTL and mend the header's checksum (RFC 1624); whether it may go on."""
    if packet[0] >> 4 != 4 or packet[8] <= 1:
        return False
    packet[8] -= 1
    (check,) = struct.unpack_from("!H", packet, 10)
    check += 0x0100
    struct.pack_into("!H", packet, 10, (check & 0xFFFF) + (check >> 16))
    return True


def main(device: str, address: str, port: int, mtu: int) -> None:
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH14x", device.encode(), _IFF_TUN_NO_PI))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    leases: dict[IPv4Network, str] = {}
    print("up", flush=True)
    while True:
        waited_for: list[Any] = [0, tun, sock]
        readable, _, _ = select.select(waited_for, [], [])
        if 0 in readable:
            line = sys.stdin.readline()
            if not line:
                return
            subnet, _, ip = line.strip().partition(" ")
            leases[IPv4Network(subnet)] = ip
        if tun in readable:
            packet = bytearray(os.read(tun, mtu))
            target = IPv4Address(bytes(packet[16:20]))
            ip = next((ip for subnet, ip in leases.items() if target in subnet), "")
            if ip and one_hop_less(packet):
                sock.sendto(packet, (ip, port))
        if sock in readable:
            # What is longer is cut off.
            packet = bytearray(sock.recv(mtu))
            if one_hop_less(packet):
                os.write(tun, packet)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
