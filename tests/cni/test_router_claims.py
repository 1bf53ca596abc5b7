"""A pod that nobody guards, and that says it is an IPv6 router: its node does not believe it."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from podwire.kernel import netns

from ..e2e.waiting import until

if TYPE_CHECKING:
    from tests.cni.conftest import Node

FREE = json.dumps({"default/free": {"podwire.io/anti-spoofing": "off"}})
ARGS = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=free"
#: A default router for half an hour (RFC 4861, section 4.2); the kernel adds the checksum.
ROUTER = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
EVERYBODY = "ff02::1"


def claims(pod: str) -> bool:
    """Whether it has said so: it can once its link-local address is no more tentative."""
    fd = netns.open_netns(pod)
    try:
        with netns.entered(fd):
            sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            index = socket.if_nametoindex("eth0")
    finally:
        os.close(fd)
    with sender, suppress(OSError):
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        return sender.sendto(ROUTER, (EVERYBODY, 0, 0, index)) == len(ROUTER)
    return False


@pytest.mark.root
@pytest.mark.parametrize("flags", [(), ("--fabric=routed",)], ids=["bridge", "routed"])
def test_a_node_takes_no_pod_for_its_router(
    make_node: Callable[..., Node], pod: str, flags: tuple[str, ...]
) -> None:
    node = make_node("10.244.1.0/24", "--annotations", FREE, *flags)
    result = node.add("c1", pod, args=ARGS)

    def on_node(*command: str) -> str:
        entered = ["ip", "netns", "exec", node.netns, *command]
        return subprocess.run(entered, check=True, capture_output=True, text=True).stdout

    def believed() -> bool:
        assert claims(pod)
        return "proto ra" in on_node("ip", "-6", "route", "show", "default")

    until(lambda: claims(pod), "it says so")
    assert not believed()
    # It is not for anything else about it.
    dev = "cni0" if not flags else result["interfaces"][0]["name"]
    on_node("sysctl", "-qw", f"net.ipv6.conf.{dev}.accept_ra=1")
    until(believed, "its node believes it")
