"""Pods' interfaces as they stand, for who has lost what was written down about them.

What lives here: both ends of veth pairs as the kernel has them. What does not: whose they are and
what of it is to be believed (`podwire.cni.recovery`).

How it works. A host end says which namespace its far end is in, as a number that this namespace
knows the other one by, and links and addresses there can be asked for by that number
(IFLA_TARGET_NETNSID, IFA_TARGET_NETNSID; Linux 4.20): no namespace has to be entered, or even be
found. Its path is looked for where container engines keep them.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path

import msgspec

from podwire.errors import KernelError
from podwire.kernel import link_messages, messages
from podwire.kernel.netlink import NetlinkSocket, attr, attr_u32, parse_attrs
from podwire.kernel.netns import open_netns
from podwire.model.state import LINK_GROUP, IPAddress

_IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID, _IFA_TARGET_NETNSID = 37, 46, 10
_RTM_GETNSID = 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_IFINFO_BYTES = 16
_RTGENMSG = struct.Struct("=Bxxx")
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_I32 = struct.Struct("=i")

#: Where namespaces have names: of ip-netns(8), containerd, CRI-O and Podman; of Docker.
_NAMED = (Path("/run/netns"), Path("/run/docker/netns"))


class PodPort(msgspec.Struct, frozen=True):
    """A pod's veth pair: the host end first, then what is inside of the pod.

    `master` is the index of the bridge that it is a port of, 0 for none. `ips` are the pod's
    global addresses, those that were there first in front; `netns` is a path, empty where none was
    found.
    """

    name: str
    alias: str
    mtu: int
    master: int
    ifname: str
    mac: bytes
    ips: tuple[IPAddress, ...]
    netns: str


def pod_ports(sock: NetlinkSocket, names: Collection[str]) -> list[PodPort]:
    """The pairs with these host ends, less those that are not ours or go just now."""
    found = []
    paths: dict[int, str] | None = None
    for body in sock.dump(messages.RTM_GETLINK, link_messages.get_links()):
        link = link_messages.parse_link(body)
        attrs = parse_attrs(body, _IFINFO_BYTES)
        if link.name not in names or link.group != LINK_GROUP or _IFLA_LINK_NETNSID not in attrs:
            continue
        number = _I32.unpack(attrs[_IFLA_LINK_NETNSID])[0]
        peer = _I32.unpack(attrs[link_messages.IFLA_LINK])[0]
        if paths is None:
            paths = _paths(sock)
        try:
            inside = _link_there(sock, peer, number)
            ips = _addresses_there(sock, peer, number)
        except KernelError:
            continue  # Its namespace has died meanwhile.
        if inside is not None:
            found.append(
                PodPort(
                    name=link.name,
                    alias=link.alias,
                    mtu=link.mtu,
                    master=link.master,
                    ifname=inside.name,
                    mac=inside.mac,
                    ips=ips,
                    netns=paths.get(number, ""),
                )
            )
    return found


def _link_there(sock: NetlinkSocket, index: int, number: int) -> link_messages.LinkState | None:
    question = link_messages.get_link(index) + attr_u32(_IFLA_TARGET_NETNSID, number)
    answer = sock.get(messages.RTM_GETLINK, question)
    return link_messages.parse_link(answer) if answer is not None else None


def _addresses_there(sock: NetlinkSocket, index: int, number: int) -> tuple[IPAddress, ...]:
    found: list[IPAddress] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        question = _IFADDR.pack(family, 0, 0, 0, index) + attr_u32(_IFA_TARGET_NETNSID, number)
        ips = []
        for body in sock.dump(messages.RTM_GETADDR, question):
            key, scope = messages.parse_address(body)
            permanent = messages.address_flags(body) & messages.IFA_F_PERMANENT
            if key.ifindex == index and scope == messages.RT_SCOPE_UNIVERSE and permanent:
                ips.append(ip_address(key.ip))
        # The kernel puts a further address of IPv6 in front of those of the same scope.
        found += ips if family == socket.AF_INET else reversed(ips)
    return tuple(found)


def _paths(sock: NetlinkSocket) -> dict[int, str]:
    """The paths of namespaces that have names, by the numbers that this namespace has for them."""
    found = {}
    for directory in _NAMED:
        try:
            files = sorted(directory.iterdir())
        except OSError:
            continue
        for path in files:
            try:
                fd = open_netns(path)
            except KernelError:
                continue
            try:
                question = _RTGENMSG.pack(socket.AF_UNSPEC) + attr(_NETNSA_FD, _I32.pack(fd))
                answer = sock.get(_RTM_GETNSID, question)
            finally:
                os.close(fd)
            if answer is not None:
                number = parse_attrs(answer, _RTGENMSG.size).get(_NETNSA_NSID)
                if number is not None:
                    found[_I32.unpack(number)[0]] = str(path)
    return found
